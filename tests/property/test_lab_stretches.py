"""Decode iterations run at once, in virtual time, end as they would one by one."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.emulator.engine import Engine
from agentserve.emulator.sequence import EngineRequest, IterationResult, RemoteKv
from agentserve.lab.kernel import Kernel
from agentserve.lab.virtual_engine import VirtualEngine
from scheduler.profiles import load_profile

PROFILE = load_profile("h100", "llama-3.1-8b")
SLOWER = load_profile("a100-80g", "llama-3.1-8b")
Told = list[tuple[str, str, float]]


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


class Split:
    """Two sides, `prefill` and `decode`; a split request leaves its KV on the one and goes on at the other.

    `add(side, request)` and `release(request_id)` reach the engines, however these are driven.
    """

    def __init__(self, legs: dict[str, EngineRequest], leases: Engine) -> None:
        self.legs = legs
        """The decode leg by the name of its prefill leg."""
        self.leases = leases
        self.add: Callable[[str, EngineRequest], object]
        self.release: Callable[[str], object]
        self.told: dict[str, Told] = {"prefill": [], "decode": []}

    def tell(self, side: str, kind: str, name: str, at_s: float) -> None:
        """Something happened on a side at its time: hand over what a leg leaves, and free what came over."""
        self.told[side].append((kind, name, at_s))
        if kind == "end" and side == "prefill" and name in self.legs:
            lease = self.leases.lease(name)
            assert lease is not None
            remote = RemoteKv(tokens=lease.tokens, link_bytes_per_s=2e9)
            self.add("decode", replace(self.legs[name], remote_kv=remote))
        if kind == "kv":
            self.release(f"{name}p")


@dataclass(slots=True)
class Side:
    """What an engine of the pair told, for the kernel's engines."""

    split: Split
    side: str
    kernel: Kernel

    def first_token(self, attempt_id: str, cached_tokens: int) -> None:
        self.split.tell(self.side, "first", f"{attempt_id} {cached_tokens}", self.kernel.now_s)

    def finished(self, attempt_id: str) -> None:
        self.split.tell(self.side, "end", attempt_id, self.kernel.now_s)

    def transferred(self, attempt_id: str) -> None:
        self.split.tell(self.side, "kv", attempt_id, self.kernel.now_s)


@dataclass(slots=True)
class Stepped:
    """An engine of the pair that is stepped: the iteration that runs, and what waits for its end."""

    model: Engine
    result: IterationResult | None = None
    next_s: float | None = None
    """When it has its next turn; None while nothing is to be done."""
    fresh: dict[str, int] = field(default_factory=dict)
    freed: list[str] = field(default_factory=list)


def pair_one_by_one(models: dict[str, Engine], split: Split, work: list[tuple[float, str, EngineRequest]]) -> None:
    """Both engines of the pair on one clock, every iteration stepped."""
    pair = {side: Stepped(model) for side, model in models.items()}
    now_s, waiting = 0.0, list(work)

    def add(side: str, request: EngineRequest) -> None:
        pair[side].model.add(request)
        pair[side].fresh[request.request_id] = 0
        if pair[side].result is None:
            pair[side].next_s = now_s

    def release(name: str) -> None:
        pair["prefill"].freed.append(name)
        if pair["prefill"].result is None:
            pair["prefill"].next_s = now_s

    split.add, split.release = add, release
    while True:
        turns = [(one.next_s, side) for side, one in pair.items() if one.next_s is not None]
        if waiting and (not turns or waiting[0][0] <= min(turns)[0]):
            now_s, side, request = waiting.pop(0)
            add(side, request)
        elif turns:
            now_s, side = min(turns)
            _turn(pair[side], side, split, now_s)
        else:
            return


def _turn(one: Stepped, side: str, split: Split, now_s: float) -> None:
    """Tell what an iteration did at its end, then begin the next."""
    if one.result is not None:
        for name in [name for name in one.result.emitted if name in one.fresh]:
            split.tell(side, "first", f"{name} {one.fresh.pop(name)}", now_s)
        for name in one.result.finished:
            split.tell(side, "end", name, now_s)
    for name in one.freed:
        one.model.release(name)
    one.freed.clear()
    result = one.model.step(now_s)
    one.fresh.update({name: result.cached_tokens[name] for name in result.started if name in one.fresh})
    is_busy = result.duration_s > 0.0
    one.result = result if is_busy else None
    one.next_s = now_s + result.duration_s if is_busy else one.model.next_event_s()
    for name in result.transferred:
        split.tell(side, "kv", name, now_s)


split_requests = st.tuples(
    st.floats(0.0, 3.0),
    st.integers(1, 700),
    st.integers(2, 120),
    st.integers(0, 2),
    st.integers(0, 3),
    st.sampled_from(["split", "split", "prefill", "decode"]),
)


@settings(deadline=None)
@given(
    drawn=st.lists(split_requests, min_size=1, max_size=14),
    kv_tokens=st.sampled_from([1024, 2048, 65536]),
    seqs=st.sampled_from([2, 4, 64]),
    lease_s=st.sampled_from([0.05, 30.0]),
)
def test_split_calls_end_as_they_do_where_every_iteration_is_stepped(
    drawn: list[tuple[float, int, int, int, int, str]], kv_tokens: int, seqs: int, lease_s: float
) -> None:
    work: list[tuple[float, str, EngineRequest]] = []
    legs: dict[str, EngineRequest] = {}
    for index, (at_s, prompt, output, group, rank, kind) in enumerate(drawn):
        keys = (*(group * 1000 + block for block in range(prompt // 16)), *(10**6 * (index + 1) + b for b in range(10)))
        request = EngineRequest(
            request_id=f"r{index}", prompt_tokens=prompt, output_tokens=output, block_keys=keys, priority=rank
        )
        if kind == "split":
            legs[f"r{index}p"] = request
            request = replace(request, request_id=f"r{index}p", output_tokens=1, keep_kv=True)
        work.append((at_s, "decode" if kind == "decode" else "prefill", request))
    work.sort(key=lambda entry: entry[0])

    def pair() -> dict[str, Engine]:
        models = {side: engine(kv_tokens, seqs, priority=True) for side in ("prefill", "decode")}
        models["decode"].profile = SLOWER  # so that both have iterations' ends of their own
        models["prefill"].lease_s = lease_s
        return models

    kernel, models = Kernel(), pair()
    heard = Split(legs, models["prefill"])
    virtual = {side: VirtualEngine(kernel, model, Side(heard, side, kernel)) for side, model in models.items()}
    heard.add = lambda side, request: virtual[side].add(request)
    heard.release = virtual["prefill"].release
    for at_s, side, request in work:
        kernel.at(at_s, virtual[side].add, request)
    kernel.run(1e6)

    stepped = pair()
    expected = Split(legs, stepped["prefill"])
    pair_one_by_one(stepped, expected, work)
    for side, model in models.items():
        model.check_integrity()
        assert model.pool.used == 0
        assert [told[:2] for told in heard.told[side]] == [told[:2] for told in expected.told[side]]
        for (_, name, at_s), (_, _, exactly_s) in zip(heard.told[side], expected.told[side], strict=True):
            assert abs(at_s - exactly_s) <= 1e-9 * max(1.0, exactly_s), name
        assert replace(model.counters, busy_s=0.0) == replace(stepped[side].counters, busy_s=0.0)
    ended = [name for kind, name, _ in heard.told["decode"] if kind == "end"]
    assert {request.request_id for request in legs.values()} <= set(ended)
