"""Decode iterations run at once, in virtual time, end as they would one by one."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.emulator.engine import Engine
from agentserve.emulator.sequence import EngineRequest
from agentserve.lab.kernel import Kernel
from agentserve.lab.virtual_engine import VirtualEngine
from scheduler.profiles import load_profile

PROFILE = load_profile("h100", "llama-3.1-8b")


@dataclass(slots=True)
class Heard:
    """What an engine told, with times."""

    kernel: Kernel
    told: list[tuple[str, str, float]] = field(default_factory=list)

    def first_token(self, attempt_id: str, cached_tokens: int) -> None:
        self.told.append(("first", f"{attempt_id} {cached_tokens}", self.kernel.now_s))

    def finished(self, attempt_id: str) -> None:
        self.told.append(("end", attempt_id, self.kernel.now_s))

    def transferred(self, attempt_id: str) -> None:
        self.told.append(("kv", attempt_id, self.kernel.now_s))


def engine(kv_tokens: int, seqs: int, *, priority: bool) -> Engine:
    return Engine(
        PROFILE,
        max_num_seqs=seqs,
        max_batched_tokens=512,
        block_tokens=16,
        kv_capacity_tokens=kv_tokens,
        use_priority=priority,
    )


def one_by_one(model: Engine, work: list[tuple[float, str, EngineRequest]]) -> list[tuple[str, str, float]]:
    """The same requests and aborts, every iteration stepped: what joins or leaves does so between iterations.

    Nothing is told of a request once it was aborted, though the iteration that runs is run to its end.
    """
    told: list[tuple[str, str, float]] = []
    aborted_s = {request.request_id: at_s for at_s, kind, request in work if kind == "abort"}
    now_s, waiting, fresh = 0.0, list(work), dict[str, int]()
    while True:
        while waiting and waiting[0][0] <= now_s:
            _, kind, request = waiting.pop(0)
            if kind == "add":
                model.add(request)
                fresh[request.request_id] = 0
            else:
                model.abort(request.request_id)
                fresh.pop(request.request_id, None)
        result = model.step(now_s)
        for name in result.started:
            if name in fresh:
                fresh[name] = result.cached_tokens[name]
        now_s += result.duration_s
        told += [
            ("first", f"{name} {fresh.pop(name)}", now_s)
            for name in result.emitted
            if name in fresh and aborted_s.get(name, now_s) >= now_s
        ]
        told += [("end", name, now_s) for name in result.finished if aborted_s.get(name, now_s) >= now_s]
        if not result.duration_s:
            if not waiting:
                return told
            now_s = max(now_s, waiting[0][0])


requests = st.tuples(
    st.floats(0.0, 3.0),
    st.integers(1, 700),
    st.integers(1, 120),
    st.integers(0, 2),
    st.integers(0, 3),
    st.floats(0.0, 2.0) | st.none(),
)


@settings(deadline=None)
@given(
    drawn=st.lists(requests, min_size=1, max_size=14),
    kv_tokens=st.sampled_from([1024, 2048, 65536]),
    seqs=st.sampled_from([2, 4, 64]),
    priority=st.booleans(),
)
def test_stretches_end_as_single_iterations_do(
    drawn: list[tuple[float, int, int, int, int, float | None]], kv_tokens: int, seqs: int, priority: bool
) -> None:
    work: list[tuple[float, str, EngineRequest]] = []
    for index, (at_s, prompt, output, group, rank, abort_s) in enumerate(drawn):
        keys = (*(group * 1000 + block for block in range(prompt // 16)), *(10**6 * (index + 1) + b for b in range(10)))
        request = EngineRequest(
            request_id=f"r{index}", prompt_tokens=prompt, output_tokens=output, block_keys=keys, priority=rank
        )
        work.append((at_s, "add", request))
        if abort_s is not None:
            work.append((at_s + abort_s, "abort", request))
    work.sort(key=lambda entry: entry[0])

    kernel = Kernel()
    heard = Heard(kernel)
    model = engine(kv_tokens, seqs, priority=priority)
    virtual = VirtualEngine(kernel, model, heard)
    for at_s, kind, request in work:
        if kind == "add":
            kernel.at(at_s, virtual.add, request)
        else:
            kernel.at(at_s, virtual.abort, request.request_id)
    kernel.run(1e6)
    model.check_integrity()

    plain = engine(kv_tokens, seqs, priority=priority)
    expected = one_by_one(plain, work)
    assert [(kind, name) for kind, name, _ in heard.told] == [(kind, name) for kind, name, _ in expected]
    for (_, name, at_s), (_, _, exactly_s) in zip(heard.told, expected, strict=True):
        assert abs(at_s - exactly_s) <= 1e-9 * max(1.0, exactly_s), name
    assert model.counters.preemptions == plain.counters.preemptions
    assert model.counters.generation_tokens == plain.counters.generation_tokens
    assert model.counters.iterations == plain.counters.iterations
