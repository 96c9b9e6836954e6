"""How does a running engine become a profile? Ask it, measure, fit, and try the fit on calls that it has not seen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentserve.errors import BadInput
from agentserve.profiler.client import EngineClient
from agentserve.profiler.engine_facts import EngineFacts, engine_facts, metric_total, refuse_if_busy
from agentserve.profiler.fit import Fit, fit
from agentserve.profiler.measure import Progress, measure, warm_up
from agentserve.profiler.points import Check, Points
from agentserve.profiler.profile_file import Subject, profile_entries
from agentserve.profiler.tasks import Bounds, Session
from agentserve.profiler.validate import validate
from scheduler.errors import UnknownProfile
from scheduler.profiles import GpuProfile, known_gpus, known_models, load_profile, profile_book

MEASURING_SHARE: Final = 0.75
"""Of the budget; the rest is for calls that the fit does not see."""
_DEFAULT_BLOCK_TOKENS: Final = 16
_LARGEST_KV_SHARE: Final = 0.9
_GENERATED: Final = "vllm:generation_tokens_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user gives; None: asked of the engine, or taken from a shipped profile."""

    gpu: str
    model: str | None = None
    """The profile's name for the model; None: as the engine serves it."""
    budget_s: float = 60.0
    kv_capacity_tokens: int | None = None
    kv_bytes_per_token: int | None = None
    kv_link_bytes_per_s: float | None = None
    tensor_parallel: int | None = None
    max_batched_tokens: int = 8192
    max_num_seqs: int = 256
    max_prompt_tokens: int = 32_768
    force: bool = False
    """Measure although the engine serves others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A profile with everything that led to it."""

    subject: Subject
    bounds: Bounds
    points: Points
    fit: Fit
    profile: GpuProfile
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """What a user should know of the measurement, in sentences."""


async def profile_engine(
    client: EngineClient, request: Request, progress: Progress = lambda what, gone_s: None
) -> Result:
    """Profile one engine within the budget.

    Raises BadInput (a fact that nobody knows, too few points), Conflict (the engine serves others) and the errors of
    a failing engine.
    """
    facts = await engine_facts(client)
    subject, bounds = subject_of(request, facts), bounds_of(request, facts)
    notes = await _begin(client, request)
    generated = await metric_total(client, _GENERATED)
    points = await measure(client, bounds, MEASURING_SHARE * request.budget_s, progress)
    notes += await _others(client, generated)
    fitted = fit(points, bounds.max_batched_tokens)
    (entry,) = profile_book([("the fitted profile", profile_entries(subject, fitted, bounds))]).own
    measuring_s = MEASURING_SHARE * request.budget_s
    checks = await validate(
        entry.profile,
        client,
        bounds,
        overhead_s=points.overhead_s,
        budget_s=request.budget_s - measuring_s,
        progress=lambda what, gone_s: progress(what, measuring_s + gone_s),
    )
    return Result(
        subject=subject,
        bounds=bounds,
        points=points,
        fit=fitted,
        profile=entry.profile,
        checks=tuple(checks),
        notes=tuple(notes),
    )


async def check_profile(
    client: EngineClient,
    profile: GpuProfile,
    request: Request,
    progress: Progress = lambda what, gone_s: None,
) -> list[Check]:
    """How well an existing profile predicts this engine; raises as `profile_engine` does."""
    facts = await engine_facts(client)
    bounds = bounds_of(request, facts, profile)
    await _begin(client, request)
    overhead_s = await warm_up(Session(client, bounds))
    return await validate(profile, client, bounds, overhead_s=overhead_s, budget_s=request.budget_s, progress=progress)


def subject_of(request: Request, facts: EngineFacts) -> Subject:
    """Names and sizes for the file: as given, else those of the shipped profiles. BadInput where nobody knows one."""
    model = request.model or facts.model
    of_model = _first(lambda gpu: load_profile(gpu, model), known_gpus())
    of_gpu = _first(lambda name: load_profile(request.gpu, name), known_models())
    kv_bytes = request.kv_bytes_per_token or (of_model.kv_bytes_per_token if of_model else None)
    if kv_bytes is None:
        raise BadInput(
            f"the KV size of a token of {model!r} is not known: give --kv-bytes-per-token "
            "(2 × layers × KV heads × head size × bytes per value)"
        )
    link = request.kv_link_bytes_per_s or (of_gpu.kv_link_bytes_per_s if of_gpu else None)
    return Subject(
        gpu=request.gpu.strip().lower(),
        model=model,
        aliases=() if model == facts.model else (facts.model,),
        tensor_parallel=request.tensor_parallel or (of_model.tensor_parallel if of_model else 1),
        kv_bytes_per_token=kv_bytes,
        kv_link_bytes_per_s=link,
        engine="emulator" if (facts.version or "").startswith("emulator") else "openai-compatible",
        engine_version=facts.version,
    )


def bounds_of(request: Request, facts: EngineFacts, profile: GpuProfile | None = None) -> Bounds:
    """How far to measure: what is given, what the engine tells, what a profile knows."""
    shipped = profile or _first(lambda gpu: load_profile(gpu, request.model or facts.model), (request.gpu,))
    capacity = (
        request.kv_capacity_tokens or facts.kv_capacity_tokens or (shipped.kv_capacity_tokens if shipped else None)
    )
    if capacity is None:
        raise BadInput("the engine does not tell how many tokens its KV cache holds: give --kv-capacity-tokens")
    longest = min(request.max_prompt_tokens, int(_LARGEST_KV_SHARE * capacity), (facts.max_model_len or 2**31) - 80)
    if longest < 64:
        raise BadInput(f"only {longest} tokens of prompt fit this engine, too few to measure")
    return Bounds(
        max_prompt_tokens=longest,
        kv_capacity_tokens=capacity,
        max_num_seqs=request.max_num_seqs,
        max_batched_tokens=request.max_batched_tokens,
        block_tokens=facts.block_tokens or _DEFAULT_BLOCK_TOKENS,
    )


async def _begin(client: EngineClient, request: Request) -> list[str]:
    tells = True if request.force else await refuse_if_busy(client)
    notes = await client.learn_dialect()
    return notes if tells else [*notes, "the engine does not tell whether it serves others: measure an idle one"]


async def _others(client: EngineClient, generated_before: float | None) -> list[str]:
    """Whether the engine put out more tokens than we were given while we measured."""
    generated = await metric_total(client, _GENERATED)
    if generated is None or generated_before is None:
        return []
    others = generated - generated_before - client.sent_tokens
    share = others / max(generated - generated_before, 1.0)
    return [f"the engine served others meanwhile ({share:.0%} of its tokens): measure again"] if share > 0.1 else []


def _first(load: Callable[[str], GpuProfile], names: tuple[str, ...]) -> GpuProfile | None:
    """The first profile that there is."""
    for name in names:
        try:
            return load(name)
        except UnknownProfile:
            continue
    return None
