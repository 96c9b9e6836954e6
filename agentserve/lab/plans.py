"""What is to be sent? Runs, their calls and the order of these, as a trace tells it, with nothing of how it will go."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Final, Protocol

from agentserve.errors import BadInput
from scheduler.errors import UnknownProfile
from scheduler.profiles import GpuProfile, load_profile
from workflows.graph import Workflow

Profiles = Callable[[str, str], GpuProfile]
"""Gives the profile of a GPU and a model, or raises UnknownProfile: `load_profile`, or a ProfileBook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One LLM call of a run. `tool_gap_s` is what `tool_node` takes between the end of the last parent and this call.

    `blocks` are ranges (first id, count) of the prompt's blocks in order, `block_tokens` long each; equal ids in one
    `block_space` are equal text. They fill the prompt from its start, what they leave is text of its own.
    `shared_prefix_tokens` is the part of the prompt that an earlier call of the session already had. `prompt_text` is
    the recorded prompt where the trace has one; it then stands for the blocks.
    """

    step_id: str
    node: str
    prompt_tokens: int
    output_tokens: int
    parents: tuple[str, ...] = ()
    tool_gap_s: float = 0.0
    tool_node: str = "tools"
    shared_prefix_tokens: int = 0
    blocks: tuple[tuple[int, int], ...] = ()
    block_tokens: float = 64.0
    block_space: str = ""
    prompt_text: str | None = None

    def block_ids(self) -> Iterator[int]:
        """The prompt's block ids in order."""
        for first, count in self.blocks:
            yield from range(first, first + count)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One run: when it comes (seconds from the start of the workload) and its calls, parents before children."""

    run_id: str
    workflow: str
    arrival_s: float
    session_id: str
    steps: tuple[StepPlan, ...]
    tenant: str = ""
    """Whose run it is; empty where the workload has one tenant."""

    @property
    def output_tokens(self) -> int:
        """Of all its calls."""
        return sum(step.output_tokens for step in self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Runs in order of arrival, the graphs they follow by name, and in words what was done to the trace."""

    source: str
    plans: tuple[RunPlan, ...]
    workflows: Mapping[str, Workflow] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class SloRule(Protocol):
    """Gives each run its SLO, in the trace's uncompressed seconds."""

    def slo_s(self, plan: RunPlan) -> float:
        """Seconds from submission to deadline."""
        ...

    def describe(self) -> str:
        """The rule in words."""
        ...


@dataclass(frozen=True, slots=True)
class FixedSlo:
    """The same SLO for every run."""

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise BadInput(f"an SLO must be a positive number of seconds, not {self.seconds}")

    def slo_s(self, plan: RunPlan) -> float:
        """Seconds from submission to deadline."""
        return self.seconds

    def describe(self) -> str:
        """The rule in words."""
        return f"{self.seconds:g} s for every run"


@dataclass(frozen=True, slots=True)
class SoloScaleSlo:
    """A multiple, alpha, of the run's solo time on a reference GPU: the SLO scale of the serving literature.

    `model` None: the model that is replayed. `profiles` None: the shipped ones. Raises BadInput, naming the known ones,
    when used with an unknown one.
    """

    alpha: float
    gpu: str = "h100"
    model: str | None = None
    profiles: Profiles | None = None

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise BadInput(f"the SLO scale must be positive, not {self.alpha}")

    def for_model(self, model: str) -> "SoloScaleSlo":
        """The same rule for the model that is replayed, unless it has a model of its own."""
        return self if self.model is not None else replace(self, model=model)

    def slo_s(self, plan: RunPlan) -> float:
        """Seconds from submission to deadline."""
        if self.model is None:
            raise BadInput("an SLO scale needs the model whose solo time it multiplies")
        try:
            return self.alpha * solo_s(plan, (self.profiles or load_profile)(self.gpu, self.model))
        except UnknownProfile as error:
            raise BadInput(f"no solo time for the SLO: {error}; give a fixed SLO") from None

    def describe(self) -> str:
        """The rule in words."""
        return f"{self.alpha:g} x the run's solo time on one {self.gpu}, tool times included"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSlo:
    """Fixed seconds per agent class, that is per workflow: they tell nothing of a run's own length."""

    by_workflow: Mapping[str, float]
    default_s: float | None = None
    """Of workflows without seconds of their own; None: such a run is refused."""

    def __post_init__(self) -> None:
        for name, seconds in (*self.by_workflow.items(), ("default", self.default_s)):
            if seconds is not None and not 0 < seconds < math.inf:
                raise BadInput(f"the SLO of {name} must be a positive number of seconds, not {seconds}")

    def slo_s(self, plan: RunPlan) -> float:
        """Seconds from submission to deadline."""
        seconds = self.by_workflow.get(plan.workflow, self.default_s)
        if seconds is None:
            known = ", ".join(sorted(self.by_workflow)) or "none"
            raise BadInput(f"no SLO for the workflow {plan.workflow!r}; there are some for {known}, and no default")
        return seconds

    def describe(self) -> str:
        """The rule in words."""
        parts = [f"{name} {seconds:g} s" for name, seconds in sorted(self.by_workflow.items())]
        parts += [f"{'others' if parts else 'every run'} {self.default_s:g} s"] if self.default_s is not None else []
        return "fixed: " + ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadSlo:
    """Another rule's SLO times exp(sigma·z), z a standard normal number of each run: some are urgent, some are not.

    The factor's median is 1. It depends on `seed` and the run's id only, so that every policy sees the same.
    """

    rule: SloRule
    sigma: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma <= _MAX_SIGMA:
            raise BadInput(f"the spread of an SLO is {self.sigma}; allowed are 0 to {_MAX_SIGMA:g}")

    def slo_s(self, plan: RunPlan) -> float:
        """Seconds from submission to deadline."""
        digest = hashlib.sha256(f"slo/{self.seed}/{plan.run_id}".encode()).digest()
        uniform = (int.from_bytes(digest[:6]) + 0.5) / 2**48
        return self.rule.slo_s(plan) * math.exp(self.sigma * NormalDist().inv_cdf(uniform))

    def describe(self) -> str:
        """The rule in words."""
        return f"{self.rule.describe()}, times a log-normal factor per run (sigma {self.sigma:g})"


_MAX_SIGMA: Final = 3.0


def call_solo_s(step: StepPlan, profile: GpuProfile) -> float:
    """Seconds that a call takes alone on an instance whose cache holds its shared prefix.

    The prefill gives the first token, each further one takes a decode step over the context so far.
    """
    cached = min(step.shared_prefix_tokens, step.prompt_tokens - 1)
    prefill_s = profile.prefill_s(step.prompt_tokens - cached, cached)
    further = max(0, step.output_tokens - 1)
    return prefill_s + further * profile.decode_step_s(1, step.prompt_tokens + (further + 1) / 2)


def solo_s(plan: RunPlan, profile: GpuProfile) -> float:
    """Seconds that a run takes with nothing else running: the longest path of tool times and lone calls."""
    ends_s: dict[str, float] = {}
    for step in plan.steps:
        ready_s = max((ends_s[parent] for parent in step.parents), default=0.0)
        ends_s[step.step_id] = ready_s + step.tool_gap_s + call_solo_s(step, profile)
    return max(ends_s.values(), default=0.0)


def shared_prefix(before: Sequence[tuple[int, int]], blocks: Sequence[tuple[int, int]]) -> int:
    """How many leading blocks two prompts have in common."""
    return sum(count for _, count in _common(before, blocks))


def cut_blocks(blocks: Sequence[tuple[int, int]], count: int) -> tuple[tuple[int, int], ...]:
    """The first `count` blocks."""
    kept = []
    for first, length in blocks:
        if count <= 0:
            break
        kept.append((first, min(length, count)))
        count -= length
    return tuple(kept)


def join_blocks(blocks: Sequence[tuple[int, int]], more: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """One list of ranges after the other, neighbours merged."""
    joined: list[tuple[int, int]] = []
    begun = end = -1
    for first, count in (*blocks, *more):
        if first == end and joined:
            joined[-1] = (begun, end + count - begun)
        else:
            joined.append((first, count))
            begun = first
        end = first + count
    return tuple(joined)


def _common(before: Sequence[tuple[int, int]], blocks: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    left, right = list(before), list(blocks)
    i = j = 0
    while i < len(left) and j < len(right) and left[i][0] == right[j][0]:
        same = min(left[i][1], right[j][1])
        yield left[i][0], same
        left[i], right[j] = (left[i][0] + same, left[i][1] - same), (right[j][0] + same, right[j][1] - same)
        i, j = i + (left[i][1] == 0), j + (right[j][1] == 0)
