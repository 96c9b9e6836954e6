"""Which messages and observations make a worker join, report, drain and be lost."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from agentserve.telemetry.messages import Announce, Channel, Message, Report, Status, topic
from agentserve.telemetry.signing import signed, worker_key
from agentserve.workers.member import MemberState
from agentserve.workers.registry import Registry
from scheduler.errors import UnknownProfile
from scheduler.events import InstanceSpec

LOST_AFTER_S = 1.5


@dataclass
class Gateway:
    """A registry of cluster `c` and what it called back, in order."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    unknown_gpus: set[str] = field(default_factory=set)
    max_workers: int = 4096

    def __post_init__(self) -> None:
        self.registry = Registry(
            "c",
            LOST_AFTER_S,
            on_joined=self._joined,
            on_reported=lambda report: self.calls.append(("reported", report.worker_id, report.seq)),
            on_draining=lambda worker_id: self.calls.append(("draining", worker_id)),
            on_lost=lambda worker_id, reason: self.calls.append(("lost", worker_id)),
            max_workers=self.max_workers,
        )

    def _joined(self, spec: InstanceSpec, announced: Announce) -> None:
        if spec.gpu in self.unknown_gpus:
            raise UnknownProfile(f"unknown gpu {spec.gpu!r}")
        self.calls.append(("joined", spec.instance_id, announced.model))

    def hear(self, message: Message, now_s: float = 0.0, worker: str = "w") -> None:
        channel = Channel(type(message).__name__.lower())
        self.registry.handle_message(topic("c", worker, channel), message.model_dump_json().encode(), now_s)

    def take(self) -> list[tuple[Any, ...]]:
        """The calls since the last take."""
        taken, self.calls = self.calls, []
        return taken

    def state(self, worker: str = "w") -> MemberState | None:
        member = self.registry.get(worker)
        return member.state if member else None


def announce(worker: str = "w", boot: str = "b1", **facts: Any) -> Announce:
    usual = {"engine_url": "http://e:1", "engine": "vllm", "model": "m", "gpu": "h100", "kv_capacity_tokens": 1000,
             "block_tokens": 16, "max_num_seqs": 8, "max_batched_tokens": 512, "kv_bytes_per_token": 1}  # fmt: skip
    return Announce(worker_id=worker, boot_id=boot, **{**usual, **facts})


def report(seq: int = 1, boot: str = "b1", worker: str = "w", measured_at_s: float = 0.0, **facts: Any) -> Report:
    return Report(worker_id=worker, boot_id=boot, seq=seq, measured_at_s=measured_at_s, **facts)


def status(state: Any, boot: str = "b1", worker: str = "w") -> Status:
    return Status(worker_id=worker, boot_id=boot, state=state)


def joined_gateway(**options: Any) -> Gateway:
    gateway = Gateway(**options)
    gateway.hear(announce())
    gateway.hear(status("online"))
    gateway.hear(report(1))
    gateway.registry.tick(0.0, broker_connected=True)
    assert gateway.take() == [("joined", "w", "m"), ("reported", "w", 1)]
    return gateway


def test_a_worker_joins_when_it_has_announced_and_reported() -> None:
    gateway = Gateway()
    gateway.hear(report(1))
    gateway.hear(announce())
    assert gateway.calls == []
    gateway.hear(report(2))
    assert gateway.take() == [("joined", "w", "m"), ("reported", "w", 2)]


def test_retained_facts_of_a_dead_worker_do_not_make_it_join() -> None:
    gateway = Gateway()
    for message in (announce(), status("online"), announce(), status("offline")):
        gateway.hear(message)
    gateway.registry.tick(100.0, broker_connected=True)
    assert gateway.calls == []


def test_duplicates_change_nothing() -> None:
    gateway = joined_gateway()
    for message in (announce(), status("online"), report(1), announce(), status("online")):
        gateway.hear(message)
    assert gateway.calls == []


def test_an_older_report_is_dropped() -> None:
    gateway = joined_gateway()
    gateway.hear(report(3))
    gateway.hear(report(2))
    assert gateway.take() == [("reported", "w", 3)]


def test_a_last_will_loses_a_worker_at_once_and_only_once() -> None:
    gateway = joined_gateway()
    gateway.hear(status("offline"))
    gateway.hear(status("offline"))
    gateway.registry.tick(60.0, broker_connected=True)
    assert gateway.take() == [("lost", "w")]


def test_the_will_of_an_earlier_boot_does_not_lose_its_successor() -> None:
    gateway = joined_gateway()
    gateway.hear(announce(boot="b2"))
    gateway.hear(report(1, boot="b2"))
    gateway.hear(status("offline", boot="b1"))
    gateway.hear(report(9, boot="b1"))
    gateway.hear(announce(boot="b1"))
    assert gateway.take() == [("reported", "w", 1)]
    assert gateway.registry.get("w").boot_id == "b2"  # type: ignore[union-attr]  # joined_gateway made it


def test_a_fresh_report_brings_a_worker_back_after_its_will() -> None:
    gateway = joined_gateway()
    gateway.hear(status("offline"))
    gateway.hear(report(2))
    assert gateway.take() == [("lost", "w"), ("joined", "w", "m"), ("reported", "w", 2)]


def test_silence_is_a_loss_only_after_the_limit() -> None:
    gateway = joined_gateway()
    gateway.registry.tick(LOST_AFTER_S, broker_connected=True)
    assert gateway.calls == []
    gateway.registry.tick(LOST_AFTER_S + 0.01, broker_connected=True)
    assert gateway.take() == [("lost", "w")]
    assert gateway.registry.get("w").reason == "no report for 1.5 s"  # type: ignore[union-attr]  # it was joined


def test_silence_without_a_broker_is_no_loss_and_a_returning_broker_gives_everyone_time() -> None:
    gateway = joined_gateway()
    for now_s in (1.0, 10.0, 100.0):
        gateway.registry.tick(now_s, broker_connected=False)
    gateway.registry.tick(101.0, broker_connected=True)
    gateway.registry.tick(102.0, broker_connected=True)
    assert gateway.calls == []
    gateway.registry.tick(102.6, broker_connected=True)
    assert gateway.take() == [("lost", "w")]


def test_an_unhealthy_engine_is_lost_and_a_healthy_one_is_back() -> None:
    gateway = joined_gateway()
    gateway.hear(report(2, healthy=False))
    gateway.hear(report(3, healthy=False))
    gateway.hear(report(4))
    assert gateway.take() == [("lost", "w"), ("joined", "w", "m"), ("reported", "w", 4)]


def test_an_engine_that_starts_unhealthy_does_not_join() -> None:
    gateway = Gateway()
    gateway.hear(announce())
    gateway.hear(report(1, healthy=False))
    assert gateway.calls == []


def test_other_facts_are_announced_to_the_scheduler_again() -> None:
    gateway = joined_gateway()
    gateway.hear(announce(model="m2"))
    gateway.hear(announce(boot="b2", model="m2"))
    assert gateway.take() == [("joined", "w", "m2")]


def test_draining_and_resuming() -> None:
    gateway = joined_gateway()
    gateway.hear(status("draining"))
    gateway.hear(status("draining"))
    gateway.hear(report(2))
    assert gateway.take() == [("joined", "w", "m"), ("draining", "w"), ("reported", "w", 2)]
    assert gateway.state() is MemberState.DRAINING
    gateway.hear(status("online"))
    assert gateway.take() == [("joined", "w", "m")]
    assert gateway.state() is MemberState.ONLINE


@pytest.mark.parametrize("facts", [(announce(), status("draining")), (status("draining"), announce())])
def test_a_worker_that_was_draining_when_the_gateway_started_takes_no_work(facts: tuple[Message, Message]) -> None:
    gateway = Gateway()
    for message in (*facts, report(1)):
        gateway.hear(message)
    assert gateway.take() == [("joined", "w", "m"), ("draining", "w"), ("reported", "w", 1)]


def test_a_drain_ends_with_the_boot_that_asked_for_it() -> None:
    gateway = joined_gateway()
    gateway.hear(status("draining"))
    gateway.hear(status("offline"))
    gateway.take()
    for message in (announce(boot="b2"), status("draining", boot="b1"), report(1, boot="b2")):
        gateway.hear(message)
    assert gateway.take() == [("joined", "w", "m"), ("reported", "w", 1)]


def test_what_the_gateway_saw_counts_at_once_with_or_without_a_broker() -> None:
    gateway = joined_gateway()
    gateway.registry.tick(1.0, broker_connected=False)
    gateway.registry.observed_lost("w", "connection refused", 1.0)
    gateway.registry.observed_lost("w", "connection refused", 1.0)
    assert gateway.take() == [("lost", "w")]
    gateway.registry.observed_alive("w")
    gateway.registry.observed_alive("w")
    assert gateway.take() == [("joined", "w", "m")]


def test_a_report_from_before_the_gateway_saw_it_dead_is_not_believed() -> None:
    gateway = joined_gateway()
    gateway.registry.observed_lost("w", "connection refused", 1.0)
    gateway.hear(report(2, measured_at_s=0.9), now_s=1.01)
    gateway.hear(report(3, measured_at_s=1.2), now_s=1.2)
    assert gateway.take() == [("lost", "w")]
    gateway.hear(report(4, measured_at_s=2.6), now_s=2.6)
    assert gateway.take() == [("joined", "w", "m"), ("reported", "w", 4)]


def test_the_word_of_a_worker_that_cannot_be_reached_counts_for_less_each_time() -> None:
    gateway = joined_gateway()
    seq, now_s, waits = 1, 0.0, []
    for _ in range(8):
        gateway.registry.observed_lost("w", "timed out", now_s)
        gateway.take()
        lost_s = now_s
        while gateway.state() is MemberState.LOST:
            seq, now_s = seq + 1, now_s + 0.5
            gateway.hear(report(seq, measured_at_s=now_s), now_s)
        waits.append(now_s - lost_s)
    assert waits == [1.5, 3.0, 6.0, 12.0, 24.0, 30.0, 30.0, 30.0]


def test_a_health_check_does_not_revive_a_worker_whose_silence_a_working_broker_proves() -> None:
    gateway = joined_gateway()
    gateway.registry.tick(5.0, broker_connected=True)
    gateway.registry.observed_alive("w")
    assert gateway.take() == [("lost", "w")]
    gateway.registry.tick(6.0, broker_connected=False)
    gateway.registry.observed_alive("w")
    assert gateway.take() == [("joined", "w", "m")]


def test_only_those_are_probed_whose_life_the_gateway_alone_can_judge() -> None:
    gateway = joined_gateway()
    gateway.registry.add_static(announce("s"), 0.0)
    gateway.hear(announce("seen-dead"), worker="seen-dead")
    gateway.hear(report(worker="seen-dead"), worker="seen-dead")
    gateway.registry.observed_lost("seen-dead", "refused", 0.0)

    def probed() -> list[str]:
        return [member.worker_id for member in gateway.registry.to_probe()]

    assert probed() == ["s", "seen-dead"]
    gateway.registry.tick(1.0, broker_connected=False)
    assert probed() == ["w", "s", "seen-dead"]


def test_a_static_engine_joins_at_once_and_no_message_or_silence_touches_it() -> None:
    gateway = Gateway()
    gateway.registry.add_static(announce("s"), 0.0)
    gateway.hear(status("offline", worker="s"), worker="s")
    gateway.hear(announce("s", model="other"), worker="s")
    gateway.registry.tick(0.0, broker_connected=True)
    gateway.registry.tick(1000.0, broker_connected=True)
    assert gateway.take() == [("joined", "s", "m")]
    gateway.registry.observed_lost("s", "refused", 1.0)
    gateway.registry.observed_alive("s")
    assert gateway.take() == [("lost", "s"), ("joined", "s", "m")]


def test_a_refused_worker_stays_out_until_it_announces_something_else(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway(unknown_gpus={"abacus"})
    gateway.hear(announce(gpu="abacus"))
    for seq in range(1, 5):
        gateway.hear(report(seq))
    gateway.hear(announce(boot="b2", gpu="abacus"))
    gateway.hear(report(1, boot="b2"))
    gateway.registry.observed_alive("w")
    gateway.registry.observed_lost("w", "refused", 1.0)
    assert gateway.calls == []
    assert gateway.state() is MemberState.REFUSED
    assert [r.message for r in caplog.records] == ["worker w is refused: unknown gpu 'abacus'"]
    gateway.hear(announce(boot="b2", gpu="h100"))
    gateway.hear(report(2, boot="b2"))
    assert gateway.take() == [("joined", "w", "m"), ("reported", "w", 2)]


def test_a_live_worker_that_turns_into_an_unknown_gpu_is_lost() -> None:
    gateway = joined_gateway(unknown_gpus={"abacus"})
    gateway.hear(announce(gpu="abacus"))
    gateway.registry.tick(60.0, broker_connected=True)
    assert gateway.take() == [("lost", "w")]


@pytest.mark.parametrize(
    ("channel", "payload"),
    [
        ("announce", b""),
        ("announce", b"{"),
        ("announce", b"[]"),
        ("announce", b"\xff\xfe"),
        ("announce", announce("other").model_dump_json().encode()),
        ("announce", announce().model_dump_json().replace('"speed":1.0', '"speed":-1').encode()),
        ("announce", b" " * 70_000 + announce().model_dump_json().encode()),
        ("status", json.dumps({"worker_id": "w", "boot_id": "b1", "state": "asleep"}).encode()),
        ("report", report().model_dump_json().replace('"seq":1', '"seq":-1').encode()),
        ("report", report(kv_usage=0.5).model_dump_json().replace("0.5", "7").encode()),
    ],
)
def test_a_malformed_payload_is_counted_and_ignored(channel: str, payload: bytes) -> None:
    gateway = joined_gateway()
    gateway.registry.handle_message(f"agentserve/v1/c/workers/w/{channel}", payload, 0.0)
    assert gateway.calls == []
    assert gateway.registry.malformed == 1


@pytest.mark.parametrize(
    "where",
    [
        "agentserve/v1/other/workers/w/announce",
        "agentserve/v2/c/workers/w/announce",
        "$SYS/broker/version",
        "agentserve/v1/c/workers/w",
        "agentserve/v1/c/workers/w/control",
        "agentserve/v1/c/workers/w/announce/more",
        "",
    ],
)
def test_other_topics_are_not_for_the_registry(where: str) -> None:
    gateway = Gateway()
    gateway.registry.handle_message(where, announce().model_dump_json().encode(), 0.0)
    assert len(gateway.registry) == 0
    assert gateway.registry.malformed == 0


def test_a_flood_of_names_stays_within_the_limit_and_live_workers_stay() -> None:
    gateway = joined_gateway(max_workers=3)
    for n in range(50):
        gateway.hear(announce(f"x{n:02}"), worker=f"x{n:02}")
    assert [member.worker_id for member in gateway.registry] == ["w", "x48", "x49"]
    assert gateway.state() is MemberState.ONLINE


def test_a_registry_full_of_live_workers_takes_no_more() -> None:
    gateway = joined_gateway(max_workers=1)
    gateway.hear(announce("late"), worker="late")
    gateway.hear(report(worker="late"), worker="late")
    assert gateway.calls == []
    assert len(gateway.registry) == 1


@pytest.mark.parametrize("skew_s", [-3600.0, -0.4, 0.0, 0.2, 86_400.0])
def test_a_worker_with_a_wrong_clock_is_put_on_the_gateways(skew_s: float) -> None:
    gateway = Gateway()
    gateway.hear(announce())
    for seq, (now_s, delay_s) in enumerate([(10.0, 0.05), (10.2, 0.01), (10.4, 0.15)], start=1):
        gateway.hear(report(seq, measured_at_s=now_s - delay_s - skew_s), now_s)
    last = gateway.registry.get("w").report  # type: ignore[union-attr]  # it has announced itself
    trusted = abs(skew_s) < 0.25
    assert last is not None
    assert last.measured_at_s == pytest.approx(10.25 - skew_s if trusted else 10.26)


def test_a_refused_worker_that_announces_better_facts_waits_without_the_old_reason() -> None:
    gateway = Gateway(unknown_gpus={"abacus"})
    gateway.hear(announce(gpu="abacus"))
    gateway.registry.observed_alive("w")
    gateway.hear(announce(gpu="h100"))
    member = gateway.registry.get("w")
    assert member is not None
    assert (member.state, member.reason) == (MemberState.WAITING, None)


def signed_gateway() -> Gateway:
    made = Gateway()
    made.registry._secret = "the gateway's"
    return made


def test_with_a_secret_only_what_a_worker_signed_itself_counts() -> None:
    made = signed_gateway()
    where = topic("c", "w", Channel.ANNOUNCE)
    said = announce("w").model_dump_json().encode()
    key, other = worker_key("the gateway's", "c", "w"), worker_key("the gateway's", "c", "rogue")
    forged = (
        said,
        signed(said, where, other),
        signed(said, topic("c", "rogue", Channel.ANNOUNCE), key),
        signed(said, topic("c", "w", Channel.REPORT), key),
        signed(said, where, key).replace(b"10.0.0.1", b"10.0.0.2") if b"10.0.0.1" in said else said + b" ",
        signed(said, where, worker_key("another's", "c", "w")),
    )
    for payload in forged:
        made.registry.handle_message(where, payload, 0.0)
    assert (len(made.registry), made.registry.unsigned) == (0, len(forged))
    made.registry.handle_message(where, signed(said, where, key), 0.0)
    assert made.registry.get("w") is not None


def test_a_gateway_without_a_secret_hears_signed_workers_too() -> None:
    made = Gateway()
    where = topic("c", "w", Channel.ANNOUNCE)
    made.registry.handle_message(where, signed(announce("w").model_dump_json().encode(), where, "key"), 0.0)
    assert (len(made.registry), made.registry.malformed) == (1, 0)
