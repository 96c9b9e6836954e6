"""The mode of a cluster over HTTP: switched live, shared by all gateways over one Redis, kept over restarts."""

from contextlib import AsyncExitStack

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentserve.emulator.config import EmulatorConfig
from agentserve.local.redis import RedisServer
from scheduler.events import Mode
from tests.integration.gateway_parts import Gateway, gateway, until

FAST = EmulatorConfig(speed=50.0)
SLO = {"x-agentserve-slo-s": "30"}


async def mode_of(made: Gateway) -> dict:
    return (await made.client.get("/v1/mode")).json()


async def test_the_mode_is_switched_and_told() -> None:
    async with gateway(FAST, policy="agentserve") as made:
        first = await mode_of(made)
        assert (first["mode"], first["since_s"], first["switches"]) == ("split", None, [])
        assert (first["policy"], first["observed_policy"]) == ("agentserve", "least_requests")
        answer = await made.client.put("/v1/mode", json={"mode": "observe"})
        assert answer.status_code == 200
        told = answer.json()
        assert told["mode"] == "observe"
        assert [one["mode"] for one in told["switches"]] == ["observe"]
        assert told["since_s"] == told["switches"][0]["at_s"] == told["figures"]["observe"]["since_s"]
        assert told["figures"]["split"]["until_s"] == told["since_s"]
        cluster = (await made.client.get("/v1/cluster")).json()
        assert (cluster["mode"], cluster["scheduler"]["policy"]) == ("observe", "least_requests")


async def test_switching_to_the_mode_that_holds_changes_nothing() -> None:
    async with gateway(FAST) as made:
        for _ in range(2):
            told = (await made.client.put("/v1/mode", json={"mode": "route"})).json()
        assert len(told["switches"]) == 1


@pytest.mark.parametrize("body", [{}, {"mode": "fast"}, {"mode": None}, {"mode": 3}])
async def test_another_mode_is_refused_with_those_there_are(body: dict) -> None:
    async with gateway(FAST) as made:
        answer = await made.client.put("/v1/mode", json=body)
        assert answer.status_code == 400
        assert "must be one of observe, route, migrate, split" in answer.json()["error"]["message"]
        assert (await mode_of(made))["mode"] == "split"


async def test_a_run_is_counted_for_the_mode_it_was_in() -> None:
    async with gateway(FAST, policy="agentserve", mode=Mode.ROUTE) as made:
        await made.chat("hello", headers=SLO, max_tokens=20)
        await made.client.put("/v1/mode", json={"mode": "migrate"})
        await made.chat("hello", headers=SLO, max_tokens=20)
        await made.chat("hello", max_tokens=20)
        told = (await mode_of(made))["figures"]
        assert (told["route"]["runs"], told["route"]["attained"], told["route"]["dispatches"]) == (1, 1, 1)
        assert (told["migrate"]["runs"], told["migrate"]["with_slo"], told["migrate"]["attained_share"]) == (2, 1, 1.0)
        assert 0 < told["migrate"]["e2e_p50_s"] <= told["migrate"]["e2e_p95_s"]
        assert told["observe"] is None
        assert told["migrate"]["estimate"] is None


async def test_a_run_over_a_switch_counts_for_neither_and_its_journal_says_so() -> None:
    async with gateway(FAST, policy="agentserve") as made:
        headers = {**SLO, "x-agentserve-run-id": "long"}
        await made.chat("hello", headers=headers, max_tokens=5)
        await made.client.put("/v1/mode", json={"mode": "route"})
        await made.chat("hello", headers=headers, max_tokens=5)
        await made.client.post("/v1/runs/long/finish", json={})
        told = (await mode_of(made))["figures"]
        assert [told[mode]["runs"] for mode in ("split", "route")] == [0, 0]
        assert told["route"]["mixed"] == 1
        await until(lambda: _ended(made, "long"))
        events = (await made.client.get("/v1/runs/long/events")).json()["data"]
        data = {event["kind"]: event["data"] for event in events}
        assert data["run.submitted"]["mode"] == "split"
        assert data["mode.changed"] == {"mode": "route", "before": "split"}
        assert (data["run.finished"]["mode"], data["run.finished"]["foreseen"]) == (None, None)


async def _ended(made: Gateway, run_id: str) -> bool:
    events = (await made.client.get(f"/v1/runs/{run_id}/events")).json()["data"]
    return any(event["kind"] == "run.finished" for event in events)


async def test_observing_tells_what_we_would_have_done_and_what_came_of_it() -> None:
    slow = EmulatorConfig(speed=50.0, gpu="a100-80g")
    async with gateway(FAST, slow, policy="agentserve", mode=Mode.OBSERVE, observed_policy="round_robin") as made:
        headers = {**SLO, "x-agentserve-run-id": "seen"}
        for _ in range(4):
            await made.chat("hello", headers=headers, max_tokens=30)
        await made.client.post("/v1/runs/seen/finish", json={})
        await until(lambda: _ended(made, "seen"))
        events = (await made.client.get("/v1/runs/seen/events")).json()["data"]
        sent = [event["data"] for event in events if event["data"].get("type") == "dispatch"]
        assert [one["reason"]["policy"] for one in sent] == ["round_robin"] * 4
        assert [one["decode_instance"] for one in sent] == ["e0", "e1", "e0", "e1"]
        assert [one["shadow"]["policy"] for one in sent] == ["agentserve"] * 4
        (end,) = [event["data"] for event in events if event["kind"] == "run.finished"]
        assert (end["mode"], end["foreseen"]["calls"], end["foreseen"]["attained"]) == ("observe", 4, True)
        elsewhere = sum(one["shadow"]["decode_instance"] != one["decode_instance"] for one in sent)
        assert end["foreseen"]["elsewhere"] == elsewhere
        told = (await mode_of(made))["figures"]["observe"]
        assert (told["runs"], told["attained_share"]) == (1, 1.0)
        estimate = told["estimate"]
        assert (estimate["runs"], estimate["attained_share"], estimate["calls"]) == (1, 1.0, 4)
        assert estimate["check"]["measured_attained_share"] == estimate["check"]["agrees_share"] == 1.0
        assert estimate["check"]["e2e_error_p50_s"] > 0.0
        page = (await made.client.get("/metrics")).text
        values = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }
        assert values["agentserve_mode", "observe"] == 1
        assert values["agentserve_mode", "split"] == 0
        assert values["agentserve_mode_runs_total", "observe", "true"] == 1
        assert values["agentserve_foreseen_runs_total", "ours", "true"] == 1
        assert values["agentserve_foreseen_runs_total", "taken", "true"] == 1


async def test_a_second_gateway_follows_and_adds_its_runs() -> None:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        one = await stack.enter_async_context(gateway(FAST, policy="agentserve", redis=redis))
        other = await stack.enter_async_context(gateway(policy="agentserve", redis=redis, urls=one.urls))
        await one.client.put("/v1/mode", json={"mode": "migrate"})
        await until(lambda: other.orchestrator.mode is Mode.MIGRATE)
        assert other.orchestrator.scheduler.snapshot()["mode"] == "migrate"
        for made in (one, other):
            await made.chat("hello", headers=SLO, max_tokens=5)

        async def both() -> bool:
            told = await mode_of(one)
            return bool(told["figures"]["migrate"]["runs"] == 2)

        await until(both)
        await other.client.put("/v1/mode", json={"mode": "observe"})
        await until(lambda: one.orchestrator.mode is Mode.OBSERVE)


async def test_a_new_gateway_takes_up_the_mode_and_its_figures() -> None:
    async with RedisServer() as redis:
        async with gateway(FAST, policy="agentserve", redis=redis) as made:
            await made.client.put("/v1/mode", json={"mode": "route"})
            await made.chat("hello", headers=SLO, max_tokens=5)
            await mode_of(made)
        async with gateway(FAST, policy="agentserve", redis=redis, mode=Mode.OBSERVE) as again:
            told = await mode_of(again)
            assert (told["mode"], told["figures"]["route"]["runs"]) == ("route", 1)
            assert again.orchestrator.scheduler.snapshot()["mode"] == "route"


async def test_without_redis_the_mode_stays_and_cannot_be_switched() -> None:
    async with RedisServer() as redis, gateway(FAST, redis=redis, mode=Mode.ROUTE) as made:
        await redis.stop()
        answer = await made.client.put("/v1/mode", json={"mode": "split"})
        assert answer.status_code == 503
        told = await mode_of(made)
        assert (told["mode"], told["figures"]) == ("route", None)
        assert "Redis" in told["problem"]
        await redis.start()

        async def switched() -> bool:
            return (await made.client.put("/v1/mode", json={"mode": "split"})).status_code == 200

        await until(switched)
        assert made.orchestrator.mode is Mode.SPLIT
