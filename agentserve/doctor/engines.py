"""Does an engine answer, is it what its worker announced, and what would the scheduler miss there?"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx

from agentserve.doctor.finding import Finding, Part, reason, shown_url
from agentserve.errors import AgentServeError
from agentserve.telemetry.messages import Announce
from agentserve.workers.asking import open_client
from agentserve.workers.kinds import AUTO, Identity
from agentserve.workers.probe import Given, Probe, probe
from agentserve.workers.remedies import REMEDIES
from agentserve.workers.trials import Skill
from agentserve.workers.unlisted import serves_unlisted
from scheduler.errors import UnknownProfile
from scheduler.events import Role
from scheduler.profiles import ProfileBook

_TRUSTED_SKEW_S: Final = 2.0
"""A `Date` header has whole seconds only."""
_QUESTIONS: Final = 12
"""As long as so many take, so long may an engine take in all."""
_RESTART: Final = "start its worker again, so that it asks the engine anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An engine to look at; None: not known. `announce`: what its worker tells the cluster."""

    name: str
    url: str
    kind: str = AUTO
    gpu: str | None = None
    model: str | None = None
    announce: Announce | None = None


async def check_engine(
    target: Target,
    profiles: ProfileBook,
    api_key: str | None,
    timeout_s: float,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Ask it about itself and try three calls of one token. Never raises."""
    part = Part(f"engine {target.name}")
    url = shown_url(target.url)
    try:
        async with (
            asyncio.timeout(_QUESTIONS * timeout_s),
            open_client(target.url, api_key=api_key, timeout_s=timeout_s) as client,
        ):
            behind_s = await _behind_s(client, clock)
            found = await _probe(client, target, timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        return [part.problem("reachable", f"{url}: {reason(error)}", "start it, or see its log")]
    except AgentServeError as error:
        fix = "give AGENTSERVE_ENGINE_API_KEY if it wants a key, else see its log and its model's name"
        return [part.problem("usable", str(error).replace(target.url, url), fix)]
    version = f" {found.identity.version}" if found.identity.version else ""
    findings = [part.ok("reachable", f"{found.identity.kind}{version} at {url}, serves {found.model}")]
    if behind_s is not None:
        findings.append(_clock(part, behind_s))
    findings += _announced(part, target.announce, found)
    findings += [_priorities(part, found), _kv(part, target, found)]
    return [*findings, *_profile(part, target, found, profiles)]


async def _behind_s(client: httpx.AsyncClient, clock: Callable[[], float]) -> float | None:
    """By how much the engine's clock is behind ours; None if it does not tell the time."""
    async with client.stream("GET", "/v1/models") as response:
        told, now_s = response.headers.get("date"), clock()
    try:
        return None if told is None else now_s - parsedate_to_datetime(told).timestamp() - 0.5
    except ValueError:
        return None


async def _probe(client: httpx.AsyncClient, target: Target, timeout_s: float) -> Probe:
    async def choose(identity: Identity) -> str:
        served, wanted = identity.names, target.model
        if wanted is None and served:
            return served[0]
        if wanted is not None and (
            wanted in served or await serves_unlisted(client, target.url, identity, wanted, timeout_s)
        ):
            return wanted
        raise AgentServeError(f"{target.url} does not serve {wanted or 'any model'}; it serves {served or 'none'}")

    return await probe(
        client, target.url, choose=choose, given=Given(kind=target.kind), thorough=False, timeout_s=timeout_s
    )


def _clock(part: Part, behind_s: float) -> Finding:
    if abs(behind_s) <= _TRUSTED_SKEW_S:
        return part.ok("clock", f"within {_TRUSTED_SKEW_S:g} s of here")
    how = f"{abs(behind_s):.0f} s {'behind' if behind_s > 0 else 'ahead of'} here"
    return part.warning("clock", how, "set the clocks by NTP, on its machine and here")


def _announced(part: Part, announce: Announce | None, found: Probe) -> Iterator[Finding]:
    """What its worker claims, against what was found now."""
    if announce is None:
        return
    over, under = _skill_differences(announce, found)
    others = [f"{name} {told}, found {now}" for name, told, now in _facts(announce, found) if now not in (None, told)]
    if over:
        yield part.problem("announced", f"its worker claims {', '.join(over)}, which it has not", _RESTART)
    if under:
        yield part.warning("announced", f"its worker does not tell that it has {', '.join(under)}", _RESTART)
    if others:
        yield part.warning("announced", f"its worker says {'; '.join(others)}", f"{_RESTART}, or correct its flags")
    if not (over or under or others):
        yield part.ok("announced", "it is as its worker says")


def _skill_differences(announce: Announce, found: Probe) -> tuple[list[str], list[str]]:
    """Skills that are claimed and not there, and the other way round; those not found out are left alone."""
    ids = [found.skills[skill].found for skill in (Skill.TOKENS_OUT, Skill.TOKENS_IN)]
    replays = False if False in ids else None if None in ids else True
    told = {
        "priorities": (announce.supports_priority, found.skills[Skill.PRIORITY].found),
        "token ids (moves)": (announce.supports_replay, replays),
        "KV transfer": (announce.kv_group is not None, found.skills[Skill.KV_TRANSFER].found),
    }
    over = [name for name, (claimed, has) in told.items() if claimed and has is False]
    under = [name for name, (claimed, has) in told.items() if not claimed and has is True]
    return over, under


def _facts(announce: Announce, found: Probe) -> Iterator[tuple[str, Any, Any]]:
    facts = found.facts
    yield "kind", announce.engine, found.identity.kind
    yield "version", announce.engine_version, found.identity.version
    yield "model", announce.model, found.model
    yield "KV tokens", announce.kv_capacity_tokens, facts.kv_capacity_tokens
    yield "block tokens", announce.block_tokens, facts.block_tokens
    yield "sequences", announce.max_num_seqs, facts.max_num_seqs
    yield "batched tokens", announce.max_batched_tokens, facts.max_batched_tokens


def _priorities(part: Part, found: Probe) -> Finding:
    finding, flags = found.skills[Skill.PRIORITY], _flags(found, Skill.PRIORITY)
    if finding.found:
        return part.ok("priorities", f"on: {finding.how}")
    if finding.found is None:
        return part.ok("priorities", f"not known: {finding.how}")
    if flags is None:
        return part.ok("priorities", "this kind has none; the gateway orders its calls")
    return part.warning("priorities", "off: the gateway holds calls back to order them", f"start it with {flags}")


def _kv(part: Part, target: Target, found: Probe) -> Finding:
    finding, flags = found.skills[Skill.KV_TRANSFER], _flags(found, Skill.KV_TRANSFER)
    if finding.found:
        return part.ok("KV connector", f"there: {finding.how}"[:200])
    one_phase = target.announce is not None and target.announce.role is not Role.MIXED
    if finding.found is False and one_phase and flags is not None:
        return part.problem(
            "KV connector", f"none, but it serves one phase only: {finding.how}", f"start it with {flags}"
        )
    state = "none, so its calls are not split" if finding.found is False else "not known"
    return part.ok("KV connector", f"{state}: {finding.how}")


def _flags(found: Probe, skill: Skill) -> str | None:
    return REMEDIES.get(found.identity.kind, {}).get(str(skill))


def _profile(part: Part, target: Target, found: Probe, profiles: ProfileBook) -> Iterator[Finding]:
    if target.gpu is None:
        return
    try:
        profiles(target.gpu, found.model)
    except UnknownProfile:
        fix = f"`agentserve profile {shown_url(target.url)} --gpu {target.gpu}`, then name its file with --profiles"
        yield part.problem("GPU profile", f"none for {target.gpu} and {found.model}: the gateway refuses it", fix)
    else:
        yield part.ok("GPU profile", f"{target.gpu}, {found.model}")
