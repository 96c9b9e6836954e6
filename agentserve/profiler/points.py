"""What was measured? The points that a profile is fitted to, each with all its repeats."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


def undisturbed(values_s: Sequence[float]) -> float:
    """The lower quartile of repeats: what else happens on a machine only ever adds to a time."""
    return sorted(values_s)[(len(values_s) - 1) // 4]


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """Times to first token of lone calls: `new_tokens` to compute after `cached_tokens`."""

    new_tokens: int
    cached_tokens: int
    ttfts_s: tuple[float, ...]

    @property
    def ttft_s(self) -> float:
        """Undisturbed."""
        return undisturbed(self.ttfts_s)


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """Decode steps of `batch` sequences with `context_tokens` of context in sum, on average over the steps."""

    batch: int
    context_tokens: float
    steps_s: tuple[float, ...]

    @property
    def step_s(self) -> float:
        """The median."""
        return median(self.steps_s)


@dataclass(frozen=True, slots=True)
class Points:
    """Everything a fit needs. `overhead_s` is what a client's TTFT holds beside the engine's own work: HTTP."""

    prefill: tuple[PrefillPoint, ...]
    decode: tuple[DecodePoint, ...]
    overhead_s: float


@dataclass(frozen=True, slots=True)
class Check:
    """One figure of calls that no fit has seen: what the profile predicts, and the median that was measured.

    `batch` calls at once; `rank` counts them in the order of their first tokens.
    """

    figure: str
    batch: int
    prompt_tokens: int
    output_tokens: int
    rank: int
    predicted_s: float
    measured_s: float
    repeats: int

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_s / self.measured_s - 1.0


def mape(errors: list[float]) -> float | None:
    """Mean absolute relative error; None of nothing."""
    return sum(map(abs, errors)) / len(errors) if errors else None
