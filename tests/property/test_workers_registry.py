"""Whatever arrives in whatever order, what the registry tells its callbacks stays consistent."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.telemetry.messages import Announce, Report, Status
from agentserve.workers.member import MemberState
from agentserve.workers.registry import Registry
from scheduler.errors import UnknownProfile
from scheduler.events import InstanceSpec

WORKERS = st.sampled_from(["a", "b", "c"])
BOOTS = st.sampled_from(["1", "2", "3"])
FACTS = {"engine_url": "http://e:1", "engine": "vllm", "kv_capacity_tokens": 1, "block_tokens": 1, "max_num_seqs": 1,
         "max_batched_tokens": 1, "kv_bytes_per_token": 1}  # fmt: skip

ANNOUNCE = st.builds(
    lambda worker, boot, gpu, model: Announce(worker_id=worker, boot_id=boot, gpu=gpu, model=model, **FACTS),  # type: ignore[arg-type]  # FACTS fit
    WORKERS,
    BOOTS,
    st.sampled_from(["h100", "abacus"]),
    st.sampled_from(["m", "n"]),
)
STATUS = st.builds(
    lambda worker, boot, state: Status(worker_id=worker, boot_id=boot, state=state),
    WORKERS,
    BOOTS,
    st.sampled_from(["online", "draining", "offline"]),
)
REPORT = st.builds(
    lambda worker, boot, seq, at_s, healthy: Report(
        worker_id=worker, boot_id=boot, seq=seq, measured_at_s=at_s, healthy=healthy
    ),
    WORKERS,
    BOOTS,
    st.integers(0, 20),
    st.floats(0, 100),
    st.booleans(),
)
ACT = st.one_of(
    ANNOUNCE,
    STATUS,
    REPORT,
    st.tuples(st.just("tick"), st.booleans()),
    st.tuples(st.just("observed_lost"), WORKERS),
    st.tuples(st.just("observed_alive"), WORKERS),
    st.tuples(st.just("noise"), st.text(max_size=40), st.binary(max_size=40)),
    st.tuples(st.just("garbled"), st.sampled_from(["announce", "status", "report", "control"]), st.binary(max_size=40)),
)


class Ledger:
    """Checks each callback against those before it."""

    def __init__(self) -> None:
        self.live: dict[str, int] = {}
        self.registry = Registry("c", 1.5, self._joined, self._reported, self._draining, self._lost, max_workers=2)

    def _joined(self, spec: InstanceSpec, announce: Announce) -> None:
        assert spec.instance_id == announce.worker_id
        if spec.gpu == "abacus":
            raise UnknownProfile("unknown gpu 'abacus'")
        self.live[spec.instance_id] = -1

    def _reported(self, report: Report) -> None:
        assert report.healthy
        assert report.worker_id in self.live

    def _draining(self, worker_id: str) -> None:
        assert worker_id in self.live

    def _lost(self, worker_id: str, reason: str) -> None:
        assert reason
        del self.live[worker_id]

    def act(self, act: Any, now_s: float) -> None:
        registry = self.registry
        match act:
            case ("tick", connected):
                registry.tick(now_s, broker_connected=connected)
            case ("observed_lost", worker):
                registry.observed_lost(worker, "refused", now_s)
            case ("observed_alive", worker):
                registry.observed_alive(worker)
            case ("noise", topic, payload):
                registry.handle_message(topic, payload, now_s)
            case ("garbled", channel, payload):
                registry.handle_message(f"agentserve/v1/c/workers/a/{channel}", payload, now_s)
            case message:
                channel = type(message).__name__.lower()
                topic = f"agentserve/v1/c/workers/{message.worker_id}/{channel}"
                registry.handle_message(topic, message.model_dump_json().encode(), now_s)


@settings(deadline=None)
@given(st.lists(st.tuples(ACT, st.floats(0, 2)), max_size=60))
def test_callbacks_always_tell_the_same_story_as_the_registry(acts: list[tuple[Any, float]]) -> None:
    ledger, now_s = Ledger(), 0.0
    for act, passed_s in acts:
        now_s += passed_s
        ledger.act(act, now_s)
        assert {m.worker_id for m in ledger.registry if m.is_live} == set(ledger.live)
        assert len(ledger.registry) <= 2
        for member in ledger.registry:
            assert (member.state in (MemberState.LOST, MemberState.REFUSED)) == (member.reason is not None)


@settings(deadline=None)
@given(st.lists(ANNOUNCE | STATUS | REPORT, max_size=40))
def test_hearing_everything_twice_changes_nothing(messages: list[Any]) -> None:
    once, twice = Ledger(), Ledger()
    for message in messages:
        once.act(message, 0.0)
        twice.act(message, 0.0)
        before = {m.worker_id: m.state for m in twice.registry}
        twice.act(message, 0.0)
        assert {m.worker_id: m.state for m in twice.registry} == before
    assert {m.worker_id: m.state for m in once.registry} == {m.worker_id: m.state for m in twice.registry}
