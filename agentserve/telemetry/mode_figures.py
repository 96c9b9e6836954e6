"""What did runs do in each mode? Counted from the journal, so that any gateway's counts add up with the others'.

A run counts for the mode in which its gateway was from its submission to its end. Its time is counted in buckets that
are 5 % wide, from which quantiles are read: they are at most 2.5 % off.
"""

import logging
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, floor, log
from typing import Any, Final

from agentserve.journal import Kind, RunEvent
from agentserve.telemetry.story import decision_of

_STEP: Final = log(1.05)
_LEAST_S: Final = 1e-3

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Counts to be added to those of a switch; sent again under the same `once` they are added once."""

    token: str
    once: str
    increments: Mapping[str, int]


class ModeCounts:
    """A journal sink that counts for one switch of the mode at a time. Never raises."""

    def __init__(self) -> None:
        self.token = ""
        self._counts: dict[str, Counter[str]] = {}
        self._sealed: list[Batch] = []
        self._failures_logged = 0

    def switched(self, token: str) -> None:
        """What comes from now on counts for another switch."""
        self.token = token

    def record(self, event: RunEvent) -> None:
        """Count one event."""
        try:
            counted = _counted(event)
            if counted:
                self._counts.setdefault(self.token, Counter()).update(counted)
        except Exception:  # a malformed event must not harm the call that it tells of
            if self._failures_logged < 10:
                self._failures_logged += 1
                _logger.exception("event %s of run %s was not counted", event.kind, event.run_id)

    def batches(self) -> tuple[Batch, ...]:
        """What is to be sent: the batches of the last time until they are `sent`, then what came since."""
        if not self._sealed:
            self._sealed = [Batch(token, uuid.uuid4().hex, counts) for token, counts in self._counts.items()]
            self._counts = {}
        return tuple(self._sealed)

    def sent(self, batch: Batch) -> None:
        """The store has it."""
        self._sealed.remove(batch)


def _counted(event: RunEvent) -> dict[str, int]:
    data = event.data
    match event.kind:
        case Kind.CALL_DECIDED:
            decision = decision_of(event)
            if decision.get("type") != "dispatch":
                return {}
            split = decision.get("prefill_instance") != decision.get("decode_instance")
            return {"dispatches": 1, "splits": 1} if split else {"dispatches": 1}
        case Kind.CALL_MIGRATED if data.get("cause") != "lost":
            return {"migrations": 1}
        case Kind.RUN_FINISHED:
            return _run(data) if data.get("mode") is not None else {"mixed": 1}
    return {}


def _run(data: Mapping[str, Any]) -> dict[str, int]:
    attained, succeeded = data.get("attained"), data.get("status") == "succeeded"
    counted = {"runs": 1, "with_slo": attained is not None, "attained": attained is True, "failed": not succeeded}
    if succeeded:
        counted[_bucket("e2e", data["e2e_s"])] = 1
    told = data.get("foreseen")
    if told is not None:
        counted |= {f"estimate.{name}": told[name] for name in ("calls", "elsewhere", "kept")}
        if succeeded:
            counted[_bucket("estimate.e2e", told["e2e_s"])] = 1
            counted[_bucket("estimate.error", abs(told["taken_e2e_s"] - data["e2e_s"]))] = 1
        if attained is not None:
            counted |= {
                "estimate.runs": 1,
                "estimate.attained": told["attained"],
                "estimate.taken_attained": told["taken_attained"],
                "estimate.measured_attained": attained,
                "estimate.agrees": told["taken_attained"] == attained,
            }
    return {name: int(count) for name, count in counted.items() if count}


def figures(counts: Mapping[str, int]) -> dict[str, Any]:
    """The figures of one switch as plain data; shares and quantiles are None where there is nothing to tell from."""
    count = Counter(counts)
    shown: dict[str, Any] = {name: count[name] for name in ("runs", "with_slo", "attained", "failed", "mixed")}
    return {
        **shown,
        "attained_share": _share(count["attained"], count["with_slo"]),
        "e2e_p50_s": _quantile(counts, "e2e", 0.5),
        "e2e_p95_s": _quantile(counts, "e2e", 0.95),
        "dispatches": count["dispatches"],
        "migrations": count["migrations"],
        "splits": count["splits"],
        "estimate": _estimate(counts, count) if count["estimate.calls"] else None,
    }


def _estimate(counts: Mapping[str, int], count: Counter[str]) -> dict[str, Any]:
    """What our policy would have given, beside how far the same prediction is off for what really happened."""
    runs = count["estimate.runs"]
    return {
        "runs": runs,
        "attained_share": _share(count["estimate.attained"], runs),
        "e2e_p50_s": _quantile(counts, "estimate.e2e", 0.5),
        "e2e_p95_s": _quantile(counts, "estimate.e2e", 0.95),
        "calls": count["estimate.calls"],
        "elsewhere": count["estimate.elsewhere"],
        "kept": count["estimate.kept"],
        "check": {
            "predicted_attained_share": _share(count["estimate.taken_attained"], runs),
            "measured_attained_share": _share(count["estimate.measured_attained"], runs),
            "agrees_share": _share(count["estimate.agrees"], runs),
            "e2e_error_p50_s": _quantile(counts, "estimate.error", 0.5),
            "e2e_error_p95_s": _quantile(counts, "estimate.error", 0.95),
        },
    }


def _bucket(name: str, seconds: float) -> str:
    return f"{name}:{floor(log(max(seconds, _LEAST_S)) / _STEP)}"


def _quantile(counts: Mapping[str, int], name: str, q: float) -> float | None:
    """The middle of the bucket in which the q-quantile lies."""
    buckets = sorted((int(key.partition(":")[2]), n) for key, n in counts.items() if key.startswith(f"{name}:"))
    left = q * sum(n for _, n in buckets)
    for bucket, n in buckets:
        left -= n
        if left <= 0:
            return exp((bucket + 0.5) * _STEP)
    return None


def _share(count: int, of: int) -> float | None:
    return count / of if of else None
