"""Who may do what on a real gateway: no route without a key, and no tenant sees what is another's."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.routing import Route

from agentserve.emulator.config import EmulatorConfig
from agentserve.errors import BadInput
from agentserve.gateway.guard import OPEN
from agentserve.tenants.book import TenantBook
from agentserve.tenants.file import add_key, revoke_key
from agentserve.tenants.keys import new_key
from tests.integration.gateway_parts import Gateway, chunks, gateway, until

FAST = EmulatorConfig(gpu="h100", speed=50)
TENANTS = """
[tenants.one]
[tenants.two]
[tenants.sharer]
share_prefixes = true
[tenants.other-sharer]
share_prefixes = true
[tenants.small]
rate_per_s = 0.01
burst = 2
[tenants.narrow]
concurrent_calls = 1
[tenants.poor]
tokens_per_minute = 10
"""


class Keys:
    """A file of tenants and a key of each."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tenants.toml"
        self.path.write_text(TENANTS)
        names = ("one", "two", "sharer", "other-sharer", "small", "narrow", "poor")
        self.of = {name: add_key(self.path, name).text for name in names}
        self.of["ops"] = add_key(self.path, "ops", admin=True).text
        self.book = TenantBook(self.path)

    def __call__(self, name: str, **more: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.of[name]}", **more}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def concrete(path: str) -> str:
    return path.replace("{name:path}", "w").replace("{run_id}", "run-1")


async def test_every_route_but_health_wants_a_key_and_one_that_is_known(keys: Keys) -> None:
    wrong = new_key().text
    async with gateway(FAST, tenants=keys.book) as made:
        routes = [route for route in made.app.routes if isinstance(route, Route)]
        assert len(routes) == len(made.app.routes) > 20
        for route in routes:
            for method in sorted(route.methods or ()):
                url = concrete(route.path)
                for sent in ({}, {"authorization": f"Bearer {wrong}"}, {"authorization": "Bearer"}):
                    status = (await made.client.request(method, url, headers=sent)).status_code
                    if url in OPEN:
                        assert status == 200, f"{method} {url}"
                    else:
                        assert status == 401, f"{method} {url} answered {status} to {sent}"
        assert {"/healthz", "/readyz"} == OPEN
        assert (await made.client.get("/nothing/here")).status_code == 401


async def test_what_open_routes_say_to_strangers_is_no_more_than_yes_or_no(keys: Keys) -> None:
    async with gateway(FAST, tenants=keys.book) as made:
        assert (await made.client.get("/readyz")).json() == {"status": "ready"}
        assert (await made.client.get("/readyz", headers=keys("one"))).json()["models"]


async def test_a_refusal_has_openai_s_shape_says_how_to_authenticate_and_is_counted(keys: Keys) -> None:
    async with gateway(FAST, tenants=keys.book) as made:
        answer = await made.chat("hello")
        assert answer.headers["www-authenticate"] == 'Bearer realm="agentserve"'
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.json()["error"]["type"] == "authentication_error"
        page = (await made.client.get("/metrics", headers=keys("ops"))).text
        assert 'agentserve_refused_requests_total{code="invalid_api_key",tenant="unknown"} 1.0' in page


async def test_a_browser_is_asked_for_the_key_and_may_only_read_with_it(keys: Keys) -> None:
    basic = {"authorization": "Basic " + base64.b64encode(f"me:{keys.of['one']}".encode()).decode()}
    async with gateway(FAST, tenants=keys.book) as made:
        asked = await made.client.get("/ui")
        assert "Basic" in ", ".join(asked.headers.get_list("www-authenticate"))
        assert (await made.client.get("/ui", headers=basic)).status_code == 200
        assert (await made.client.get("/v1/runs", headers=basic)).status_code == 200
        elsewhere = {**basic, "sec-fetch-site": "cross-site"}
        assert (await made.client.get("/v1/runs", headers=elsewhere)).status_code == 403
        for method, url in (("POST", "/v1/runs"), ("PUT", "/v1/mode"), ("POST", "/v1/runs/run-1/cancel")):
            assert (await made.client.request(method, url, headers=basic, json={})).status_code == 403


async def test_the_mode_and_the_metrics_are_the_admins(keys: Keys) -> None:
    async with gateway(FAST, tenants=keys.book) as made:
        for name, status in (("one", 403), ("ops", 200)):
            switched = await made.client.put("/v1/mode", json={"mode": "route"}, headers=keys(name))
            assert switched.status_code == status
            assert (await made.client.get("/metrics", headers=keys(name))).status_code == status
        told = (await made.client.get("/v1/mode", headers=keys("one"))).json()
        assert (told["mode"], told["figures"]) == ("route", None)
        urls = {
            name: (await made.client.get("/v1/cluster", headers=keys(name))).json()["instances"][0]["url"]
            for name in ("one", "ops")
        }
        assert urls == {"one": None, "ops": made.urls[0]}


async def _run(made: Gateway, headers: dict[str, str], run_id: str) -> None:
    named = {**headers, "x-agentserve-run-id": run_id, "x-agentserve-workflow": "w", "x-agentserve-slo-s": "60"}
    answer = await made.chat("tell me", named, max_tokens=5)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-agentserve-run-id"] == run_id
    assert answer.json()["id"] == f"chatcmpl-{answer.headers['x-request-id']}"


async def _kinds(made: Gateway, headers: dict[str, str], run_id: str) -> list[str]:
    listed = (await made.client.get(f"/v1/runs/{run_id}/events", headers=headers)).json()
    return [event["kind"] for event in listed.get("data", ())]


async def test_a_tenant_sees_its_own_runs_only_and_another_s_do_not_exist_for_it(keys: Keys) -> None:
    async with gateway(FAST, tenants=keys.book) as made:
        one, two, ops = keys("one"), keys("two"), keys("ops")
        await _run(made, one, "secret-run")
        await until(lambda: _has(made, one, "secret-run", "call.finished"))
        get, post = made.client.get, made.client.post
        for name in ("secret-run", "one:secret-run"):
            for path in ("", "/events", "/story"):
                assert (await get(f"/v1/runs/{name}{path}", headers=two)).status_code == 404, path
            for path, body in (("cancel", {}), ("finish", {}), ("steps", {"steps": []})):
                assert (await post(f"/v1/runs/{name}/{path}", headers=two, json=body)).status_code == 404, path
        assert (await get("/v1/runs", headers=two)).json()["data"] == []
        assert [run["run_id"] for run in (await get("/v1/runs", headers=one)).json()["data"]] == ["secret-run"]
        assert [run["run_id"] for run in (await get("/v1/runs", headers=ops)).json()["data"]] == ["one:secret-run"]
        for path in ("", "/events", "/story"):
            assert (await get(f"/v1/runs/one:secret-run{path}", headers=ops)).status_code == 200
            own = await get(f"/v1/runs/secret-run{path}", headers=one)
            assert own.status_code == 200
            assert "one:" not in own.text
        assert (await get("/v1/runs/secret-run", headers=one)).json()["workflow"] == "w"


async def _has(made: Gateway, headers: dict[str, str], run_id: str, kind: str) -> bool:
    return kind in await _kinds(made, headers, run_id)


async def test_runs_calls_and_workflows_of_one_name_are_each_tenant_s_own(keys: Keys) -> None:
    async with gateway(FAST, tenants=keys.book) as made:
        for name in ("one", "two"):
            await _run(made, keys(name), "same")
        finished = await made.client.post("/v1/runs/same/finish", json={}, headers=keys("two"))
        assert finished.json()["run_id"] == "same"
        statuses = {
            name: (await made.client.get("/v1/runs/same", headers=keys(name))).json()["status"]
            for name in ("one", "two")
        }
        assert statuses == {"one": "running", "two": "succeeded"}
        graph = {
            "name": "g",
            "nodes": [{"name": "a", "kind": "llm"}],
            "edges": [{"source": "__start__", "target": "a"}, {"source": "a", "target": "__end__"}],
        }
        stored = await made.client.put("/v1/workflows/g", json=graph, headers=keys("one"))
        assert stored.status_code == 200, stored.text
        assert (await made.client.get("/v1/workflows/g", headers=keys("two"))).status_code == 404
        assert (await made.client.get("/v1/workflows/g", headers=keys("one"))).json()["name"] == "g"


async def test_the_page_of_a_tenant_shows_its_own_rows(keys: Keys) -> None:
    async with gateway(FAST, tenants=keys.book) as made:
        await _run(made, keys("one"), "mine")
        await _run(made, keys("two"), "yours")
        assert await _rows(made, keys("one")) == {"mine"}
        assert await _rows(made, keys("ops")) == {"one:mine", "two:yours"}


async def _rows(made: Gateway, headers: dict[str, str]) -> set[str]:
    seen: set[str] = set()
    problem: Any = "not read"
    async with made.client.stream("GET", "/v1/live?rows=50", headers=headers) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            news = orjson.loads(line[6:])
            seen |= {row["run_id"] for row in news.get("runs", ())}
            problem = news.get("problem", problem)
            if seen and problem is None:
                return seen
    raise AssertionError("the stream ended")


async def _cached(made: Gateway, headers: dict[str, str]) -> int:
    text = "the same long words again and again " * 60
    body = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3}
    answer = await made.chat(text, headers, **body)
    assert answer.status_code == 200, answer.text
    usage = chunks(answer.text)[-1]["usage"]
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


async def test_cached_prefixes_are_a_tenant_s_own_unless_both_share(keys: Keys) -> None:
    async with gateway(FAST, tenants=keys.book) as made:
        assert await _cached(made, keys("one")) == 0
        assert await _cached(made, keys("one")) > 0
        assert await _cached(made, keys("two")) == 0
        assert await _cached(made, keys("sharer")) == 0
        assert await _cached(made, keys("other-sharer")) > 0


async def test_limits_are_told_by_name_with_a_time_to_come_back_and_counted(keys: Keys) -> None:
    async with gateway(FAST, tenants=keys.book) as made:
        for _ in range(2):
            assert (await made.chat("hi", keys("small"), max_tokens=2)).status_code == 200
        refused = await made.chat("hi", keys("small"), max_tokens=2)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 90 <= int(refused.headers["retry-after"]) <= 100
        assert (await made.chat("hi", keys("one"), max_tokens=2)).status_code == 200
        assert (await made.chat("words " * 30, keys("poor"), max_tokens=20)).status_code == 200
        refused = await made.chat("hi", keys("poor"), max_tokens=2)
        assert refused.json()["error"]["code"] == "token_budget_exceeded"
        page = (await made.client.get("/metrics", headers=keys("ops"))).text
        for tenant, code in (("small", "rate_limit_exceeded"), ("poor", "token_budget_exceeded")):
            assert f'agentserve_refused_requests_total{{code="{code}",tenant="{tenant}"}} 1.0' in page


async def test_a_place_is_free_again_when_a_call_has_ended_or_was_refused(keys: Keys) -> None:
    async with gateway(FAST, tenants=keys.book) as made:
        for _ in range(3):
            assert (await made.chat("hi", keys("narrow"), max_tokens=2)).status_code == 200
            ended = {"x-agentserve-run-id": "r", "x-agentserve-slo-s": "0"}
            assert (await made.chat("hi", keys("narrow", **ended), max_tokens=2)).status_code == 400
            assert (await made.chat("hi", keys("narrow"), model="nobody's")).status_code == 404


async def test_a_new_key_opens_and_a_revoked_one_does_not_without_a_restart(keys: Keys) -> None:
    async with gateway(FAST, tenants=keys.book) as made:
        fresh = add_key(keys.path, "two")

        async def status(key: str) -> int:
            return (await made.client.get("/v1/runs", headers={"authorization": f"Bearer {key}"})).status_code

        async def is_open() -> bool:
            return await status(fresh.text) == 200

        await until(is_open)
        revoke_key(keys.path, fresh.key_id)

        async def is_shut() -> bool:
            return await status(fresh.text) == 401

        await until(is_shut)
        assert await status(keys.of["two"]) == 200


async def test_a_worker_cannot_lead_the_gateway_out_of_its_networks() -> None:
    async with gateway(FAST) as made:
        (known,) = made.orchestrator.instances.values()
        rogue = replace(known.spec, instance_id="rogue")
        with pytest.raises(BadInput, match="AGENTSERVE_ENGINE_NETWORKS"):
            made.orchestrator.joined(rogue, "http://169.254.169.254", "vllm", announced=True)
        listed = (await made.client.get("/v1/cluster")).json()["instances"]
        assert [one["instance_id"] for one in listed] == ["e0"]
