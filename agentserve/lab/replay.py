"""How is a workload replayed against a live gateway? As any client would: HTTP, headers, streamed answers.

With speed k every arrival, tool time and SLO is divided by k. A call's true output length stands only at the end of
its prompt, as the emulator's directive: neither a header nor `max_tokens` tells it to the scheduler.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx
import orjson

from agentserve import headers
from agentserve.errors import AgentServeError, BadInput, Unavailable
from agentserve.lab.plans import FixedSlo, RunPlan, SloRule, SoloScaleSlo, StepPlan, Workload
from agentserve.lab.prompts import prompt_of
from agentserve.lab.results import Placement, ReplayResult
from agentserve.lab.sse import StreamMeter, error_text
from agentserve.records import CallRecord, RunRecord
from agentserve.sdk.credentials import authorization
from agentserve.telemetry.story import event_from_plain, tell_run

CALL_TIMEOUT_S: Final = 900.0
__all__ = ["FixedSlo", "ReplayProgress", "ReplayResult", "SoloScaleSlo", "replay"]

_MAX_CONNECTIONS: Final = 2000
_EVENT_READERS: Final = 4


@dataclass(slots=True)
class ReplayProgress:
    """How far a replay is; the same object is handed over at every change."""

    runs_total: int
    runs_started: int = 0
    runs_done: int = 0
    runs_attained: int = 0
    runs_failed: int = 0
    calls_live: int = 0
    calls_done: int = 0
    output_tokens: int = 0
    elapsed_s: float = 0.0


async def replay(
    workload: Workload,
    gateway_url: str,
    *,
    model: str,
    speed: float = 1.0,
    slo: SloRule | None = None,
    policy: str | None = None,
    seed: int = 0,
    on_progress: Callable[[ReplayProgress], None] | None = None,
    client: httpx.AsyncClient | None = None,
    run_prefix: str | None = None,
    with_placements: bool = True,
) -> ReplayResult:
    """Send every run at its time and measure it; a run that fails is a missed one, and the others go on.

    `policy` only labels the result (default: what the gateway says it is). `run_prefix` keeps run ids apart (default:
    a fresh one). Placements, splits and migrations are read from the gateway's journal after the last run. Raises
    BadInput for a speed that is not positive, Unavailable if no gateway answers at the start.
    """
    if not 0 < speed < 1e6:
        raise BadInput(f"speed is {speed}; expected a positive number")
    if client is None:
        limits = httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS)
        timeout = httpx.Timeout(CALL_TIMEOUT_S, connect=10.0, pool=None)
        async with httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False, headers=authorization()) as own:
            return await replay(
                workload, gateway_url, model=model, speed=speed, slo=slo, policy=policy, seed=seed,
                on_progress=on_progress, client=own, run_prefix=run_prefix, with_placements=with_placements,
            )  # fmt: skip
    if isinstance(slo, SoloScaleSlo):
        slo = slo.for_model(model)
    slos = {plan.run_id: slo.slo_s(plan) / speed for plan in workload.plans} if slo is not None else {}
    prefix = run_prefix if run_prefix is not None else f"{os.urandom(4).hex()}-"
    session = _Replay(
        client, gateway_url.rstrip("/"), model, speed, slos, seed, prefix, on_progress, len(workload.plans)
    )
    await session.register(workload)
    started_s = time.time()
    await session.send_all(workload.plans)
    finished_s = time.time()
    placements = await session.read_placements() if with_placements else []
    return ReplayResult(
        policy=policy or await session.policy(),
        source=workload.source,
        model=model,
        speed=speed,
        seed=seed,
        slo=slo.describe() if slo is not None else "none",
        started_s=started_s,
        finished_s=finished_s,
        calls=tuple(session.calls.values()),
        runs=tuple(session.runs),
        placements=tuple(placements),
        notes=workload.notes,
        errors=dict(session.errors.most_common(20)),
    )


@dataclass(slots=True)
class _LiveRun:
    plan: RunPlan
    run_id: str
    slo_s: float | None
    failed: str | None = None


@dataclass(slots=True)
class _Replay:
    client: httpx.AsyncClient
    url: str
    model: str
    speed: float
    slos: Mapping[str, float]
    seed: int
    prefix: str
    on_progress: Callable[[ReplayProgress], None] | None
    total: int
    calls: dict[str, CallRecord] = field(default_factory=dict)
    runs: list[RunRecord] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    progress: ReplayProgress = field(init=False)
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.progress = ReplayProgress(self.total)
        self.started = time.monotonic()

    async def register(self, workload: Workload) -> None:
        """Tell the gateway the graphs that the runs follow."""
        for workflow in workload.workflows.values():
            await self._request("PUT", f"/v1/workflows/{workflow.name}", workflow.to_dict())

    async def policy(self) -> str:
        """The policy that the gateway says it follows."""
        answer = await self._request("GET", "/v1/cluster")
        return str(answer.get("policy")) if isinstance(answer, dict) else "unknown"

    async def send_all(self, plans: Sequence[RunPlan]) -> None:
        """Start each run at its time and wait for all."""
        self.started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for plan in plans:
                wait_s = self.started + plan.arrival_s / self.speed - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                tasks.create_task(self._run(plan))

    async def _run(self, plan: RunPlan) -> None:
        slo_s = self.slos.get(plan.run_id)
        run = _LiveRun(plan, self.prefix + plan.run_id, slo_s)
        submitted_s = time.time()
        self.progress.runs_started += 1
        self._tell()
        try:
            await self._request("POST", "/v1/runs", {"run_id": run.run_id, "workflow": plan.workflow, "slo_s": slo_s})
            await self._steps(run)
        except AgentServeError as error:
            self._fail(run, str(error))
        record = RunRecord(
            run_id=run.run_id,
            workflow=plan.workflow,
            submitted_s=submitted_s,
            finished_s=time.time(),
            slo_s=slo_s,
            succeeded=run.failed is None,
        )
        self._note_run(record)
        await self._finish(run)

    async def _steps(self, run: _LiveRun) -> None:
        async with asyncio.TaskGroup() as tasks:
            running: dict[str, asyncio.Task[None]] = {}
            for step in run.plan.steps:
                before = [running[parent] for parent in step.parents]
                running[step.step_id] = tasks.create_task(self._step(run, step, before))

    async def _step(self, run: _LiveRun, step: StepPlan, before: Sequence[asyncio.Task[None]]) -> None:
        if before:
            await asyncio.wait(before)
        parents = list(step.parents)
        if step.tool_gap_s > 0 and run.failed is None:
            tool_id = f"{step.step_id}-tool"
            await self._report(run, _started(tool_id, step.tool_node, "tool", parents))
            await asyncio.sleep(step.tool_gap_s / self.speed)
            parents = [tool_id]
        if run.failed is not None:
            return
        await self._call(run, step, parents)
        ended = "failed" if run.failed is not None else "succeeded"
        await self._report(run, _finished(step.step_id, step.node, ended))

    async def _call(self, run: _LiveRun, step: StepPlan, parents: Sequence[str]) -> None:
        request_id = f"{run.run_id}.{step.step_id}"
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt_of(run.plan, step, self.seed)}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        meter = StreamMeter()
        self.progress.calls_live += 1
        content = orjson.dumps(body)
        arrived_s = time.time()
        try:
            head = self._headers(run, step, parents, request_id)
            async with self.client.stream(
                "POST", f"{self.url}/v1/chat/completions", content=content, headers=head
            ) as response:
                if response.is_success:
                    async for data in response.aiter_raw():
                        meter.feed(data, time.time())
                    meter.finish()
                else:
                    meter.error = f"HTTP {response.status_code}: {_message(await response.aread())}"
        except httpx.HTTPError as error:
            meter.error = f"{type(error).__name__} at the gateway"
        self._note_call(run, step, request_id, arrived_s, meter)

    def _headers(self, run: _LiveRun, step: StepPlan, parents: Sequence[str], request_id: str) -> dict[str, str]:
        return {
            "content-type": "application/json",
            "accept-encoding": "identity",
            headers.RUN_ID: run.run_id,
            headers.WORKFLOW: run.plan.workflow,
            headers.STEP_ID: step.step_id,
            headers.NODE: step.node,
            headers.PARENTS: ",".join(parents),
            headers.SESSION_ID: self.prefix + run.plan.session_id,
            headers.REQUEST_ID: request_id,
        }

    def _note_call(self, run: _LiveRun, step: StepPlan, request_id: str, arrived_s: float, meter: StreamMeter) -> None:
        if meter.error is not None:
            self._fail(run, meter.error)
        self.calls[request_id] = CallRecord(
            request_id=request_id,
            run_id=run.run_id,
            node=step.node,
            arrived_s=arrived_s,
            first_token_s=meter.first_token_s,
            finished_s=time.time() if meter.error is not None or meter.last_s is None else meter.last_s,
            prompt_tokens=meter.prompt_tokens or step.prompt_tokens,
            output_tokens=meter.output_tokens,
            cached_tokens=meter.cached_tokens,
            ok=meter.error is None,
        )
        self.progress.calls_live -= 1
        self.progress.calls_done += 1
        self.progress.output_tokens += meter.output_tokens
        self._tell()

    def _note_run(self, record: RunRecord) -> None:
        self.runs.append(record)
        self.progress.runs_done += 1
        self.progress.runs_attained += record.attained is True
        self.progress.runs_failed += not record.succeeded
        self._tell()

    def _fail(self, run: _LiveRun, error: str) -> None:
        run.failed = run.failed or error
        self.errors[error.replace(self.prefix, "") if self.prefix else error] += 1

    def _tell(self) -> None:
        if self.on_progress is not None:
            self.progress.elapsed_s = time.monotonic() - self.started
            self.on_progress(self.progress)

    async def _report(self, run: _LiveRun, *events: dict[str, Any]) -> None:
        try:
            await self._request("POST", f"/v1/runs/{run.run_id}/steps", {"steps": list(events)})
        except AgentServeError as error:
            self._fail(run, str(error))

    async def _finish(self, run: _LiveRun) -> None:
        end = {"status": "failed", "error": run.failed} if run.failed is not None else {"status": "succeeded"}
        try:
            await self._request("POST", f"/v1/runs/{run.run_id}/finish", end)
        except AgentServeError as error:
            self.errors[str(error).replace(self.prefix, "")] += 1

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            content = orjson.dumps(body) if body is not None else None
            answer = await self.client.request(
                method, self.url + path, content=content, headers={"content-type": "application/json"}, timeout=60.0
            )
        except httpx.HTTPError as error:
            raise Unavailable(f"no gateway answers at {self.url} ({type(error).__name__})") from None
        if not answer.is_success:
            raise AgentServeError(f"{method} {path}: HTTP {answer.status_code}: {_message(answer.content)}")
        return orjson.loads(answer.content) if answer.content else None

    async def read_placements(self) -> list[Placement]:
        """Where each call ran, from the gateway's journal; runs whose journal is gone are left as they are."""
        waiting = iter([run.run_id for run in self.runs])
        found: list[Placement] = []

        async def read() -> None:
            for run_id in waiting:
                found.extend(await self._placements_of(run_id))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_EVENT_READERS):
                tasks.create_task(read())
        return sorted(found, key=lambda placement: (placement.at_s, placement.request_id))

    async def _placements_of(self, run_id: str) -> list[Placement]:
        try:
            answer = await self._request("GET", f"/v1/runs/{run_id}/events")
            story = tell_run([event_from_plain(run_id, row) for row in answer["data"]])
        except (AgentServeError, KeyError, TypeError, ValueError) as error:
            self.errors[f"a journal could not be read ({type(error).__name__})"] += 1
            return []
        found: list[Placement] = []
        for call in (call for step in (story.steps if story else ()) for call in step.calls):
            if (record := self.calls.get(call.request_id)) is not None:
                cached = record.cached_tokens if call.cached_tokens is None else call.cached_tokens
                self.calls[call.request_id] = replace(
                    record, migrations=len(call.migrations), split=call.split, cached_tokens=cached
                )
            found += [_placement(call.request_id, at_s, decision) for at_s, decision in call.decisions
                      if decision.get("type") in ("dispatch", "migrate")]  # fmt: skip
        return found


def _placement(request_id: str, at_s: float, decision: Mapping[str, Any]) -> Placement:
    target = str(decision.get("target") or decision.get("decode_instance"))
    return Placement(
        request_id=request_id,
        at_s=at_s,
        prefill_instance=str(decision.get("prefill_instance") or target),
        decode_instance=target,
        cause=str(decision.get("cause") or "dispatch"),
    )


def _started(step_id: str, node: str, kind: str, parents: Sequence[str]) -> dict[str, Any]:
    return {
        "event": "started", "step_id": step_id, "node": node, "kind": kind, "parents": list(parents),
        "at_s": time.time(),
    }  # fmt: skip


def _finished(step_id: str, node: str, status: str) -> dict[str, Any]:
    return {"event": "finished", "step_id": step_id, "node": node, "kind": "llm", "status": status, "at_s": time.time()}


def _message(content: bytes) -> str:
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        return content[:100].decode("utf-8", "replace")
    return error_text(answer) if isinstance(answer, dict) else str(answer)[:100]
