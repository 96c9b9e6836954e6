"""What the doctor finds of engines and the gateway, with one thing broken at a time, and of a whole cluster."""

import time
from typing import Any

import pytest

from agentserve.doctor.engines import Target, check_engine
from agentserve.doctor.examination import examine
from agentserve.doctor.finding import Finding, Verdict
from agentserve.doctor.gateway import check_gateway, compare
from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.inprocess import running
from agentserve.local.redis import RedisServer
from agentserve.settings import Settings
from agentserve.telemetry.messages import Announce
from scheduler.events import Role
from scheduler.profiles import ProfileBook
from tests.integration.doctor_parts import TIMEOUT_S, announce, one, silent_server, verdicts
from tests.integration.gateway_parts import gateway
from tests.integration.tracker_servers import server
from tests.integration.worker_parts import HOST, MODEL, FakeEngine

__all__ = ["server"]


async def looked_at(engine: FakeEngine, told: Announce | None = None, **options: Any) -> list[Finding]:
    target = {"name": "w", "url": engine.url, "gpu": "h100", "model": MODEL, "announce": told} | options
    async with engine:
        return await check_engine(Target(**target), ProfileBook(), None, TIMEOUT_S)


def as_it_is(**facts: Any) -> Announce:
    """What a worker would announce of a FakeEngine."""
    same: dict[str, Any] = {
        "engine_version": "0.32.0", "kv_capacity_tokens": 32_000, "block_tokens": 32, "supports_priority": True
    }  # fmt: skip
    return announce().model_copy(update=same | facts)


async def test_an_engine_that_is_as_announced_is_well() -> None:
    found = await looked_at(FakeEngine(), as_it_is())
    assert {finding.verdict for finding in found} == {Verdict.OK}
    assert set(verdicts(found)) == {"reachable", "announced", "priorities", "KV connector", "GPU profile"}


async def test_priorities_that_are_off_are_warned_of_with_the_flag() -> None:
    found = one(await looked_at(FakeEngine(has_priority=False)), "priorities")
    assert (found.verdict, found.fix) == (Verdict.WARNING, "start it with --scheduling-policy priority")


@pytest.mark.parametrize(
    ("engine", "facts", "verdict", "words"),
    [
        ({"has_priority": False}, {}, "problem", "claims priorities"),
        ({"has_token_ids": False}, {}, "problem", "claims token ids"),
        ({}, {"kv_group": "g"}, "problem", "claims KV transfer"),
        ({}, {"supports_priority": False}, "warning", "does not tell that it has priorities"),
        ({"has_kv_transfer": True}, {}, "warning", "does not tell that it has KV transfer"),
        ({}, {"kv_capacity_tokens": 9_000}, "warning", "KV tokens 9000, found 32000"),
        ({"version": "0.40.0"}, {}, "warning", "version 0.32.0, found 0.40.0"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
async def test_what_a_worker_announces_is_held_against_the_engine(
    engine: dict[str, Any], facts: dict[str, Any], verdict: str, words: str
) -> None:
    found = one(await looked_at(FakeEngine(**engine), as_it_is(**facts)), "announced")
    assert str(found.verdict) == verdict
    assert words in found.found


async def test_an_engine_for_one_phase_needs_a_kv_connector() -> None:
    found = one(await looked_at(FakeEngine(), as_it_is(role=Role.PREFILL)), "KV connector")
    assert found.verdict is Verdict.PROBLEM
    assert found.fix is not None
    assert "NixlConnector" in found.fix
    assert one(await looked_at(FakeEngine(), as_it_is()), "KV connector").verdict is Verdict.OK


async def test_a_gpu_without_a_profile_is_a_problem() -> None:
    found = one(await looked_at(FakeEngine(), gpu="abacus"), "GPU profile")
    assert found.verdict is Verdict.PROBLEM
    assert found.fix is not None
    assert "agentserve profile http" in found.fix


async def test_another_model_is_a_problem() -> None:
    (found,) = await looked_at(FakeEngine(models=["other"]))
    assert (found.check, found.verdict) == ("usable", Verdict.PROBLEM)
    assert "other" in found.found


async def test_no_engine_and_one_that_hangs_are_problems() -> None:
    profiles = ProfileBook()
    (gone,) = await check_engine(Target(name="w", url=f"http://{HOST}:1"), profiles, None, TIMEOUT_S)
    async with silent_server() as where:
        (hangs,) = await check_engine(Target(name="w", url=f"http://{where}"), profiles, None, 0.1)
    (nonsense,) = await check_engine(Target(name="w", url="http://["), profiles, None, TIMEOUT_S)
    assert {f.verdict for f in (gone, hangs, nonsense)} == {Verdict.PROBLEM}
    assert hangs.found.endswith("no answer in time")


async def test_an_engine_s_wrong_clock_is_found() -> None:
    async with running(EmulatorConfig(gpu="h100", speed=100.0)) as url:
        target = Target(name="w", url=url, model=MODEL)
        right = await check_engine(target, ProfileBook(), None, TIMEOUT_S)
        wrong = await check_engine(target, ProfileBook(), None, TIMEOUT_S, clock=lambda: time.time() + 60)
    assert one(right, "clock").verdict is Verdict.OK
    assert one(wrong, "clock").verdict is Verdict.WARNING
    assert "behind here" in one(wrong, "clock").found


async def test_a_gateway_says_what_it_lost_and_what_it_does_not_see() -> None:
    async with gateway(EmulatorConfig(gpu="h100", speed=100.0), policy="agentserve") as made:
        url = str(made.client.base_url)
        well = await check_gateway(url, "default", TIMEOUT_S)
        made.orchestrator.lost("e0", "the test took it")
        broken = await check_gateway(url, "other", TIMEOUT_S)
    assert {finding.verdict for finding in well.findings} == {Verdict.OK}
    assert list(compare(well, ["e0"])) == []
    assert [finding.verdict for finding in compare(well, ["w"])] == [Verdict.PROBLEM]
    assert "the test took it" in one(broken.findings, "instances").found
    assert one(broken.findings, "cluster").verdict is Verdict.WARNING
    assert one(broken.findings, "ready").verdict is Verdict.PROBLEM


async def test_what_is_no_gateway_is_a_problem() -> None:
    async with FakeEngine() as engine, silent_server() as where:
        other = await check_gateway(engine.url, "default", TIMEOUT_S)
        hangs = await check_gateway(f"http://{where}", "default", 0.1)
    gone = await check_gateway(f"http://me:hunter2@{HOST}:1", "default", TIMEOUT_S)
    nonsense = await check_gateway("http://[", "default", TIMEOUT_S)
    for seen in (other, hangs, gone, nonsense):
        (found,) = seen.findings
        assert (found.check, found.verdict) == ("reachable", Verdict.PROBLEM)
        assert "hunter2" not in str(found)


async def test_engines_of_the_gateway_are_looked_at_too(server: RedisServer) -> None:
    async with gateway(EmulatorConfig(gpu="h100", speed=100.0), policy="agentserve", redis=server) as made:
        settings = Settings(redis_url=server.url, mqtt_url="")
        found = await examine(settings, str(made.client.base_url), timeout_s=TIMEOUT_S)
    assert "engine e0" in {finding.part for finding in found}
    assert Verdict.PROBLEM not in {finding.verdict for finding in found}


async def test_where_nothing_is_there_everything_is_a_problem() -> None:
    settings = Settings(redis_url=f"redis://{HOST}:1/0", mqtt_url=f"mqtt://{HOST}:1", otlp_endpoint=f"http://{HOST}:1")
    found = await examine(settings, f"http://{HOST}:1", timeout_s=0.3)
    assert {finding.part: str(finding.verdict) for finding in found} == dict.fromkeys(
        ("gateway", "redis", "broker", "engines", "traces"), "problem"
    )
    assert all(finding.fix for finding in found)
