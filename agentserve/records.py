"""What every metric means: each is a difference of named timestamps, defined here once, live and simulated.

All times are seconds on one clock. A figure that cannot be formed is None.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One finished LLM call, over all its attempts, as seen at the gateway."""

    request_id: str
    run_id: str
    node: str
    arrived_s: float
    first_token_s: float | None
    finished_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    migrations: int = 0
    split: bool = False
    ok: bool = True

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: first token − arrival at the gateway."""
        return None if self.first_token_s is None else self.first_token_s - self.arrived_s

    @property
    def e2e_s(self) -> float:
        """Last token − arrival at the gateway."""
        return self.finished_s - self.arrived_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token: (E2E − TTFT) / (tokens − 1); None below two tokens."""
        if self.first_token_s is None or self.output_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One finished run. `slo_s` None: the run had none and counts in no attainment."""

    run_id: str
    workflow: str
    submitted_s: float
    finished_s: float
    slo_s: float | None
    succeeded: bool

    @property
    def e2e_s(self) -> float:
        """End of the run − its submission."""
        return self.finished_s - self.submitted_s

    @property
    def attained(self) -> bool | None:
        """Whether the run succeeded within its SLO; a failed, refused or dropped run did not."""
        if self.slo_s is None:
            return None
        return self.succeeded and self.e2e_s <= self.slo_s


def attainment(runs: Iterable[RunRecord]) -> float | None:
    """Share of the runs with an SLO that attained it, 0 to 1; None without such runs."""
    outcomes = [run.attained for run in runs if run.attained is not None]
    return sum(outcomes) / len(outcomes) if outcomes else None


def goodput_per_s(runs: Sequence[RunRecord]) -> float | None:
    """Attained runs per second, from the first submission to the last end; None for no runs."""
    if not runs:
        return None
    span_s = max(run.finished_s for run in runs) - min(run.submitted_s for run in runs)
    return sum(run.attained is True for run in runs) / span_s if span_s > 0 else None


def quantile(values: Iterable[float | None], q: float) -> float | None:
    """The q-quantile (0 to 1) of the known values, by linear interpolation; None without any."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    position = q * (len(known) - 1)
    low = int(position)
    high = min(low + 1, len(known) - 1)
    return known[low] + (known[high] - known[low]) * (position - low)
