"""Events, decisions, configs and whole logs as JSON and back."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from scheduler import wire
from scheduler.config import MigrationConfig, SchedulerConfig
from scheduler.core import Scheduler, make_scheduler
from scheduler.decisions import WakeAt
from scheduler.errors import InvalidConfig, InvalidEvent
from scheduler.events import FirstToken, InstanceDraining, InstanceJoined, Progress, Woke
from tests.unit.scheduler_builders import Cluster, call, profile, spec


def logged() -> Cluster:
    cluster = Cluster("agentserve", spec("a"), spec("b", "fast"), config=SchedulerConfig(risk_period_s=0.7))
    cluster.run(1.0 / 3.0, call("r", prefix_hashes=(2**63, 5), max_tokens=900, target_deadline_s=9.1))
    cluster.at(0.5, InstanceDraining(event_id="d", instance_id="a"))
    cluster.at(0.6, call("other", model="other"))
    cluster.at(0.7, Woke(event_id="w"))
    return cluster


def lines(cluster: Cluster) -> Iterator[str]:
    yield json.dumps(wire.header("agentserve", cluster.scheduler.config, 0))
    yield ""
    for now_s, event, decisions in cluster.log:
        yield json.dumps(wire.record(event, now_s, decisions))


def make(policy: str, config: SchedulerConfig, seed: int) -> Scheduler:
    return make_scheduler(policy, config, seed, profiles=profile)


def test_events_and_decisions_survive_json_exactly() -> None:
    for _, event, decisions in logged().log:
        assert wire.event_from_plain(json.loads(json.dumps(wire.to_plain(event)))) == event
        for decision in decisions:
            assert wire.decision_from_plain(json.loads(json.dumps(wire.to_plain(decision)))) == decision


def test_a_plain_event_is_readable() -> None:
    event = Progress(event_id="e", request_id="r", output_tokens=3)
    assert wire.to_plain(event) == {"type": "Progress", "event_id": "e", "request_id": "r", "output_tokens": 3}
    assert wire.to_plain(WakeAt(cause_id="c", at_s=0.1)) == {"type": "WakeAt", "cause_id": "c", "at_s": 0.1}


def test_a_log_replays_to_identical_decisions() -> None:
    assert wire.replay(lines(logged()), make) is None


def test_the_first_difference_is_shown() -> None:
    log = list(lines(logged()))
    row = json.loads(log[4])
    row["decisions"][0]["priority"] += 1
    log[4] = json.dumps(row)
    found = wire.replay(log, make)
    assert found is not None
    assert (found.line, found.event["type"]) == (3, "RequestArrived")
    assert found.replayed[0]["priority"] + 1 == found.recorded[0]["priority"]


def test_a_config_survives_json_and_may_be_partial() -> None:
    config = SchedulerConfig(risk_period_s=0.1, migration=MigrationConfig(max_moves=7))
    assert wire.config_from_plain(json.loads(json.dumps(wire.config_to_plain(config)))) == config
    assert wire.config_from_plain({"migration": {"max_moves": 7}}).migration.max_moves == 7


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"type": "Nothing"}, "type is 'Nothing'; known are InstanceJoined"),
        (17, "type is 17"),
        ({"type": "Woke"}, "Woke: .*event_id"),
        ({"type": "Woke", "event_id": "w", "x": 1}, "Woke has no field 'x'"),
        ({"type": "Woke", "event_id": 1}, "Woke.event_id is 1; expected str"),
        ({"type": "Progress", "event_id": "e", "request_id": "r", "output_tokens": True}, "output_tokens is True"),
        (
            {"type": "InstanceJoined", "event_id": "e", "instance": 3},
            "InstanceJoined.instance is 3; expected an object",
        ),
    ],
)
def test_what_is_wrong_in_an_event_is_named(plain: Any, message: str) -> None:
    with pytest.raises(InvalidEvent, match=message):
        wire.event_from_plain(plain)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prefix_hashes", 3, "RequestArrived.prefix_hashes is 3; expected a list"),
        ("prefix_hashes", ["x"], r"RequestArrived.prefix_hashes\[0\] is 'x'; expected int"),
        ("max_tokens", "many", "RequestArrived.max_tokens is 'many'; expected int"),
    ],
)
def test_what_is_wrong_in_a_field_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidEvent, match=message):
        wire.event_from_plain({**wire.to_plain(call("r")), field: value})


def test_an_unknown_role_is_named_with_the_allowed_ones() -> None:
    plain = wire.to_plain(InstanceJoined(event_id="j", instance=spec("a")))
    plain["instance"]["role"] = "boss"
    with pytest.raises(InvalidEvent, match="role is 'boss'; allowed are mixed, prefill, decode"):
        wire.event_from_plain(plain)


def test_a_wrong_config_and_a_log_without_header_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="config has no field 'speed'"):
        wire.config_from_plain({"speed": 1})
    with pytest.raises(InvalidEvent, match="a log begins with a header"):
        wire.replay([json.dumps(wire.to_plain(FirstToken(event_id="f", request_id="r")))], make)
    with pytest.raises(InvalidEvent, match="a log begins with a header"):
        wire.replay([], make)
