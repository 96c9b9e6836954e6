"""How do the legs of one attempt run on their engines, and what becomes of one when the other fails?

A colocated attempt is one stream. A split one is a prefill leg and a decode leg, in one of two orders: the decode leg
waits for the prefill leg's answer (vLLM, TensorRT-LLM), or both are sent at once and meet (SGLang). Whichever leg
breaks, the other is closed at once, and KV that nobody will take is released.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from agentserve.engines.adapter import Delta, EngineAdapter, EngineCall
from agentserve.errors import EngineFailed
from agentserve.journal import Kind
from agentserve.orchestrator.call import Attempt, LiveCall
from scheduler import events

if TYPE_CHECKING:
    from agentserve.orchestrator.driver import Orchestrator

_GRACE_S: Final = 0.9
"""How long a prefill leg that is not wanted any more may take to its end."""


async def attempt_deltas(
    driver: "Orchestrator", live: LiveCall, attempt: Attempt, call: EngineCall
) -> AsyncGenerator[Delta, None]:
    """What an attempt puts out; EngineFailed from whichever leg broke, named in `live.runs_on[-1]`."""
    target = driver.adapter(attempt.decode)
    if not attempt.is_split:
        legs = target.stream(call)
    else:
        source = driver.adapter(attempt.prefill)
        handoff = source.rendezvous()
        if handoff is None:
            legs = _one_after_the_other(driver, live, attempt, call, source, target)
        else:
            legs = _both_at_once(driver, live, attempt, replace(call, handoff=handoff), source, target)
    async with aclosing(legs) as deltas:
        async for delta in deltas:
            yield delta


async def _one_after_the_other(
    driver: "Orchestrator",
    live: LiveCall,
    attempt: Attempt,
    call: EngineCall,
    source: EngineAdapter,
    target: EngineAdapter,
) -> AsyncGenerator[Delta, None]:
    prefill = asyncio.ensure_future(source.prefill(call))
    try:
        handoff = await asyncio.shield(prefill)
    except asyncio.CancelledError:
        driver.settle_soon(attempt, prefill)
        raise
    _prefilled(driver, live, attempt)
    # Until the first token the decode leg needs the source as well: its KV is being pulled from there.
    live.runs_on = (attempt.prefill, attempt.decode)
    try:
        async with aclosing(target.stream(replace(call, handoff=handoff))) as deltas:
            async for delta in deltas:
                live.runs_on = (attempt.decode,)
                yield delta
    except EngineFailed:
        if len(live.runs_on) > 1:
            driver.release_soon(attempt, handoff)
        raise


async def _both_at_once(
    driver: "Orchestrator",
    live: LiveCall,
    attempt: Attempt,
    call: EngineCall,
    source: EngineAdapter,
    target: EngineAdapter,
) -> AsyncGenerator[Delta, None]:
    live.runs_on = (attempt.prefill, attempt.decode)
    prefill = asyncio.create_task(_prefill_leg(source, call))
    deltas = target.stream(call)
    step: asyncio.Task[Delta | None] | None = None
    try:
        while not prefill.done():
            step = step or asyncio.create_task(_next(deltas))
            await asyncio.wait((step, prefill), return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                delta, step = step.result(), None
                if delta is None:
                    return  # the whole answer came before its prefill leg told that it had ended
                yield delta
        if (failure := prefill.result()) is not None:
            live.runs_on = (attempt.decode, attempt.prefill)
            raise failure
        _prefilled(driver, live, attempt)
        live.runs_on = (attempt.decode,)
        delta = await (step or _next(deltas))
        while delta is not None:
            yield delta
            delta = await _next(deltas)
    finally:
        for leg in (prefill, step):
            if leg is not None and not leg.done():
                leg.cancel()
                await asyncio.wait((leg,))
        await deltas.aclose()


async def _next(deltas: AsyncGenerator[Delta, None]) -> Delta | None:
    """The next delta, None at the end: a task cannot carry the end of an iteration."""
    return await anext(deltas, None)


async def _prefill_leg(source: EngineAdapter, call: EngineCall) -> EngineFailed | None:
    """What the prefill leg failed with, as a value: it is looked at only when its turn comes."""
    try:
        await source.prefill(call)
    except EngineFailed as failure:
        return failure
    return None


def _prefilled(driver: "Orchestrator", live: LiveCall, attempt: Attempt) -> None:
    driver.diary.of_call(live, Kind.CALL_PREFILLED, instance=attempt.prefill)
    driver.feed(events.PrefillFinished(event_id=driver.next_id(), request_id=live.request_id))


async def settle(driver: "Orchestrator", attempt: Attempt, prefill: asyncio.Future[Mapping[str, Any]]) -> None:
    """End a prefill leg that is not wanted any more, and have freed what it kept.

    An engine that ends the leg in the moment we give it up keeps its KV, and where, only its answer tells. So a leg may
    end within its grace; a longer one is worth giving up for the work it would still do.
    """
    done, _ = await asyncio.wait((prefill,), timeout=_GRACE_S)
    if not done:
        prefill.cancel()
    elif not prefill.cancelled() and prefill.exception() is None:
        await release(driver, attempt, prefill.result())


async def release(driver: "Orchestrator", attempt: Attempt, handoff: Mapping[str, Any]) -> None:
    """Have KV freed that was kept for a decode leg which failed: any other live engine of the group can say so."""
    source = driver.instances.get(attempt.prefill)
    if source is None or not source.is_live:
        return  # its KV went with it
    mates = [
        one
        for name, one in sorted(driver.instances.items())
        if one.is_live and name != attempt.prefill and one.spec.kv_group == source.spec.kv_group
    ]
    # The decode side first, if it lives: it knows the source already.
    mates.sort(key=lambda one: one.spec.instance_id != attempt.decode)
    for mate in mates:
        if await mate.adapter.is_healthy():
            await mate.adapter.release(source.spec.model, handoff)
            return
