"""The walk of calls through the core: whole decision lists."""

from dataclasses import replace
from typing import Any

import pytest

from scheduler.config import LengthConfig, SchedulerConfig
from scheduler.core import make_scheduler
from scheduler.decisions import Cancel, Dispatch, Hold, Refusal, Reject, WakeAt
from scheduler.errors import InvalidConfig, InvalidEvent, UnknownProfile
from scheduler.events import (
    DeadlinesMoved,
    FirstToken,
    InstanceDraining,
    InstanceJoined,
    InstanceLost,
    InstanceReported,
    MigrationRefused,
    PrefillFinished,
    Progress,
    RequestCancelled,
    RequestFailed,
    RequestFinished,
    Role,
    Woke,
)
from tests.unit.scheduler_builders import Cluster, call, kinds, profile, spec


def failed(name: str, instance: str, **changes: Any) -> RequestFailed:
    given: dict[str, Any] = {"output_tokens": 0, "error": "reset", "retryable": True, **changes}
    return RequestFailed(event_id=f"failed-{name}-{instance}", request_id=name, instance_id=instance, **given)


def reject(decisions: list[Any]) -> Reject:
    (decision,) = decisions
    assert isinstance(decision, Reject), decision
    return decision


def test_an_arrival_is_dispatched_and_a_wake_up_asked_for() -> None:
    dispatched, wake = Cluster("round_robin", spec("a")).every(1.0, call("r"))
    assert isinstance(dispatched, Dispatch)
    assert (dispatched.cause_id, dispatched.request_id, dispatched.attempt) == ("arrived-r", "r", 1)
    assert (dispatched.prefill_instance, dispatched.decode_instance, dispatched.is_split) == ("a", "a", False)
    assert wake == WakeAt(cause_id="arrived-r", at_s=2.0)


def test_only_one_wake_up_is_pending_and_none_when_idle() -> None:
    cluster = Cluster("round_robin", spec("a"))
    cluster.every(1.0, call("r"))
    assert kinds(cluster.every(1.5, call("s"))) == ["Dispatch"]
    assert cluster.every(2.0, Woke(event_id="w")) == [WakeAt(cause_id="w", at_s=3.0)]
    assert cluster.finish(2.5, "r") + cluster.finish(2.5, "s") == []
    assert cluster.every(3.0, Woke(event_id="w2")) == []


def test_a_call_waits_for_the_first_instance() -> None:
    cluster = Cluster("round_robin")
    held, wake = cluster.every(1.0, call("r"))
    assert isinstance(held, Hold)
    assert held.reason.rule == "no instance has joined; held for up to 10 s"
    assert wake == WakeAt(cause_id="arrived-r", at_s=11.0)
    assert kinds(cluster.at(2.0, InstanceJoined(event_id="j", instance=spec("a")))) == ["Dispatch"]


def test_held_calls_go_out_in_order_of_their_deadlines() -> None:
    cluster = Cluster("round_robin")
    for name, target_s in (("x", None), ("y", 9.0), ("z", 5.0)):
        cluster.at(1.0, call(name, target_deadline_s=target_s))
    decisions = cluster.at(2.0, InstanceJoined(event_id="j", instance=spec("a")))
    assert [decision.request_id for decision in decisions if isinstance(decision, Dispatch)] == ["z", "y", "x"]


def test_a_call_is_refused_when_no_instance_came_in_time() -> None:
    cluster = Cluster("round_robin")
    cluster.at(1.0, call("r"))
    assert cluster.at(10.9, Woke(event_id="w")) == []
    refused = reject(cluster.at(11.0, Woke(event_id="w2")))
    assert (refused.refusal, refused.message) == (Refusal.NO_INSTANCE, "no instance of m could take it within 10 s")


def test_an_unknown_model_is_refused_with_the_known_ones_or_held_while_others_join() -> None:
    cluster = Cluster("round_robin", spec("a"))
    refused = reject(cluster.at(1.0, call("r", model="other")))
    assert (refused.refusal, refused.message) == (Refusal.UNKNOWN_MODEL, "unknown model 'other'; served are m")
    empty = Cluster("round_robin")
    empty.at(1.0, call("r", model="other"))
    assert empty.at(2.0, InstanceJoined(event_id="j", instance=spec("a"))) == []


def test_a_prompt_that_fits_no_cache_is_refused_with_figures() -> None:
    cluster = Cluster("round_robin", spec("a"), spec("b", kv_capacity_tokens=20_000))
    assert cluster.place(1.0, call("fits", prompt_tokens=15_000)).decode_instance == "b"
    refused = reject(cluster.at(1.0, call("r", prompt_tokens=20_000)))
    message = "20000 tokens and one more do not fit: the largest KV cache has 20000 tokens"
    assert (refused.refusal, refused.message) == (Refusal.TOO_LONG, message)


def test_a_call_that_may_outgrow_every_cache_still_runs() -> None:
    placed = Cluster("agentserve", spec("a")).place(1.0, call("r", prompt_tokens=9_995, max_tokens=None))
    assert placed.decode_instance == "a"


def test_a_failed_call_goes_elsewhere_until_no_attempt_is_left() -> None:
    config = SchedulerConfig(max_attempts=3)
    cluster = Cluster("goodserve", spec("a", "huge"), spec("b"), config=config)
    assert cluster.place(1.0, call("r")).decode_instance == "a"
    (again,) = cluster.at(1.1, failed("r", "a"))
    assert isinstance(again, Dispatch)
    assert (again.decode_instance, again.attempt) == ("b", 2)
    (third,) = cluster.at(1.2, failed("r", "b"))
    assert isinstance(third, Dispatch)
    assert (third.decode_instance, third.attempt) == ("a", 3)
    refused = reject(cluster.at(1.3, failed("r", "a")))
    assert refused.refusal is Refusal.TOO_MANY_ATTEMPTS
    assert refused.message == "attempt 3 failed on a: reset; no attempt is left"


def test_a_failed_call_returns_to_the_only_instance() -> None:
    cluster = Cluster("round_robin", spec("a"))
    cluster.place(1.0, call("r"))
    assert kinds(cluster.at(1.1, failed("r", "a"))) == ["Dispatch"]


def test_what_cannot_be_retried_is_refused() -> None:
    cluster = Cluster("round_robin", spec("a"), spec("b"))
    cluster.place(1.0, call("r"))
    assert reject(cluster.at(1.1, failed("r", "a", retryable=False))).refusal is Refusal.NOT_RETRYABLE
    cluster.run(2.0, call("s", migration_refused="guided decoding"))
    refused = reject(cluster.at(2.1, failed("s", "b", output_tokens=1)))
    assert refused.message.endswith("1 tokens are out and the call may not move: guided decoding")


def test_a_call_with_output_goes_on_only_where_tokens_can_be_replayed() -> None:
    cluster = Cluster("round_robin", spec("a"), spec("b", supports_replay=False))
    cluster.run(1.0, call("r"), tokens=3)
    (again,) = cluster.at(1.1, failed("r", "a", output_tokens=3))
    assert isinstance(again, Dispatch)
    assert again.decode_instance == "a"
    assert again.reason.length is not None


def test_a_lost_instance_takes_no_calls_and_its_calls_go_on_when_reported() -> None:
    cluster = Cluster("round_robin", spec("a"), spec("b"))
    cluster.place(1.0, call("r"))
    assert cluster.at(2.0, InstanceLost(event_id="l", instance_id="a", reason="will")) == []
    assert [item["instance_id"] for item in cluster.scheduler.snapshot()["instances"]] == ["b"]
    (again,) = cluster.at(2.1, failed("r", "a"))
    assert isinstance(again, Dispatch)
    assert again.decode_instance == "b"


def test_calls_of_the_last_instance_are_held_when_it_is_lost() -> None:
    cluster = Cluster("agentserve", spec("a"))
    cluster.run(1.0, call("r"))
    cluster.at(2.0, InstanceLost(event_id="l", instance_id="a", reason="will"))
    assert kinds(cluster.at(2.1, failed("r", "a"))) == ["Hold"]
    (again,) = cluster.at(3.0, InstanceJoined(event_id="j", instance=spec("a")))
    assert isinstance(again, Dispatch)
    assert again.attempt == 2


def test_cancelling_stops_a_sent_call_and_drops_a_held_one() -> None:
    cluster = Cluster("round_robin", spec("a"))
    cluster.place(1.0, call("r"))
    (decision,) = cluster.at(1.1, RequestCancelled(event_id="c", request_id="r"))
    assert isinstance(decision, Cancel)
    assert cluster.at(1.2, RequestCancelled(event_id="c2", request_id="r")) == []
    held = Cluster("round_robin")
    held.at(1.0, call("r"))
    assert held.at(1.1, RequestCancelled(event_id="c", request_id="r")) == []


def test_a_split_call_frees_its_prefill_instance_first() -> None:
    pool = [
        spec("p", role=Role.PREFILL, kv_link_bytes_per_s=1e9),
        spec("d", role=Role.DECODE, kv_link_bytes_per_s=1e9),
    ]
    cluster = Cluster("agentserve", *pool)
    placed = cluster.place(1.0, call("r"))
    assert placed.is_split
    assert (cluster.instance("p")["queued"], cluster.instance("d")["bound"]) == (1, 1)
    cluster.at(1.1, PrefillFinished(event_id="pf", request_id="r"))
    cluster.at(1.1, PrefillFinished(event_id="pf2", request_id="r"))
    assert (cluster.instance("p")["queued"], cluster.instance("d")["bound"]) == (0, 1)
    cluster.at(1.2, FirstToken(event_id="f", request_id="r", cached_tokens=0))
    assert (cluster.instance("d")["bound"], cluster.instance("d")["running"]) == (0, 1)
    cluster.at(1.3, InstanceLost(event_id="l", instance_id="p", reason="will"))
    assert kinds(cluster.at(1.4, failed("r", "d", output_tokens=2))) == ["Hold"]
    assert cluster.instance("d")["running"] == 0


def test_losing_one_leg_of_a_split_call_leaves_the_other_charged_until_reported() -> None:
    pool = [spec(name, kv_link_bytes_per_s=1e12) for name in ("a", "b")]
    pool = [replace(pool[0], role=Role.PREFILL), replace(pool[1], role=Role.DECODE)]
    cluster = Cluster("agentserve", *pool)
    cluster.place(1.0, call("r"))
    cluster.at(1.1, InstanceLost(event_id="l", instance_id="a", reason="will"))
    assert cluster.instance("b")["bound"] == 1
    cluster.at(1.2, failed("r", "a"))
    assert cluster.instance("b")["bound"] == 0


def test_a_drained_instance_takes_nothing_until_it_announces_itself_again() -> None:
    cluster = Cluster("round_robin", spec("a"), spec("b"))
    cluster.at(1.0, InstanceDraining(event_id="d", instance_id="a"))
    assert cluster.instance("a")["draining"]
    assert [cluster.place(1.0, call(name)).decode_instance for name in "xy"] == ["b", "b"]
    cluster.at(2.0, InstanceJoined(event_id="j", instance=spec("a")))
    assert cluster.place(2.0, call("z")).decode_instance == "a"


def test_announcing_new_facts_keeps_the_calls_and_a_new_model_drops_them() -> None:
    cluster = Cluster("round_robin", spec("a"))
    cluster.run(1.0, call("r"))
    cluster.place(1.0, call("s"))
    cluster.at(2.0, InstanceJoined(event_id="j", instance=spec("a", max_num_seqs=128)))
    assert (cluster.instance("a")["running"], cluster.instance("a")["queued"]) == (1, 1)
    cluster.at(3.0, InstanceJoined(event_id="j", instance=spec("a", model="other")))
    assert (cluster.instance("a")["model"], cluster.instance("a")["running"]) == ("other", 0)
    assert kinds(cluster.at(4.0, failed("r", "a", output_tokens=1))) == ["Hold"]


def test_old_news_changes_nothing() -> None:
    cluster = Cluster("round_robin", spec("a"), spec("b"))
    cluster.run(1.0, call("r"))
    assert cluster.at(1.1, failed("r", "b")) == []
    assert cluster.progress(1.2, "r", 1) == []
    assert cluster.at(1.2, FirstToken(event_id="f2", request_id="r")) == []
    assert cluster.at(1.2, MigrationRefused(event_id="m", request_id="r", reason="no")) == []
    cluster.finish(1.3, "r")
    ended: list[Any] = [
        Progress(event_id="p", request_id="r", output_tokens=5),
        FirstToken(event_id="f", request_id="r"),
        PrefillFinished(event_id="pf", request_id="r"),
        failed("r", "a"),
        RequestFinished(event_id="e", request_id="r", prompt_tokens=1, output_tokens=1),
        MigrationRefused(event_id="m", request_id="r", reason="no"),
        DeadlinesMoved(event_id="dm", request_id="r", target_deadline_s=1.0, latest_deadline_s=2.0),
    ]
    cluster.at(1.4, InstanceLost(event_id="l", instance_id="b", reason="will"))
    ended += [
        InstanceLost(event_id="l2", instance_id="b", reason="will"),
        InstanceDraining(event_id="d", instance_id="b"),
        InstanceReported(event_id="x", instance_id="b", measured_at_s=1.0),
    ]
    assert [cluster.at(1.5, event) for event in ended] == [[]] * len(ended)


def test_an_ended_id_may_arrive_again() -> None:
    cluster = Cluster("round_robin", spec("a"))
    cluster.run(1.0, call("r"))
    cluster.finish(1.5, "r")
    assert cluster.place(2.0, call("r")).attempt == 1


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (call("live"), "'live' is already live"),
        (Progress(event_id="p", request_id="none", output_tokens=1), "unknown request 'none'"),
        (Progress(event_id="p", request_id="live", output_tokens=-1), "output_tokens is -1"),
        (InstanceLost(event_id="l", instance_id="none", reason=""), "unknown instance 'none'"),
        (InstanceReported(event_id="x", instance_id="a", measured_at_s=0.0, kv_usage=1.5), "kv_usage is 1.5"),
        (InstanceReported(event_id="x", instance_id="a", measured_at_s=float("nan")), "measured_at_s is nan"),
        (call("r", prompt_tokens=-1), "'r': prompt_tokens is -1; allowed are 0 to"),
        (call("r", max_tokens=0), "max_tokens is 0"),
        (call("r", target_deadline_s=float("nan")), "target_deadline_s is nan"),
        (InstanceJoined(event_id="j", instance=spec("x", speed=0.0)), "'x': speed is 0.0"),
        (InstanceJoined(event_id="j", instance=spec("x", kv_link_bytes_per_s=0.0)), "kv_link_bytes_per_s is 0.0"),
        ("not an event", "not an event: str"),
    ],
)
def test_a_wrong_event_is_named_and_changes_nothing(event: Any, message: str) -> None:
    cluster = Cluster("round_robin", spec("a"))
    cluster.place(1.0, call("live"))
    before = cluster.scheduler.snapshot()
    with pytest.raises(InvalidEvent, match=message):
        cluster.scheduler.handle(event, 1.0)
    assert cluster.scheduler.snapshot() == before


def test_an_unknown_gpu_is_refused_and_nothing_else_harmed() -> None:
    def profiles(gpu: str, model: str) -> Any:
        if gpu != "slow":
            raise UnknownProfile(f"no profile of {gpu}")
        return profile(gpu, model)

    cluster = Cluster("round_robin", spec("a"), profiles=profiles)
    with pytest.raises(UnknownProfile, match="no profile of abacus"):
        cluster.at(1.0, InstanceJoined(event_id="j", instance=spec("b", "abacus")))
    assert cluster.place(1.0, call("r")).decode_instance == "a"


def test_the_shipped_profiles_are_the_default() -> None:
    scheduler = make_scheduler("agentserve")
    scheduler.handle(InstanceJoined(event_id="j", instance=spec("a", "h100", model="llama-3.1-8b")), 0.0)
    assert scheduler.snapshot()["instances"][0]["gpu"] == "h100"


def test_a_setting_out_of_range_is_named() -> None:
    with pytest.raises(InvalidConfig, match=r"SchedulerConfig.risk_period_s is 0; allowed are 0.001 to 3600"):
        SchedulerConfig(risk_period_s=0)
    with pytest.raises(InvalidConfig, match=r"LengthConfig.max_keys is 0"):
        LengthConfig(max_keys=0)


def test_memory_of_ended_calls_is_bounded() -> None:
    cluster = Cluster("round_robin", spec("a"), config=SchedulerConfig(max_ended=2))
    for i in range(4):
        cluster.run(1.0, call(f"r{i}"))
        cluster.finish(1.0, f"r{i}")
    with pytest.raises(InvalidEvent, match="unknown request 'r0'"):
        cluster.progress(2.0, "r0", 1)
    assert cluster.progress(2.0, "r3", 1) == []
