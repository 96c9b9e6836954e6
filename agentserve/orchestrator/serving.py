"""How is one call served, attempt after attempt, until its answer is complete? The body of each call's task."""

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from agentserve.engines.adapter import Delta
from agentserve.engines.http import EngineUnreachable
from agentserve.errors import AgentServeError
from agentserve.journal import Kind
from agentserve.orchestrator.call import Attempt, CallFailed, LiveCall
from agentserve.orchestrator.legs import attempt_deltas
from scheduler import events

if TYPE_CHECKING:
    from agentserve.orchestrator.driver import Orchestrator

logger = logging.getLogger(__name__)


async def serve_call(driver: "Orchestrator", live: LiveCall) -> None:
    """Serve a call to its end, whatever that is; never raises but when cancelled."""
    try:
        async with asyncio.timeout(driver.settings.call_timeout_s):
            while live.outcome is None:
                attempt = await live.next_attempt()
                await _run_attempt(driver, live, attempt)
    except TimeoutError:
        driver.give_up(live, CallFailed(f"no answer within {driver.settings.call_timeout_s:g} s", 504, "timeout"))
    except Exception:  # the boundary of one call: a defect met here must not end the others
        logger.exception("call %s met a defect", live.request_id)
        driver.give_up(live, CallFailed("internal error", 500, "internal_error"))


async def _run_attempt(driver: "Orchestrator", live: LiveCall, attempt: Attempt) -> None:
    if (last := live.stream.finish_if_exhausted()) is not None:
        live.push(last)
        _finish(driver, live)
        return
    leg = live.leg = asyncio.create_task(_leg(driver, live, attempt))
    try:
        await asyncio.wait({leg})
    finally:
        if not leg.done():
            leg.cancel()
            await asyncio.wait({leg})
        live.leg = None
    failure = live.broken if leg.cancelled() else leg.result()
    # A stream that breaks behind its finish lacks only usage, which is known here as well; and the finish may have come
    # in the same bytes as the token at which the call was to move.
    is_whole = live.stream.owned and live.stream.finish_reason is not None
    if is_whole or (failure is None and not leg.cancelled()):
        _finish(driver, live)
    elif live.has_next:  # migrated; if the source broke at the same moment, that changes nothing
        live.stream.cut()
        _restart_if_needed(live)
    elif failure is not None:
        await _attempt_failed(driver, live, failure)


async def _leg(driver: "Orchestrator", live: LiveCall, attempt: Attempt) -> AgentServeError | None:
    """Play one attempt on its engines; returns what broke it, None if the answer is complete."""
    headers = {}
    if driver.traceparent is not None and (parent := driver.traceparent(live.request_id)):
        headers["traceparent"] = parent
    try:
        async with driver.seat(attempt):
            await _end_on_a_character(driver, live, attempt)
            call = live.engine_call(attempt, f"{live.request_id}-{driver.next_id()}", headers)
            async with aclosing(attempt_deltas(driver, live, attempt, call)) as deltas:
                async for delta in deltas:
                    if _take(driver, live, attempt, delta):
                        return None
    except AgentServeError as failure:
        return failure
    return None


async def _end_on_a_character(driver: "Orchestrator", live: LiveCall, attempt: Attempt) -> None:
    """Shorten what is to be replayed until it does not end inside a character; the engine at hand can tell."""
    adapter = driver.adapter(attempt.prefill)
    while (ids := live.stream.doubtful_ids) is not None:
        text = await adapter.detokenize(live.request.model, ids)
        if text is None or live.stream.judge(text):
            return


def _take(driver: "Orchestrator", live: LiveCall, attempt: Attempt, delta: Delta) -> bool:
    """One delta from the engine; whether the answer is complete without waiting for more."""
    piece = live.stream.feed(delta)
    if live.is_first_token(delta):
        _first_token(driver, live, attempt)
    elif live.progress_due(driver.clock()):
        driver.feed(
            events.Progress(
                event_id=driver.next_id(), request_id=live.request_id, output_tokens=live.stream.output_tokens
            )
        )
    if piece is not None:
        live.push(piece)
    return live.stream.stopped


def _first_token(driver: "Orchestrator", live: LiveCall, attempt: Attempt) -> None:
    if live.first_token_s is None:
        live.first_token_s = driver.clock()
    # Of a split call the decode engine reports what it got from the prefill engine: no prefix of its own.
    cached = live.stream.cached_tokens if attempt.cause is None and not attempt.is_split else None
    driver.diary.of_call(live, Kind.CALL_FIRST_TOKEN, instance=attempt.decode, cached_tokens=cached)
    if attempt.cause is not None and live.served_by not in (None, attempt.decode):
        live.migrations += 1
        driver.diary.of_call(
            live,
            Kind.CALL_MIGRATED,
            source=live.served_by,
            target=attempt.decode,
            cause=attempt.cause,
            by=attempt.by or "replay",
            replayed_tokens=0 if attempt.by == "kv" else live.stream.replayed_tokens,
        )
    live.served_by = attempt.decode
    driver.feed(events.FirstToken(event_id=driver.next_id(), request_id=live.request_id, cached_tokens=cached))


async def _attempt_failed(driver: "Orchestrator", live: LiveCall, failure: AgentServeError) -> None:
    instance_id = live.runs_on[-1] if live.runs_on else ""
    live.is_failing, live.last_failure = True, failure
    output_tokens = live.stream.output_tokens
    driver.diary.of_call(
        live,
        Kind.CALL_ATTEMPT_FAILED,
        instance=instance_id,
        error=failure.record,
        output_tokens=output_tokens,
    )
    if live.broken is None:
        # A decode leg may have failed because the engine that it pulls from is gone: then both are asked.
        suspects = live.runs_on if len(live.runs_on) > 1 or isinstance(failure, EngineUnreachable) else ()
        for suspect in suspects:
            await _check(driver, suspect, failure.record)
    live.stream.cut()
    can_go_on = _restart_if_needed(live)
    driver.feed(
        events.RequestFailed(
            event_id=driver.next_id(),
            request_id=live.request_id,
            instance_id=instance_id,
            output_tokens=live.stream.output_tokens,
            error=failure.record,
            retryable=can_go_on and getattr(failure, "retryable", False),
        )
    )


def _restart_if_needed(live: LiveCall) -> bool:
    """Make the call ready for another attempt; False if the client has seen what cannot be continued."""
    if live.stream.can_go_on:
        return True
    if not live.may_restart:
        return False
    live.restart()
    return True


async def _check(driver: "Orchestrator", instance_id: str, reason: str) -> None:
    """A connection broke: is the engine gone, or was it this stream only?"""
    instance = driver.instances.get(instance_id)
    if instance is None or not instance.is_live or await instance.adapter.is_healthy():
        return
    if driver.on_unreachable is not None:
        driver.on_unreachable(instance_id, reason)
    driver.lost(instance_id, reason)


def _finish(driver: "Orchestrator", live: LiveCall) -> None:
    usage = live.stream.usage()
    driver.sizer.learn(live.request.model, live.estimate.chars, int(usage.get("prompt_tokens") or 0))
    driver.feed(
        events.RequestFinished(
            event_id=driver.next_id(),
            request_id=live.request_id,
            prompt_tokens=int(usage.get("prompt_tokens") or live.estimate.tokens),
            output_tokens=live.stream.output_tokens,
            cached_tokens=live.stream.cached_tokens,
        )
    )
    driver.conclude(live, "ok")
