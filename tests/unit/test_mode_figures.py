"""What is counted of runs for each mode, how counts travel, and what is read from them."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentserve.journal import Kind, RunEvent
from agentserve.telemetry.mode_figures import ModeCounts, figures

FORESEEN = {
    "e2e_s": 3.0,
    "attained": True,
    "taken_e2e_s": 6.0,
    "taken_attained": False,
    "calls": 4,
    "elsewhere": 3,
    "kept": 0,
}


def event(kind: Kind, **data: Any) -> RunEvent:
    return RunEvent(run_id="r", kind=kind, at_s=0.0, data=data)


def ended(e2e_s: float = 5.0, attained: bool | None = True, **data: Any) -> RunEvent:
    given = {"status": "succeeded", "e2e_s": e2e_s, "attained": attained, "mode": "route", "foreseen": None}
    return event(Kind.RUN_FINISHED, **(given | data))


def counts_of(*events: RunEvent) -> dict[str, int]:
    sink = ModeCounts()
    for one in events:
        sink.record(one)
    return dict(sum((Counter(batch.increments) for batch in sink.batches()), Counter[str]()))


def test_runs_are_counted_by_what_came_of_them() -> None:
    told = figures(counts_of(ended(), ended(attained=False), ended(attained=None), ended(mode=None)))
    assert (told["runs"], told["with_slo"], told["attained"], told["mixed"]) == (3, 2, 1, 1)
    assert told["attained_share"] == 0.5
    assert told["estimate"] is None


def test_a_run_that_failed_has_no_time() -> None:
    told = figures(counts_of(ended(attained=False, status="failed")))
    assert (told["runs"], told["failed"], told["e2e_p50_s"]) == (1, 1, None)


def test_moves_that_a_lost_engine_forced_are_not_counted() -> None:
    moved = [event(Kind.CALL_MIGRATED, cause=cause) for cause in ("late", "drain", "lost")]
    assert figures(counts_of(*moved))["migrations"] == 2


def test_splits_and_dispatches_are_counted() -> None:
    def sent(prefill: str, decode: str) -> RunEvent:
        return event(Kind.CALL_DECIDED, type="dispatch", prefill_instance=prefill, decode_instance=decode)

    told = figures(counts_of(sent("a", "a"), sent("a", "b"), event(Kind.CALL_DECIDED, type="hold")))
    assert (told["dispatches"], told["splits"]) == (2, 1)


def test_the_estimate_is_told_with_how_far_it_is_off() -> None:
    told = figures(counts_of(ended(foreseen=FORESEEN), ended(attained=False, foreseen=FORESEEN)))["estimate"]
    assert (told["runs"], told["attained_share"], told["calls"], told["elsewhere"]) == (2, 1.0, 8, 6)
    check = told["check"]
    assert (check["predicted_attained_share"], check["measured_attained_share"]) == (0.0, 0.5)
    assert check["agrees_share"] == 0.5
    assert check["e2e_error_p50_s"] == pytest.approx(1.0, rel=0.05)
    assert told["e2e_p50_s"] == pytest.approx(3.0, rel=0.05)


def test_nothing_is_told_from_nothing() -> None:
    told = figures({})
    assert (told["runs"], told["attained_share"], told["e2e_p95_s"]) == (0, None, None)


def test_counts_of_before_a_switch_stay_with_the_mode_before() -> None:
    sink = ModeCounts()
    for token in ("one", "other"):
        sink.switched(token)
        sink.record(ended())
    sink.record(ended())
    assert [(batch.token, batch.increments["runs"]) for batch in sink.batches()] == [("one", 1), ("other", 2)]


def test_a_batch_is_the_same_until_it_was_sent() -> None:
    sink = ModeCounts()
    sink.record(ended())
    (batch,) = sink.batches()
    sink.record(ended())
    assert sink.batches() == (batch,)
    sink.sent(batch)
    (second,) = sink.batches()
    assert second.increments["runs"] == 1
    assert second.once != batch.once


def test_a_malformed_event_harms_nobody() -> None:
    assert counts_of(event(Kind.RUN_FINISHED, mode="route", status="succeeded")) == {}


@given(st.lists(st.floats(0.01, 1000.0), min_size=1, max_size=50))
def test_quantiles_are_those_of_a_sorted_list_within_the_width_of_a_bucket(times_s: list[float]) -> None:
    told = figures(counts_of(*(ended(e2e_s=time_s) for time_s in times_s)))
    for name, q in (("e2e_p50_s", 0.5), ("e2e_p95_s", 0.95)):
        rank = next(i for i in range(len(times_s)) if (i + 1) >= q * len(times_s))
        assert told[name] == pytest.approx(sorted(times_s)[rank], rel=0.026)
