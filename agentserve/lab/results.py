"""What did a replay measure? Records of calls and runs, where calls ran, and what went wrong; plain JSON both ways."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from agentserve.errors import BadInput
from agentserve.records import CallRecord, RunRecord, attainment, goodput_per_s, quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One decision where a call runs: its dispatches and its migrations, at Unix seconds."""

    request_id: str
    at_s: float
    prefill_instance: str
    decode_instance: str
    cause: str = "dispatch"
    """`dispatch`, or why it moved: late, drain, lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """One replay of a workload under one policy. Times are as measured, on the compressed clock of `speed`."""

    policy: str
    source: str
    model: str
    speed: float
    seed: int
    slo: str
    started_s: float
    finished_s: float
    calls: tuple[CallRecord, ...]
    runs: tuple[RunRecord, ...]
    placements: tuple[Placement, ...] = ()
    notes: tuple[str, ...] = ()
    errors: Mapping[str, int]
    """What failed, as the gateway said it, with how often."""

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON data; `from_plain` reads it back."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "ReplayResult":
        """The result that `to_plain` gave; BadInput for anything else."""
        try:
            given = {one.name: data[one.name] for one in fields(cls)}
            given["calls"] = tuple(CallRecord(**row) for row in given["calls"])
            given["runs"] = tuple(RunRecord(**row) for row in given["runs"])
            given["placements"] = tuple(Placement(**row) for row in given["placements"])
            given["notes"] = tuple(given["notes"])
            return cls(**given)
        except (KeyError, TypeError) as error:
            raise BadInput(f"not a replay result: {type(error).__name__}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceUse:
    """What an instance did in a simulation, in all."""

    instance_id: str
    gpu: str
    busy_s: float
    prefill_tokens: int
    """Computed; those found cached are `cached_tokens`."""
    cached_tokens: int
    output_tokens: int
    preemptions: int
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSample:
    """An instance at a moment of a simulation."""

    at_s: float
    instance_id: str
    running: int
    waiting: int
    kv_usage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """One simulation: the same records as a live replay, on virtual time from 0 on, and what only a simulator sees."""

    replay: ReplayResult
    instances: tuple[InstanceUse, ...]
    samples: tuple[InstanceSample, ...]
    events: int
    wall_s: float = field(compare=False)
    """How long it took in life; no part of the result's identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one replay; see agentserve/records.py for what each means. None: not enough was measured."""

    runs: int
    attained: int
    attainment: float | None
    goodput_per_s: float | None
    run_e2e_p50_s: float | None
    run_e2e_p99_s: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    call_e2e_p50_s: float | None
    call_e2e_p99_s: float | None
    calls: int
    failed_calls: int
    migrations: int
    split_calls: int
    output_tokens_per_s: float | None


def summarise(result: ReplayResult) -> Summary:
    """The figures of one replay. Latencies are of calls that ended well, run times of runs that succeeded."""
    good = [call for call in result.calls if call.ok]
    run_e2e = [run.e2e_s for run in result.runs if run.succeeded]
    tokens = sum(call.output_tokens for call in result.calls)
    span_s = result.finished_s - result.started_s
    return Summary(
        runs=len(result.runs),
        attained=sum(run.attained is True for run in result.runs),
        attainment=attainment(result.runs),
        goodput_per_s=goodput_per_s(result.runs),
        run_e2e_p50_s=quantile(run_e2e, 0.5),
        run_e2e_p99_s=quantile(run_e2e, 0.99),
        ttft_p50_s=quantile([call.ttft_s for call in good], 0.5),
        ttft_p99_s=quantile([call.ttft_s for call in good], 0.99),
        tpot_p50_s=quantile([call.tpot_s for call in good], 0.5),
        tpot_p99_s=quantile([call.tpot_s for call in good], 0.99),
        call_e2e_p50_s=quantile([call.e2e_s for call in good], 0.5),
        call_e2e_p99_s=quantile([call.e2e_s for call in good], 0.99),
        calls=len(result.calls),
        failed_calls=len(result.calls) - len(good),
        migrations=sum(call.migrations for call in result.calls),
        split_calls=sum(call.split for call in result.calls),
        output_tokens_per_s=tokens / span_s if span_s > 0 else None,
    )
