"""How is a compiled LangGraph graph served? It runs as before, here, and every execution is a run with an SLO there."""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Final, TypeVar

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.graph import Graph
from langgraph.graph import StateGraph

from agentserve.errors import AgentServeError, BadInput, NotFound
from agentserve.sdk.context import ActiveRun, active_run, running
from agentserve.sdk.durable_graph import OPTIONS, Begun, DurableGraph
from agentserve.sdk.origin import gateway_url
from agentserve.sdk.redis_link import NotDriver, link_from_environment
from agentserve.sdk.repeats import NotRetryable
from agentserve.sdk.reporter import StepReporter
from agentserve.sdk.rest import GatewayClient
from agentserve.sdk.steps import StepLedger
from agentserve.sdk.tracking import StepTracker
from agentserve.sdk.transport import instrument
from workflows.graph import Workflow
from workflows.langgraph import workflow_from_graph
from workflows.run import RunStatus, StepKind

_log = logging.getLogger("agentserve.sdk")
_REST_THREADS: Final = 8
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What came of one run. `e2e_s`: from its submission to its end. `attained`: within its SLO; None without one."""

    output: Any
    run_id: str
    e2e_s: float
    slo_s: float | None
    attained: bool | None
    status: RunStatus = RunStatus.SUCCEEDED


@dataclass(slots=True)
class _Open:
    """A run in progress in this process."""

    run: ActiveRun
    tracker: StepTracker
    began_s: float
    input: Any
    durable: Begun | None = None
    result: RunResult | None = None


class ServedGraph(Runnable[Any, Any]):
    """A graph whose every call is a run with an end-to-end SLO. Made by `serve`; takes and returns what the graph does.

    `invoke`, `ainvoke`, `stream` and `astream` take `slo_s` and `run_id` beside the graph's own arguments; they raise
    what the graph raises, BadInput for a bad SLO and Unavailable without a gateway. A call from inside another run is
    part of that run. Other attributes (`get_state`, `get_graph`, …) are the graph's.
    """

    def __init__(
        self,
        graph: Any,
        *,
        workflow: Workflow,
        slo_s: float | None,
        client: GatewayClient,
        durable: DurableGraph | None = None,
    ) -> None:
        self.graph = graph if durable is None else durable.graph
        self._durable = durable
        self.name: str = workflow.name
        self.workflow = workflow
        self.slo_s = slo_s
        self.last_run: RunResult | None = None
        """The run that ended last, without its output; where runs overlap use `run` and `arun`."""
        self._client = client
        self._reporter = StepReporter(client)
        self._learned: dict[str, StepKind] = {}
        self._registered = False
        self._registering = Lock()
        self._threads = ThreadPoolExecutor(_REST_THREADS, thread_name_prefix="agentserve-rest")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "graph":
            raise AttributeError(name)
        return getattr(self.graph, name)

    def run(
        self,
        input: Any,  # noqa: A002  # LangChain's name for it
        config: RunnableConfig | None = None,
        *,
        slo_s: float | None = None,
        run_id: str | None = None,
        **kwargs: Any,
    ) -> RunResult:
        """Run the graph once and say how the run went."""
        return self._run(self._begin(slo_s, run_id, input, config), config, kwargs)

    async def arun(
        self,
        input: Any,  # noqa: A002  # LangChain's name for it
        config: RunnableConfig | None = None,
        *,
        slo_s: float | None = None,
        run_id: str | None = None,
        **kwargs: Any,
    ) -> RunResult:
        """`run` for asynchronous callers."""
        return await self._arun(
            await self._in_thread(lambda: self._begin(slo_s, run_id, input, config)), config, kwargs
        )

    def resume(
        self, run_id: str, config: RunnableConfig | None = None, *, retry: Sequence[str] = (), **kwargs: Any
    ) -> RunResult:
        """Go on with a durable run whose process died: same id and deadline, finished steps are not executed again.

        `retry`: nodes that may be executed again although nothing says so. `config` and what else the graph was called
        with are to be given again; its input is kept. NotFound; Conflict if the run has ended or its process lives;
        NotRetryable (a Conflict) if a step was under way that may not be executed again: then nothing was executed.
        """
        return self._run(self._reopen(run_id, config, retry), config, kwargs)

    async def aresume(
        self, run_id: str, config: RunnableConfig | None = None, *, retry: Sequence[str] = (), **kwargs: Any
    ) -> RunResult:
        """`resume` for asynchronous callers."""
        return await self._arun(await self._in_thread(lambda: self._reopen(run_id, config, retry)), config, kwargs)

    def invoke(
        self,
        input: Any,  # noqa: A002  # LangChain's name for it
        config: RunnableConfig | None = None,
        *,
        slo_s: float | None = None,
        run_id: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the graph once; its output."""
        if active_run() is not None:
            return self.graph.invoke(input, config, **kwargs)
        return self.run(input, config, slo_s=slo_s, run_id=run_id, **kwargs).output

    async def ainvoke(
        self,
        input: Any,  # noqa: A002  # LangChain's name for it
        config: RunnableConfig | None = None,
        *,
        slo_s: float | None = None,
        run_id: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """`invoke` for asynchronous callers."""
        if active_run() is not None:
            return await self.graph.ainvoke(input, config, **kwargs)
        return (await self.arun(input, config, slo_s=slo_s, run_id=run_id, **kwargs)).output

    def stream(
        self,
        input: Any,  # noqa: A002  # LangChain's name for it
        config: RunnableConfig | None = None,
        *,
        slo_s: float | None = None,
        run_id: str | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Run the graph once, part by part; leaving early cancels the run."""
        if active_run() is not None:
            yield from self.graph.stream(input, config, **kwargs)
            return
        opened = self._begin(slo_s, run_id, input, config)
        parts = self.graph.stream(opened.input, self._followed(config, opened), **_options(opened, kwargs))
        with self._ended(opened), closing(parts):
            while True:
                with running(opened.run):  # only while the graph works: the caller's own code is no part of the run
                    part = next(parts, _END)
                if part is _END:
                    break
                yield part

    async def astream(
        self,
        input: Any,  # noqa: A002  # LangChain's name for it
        config: RunnableConfig | None = None,
        *,
        slo_s: float | None = None,
        run_id: str | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """`stream` for asynchronous callers."""
        if active_run() is not None:
            async for part in self.graph.astream(input, config, **kwargs):
                yield part
            return
        opened = await self._in_thread(lambda: self._begin(slo_s, run_id, input, config))
        followed = self._followed(config, opened, self._in_thread)
        parts = self.graph.astream(opened.input, followed, **_options(opened, kwargs))
        async with self._aended(opened), aclosing(parts):
            while True:
                with running(opened.run):
                    part = await anext(parts, _END)
                if part is _END:
                    break
                yield part

    def get_graph(self, config: RunnableConfig | None = None, **kwargs: Any) -> Graph:
        """The graph's drawing."""
        drawing: Graph = self.graph.get_graph(config, **kwargs)
        return drawing

    def close(self) -> None:
        """Release threads and connections; the graph itself stays usable."""
        self._threads.shutdown()
        self._client.close()
        if self._durable is not None:
            self._durable.close()

    def _run(self, opened: _Open, config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> RunResult:
        with self._ended(opened), running(opened.run):
            output = self.graph.invoke(opened.input, self._followed(config, opened), **_options(opened, kwargs))
        return _result(opened, output)

    async def _arun(self, opened: _Open, config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> RunResult:
        followed = self._followed(config, opened, self._in_thread)
        async with self._aended(opened):
            with running(opened.run):
                output = await self.graph.ainvoke(opened.input, followed, **_options(opened, kwargs))
        return _result(opened, output)

    def _begin(self, slo_s: float | None, run_id: str | None, given: Any, config: RunnableConfig | None) -> _Open:
        slo_s = _valid_slo(self.slo_s if slo_s is None else slo_s)
        is_named = run_id is not None
        run_id = f"run-{uuid.uuid4().hex}" if run_id is None else run_id
        self._register()
        submitted_s = time.time()
        try:
            shown = self._client.create_run(run_id, self.workflow.name, slo_s)
        except NotFound:  # the gateway's store was emptied since
            self._registered = False
            self._register()
            shown = self._client.create_run(run_id, self.workflow.name, slo_s)
        if self._durable is None:
            return self._open(run_id, {"slo_s": slo_s, "submitted_s": submitted_s, **shown}, given, None)
        if is_named and self._durable.store.find(run_id) is not None:
            begun = self._durable.go_on(run_id, self.workflow.name, config)
        else:
            submitted_s = float(shown.get("submitted_s", submitted_s))
            about = {"run_id": run_id, "workflow": self.workflow.name, "slo_s": slo_s, "submitted_s": submitted_s}
            begun = self._durable.begin(about, given, config)
        return self._open(run_id, {"slo_s": slo_s, "submitted_s": submitted_s, **shown}, begun.input, begun)

    def _reopen(self, run_id: str, config: RunnableConfig | None, retry: Sequence[str]) -> _Open:
        if self._durable is None:
            raise BadInput("this graph was served without durable=True: its runs are not kept")
        self._register()
        shown = self._client.show_run(run_id)
        begun = self._durable.go_on(run_id, self.workflow.name, config, retry)
        return self._open(run_id, shown, begun.input, begun)

    def _open(self, run_id: str, shown: Mapping[str, Any], given: Any, begun: Begun | None) -> _Open:
        ledger = StepLedger(self.workflow, self._learned, shown.get("steps") or ())
        run = ActiveRun(
            run_id=run_id,
            workflow=self.workflow.name,
            gateway=self._client.url,
            origin=self._client.origin,
            slo_s=shown["slo_s"],
            submitted_s=float(shown["submitted_s"]),
            ledger=ledger,
            durable=None if begun is None else begun.run,
        )
        tracker = StepTracker(ledger, lambda event: self._reporter.report(run_id, event))
        return _Open(run, tracker, time.monotonic(), given, begun)

    def _followed(
        self, config: RunnableConfig | None, opened: _Open, in_thread: Callable[..., Any] | None = None
    ) -> RunnableConfig:
        if opened.durable is None or self._durable is None:
            return merge_configs(config, {"callbacks": [opened.tracker]})
        guard = self._durable.guard(opened.durable.run, in_thread)
        return merge_configs(opened.durable.config, {"callbacks": [guard, opened.tracker]})

    def _register(self) -> None:
        with self._registering:
            if not self._registered:
                self._client.put_workflow(self.workflow)
                self._registered = True

    def _finish(self, opened: _Open, status: RunStatus, error: BaseException | None = None) -> None:
        """Report the run's end, as far as the gateway can be reached; the graph's own outcome stands in any case."""
        if isinstance(error, NotDriver | NotRetryable):  # the run has not ended: it waits, or is another process's
            self._let_go(opened)
            return
        name = None if error is None else type(error).__name__  # its text may hold a prompt
        run_id, slo_s = opened.run.run_id, opened.run.slo_s
        e2e_s = time.monotonic() - opened.began_s
        self._reporter.flush(run_id)
        answer: Mapping[str, Any] = {}
        try:
            answer = self._client.finish_run(run_id, status.value, name)
        except AgentServeError as problem:
            _log.warning("the end of run %s was not reported: %s", run_id, problem)
            self._let_go(opened)
        else:
            if opened.durable is not None and self._durable is not None:
                self._durable.store.ended(opened.durable.run)
        submitted_s, finished_s = answer.get("submitted_s"), answer.get("finished_s")
        if submitted_s is not None and finished_s is not None:
            e2e_s = float(finished_s) - float(submitted_s)  # by the gateway's clock, as everything else that it records
            slo_s = answer.get("slo_s", slo_s)
        attained = None if slo_s is None else status is RunStatus.SUCCEEDED and e2e_s <= slo_s
        opened.result = RunResult(
            output=None, run_id=run_id, e2e_s=e2e_s, slo_s=slo_s, attained=attained, status=status
        )
        self.last_run = opened.result

    def _let_go(self, opened: _Open) -> None:
        if opened.durable is not None and self._durable is not None:
            self._durable.store.let_go(opened.durable.run)

    @contextmanager
    def _ended(self, opened: _Open) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._finish(opened, _outcome(error), error)
            raise
        self._finish(opened, RunStatus.SUCCEEDED)

    @asynccontextmanager
    async def _aended(self, opened: _Open) -> AsyncIterator[None]:
        try:
            yield
        except BaseException as problem:
            error = problem
            await self._in_thread(lambda: self._finish(opened, _outcome(error), error))
            raise
        await self._in_thread(lambda: self._finish(opened, RunStatus.SUCCEEDED))

    async def _in_thread(self, act: Callable[[], T]) -> T:
        # Threads of its own: LangGraph's synchronous nodes may fill asyncio's default ones for as long as calls last.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, act))


def serve(
    graph: Any,
    *,
    slo_s: float | None,
    name: str | None = None,
    gateway: str | None = None,
    client: GatewayClient | None = None,
    durable: bool | str = False,
    app: str | None = None,
) -> ServedGraph:
    """Serve a LangGraph graph (compiled, or a StateGraph) with an end-to-end SLO of `slo_s` seconds for each run.

    `slo_s` None: no SLO. `name`: the workflow's name; by default the graph's, or one made from its shape. `gateway`:
    base URL, by default $AGENTSERVE_GATEWAY or http://127.0.0.1:8080. The gateway is first asked at the first run.
    `durable`: keep every run's state in Redis (at $AGENTSERVE_REDIS_URL, or the URL given here): another process can
    go on with it (`ServedGraph.resume`); `app`: where that finds the graph, as `module:graph`.
    Raises BadInput for what is not a graph, a bad SLO or URL, and workflows.InvalidWorkflow for a graph without exit.
    """
    compiled = graph.compile() if isinstance(graph, StateGraph) else graph
    if not (hasattr(compiled, "get_graph") and hasattr(compiled, "astream")):
        raise BadInput(f"serve() takes a LangGraph graph, not {type(graph).__name__}")
    _valid_slo(slo_s)
    workflow = _workflow(compiled, name)
    client = client or GatewayClient(gateway_url(gateway))
    link = link_from_environment(durable if isinstance(durable, str) else None) if durable else None
    kept = None if link is None else DurableGraph(compiled, link, app)
    instrument()
    return ServedGraph(compiled, workflow=workflow, slo_s=slo_s, client=client, durable=kept)


_END: Final = object()


def _workflow(compiled: Any, name: str | None) -> Workflow:
    given = name or compiled.get_name()
    workflow = workflow_from_graph(compiled, given)
    if given != "LangGraph":
        return workflow
    return replace(workflow, name=f"graph-{workflow.fingerprint[:8]}")  # LangGraph's default name would be shared


def _valid_slo(slo_s: float | None) -> float | None:
    if slo_s is not None and not (math.isfinite(slo_s) and slo_s > 0):
        raise BadInput(f"slo_s={slo_s!r} is not a positive number of seconds")
    return slo_s


def _options(opened: _Open, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(kwargs) if opened.durable is None else {**OPTIONS, **kwargs}


def _outcome(error: BaseException) -> RunStatus:
    return RunStatus.FAILED if isinstance(error, Exception) else RunStatus.CANCELLED


def _result(opened: _Open, output: Any) -> RunResult:
    if opened.result is None:
        raise RuntimeError(f"run {opened.run.run_id} did not end")
    return replace(opened.result, output=output)
