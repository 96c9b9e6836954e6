"""How does an engine model run in virtual time? Iteration by iteration where something changes, else in stretches."""

from collections.abc import Callable
from typing import Protocol

from agentserve.emulator import stretch
from agentserve.emulator.engine import Engine
from agentserve.emulator.sequence import EngineRequest, IterationResult
from agentserve.lab.kernel import Kernel


class Listener(Protocol):
    """Who is told what an engine did, at the end of the iteration that did it."""

    def first_token(self, attempt_id: str, cached_tokens: int) -> None:
        """A request put out its first token here."""
        ...

    def finished(self, attempt_id: str) -> None:
        """A request put out its last token."""
        ...

    def transferred(self, attempt_id: str) -> None:
        """A request's KV has come from where it was."""
        ...


class VirtualEngine:
    """One engine on a kernel's clock. Requests join and leave between iterations, as they do in life."""

    def __init__(self, kernel: Kernel, engine: Engine, listener: Listener) -> None:
        self.engine = engine
        self.kernel = kernel
        self._listener = listener
        self._turn = 0
        """Counts what was scheduled, so that an act that was overtaken does nothing."""
        self._stretch: stretch.Stretch | None = None
        self._result: IterationResult | None = None
        self._fresh: dict[str, int] = {}
        """Requests without a token yet, with the tokens they found cached."""
        self._deferred: list[Callable[[], object]] = []
        self._silent: set[str] = set()
        """Requests that were dropped while an iteration runs."""
        self._is_turning = False

    def add(self, request: EngineRequest) -> None:
        """Queue a request; it joins at the next iteration."""
        self._fresh[request.request_id] = 0
        self.engine.add(request)
        self._disturb()

    def abort(self, request_id: str) -> None:
        """Drop a request and free its KV once the iteration that runs has ended; nothing is heard of it any more."""
        self._fresh.pop(request_id, None)
        self._silent.add(request_id)
        self._between(lambda: self._forget(request_id))

    def release(self, request_id: str) -> None:
        """Unpin KV that was fetched or is not wanted."""
        self._between(lambda: self.engine.release(request_id))

    def slow_down(self, factor: float) -> None:
        """Let every iteration take so many times as long as the profile says."""
        self._between(lambda: setattr(self.engine, "slowdown", factor))

    def emitted(self) -> dict[str, int]:
        """Tokens put out by now by each request that decodes."""
        done = 0 if self._stretch is None else self._stretch.ended_by(self.kernel.now_s)
        if self._result is None:
            return {one.request.request_id: one.emitted + done for one in self.engine.running if one.emitted + done}
        # An iteration's tokens come out at its end.
        underway = set(self._result.emitted)
        out = ((one.request.request_id, one.emitted) for one in self.engine.running)
        return {name: tokens - (name in underway) for name, tokens in out if tokens - (name in underway) > 0}

    def stop(self) -> None:
        """The engine dies: nothing it scheduled happens any more, what it put out is counted."""
        self._turn += 1
        if self._stretch is not None and (done := self._stretch.ended_by(self.kernel.now_s)):
            stretch.run(self.engine, self._stretch, done)
        self._stretch = self._result = None
        self._deferred.clear()

    def _between(self, act: Callable[[], object]) -> None:
        """Do something as soon as no iteration runs."""
        if self._result is None and self._stretch is None:
            act()
        else:
            self._deferred.append(act)
        self._disturb()

    def _disturb(self) -> None:
        """Something changed: go on at the end of the iteration that runs, or now."""
        if self._result is not None or self._is_turning:
            return
        now_s = self.kernel.now_s
        if self._stretch is None:
            self._turn += 1
            self.kernel.at(now_s, self._go_on, self._turn)
            return
        begun = self._stretch.begun_before(now_s)
        if begun < self._stretch.iterations:
            self._stretch.iterations = begun
            self._turn += 1
            self.kernel.at(self._stretch.end_s(begun), self._go_on, self._turn)

    def _go_on(self, turn: int) -> None:
        """Deliver what has ended, then begin what is next."""
        if turn != self._turn:
            return
        self._is_turning = True
        self._deliver()
        for act in self._deferred:
            act()
        self._deferred.clear()
        self._begin()
        self._is_turning = False

    def _deliver(self) -> None:
        result = self._result
        if self._stretch is not None:
            result = stretch.run(self.engine, self._stretch, self._stretch.iterations)
        self._result = self._stretch = None
        if result is None:
            return
        if self._fresh:
            for name in result.emitted:
                cached = self._fresh.pop(name, None)
                if cached is not None:
                    self._listener.first_token(name, cached)
        for name in result.finished:
            if name not in self._silent:
                self._listener.finished(name)

    def _forget(self, request_id: str) -> None:
        self.engine.abort(request_id)
        self._silent.discard(request_id)

    def _begin(self) -> None:
        now_s = self.kernel.now_s
        planned = stretch.plan(self.engine, now_s)
        self._turn += 1
        if planned is not None:
            self._stretch = planned
            self.kernel.at(planned.end_s(planned.iterations), self._go_on, self._turn)
            return
        result = self.engine.step(now_s)
        for name in result.started:
            if name in self._fresh:
                self._fresh[name] = result.cached_tokens[name]
        for name in result.transferred:
            self._listener.transferred(name)
        if result.duration_s > 0.0:
            self._result = result
            self.kernel.at(now_s + result.duration_s, self._go_on, self._turn)
            return
        event_s = self.engine.next_event_s()
        if event_s is not None:
            self.kernel.at(event_s, self._go_on, self._turn)
