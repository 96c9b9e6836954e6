"""What does a served graph do more when its runs are durable? It keeps its state in Redis, where another goes on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig

from agentserve.errors import BadInput, Unavailable
from agentserve.sdk.checkpoints import RedisCheckpoints, packed, unpacked
from agentserve.sdk.durable import About, DurableRun, DurableStore
from agentserve.sdk.redis_link import RedisLink
from agentserve.sdk.repeats import AsyncRepeatGuard, RepeatGuard, check_pending, pending_places, retryable_nodes

OPTIONS = {"durability": "sync"}
"""A step begins when what came before it is kept: finished steps are never executed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A durable run that this process drives, and what the graph is to be called with."""

    run: DurableRun
    input: Any
    config: RunnableConfig


class DurableGraph:
    """A compiled graph whose state is kept in Redis after every step."""

    def __init__(self, compiled: Any, link: RedisLink, app: str | None) -> None:
        """BadInput if the graph has a checkpointer of its own, which could not be kept in step with ours."""
        if getattr(compiled, "checkpointer", None) is not None:
            raise BadInput("serve(durable=True) keeps the graph's state in Redis: compile it without a checkpointer")
        self.store = DurableStore(link)
        self._saver = RedisCheckpoints(link)
        self.graph = compiled.copy(update={"checkpointer": self._saver})
        self._nodes = retryable_nodes(compiled)
        self._app = app

    def begin(self, about: dict[str, Any], given: Any, config: RunnableConfig | None) -> Begun:
        """A new run with its input; `about`: run_id, workflow, slo_s and submitted_s."""
        thread = ((config or {}).get("configurable") or {}).get("thread_id")
        before = None if thread is None else self._saver.get_tuple(_on_thread(config, str(thread)))
        told = About(
            **about,
            app=self._app,
            thread=about["run_id"] if thread is None else str(thread),
            own_thread=thread is None,
            before=None if before is None else before.config["configurable"]["checkpoint_id"],
        )
        run = self.store.begin(told, packed(self._saver.serde, given))
        return Begun(run=run, input=given, config=_on_thread(config, told.thread))

    def go_on(self, run_id: str, workflow: str, config: RunnableConfig | None, again: Sequence[str] = ()) -> Begun:
        """Go on with a run whose process died; `again`: nodes that may be executed again in any case.

        NotFound, Conflict while its process lives, BadInput for another graph's run, NotRetryable.
        """
        if unknown := sorted(set(again) - set(self._nodes)):
            raise BadInput(f"retry: the graph has no node {unknown[0]!r}; it has {', '.join(self._nodes)}")
        run, kept_input = self.store.take_over(run_id)
        try:
            if run.about.workflow != workflow:
                raise BadInput(f"run {run_id} is of workflow {run.about.workflow!r}, this graph is {workflow!r}")
            run.allowed = frozenset(again)
            placed = _on_thread(config, run.about.thread)
            state = self.graph.get_state(placed, subgraphs=True)
            kept = (state.config.get("configurable") or {}).get("checkpoint_id")
            has_begun = kept is not None and kept != run.about.before
            check_pending(run, self._nodes, self.store.marks(run), pending_places(state) if has_begun else ())
            return Begun(run=run, input=None if has_begun else self._input(kept_input, run_id), config=placed)
        except BaseException:
            self.store.let_go(run)
            raise

    def guard(self, run: DurableRun, in_thread: Callable[..., Any] | None) -> BaseCallbackHandler:
        """What refuses to execute again what may not be; `in_thread` for an asynchronous graph."""
        if in_thread is None:
            return RepeatGuard(run, self._nodes)
        return AsyncRepeatGuard(run, self._nodes, in_thread)

    def close(self) -> None:
        """Release threads and connections."""
        self._saver.close()
        self.store.link.close()

    def _input(self, stored: bytes, run_id: str) -> Any:
        try:
            return unpacked(self._saver.serde, stored)
        except ValueError as error:
            raise Unavailable(f"the input of run {run_id} cannot be read ({error})") from None


def _on_thread(config: RunnableConfig | None, thread: str) -> RunnableConfig:
    given: RunnableConfig = {} if config is None else config
    return {**given, "configurable": {**(given.get("configurable") or {}), "thread_id": thread}}
