"""On the events of recorded runs, observing a plain policy decides exactly as that policy does alone."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.core import make_scheduler
from scheduler.decisions import Decision, Dispatch
from scheduler.events import Mode, ModeChanged
from scheduler.wire import config_from_plain, event_from_plain

LOG = Path(__file__).parent / "data" / "agentserve.jsonl.gz"


def without_shadow(decision: Decision) -> Decision:
    return replace(decision, shadow=None) if isinstance(decision, Dispatch) else decision


@pytest.mark.parametrize("observed", ["least_requests", "random", "round_robin", "session_affinity"])
def test_observing_decides_as_the_plain_policy_alone(observed: str) -> None:
    with gzip.open(LOG, "rt", encoding="utf-8") as file:
        head, *rows = (json.loads(line) for line in file)
    config, began_s = config_from_plain(head["config"]), rows[0]["now_s"]
    alone = make_scheduler(observed, config, head["seed"])
    watched = make_scheduler("agentserve", config, head["seed"])
    watched.handle(ModeChanged(event_id="observe", mode=Mode.OBSERVE, observed=observed), began_s)
    shadows = 0
    for row in rows:
        event = event_from_plain(row["event"])
        decided = watched.handle(event, row["now_s"])
        assert [without_shadow(decision) for decision in decided] == alone.handle(event, row["now_s"])
        shadows += sum(isinstance(decision, Dispatch) and decision.shadow is not None for decision in decided)
    calls = sum(row["event"]["type"] == "RequestArrived" for row in rows)
    assert shadows == calls > 0
