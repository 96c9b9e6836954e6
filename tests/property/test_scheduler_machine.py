"""Whatever happens, in whatever order: invariants of the scheduler under random event sequences."""

import json
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler import wire
from scheduler.config import LengthConfig, MigrationConfig, SchedulerConfig
from scheduler.core import Scheduler, make_scheduler
from scheduler.decisions import Cancel, Decision, Dispatch, Hold, Migrate, MoveBy, Reject, WakeAt
from scheduler.events import (
    DeadlinesMoved,
    Event,
    FirstToken,
    InstanceDraining,
    InstanceJoined,
    InstanceLost,
    InstanceReported,
    InstanceSpec,
    MigrationRefused,
    Mode,
    ModeChanged,
    PrefillFinished,
    Progress,
    RequestCancelled,
    RequestFailed,
    RequestFinished,
    Role,
    Woke,
)
from scheduler.length import LengthModel
from scheduler.policies import policy_names
from scheduler.prefix import PrefixIndex
from tests.unit.scheduler_builders import SPEED, call, loaded_profile, spec

PLAIN = ("least_requests", "power_of_two", "prefix_affinity", "random", "round_robin", "session_affinity")
NAMES = st.sampled_from(["a", "b", "c", "d"])
MODELS = st.sampled_from(["m", "m", "m", "other"])
CONFIG = SchedulerConfig(
    hold_limit_s=5.0,
    max_attempts=3,
    max_ended=5,
    migration=MigrationConfig(
        min_gain_s=0.0,
        min_gain_share=0.0,
        min_chance_gain=0.0,
        cooldown_s=0.2,
        max_concurrent=2,
        drain_patience_s=0.1,
        kv_moves=True,
    ),
)


def make(policy: str, config: SchedulerConfig, seed: int) -> Scheduler:
    return make_scheduler(policy, config, seed, profiles=loaded_profile)


class Driver(RuleBasedStateMachine):
    """A driver that tells the truth, late and in any order."""

    @initialize(
        policy=st.sampled_from([*policy_names(), "agentserve", "agentserve"]),
        roles=st.sampled_from([[Role.MIXED] * 2, [Role.MIXED] * 3, [Role.PREFILL, Role.DECODE, Role.DECODE]]),
        observed=st.none() | st.none() | st.sampled_from(PLAIN),
    )
    def begin(self, policy: str, roles: list[Role], observed: str | None) -> None:
        self.policy = policy if observed is None else observed
        self.scheduler = make(self.policy, CONFIG, 7)
        self.looking_on: Scheduler | None = None
        """Sees the same events, with another policy of its own, and lets ours place."""
        if observed is not None:
            self.looking_on = make(policy, CONFIG, 7)
            self.looking_on.handle(ModeChanged(event_id="observe", mode=Mode.OBSERVE, observed=observed), 100.0)
        self.now_s = 100.0
        self.ids = count()
        self.live: dict[str, InstanceSpec] = {}
        self.calls: dict[str, dict[str, Any]] = {}
        self.ended: dict[str, int] = {}
        self.log = [json.dumps(wire.header(self.policy, CONFIG, 7))]
        for name, role in zip("abc", roles, strict=False):
            self.join(name, "slow", role, "m", 1e9, None)

    def send(self, event: Event) -> list[Decision]:
        decisions = self.scheduler.handle(event, self.now_s)
        self.log.append(json.dumps(wire.record(event, self.now_s, decisions)))
        if self.looking_on is not None:
            assert [without_shadow(made) for made in self.looking_on.handle(event, self.now_s)] == decisions
        assert wire.event_from_plain(json.loads(json.dumps(wire.to_plain(event)))) == event
        for decision in decisions:
            assert decision.cause_id == event.event_id
            assert wire.decision_from_plain(json.loads(json.dumps(wire.to_plain(decision)))) == decision
            self.follow(decision)
        return decisions

    def follow(self, decision: Decision) -> None:
        match decision:
            case Dispatch():
                assert {decision.prefill_instance, decision.decode_instance} <= self.live.keys()
                assert self.calls[decision.request_id]["attempt"] < decision.attempt
                if decision.is_split:
                    self.hands_over(decision.prefill_instance, decision.decode_instance)
                self.calls[decision.request_id] |= {
                    "attempt": decision.attempt,
                    "prefill": decision.prefill_instance,
                    "on": decision.decode_instance,
                    "left": None,
                }
            case Migrate():
                assert self.scheduler.mode in (Mode.MIGRATE, Mode.SPLIT)
                assert decision.target in self.live
                assert decision.source == self.calls[decision.request_id]["on"]
                assert decision.source != decision.target
                if decision.by is MoveBy.KV:
                    self.hands_over(decision.source, decision.target)
                self.calls[decision.request_id] |= {
                    "attempt": decision.attempt,
                    "prefill": decision.source if decision.by is MoveBy.KV else decision.target,
                    "on": decision.target,
                    "left": decision.source,
                    "left_prefill": self.calls[decision.request_id]["prefill"],
                }
            case Reject():
                self.end(decision.request_id)
            case Hold():
                assert self.calls[decision.request_id]["on"] is None
            case Cancel():
                assert decision.request_id not in self.calls
            case WakeAt():
                assert decision.at_s >= self.now_s

    def hands_over(self, prefill: str, decode: str) -> None:
        giver, taker = self.live[prefill], self.live[decode]
        assert None not in (giver.kv_link_bytes_per_s, taker.kv_link_bytes_per_s)
        assert (giver.model, giver.kv_group) == (taker.model, taker.kv_group)
        assert giver.role is not Role.DECODE
        assert taker.role is not Role.PREFILL

    def end(self, name: str) -> None:
        del self.calls[name]
        self.ended[name] = self.ended.get(name, 0) + 1
        assert self.ended[name] == 1

    def event_id(self) -> str:
        return f"e{next(self.ids)}"

    def pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.calls)))

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(
        name=NAMES,
        gpu=st.sampled_from(sorted(SPEED)),
        role=st.sampled_from([Role.MIXED, *Role]),
        model=MODELS,
        link=st.sampled_from([1e9, 1e9, None]),
        group=st.sampled_from([None, None, "x"]),
    )
    def join(self, name: str, gpu: str, role: Role, model: str, link: float | None, group: str | None) -> None:
        instance = spec(
            name,
            gpu,
            role=role,
            model=model,
            kv_link_bytes_per_s=link,
            kv_group=group,
            kv_capacity_tokens=2000,
            max_num_seqs=2,
        )
        self.live[name] = instance
        self.send(InstanceJoined(event_id=self.event_id(), instance=instance))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), running=st.none() | st.integers(0, 5), usage=st.none() | st.floats(0, 1))
    def report(self, data: st.DataObject, running: int | None, usage: float | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        age_s = data.draw(st.floats(0.0, 5.0))
        event = InstanceReported(
            event_id=self.event_id(),
            instance_id=name,
            measured_at_s=self.now_s - age_s,
            running=running,
            waiting=running,
            kv_usage=usage,
            preemptions=running,
        )
        self.send(event)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.send(InstanceDraining(event_id=self.event_id(), instance_id=name))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), is_told=st.booleans())
    def lose(self, data: st.DataObject, is_told: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[name]
        self.send(InstanceLost(event_id=self.event_id(), instance_id=name, reason="will"))
        for request_id in sorted(self.calls):
            placed = self.calls.get(request_id, {})
            if is_told and placed.get("on") is not None and name in (placed["on"], placed["prefill"]):
                self.break_off(request_id, name, retryable=True)

    @rule(
        model=MODELS,
        prompt=st.integers(0, 2100),
        limit=st.none() | st.integers(1, 500),
        target_s=st.none() | st.floats(-1.0, 20.0),
        prefix=st.integers(0, 7),
        refused=st.sampled_from([None, None, "guided"]),
    )
    def arrive(
        self, model: str, prompt: int, limit: int | None, target_s: float | None, prefix: int, refused: str | None
    ) -> None:
        self.ask(model, prompt, limit, target_s, prefix, refused)

    def ask(
        self, model: str, prompt: int, limit: int | None, target_s: float | None, prefix: int, refused: str | None
    ) -> str:
        name = f"r{next(self.ids)}"
        self.calls[name] = {"attempt": 0, "prefill": None, "on": None, "left": None, "tokens": 0}
        arrived = call(
            name,
            model=model,
            prompt_tokens=prompt,
            max_tokens=limit,
            target_deadline_s=None if target_s is None else self.now_s + target_s,
            latest_deadline_s=None if target_s is None else self.now_s + 2 * target_s,
            prefix_hashes=tuple(range(prefix)),
            prefix_block_tokens=64,
            migration_refused=refused,
            tenant=("one", "two", "three")[prompt % 3],
            tenant_weight=(1.0, 0.5, 3.0)[prompt % 3],
        )
        self.send(arrived)
        return name

    @rule(prompt=st.integers(100, 1500), tokens=st.integers(0, 60), stalls_s=st.floats(0.0, 10.0))
    def arrive_and_stall(self, prompt: int, tokens: int, stalls_s: float) -> None:
        """The way to a move, which rules one by one would rarely find: two mixed instances and a late call on one."""
        for instance in "ab":
            self.join(instance, "slow", Role.MIXED, "m", 1e9, None)
        name = self.ask("m", prompt, None, 1.0, 0, None)
        if name in self.calls and self.calls[name]["on"] is not None:
            self.send(FirstToken(event_id=self.event_id(), request_id=name))
            self.calls[name]["tokens"] = tokens
            self.send(Progress(event_id=self.event_id(), request_id=name, output_tokens=tokens))
            self.now_s += stalls_s
            self.wake()

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def prefill_finished(self, data: st.DataObject) -> None:
        name = self.pick(data)
        if self.calls[name]["on"] != self.calls[name]["prefill"]:
            self.send(PrefillFinished(event_id=self.event_id(), request_id=name))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), cached=st.none() | st.integers(0, 2000), is_told=st.booleans())
    def first_token(self, data: st.DataObject, cached: int | None, is_told: bool) -> None:
        name = self.pick(data)
        if self.calls[name]["on"] is not None:
            if is_told:
                self.send(PrefillFinished(event_id=self.event_id(), request_id=name))
            self.calls[name]["left"] = None
            self.send(FirstToken(event_id=self.event_id(), request_id=name, cached_tokens=cached))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), tokens=st.integers(0, 60), seconds=st.floats(0.0, 3.0))
    def progress(self, data: st.DataObject, tokens: int, seconds: float) -> None:
        name = self.pick(data)
        if self.calls[name]["on"] is not None:
            self.now_s += seconds
            self.calls[name]["tokens"] += tokens
            self.send(Progress(event_id=self.event_id(), request_id=name, output_tokens=self.calls[name]["tokens"]))

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        name = self.pick(data)
        if self.calls[name]["on"] is not None:
            tokens = self.calls[name]["tokens"]
            self.end(name)
            self.send(RequestFinished(event_id=self.event_id(), request_id=name, prompt_tokens=1, output_tokens=tokens))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), retryable=st.booleans(), leg=st.sampled_from(["on", "on", "prefill", "left"]))
    def fail(self, data: st.DataObject, retryable: bool, leg: str) -> None:
        name = self.pick(data)
        if self.calls[name]["on"] is not None and self.calls[name][leg] is not None:
            self.break_off(name, self.calls[name][leg], retryable=retryable)

    def break_off(self, name: str, instance: str, *, retryable: bool) -> None:
        self.calls[name] |= {"prefill": None, "on": None, "left": None}
        event = RequestFailed(
            event_id=self.event_id(),
            request_id=name,
            instance_id=instance,
            output_tokens=self.calls[name]["tokens"],
            error="reset",
            retryable=retryable,
        )
        answers = [kind for kind in self.send(event) if isinstance(kind, Dispatch | Hold | Reject)]
        assert [answer.request_id for answer in answers].count(name) == 1  # others may have waited for its place

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = self.pick(data)
        self.end(name)
        self.send(RequestCancelled(event_id=self.event_id(), request_id=name))

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def refuse_move(self, data: st.DataObject) -> None:
        name = self.pick(data)
        source = self.calls[name]["left"]
        if source is not None:
            self.calls[name] |= {
                "attempt": self.calls[name]["attempt"] - 1,
                "prefill": self.calls[name]["left_prefill"],
                "on": source,
                "left": None,
            }
            self.send(MigrationRefused(event_id=self.event_id(), request_id=name, reason="busy"))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), left_s=st.floats(-5.0, 5.0))
    def move_deadlines(self, data: st.DataObject, left_s: float) -> None:
        event = DeadlinesMoved(
            event_id=self.event_id(),
            request_id=self.pick(data),
            target_deadline_s=self.now_s + left_s,
            latest_deadline_s=self.now_s + left_s + 1.0,
        )
        self.send(event)

    @precondition(lambda self: self.looking_on is None)
    @rule(mode=st.sampled_from(Mode), observed=st.sampled_from(PLAIN))
    def switch(self, mode: Mode, observed: str) -> None:
        self.send(ModeChanged(event_id=self.event_id(), mode=mode, observed=observed))

    @rule()
    def wake(self) -> None:
        self.send(Woke(event_id=self.event_id()))

    @invariant()
    def sums_agree_and_every_call_is_in_one_state(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            seen = self.scheduler.snapshot()
            json.dumps(seen, allow_nan=False)
            assert sum(seen["calls"].values()) == len(self.calls)
            assert all(item["kv_used_tokens"] >= 0.0 for item in seen["instances"])

    def teardown(self) -> None:
        if hasattr(self, "log"):
            assert wire.replay(self.log, make) is None


def without_shadow(decision: Decision) -> Decision:
    return replace(decision, shadow=None) if isinstance(decision, Dispatch) else decision


TestDriver = pytest.mark.timeout(60)(Driver.TestCase)
TestDriver.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)

BLOCKS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


def chained(path: list[int]) -> list[int]:
    return [hash(tuple(path[: i + 1])) for i in range(len(path))]


@given(st.lists(st.tuples(st.sampled_from("abc"), BLOCKS), max_size=30), BLOCKS)
@settings(max_examples=60, deadline=None)
def test_depths_are_those_of_the_longest_stored_prefix(stored: list[tuple[str, list[int]]], asked: list[int]) -> None:
    index = PrefixIndex()
    bits = {name: index.add_instance(name, 1e9) for name in "abc"}
    for name, path in stored:
        index.insert(name, chained(path), 16)
    found = index.depths(chained(asked))
    for name, bit in bits.items():
        held = {tuple(path[: i + 1]) for owner, path in stored if owner == name for i in range(len(path))}
        assert found[bit] == sum(tuple(asked[: i + 1]) in held for i in range(len(asked)))


@given(st.lists(st.tuples(st.sampled_from("abc"), BLOCKS), max_size=40), st.floats(16.0, 400.0))
@settings(max_examples=40, deadline=None)
def test_an_index_never_exceeds_its_capacity(stored: list[tuple[str, list[int]]], capacity: float) -> None:
    index = PrefixIndex()
    for name in "abc":
        index.add_instance(name, capacity)
    for name, path in stored:
        index.insert(name, chained(path), 16)
        assert index.blocks() <= 3 * capacity / 16
        assert index.holds_only_known()


@given(
    st.lists(st.integers(0, 5000), max_size=40),
    st.integers(0, 300_000),
    st.none() | st.integers(1, 5000),
    st.floats(0.05, 3),
)
@settings(max_examples=80, deadline=None)
def test_quantiles_are_ordered_beyond_what_was_emitted_and_within_the_limit(
    lengths: list[int], emitted: int, limit: int | None, sigma: float
) -> None:
    model = LengthModel(LengthConfig(prior_sigma=sigma))
    for tokens in lengths:
        model.observe("w", "n", "m", 10, tokens)
    seen = model.distribution("w", "n", "m", 10).forecast(limit, emitted)
    assert seen.p10_tokens <= seen.p50_tokens <= seen.p90_tokens
    assert seen.p10_tokens >= min(emitted + 1, float("inf") if limit is None else max(limit, emitted + 1))
