"""The page's routes on a real gateway: files, the stream, one run's story, and what they refuse."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson

from agentserve.emulator.config import EmulatorConfig
from agentserve.local.redis import RedisServer
from tests.integration.gateway_parts import ForcedScheduler, Gateway, gateway, until

FAST = EmulatorConfig(gpu="h100", speed=50)
HOSTILE = "<img src=x onerror=alert(1)>\"'&"


class Page:
    """What a page knows after the messages so far."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.instances: dict[str, Any] = {}
        self.runs: dict[str, Any] = {}
        self.state: dict[str, Any] = {}

    async def until(self, condition: Any) -> None:
        """Take messages until the condition holds."""
        async with asyncio.timeout(20):
            while not condition(self):
                line = await anext(self._lines)
                if line.startswith("data: "):
                    self._take(orjson.loads(line[6:]))

    def _take(self, news: dict[str, Any]) -> None:
        self.instances |= {one["instance_id"]: one for one in news.pop("instances", ())}
        self.runs |= {one["run_id"]: one for one in news.pop("runs", ())}
        self.state |= news


@asynccontextmanager
async def page(made: Gateway, query: str = "") -> AsyncIterator[Page]:
    async with made.client.stream("GET", f"/v1/live?{query}") as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Page(response)


async def test_the_page_is_files_of_the_gateway_with_a_strict_policy() -> None:
    async with gateway(FAST) as made:
        for path, kind in (("/ui", "text/html"), ("/ui/app.js", "text/javascript"), ("/ui/base.css", "text/css")):
            answer = await made.client.get(path)
            assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, kind)
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            again = await made.client.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for path in ("/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/routes.py", "/ui/static/app.js", "/ui/no.js"):
            assert (await made.client.get(path)).status_code == 404
        assert (await made.client.get("/ui/")).headers["location"] == "../ui"


async def test_a_run_appears_moves_and_ends_on_the_stream() -> None:
    engines = [EmulatorConfig(gpu="h100", speed=4)] * 2
    async with gateway(*engines, scheduler=ForcedScheduler((20,))) as made, page(made, "run=trip-1") as shown:
        await shown.until(lambda one: len(one.instances) == 2 and one.state.get("problem", "") is None)
        headers = {"x-agentserve-run-id": "trip-1", "x-agentserve-slo-s": "30", "x-agentserve-node": HOSTILE}
        assert (await made.chat("tell me", headers, max_tokens=200)).status_code == 200
        await shown.until(lambda one: one.runs.get("trip-1", {}).get("moved") == 1)
        await made.client.post("/v1/runs/trip-1/finish", json={})
        await shown.until(lambda one: one.runs["trip-1"]["status"] == "succeeded")
        row = shown.runs["trip-1"]
        assert (row["attained"], row["steps"], row["moves"][0][1:3]) == (True, 1, ["e0", "e1"])
        assert row["bars"][0][0] == HOSTILE, "text is told as it is; the page never takes it for markup"
        assert shown.state["followed"]["run_id"] == "trip-1"
        await shown.until(lambda one: sum(inside for _, inside, _, _ in one.state["minutes"]) == 1)


async def test_a_story_tells_each_step_in_the_words_of_the_waterfall() -> None:
    async with gateway(FAST, policy="least_requests") as made:
        await made.chat(
            "tell me", {"x-agentserve-run-id": "r", "x-agentserve-slo-s": "9", "x-agentserve-node": HOSTILE}
        )
        await until(lambda: _has_ended(made, "r"))
        story = (await made.client.get("/v1/runs/r/story")).json()
        (step,) = story["steps"]
        (call,) = step["calls"]
        assert step["node"] == HOSTILE
        assert step["sentences"][0].startswith("target ")
        assert call["sentences"][0].startswith("e0: the fewest outstanding calls, of 1")
        assert [phase for phase, *_ in call["phases"]] == ["queue", "prefill", "decode"]
        assert call["candidates"][0]["decode"] == "e0"
        assert (story["slo_s"], story["steps_total"], story["status"]) == (9.0, 1, "running")
        for path, status in (("nobody", 404), ("r/story?limit=0", 400), ("-%3Cb%3E", 400)):
            target = path if "story" in path else f"{path}/story"
            assert (await made.client.get(f"/v1/runs/{target}")).status_code == status


async def _has_ended(made: Gateway, run_id: str) -> bool:
    listed = (await made.client.get(f"/v1/runs/{run_id}/events")).json()
    return any(event["kind"] == "call.finished" for event in listed.get("data", ()))


async def test_a_page_of_one_gateway_shows_the_runs_of_all_gateways_on_the_same_redis() -> None:
    async with RedisServer() as redis, gateway(FAST, redis=redis) as here, gateway(FAST, redis=redis) as there:
        await there.client.post("/v1/runs", json={"run_id": "before", "workflow": "w"})
        async with page(here) as shown:
            await shown.until(lambda one: "before" in one.runs)
            await there.chat("tell me", {"x-agentserve-run-id": "after", "x-agentserve-slo-s": "30"})
            await there.client.post("/v1/runs/after/finish", json={})
            await shown.until(lambda one: one.runs.get("after", {}).get("attained") is True)


async def test_a_page_asks_only_for_rows_that_it_shows() -> None:
    async with gateway(FAST) as made:
        for n in range(7):
            await made.client.post("/v1/runs", json={"run_id": f"run-{n}", "workflow": "odd" if n % 2 else "even"})
        async with page(made, "first=1&rows=2&show=live&q=EVEN") as shown:
            await shown.until(lambda one: one.state.get("matching") == 4)
            assert shown.state["order"] == list(shown.runs) == ["run-4", "run-2"]


async def test_streams_are_limited_in_number_and_refused_to_other_sites_and_for_bad_questions() -> None:
    async with gateway(FAST, max_live_pages=1) as made:
        async with page(made) as shown:
            await shown.until(lambda one: one.instances)
            refused = await made.client.get("/v1/live")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        await until(lambda: made.app.state.page.readers == 0)
        for query in ("first=-1", "rows=0", "rows=101", "rows=x", "show=secrets", f"q={'x' * 129}", "run=%3Cb%3E"):
            answer = await made.client.get(f"/v1/live?{query}")
            assert answer.status_code == 400, query
        other = await made.client.get("/v1/live", headers={"sec-fetch-site": "cross-site"})
        assert other.status_code == 403


async def test_a_policy_tells_its_parameters_and_no_address_or_secret() -> None:
    async with gateway(FAST, policy="agentserve", engine_api_key="sk-secret") as made:
        answer = await made.client.get("/v1/policy")
        told = answer.json()
        assert (told["policy"], told["parameters"]["lost_wait_s"]) == ("agentserve", 5.0)
        assert told["settings"]["max_live_calls"] == 4096
        assert "sk-secret" not in answer.text
        assert "redis" not in answer.text


async def test_a_page_goes_on_showing_instances_while_redis_is_away() -> None:
    async with RedisServer() as redis, gateway(FAST, redis=redis) as made, page(made) as shown:
        await shown.until(lambda one: one.state.get("problem", "") is None)
        await redis.stop()
        await shown.until(lambda one: "does not answer" in (one.state["problem"] or ""))
        assert shown.instances["e0"]["state"] == "online"
        await redis.start()
        await shown.until(lambda one: one.state["problem"] is None)
