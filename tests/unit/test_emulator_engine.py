"""The engine model, iteration by iteration."""

import pytest

from agentserve.emulator.engine import Engine
from agentserve.emulator.sequence import EngineRequest, IterationResult, RemoteKv
from agentserve.emulator.tokens import block_keys
from scheduler.profiles import load_profile

PROFILE = load_profile("h100", "llama-3.1-8b")


def an_engine(**limits) -> Engine:
    return Engine(PROFILE, **limits)


def a_request(name: str, prompt: int = 32, output: int = 4, *, ids: list[int] | None = None, **extra) -> EngineRequest:
    keys = () if ids is None else block_keys(ids, 16)
    return EngineRequest(request_id=name, prompt_tokens=prompt, output_tokens=output, block_keys=keys, **extra)


def run_out(engine: Engine, now_s: float = 0.0) -> tuple[list[IterationResult], float]:
    """Step until nothing runs; returns the iterations and when they ended."""
    results = []
    while (result := engine.step(now_s)).duration_s:
        results.append(result)
        now_s += result.duration_s
    return results, now_s


def test_an_empty_engine_does_nothing():
    engine = an_engine()

    assert engine.step(0.0) == IterationResult()
    assert engine.next_event_s() is None


def test_a_mixed_step_takes_the_decodes_plus_the_chunk_without_its_base():
    engine = an_engine()
    engine.add(a_request("a", prompt=100))
    now_s = engine.step(0.0).duration_s
    engine.add(a_request("b", prompt=500))

    result = engine.step(now_s)

    chunk_s = PROFILE.prefill_s(500) - PROFILE.calibration * PROFILE.prefill_base_s
    assert result.duration_s == pytest.approx(PROFILE.decode_step_s(1, 101) + chunk_s)
    assert result.emitted == ["a", "b"]
    assert result.started == ["b"]


def test_a_long_prompt_is_prefilled_in_chunks_beside_decodes():
    engine = an_engine(max_batched_tokens=100)
    engine.add(a_request("short", prompt=10, output=10))
    engine.step(0.0)
    engine.add(a_request("long", prompt=250))

    chunks = [engine.step(1.0 + step) for step in range(3)]

    assert [result.prefill_tokens for result in chunks] == [99, 99, 52]
    assert [result.emitted for result in chunks] == [["short"], ["short"], ["short", "long"]]


def test_chunks_of_a_lone_prompt_cost_one_base_each():
    engine = an_engine(max_batched_tokens=1000)
    engine.add(a_request("a", prompt=2500, output=1))

    results, end_s = run_out(engine)

    assert len(results) == 3
    assert end_s == pytest.approx(PROFILE.prefill_s(2500) + 2 * PROFILE.calibration * PROFILE.prefill_base_s)


def test_no_more_than_max_num_seqs_run():
    engine = an_engine(max_num_seqs=2)
    for name in "abc":
        engine.add(a_request(name))

    engine.step(0.0)

    assert (engine.state.running, engine.state.waiting) == (2, 1)


def test_priority_goes_first_and_arrival_breaks_ties():
    engine = an_engine(max_num_seqs=1, use_priority=True)
    for name, priority in (("first", 0), ("urgent", -1), ("second", 0), ("late", 5)):
        engine.add(a_request(name, output=1, priority=priority))

    results, _ = run_out(engine)

    assert [result.emitted[0] for result in results] == ["urgent", "first", "second", "late"]


def test_without_the_policy_priority_is_not_looked_at():
    engine = an_engine(max_num_seqs=1)
    engine.add(a_request("first", output=1))
    engine.add(a_request("urgent", output=1, priority=-1))

    results, _ = run_out(engine)

    assert [result.emitted[0] for result in results] == ["first", "urgent"]


def test_a_shared_prefix_is_not_computed_again():
    engine = an_engine()
    ids = list(range(200))
    engine.add(a_request("a", prompt=160, output=10, ids=ids[:170]))
    _, now_s = run_out(engine)
    engine.add(a_request("b", prompt=200, output=1, ids=ids))

    result = engine.step(now_s)

    assert result.prefill_tokens == 200 - 160, "the ten replied tokens did not fill a block"
    assert result.duration_s == pytest.approx(PROFILE.prefill_s(40, cached_tokens=160))
    assert (engine.counters.prefix_queries, engine.counters.prefix_hits) == (360, 160)


def test_a_fully_cached_prompt_still_computes_its_last_block():
    engine = an_engine()
    for name in "ab":
        engine.add(a_request(name, prompt=64, output=1, ids=list(range(64))))
        engine.step(0.0)

    assert engine.counters.prefix_hits == 48


def test_a_replys_blocks_are_found_by_the_next_turn():
    engine = an_engine()
    engine.add(a_request("turn 1", prompt=32, output=33, ids=list(range(65))))
    _, now_s = run_out(engine)
    engine.add(a_request("turn 2", prompt=80, output=1, ids=list(range(80))))

    assert engine.step(now_s).prefill_tokens == 80 - 64


def test_old_prefixes_make_room_for_new_ones():
    engine = an_engine(kv_capacity_tokens=128)
    now_s = 0.0
    for name, first in (("a", 0), ("b", 1000), ("c", 2000), ("a again", 0)):
        ids = [first + position for position in range(64)]
        engine.add(a_request(name, prompt=64, output=1, ids=ids))
        _, now_s = run_out(engine, now_s)

    assert engine.counters.prefix_hits == 0
    assert engine.counters.preemptions == 0


def test_out_of_blocks_the_latest_is_preempted_and_recomputed():
    engine = an_engine(kv_capacity_tokens=96)
    engine.add(a_request("old", prompt=32, output=40))
    engine.add(a_request("new", prompt=32, output=40))

    results, _ = run_out(engine)

    assert {name for result in results for name in result.preempted} == {"new"}
    assert sum(result.emitted.count("new") for result in results) == 40
    assert sum(result.emitted.count("old") for result in results) == 40
    assert [name for result in results for name in result.finished] == ["old", "new"]
    assert sum(result.prefill_tokens for result in results) > 64, "what was computed is computed again"


def test_under_the_priority_policy_the_least_urgent_is_preempted():
    engine = an_engine(kv_capacity_tokens=96, use_priority=True)
    engine.add(a_request("casual", prompt=32, output=40, priority=1))
    engine.add(a_request("urgent", prompt=32, output=40, priority=0))

    results, _ = run_out(engine)

    assert {name for result in results for name in result.preempted} == {"casual"}


def test_abort_frees_the_blocks_at_once_wherever_the_request_is():
    engine = an_engine(max_num_seqs=1)
    engine.add(a_request("running"))
    engine.add(a_request("fetching", remote_kv=RemoteKv(tokens=32, link_bytes_per_s=1.0)))
    engine.add(a_request("waiting"))
    engine.step(0.0)

    assert engine.abort("waiting")
    assert engine.abort("running")
    assert engine.step(0.1).duration_s == 0
    assert engine.abort("fetching")
    assert not engine.abort("running")

    assert engine.pool.used == 0
    assert engine.state.waiting == 0
    engine.check_integrity()


def test_kept_kv_stays_until_it_is_released():
    engine = an_engine()
    engine.add(a_request("a", prompt=40, output=1, keep_kv=True))
    engine.step(0.0)

    assert engine.lease("a").tokens == 40
    assert engine.pool.used == 3
    assert engine.release("a")
    assert not engine.release("a")
    assert engine.pool.used == 0


def test_kept_kv_is_freed_when_its_lease_ends():
    engine = an_engine(lease_s=30.0)
    engine.add(a_request("a", output=1, keep_kv=True))
    end_s = engine.step(0.0).duration_s

    assert engine.next_event_s() == pytest.approx(end_s + 30.0)
    engine.step(end_s + 29.9)
    assert engine.lease("a")
    engine.step(end_s + 30.1)
    assert engine.lease("a") is None
    assert engine.counters.expired_leases == 1


def test_remote_kv_is_waited_for_and_the_prompt_is_not_recomputed():
    engine = an_engine(kv_link_bytes_per_s=10e9)
    engine.add(a_request("a", prompt=1000, output=2, remote_kv=RemoteKv(tokens=1000, link_bytes_per_s=1e9)))

    assert engine.step(0.0).duration_s == 0
    ready_s = engine.next_event_s()
    assert ready_s == pytest.approx(999 * PROFILE.kv_bytes_per_token / 1e9), "the slower link counts"
    result = engine.step(ready_s)

    assert result.transferred == ["a"]
    assert result.prefill_tokens == 0
    assert result.duration_s == pytest.approx(PROFILE.decode_step_s(1, 1000))
    assert result.emitted == ["a"]


def test_only_what_is_not_cached_is_transferred():
    engine = an_engine(kv_link_bytes_per_s=1e9)
    ids = list(range(200))
    engine.add(a_request("a", prompt=96, output=1, ids=ids[:96]))
    _, now_s = run_out(engine)
    engine.add(a_request("b", prompt=200, output=1, ids=ids, remote_kv=RemoteKv(tokens=150, link_bytes_per_s=1e9)))

    engine.step(now_s)
    ready_s = engine.next_event_s()
    assert ready_s - now_s == pytest.approx((150 - 96) * PROFILE.kv_bytes_per_token / 1e9)
    assert engine.step(ready_s).prefill_tokens == 50


def test_arrived_kv_that_cannot_start_gives_its_blocks_back():
    engine = an_engine(kv_capacity_tokens=64, lease_s=100.0)
    engine.add(a_request("kept", prompt=16, output=1, keep_kv=True))
    _, now_s = run_out(engine)
    for name in ("x", "y", "z"):
        engine.add(a_request(name, prompt=17, output=20, remote_kv=RemoteKv(tokens=16, link_bytes_per_s=1e12)))
    engine.step(now_s)
    now_s = engine.next_event_s()
    results, _ = run_out(engine, now_s)

    assert sorted(name for result in results for name in result.finished) == ["x", "y", "z"]
    engine.check_integrity()


def test_a_slowdown_stretches_iterations():
    engine = an_engine()
    engine.slowdown = 3.0
    engine.add(a_request("a", prompt=100, output=1))

    assert engine.step(0.0).duration_s == pytest.approx(3 * PROFILE.prefill_s(100))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (a_request("a"), "already exists"),
        (a_request("b", prompt=0), "at least one prompt"),
        (a_request("c", output=0), "at least one prompt"),
        (a_request("d", prompt=200), "does not fit"),
    ],
)
def test_requests_that_can_never_be_served_are_refused(request_, message):
    engine = an_engine(kv_capacity_tokens=160)
    engine.add(a_request("a"))

    with pytest.raises(ValueError, match=message):
        engine.add(request_)
