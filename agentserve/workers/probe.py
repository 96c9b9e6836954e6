"""What is this engine? Its kind, version, models, sizes and metrics as it tells them, and its skills as tried out."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import httpx

from agentserve.engines import open_adapter
from agentserve.engines.capabilities import Capabilities, KvDialect
from agentserve.engines.http import Limits
from agentserve.errors import Unavailable
from agentserve.workers.asking import MAX_ANSWER_BYTES, MAX_METRICS_BYTES, ClientTransport, fetch, why
from agentserve.workers.compatibility import kv_group
from agentserve.workers.facts import Facts, read_facts
from agentserve.workers.kinds import AUTO, Identity, identify, metrics_route
from agentserve.workers.scrape import NIXL_LEASES, RUNNING, cache_config, present
from agentserve.workers.trials import (
    Finding,
    Skill,
    Subject,
    try_cached_tokens,
    try_chat_ids,
    try_detokenize,
    try_guided,
    try_priority,
    try_token_ids,
    try_tokenize,
    try_tools,
)

DEFAULT_BLOCK_TOKENS: Final = 16
_GIVEN: Final = "given"
_ONE_PHASE: Final = "not tried: it serves one phase only"
_TRIALS: Final = {
    Skill.CHAT_IDS: try_chat_ids,
    Skill.CACHED_TOKENS: try_cached_tokens,
    Skill.TOKENIZE: try_tokenize,
    Skill.DETOKENIZE: try_detokenize,
    Skill.GUIDED: try_guided,
}
_NO_IDS: Final = Finding(False, "this kind of engine has none")
_KV_TOLD: Final = {
    KvDialect.BOOTSTRAP: "disaggregation_mode",
    KvDialect.DISAGGREGATED_PARAMS: "disaggregated_params",
}
"""Where engines tell that they were started for split calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What need not be found out; None: find out."""

    kind: str = AUTO
    replay: bool | None = None
    priority: bool | None = None
    kv_transfer: bool | None = None
    block_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """All that was found out about one engine."""

    url: str
    identity: Identity
    model: str
    facts: Facts
    capabilities: Capabilities
    skills: Mapping[Skill, Finding]
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Of the metrics that this kind of engine has, by field, those that are there."""
    missing_metrics: tuple[str, ...] = ()
    kv_group: str | None = None


async def probe(
    client: httpx.AsyncClient,
    url: str,
    *,
    choose: Callable[[Identity], Awaitable[str]],
    given: Given = Given(),
    thorough: bool = True,
    timeout_s: float = 30.0,
) -> Probe:
    """Question an engine and try it out; `choose` picks the model out of those that are served.

    `thorough` False: try only what the scheduler must know. `timeout_s` is for each trial. Raises Unavailable if it
    cannot be reached or breaks, BadInput for a kind without an adapter, and what `choose` raises.
    """
    try:
        identity = await identify(client, given.kind)
        status, page = await fetch(client, metrics_route(identity.kind), MAX_METRICS_BYTES)
    except httpx.DecodingError as error:
        raise Unavailable(f"engine {url}: no OpenAI-compatible server that can be used: {error}") from None
    except httpx.HTTPError as error:
        raise Unavailable(f"engine {url}: it does not answer: {why(error)}") from None
    model = await choose(identity)
    text = page if status == httpx.codes.OK else b""
    facts = read_facts(identity, model, cache_config(text), url)
    limits = Limits(stall_timeout_s=timeout_s, max_line_bytes=MAX_ANSWER_BYTES, max_total_bytes=4 * MAX_ANSWER_BYTES)
    adapter = open_adapter(identity.kind, url, supports_priority=True, limits=limits, transport=ClientTransport(client))
    subject = Subject(
        adapter=adapter,
        client=client,
        kind=identity.kind,
        model=model,
        block_tokens=given.block_tokens or facts.block_tokens or DEFAULT_BLOCK_TOKENS,
        timeout_s=timeout_s,
    )
    try:
        tries = facts.role is None  # a server of one phase would wait for its other half
        skills, subject = await _token_ids(subject, given, tries=tries, thorough=thorough)
        skills[Skill.PRIORITY] = await _ordering(subject, identity, given, tries=tries)
        skills[Skill.KV_TRANSFER] = _kv_transfer(adapter.capabilities.kv_dialect, identity, text, given.kv_transfer)
        if thorough:
            skills |= await _the_rest(subject, identity, tries=tries)
    finally:
        await adapter.close()
    names = adapter.capabilities.metrics
    there = present(text, names)
    capabilities = _narrowed(adapter.capabilities, skills, there)
    return Probe(
        url=url,
        identity=identity,
        model=model,
        facts=facts,
        capabilities=capabilities,
        skills=skills,
        metrics=there,
        missing_metrics=tuple(name for name in dict.fromkeys(names.values()) if name not in there.values()),
        kv_group=kv_group(capabilities.kv_dialect, identity, model, facts)
        if capabilities.kv_dialect is not None
        else None,
    )


async def _token_ids(
    subject: Subject, given: Given, *, tries: bool, thorough: bool
) -> tuple[dict[Skill, Finding], Subject]:
    """What decides whether calls can move; the subject comes back with ids of its own, which other trials need."""
    skills: dict[Skill, Finding] = {}
    if given.replay is None or thorough:
        if not tries:
            skills[Skill.TOKENS_OUT] = Finding(subject.adapter.capabilities.tokens_out, _ONE_PHASE)
            skills[Skill.TOKENS_IN] = Finding(subject.adapter.capabilities.tokens_in, _ONE_PHASE)
        elif subject.adapter.capabilities.can_replay:
            skills[Skill.TOKENS_OUT], skills[Skill.TOKENS_IN], ids = await try_token_ids(subject)
            subject = replace(subject, ids=ids)
        else:
            skills[Skill.TOKENS_OUT] = skills[Skill.TOKENS_IN] = _NO_IDS
    if given.replay is not None:
        skills[Skill.TOKENS_OUT] = skills[Skill.TOKENS_IN] = Finding(given.replay, _GIVEN)
    return skills, subject


async def _ordering(subject: Subject, identity: Identity, given: Given, *, tries: bool) -> Finding:
    if given.priority is not None:
        return Finding(given.priority, _GIVEN)
    told = identity.told.get("enable_priority_scheduling")
    if isinstance(told, bool):
        if told and identity.told.get("schedule_low_priority_values_first"):
            return Finding(False, "it says schedule_low_priority_values_first: another order than its adapter's")
        return Finding(told, f"its description says enable_priority_scheduling: {str(told).lower()}")
    return await try_priority(subject) if tries else Finding(None, _ONE_PHASE)


def _kv_transfer(dialect: KvDialect | None, identity: Identity, page: bytes, given: bool | None) -> Finding:
    """Whether it hands over KV. Nothing is tried: vLLM could not take back what a prefill leg keeps for another."""
    if given is not None:
        return Finding(given, _GIVEN)
    if dialect is None:
        return Finding(False, "this kind of engine has none")
    if dialect is not KvDialect.NIXL_PULL:
        name = _KV_TOLD[dialect]
        told = identity.told.get(name)
        if told in (None, "", {}):
            return Finding(False, f"its description has no {name}")
        return Finding(told != "null", f"its description has {name}{f': {told}' if isinstance(told, str) else ''}"[:80])
    if not present(page, {"running": RUNNING}):
        return Finding(None, "not known without metrics: say --kv-transfer or --no-kv-transfer to its worker")
    if present(page, {"leases": NIXL_LEASES}):
        return Finding(True, f"its metrics have {NIXL_LEASES}, as a NIXL connector's do")
    return Finding(False, f"its metrics have no {NIXL_LEASES}: there is no NIXL connector")


async def _the_rest(subject: Subject, identity: Identity, *, tries: bool) -> dict[Skill, Finding]:
    skills = {skill: await trial(subject) for skill, trial in _TRIALS.items()} if tries else {}
    for skill, name in ((Skill.TOOLS, "tool_call_parser"), (Skill.REASONING, "reasoning_parser")):
        if name in identity.told:
            told = identity.told[name]
            skills[skill] = Finding(told is not None, f"its description says {name}: {str(told)[:40]}")
    if Skill.TOOLS not in skills and tries:
        skills[Skill.TOOLS] = await try_tools(subject)
    skills.setdefault(Skill.REASONING, Finding(None, "this kind of engine does not tell"))
    return skills


def _narrowed(declared: Capabilities, skills: Mapping[Skill, Finding], metrics: Mapping[str, str]) -> Capabilities:
    """What the kind offers, less what this engine was found not to; untried skills stay as declared."""

    def has(skill: Skill, otherwise: bool) -> bool:
        return otherwise if skill not in skills else skills[skill].found is True

    return replace(
        declared,
        tokens_out=has(Skill.TOKENS_OUT, declared.tokens_out),
        tokens_in=has(Skill.TOKENS_IN, declared.tokens_in),
        priority=declared.priority if has(Skill.PRIORITY, True) else None,
        kv_dialect=declared.kv_dialect if has(Skill.KV_TRANSFER, True) else None,
        metrics=metrics,
        reports_cached_tokens=has(Skill.CACHED_TOKENS, declared.reports_cached_tokens),
        detokenizes=has(Skill.DETOKENIZE, declared.detokenizes),
        guided_decoding=has(Skill.GUIDED, declared.guided_decoding),
        parses_tools=skills[Skill.TOOLS].found if Skill.TOOLS in skills else declared.parses_tools,
        parses_reasoning=skills[Skill.REASONING].found if Skill.REASONING in skills else declared.parses_reasoning,
    )
