"""What holds for the engine model whatever is asked of it."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.emulator.engine import Engine
from agentserve.emulator.sequence import EngineRequest, RemoteKv
from agentserve.emulator.tokens import block_keys
from scheduler.profiles import load_profile

PROFILE = load_profile("h100", "llama-3.1-8b")
BLOCK = 16


@dataclass
class Story:
    """What came out of a run, by request id."""

    tokens: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    timeline: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """One generated request: when it comes, and whether and when it is aborted."""

    at_s: float
    prompt: int
    output: int
    priority: int
    session: int
    abort_after: int | None
    keep_kv: bool
    remote: int | None


asked = st.builds(
    Asked,
    at_s=st.floats(0, 0.5),
    prompt=st.integers(1, 200),
    output=st.integers(1, 40),
    priority=st.integers(-2, 2),
    session=st.integers(0, 2),
    abort_after=st.none() | st.integers(0, 30),
    keep_kv=st.booleans(),
    remote=st.none() | st.integers(1, 240),
)
engines = st.fixed_dictionaries(
    {
        "max_num_seqs": st.integers(1, 6),
        "max_batched_tokens": st.integers(1, 128),
        "kv_capacity_tokens": st.integers(16, 40).map(lambda blocks: blocks * BLOCK),
        "use_priority": st.booleans(),
        "lease_s": st.floats(0.001, 1.0),
    }
)


def to_request(number: int, ask: Asked, *, shared: bool = True) -> EngineRequest:
    ids = [ask.session * 1000 + position for position in range(ask.prompt + ask.output)]
    return EngineRequest(
        request_id=f"r{number}",
        prompt_tokens=ask.prompt,
        output_tokens=ask.output,
        block_keys=block_keys(ids, BLOCK) if shared else (),
        priority=ask.priority,
        keep_kv=ask.keep_kv,
        remote_kv=None if ask.remote is None else RemoteKv(tokens=ask.remote, link_bytes_per_s=1e9),
    )


def run(engine: Engine, asks: list[Asked], *, check: bool = True) -> Story:
    """Serve everything in virtual time; the integrity is checked after every iteration."""
    story, now_s, steps = Story(), 0.0, 0
    todo = sorted(enumerate(asks), key=lambda item: (item[1].at_s, item[0]))
    aborts = {f"r{number}": ask.abort_after for number, ask in enumerate(asks) if ask.abort_after is not None}
    while True:
        while todo and todo[0][1].at_s <= now_s:
            number, ask = todo.pop(0)
            engine.add(to_request(number, ask))
        result = engine.step(now_s)
        steps += 1
        if check:
            engine.check_integrity()
            assert engine.pool.used <= engine.pool.total
            assert len(result.emitted) == len(set(result.emitted)) <= engine.max_num_seqs
        story.tokens.update(result.emitted)
        story.finished.update(result.finished)
        story.timeline.append((now_s, tuple(result.emitted)))
        for request_id, after in list(aborts.items()):
            if steps >= after and engine.abort(request_id):
                del aborts[request_id]
        upcoming = [time for time in (engine.next_event_s(), todo[0][1].at_s if todo else None) if time is not None]
        if result.duration_s:
            now_s += result.duration_s
        elif upcoming:
            now_s = max(now_s, min(upcoming))
        else:
            return story
        assert steps < 20_000, "the engine makes no progress"


@given(engines, st.lists(asked, max_size=12))
@settings(max_examples=150, deadline=None)
def test_every_request_ends_once_with_its_tokens_and_no_block_is_lost(limits, asks):
    engine = Engine(PROFILE, **limits)

    story = run(engine, asks)

    for number, ask in enumerate(asks):
        name = f"r{number}"
        if ask.abort_after is None:
            assert story.finished[name] == 1
            assert story.tokens[name] == ask.output
        else:
            assert story.tokens[name] <= ask.output
            assert story.finished[name] == (story.tokens[name] == ask.output)
    assert engine.state.running == engine.state.waiting == 0
    assert engine.pool.used == 0, "leases have ended, so nothing may hold a block"


@given(engines, st.lists(asked, max_size=8))
@settings(max_examples=40, deadline=None)
def test_the_same_requests_give_the_same_story(limits, asks):
    first = run(Engine(PROFILE, **limits), asks, check=False)
    second = run(Engine(PROFILE, **limits), asks, check=False)

    assert first == second


@given(st.integers(1, 8192), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_a_lone_request_takes_what_the_profile_says(prompt, output):
    engine = Engine(PROFILE)
    engine.add(EngineRequest(request_id="r", prompt_tokens=prompt, output_tokens=output))
    times = []
    now_s = 0.0
    while result := engine.step(now_s):
        if not result.duration_s:
            break
        now_s += result.duration_s
        times.append(now_s)

    expected_s = PROFILE.prefill_s(prompt)
    assert abs(times[0] - expected_s) < 1e-9
    expected_s += sum(PROFILE.decode_step_s(1, prompt + step) for step in range(1, output))
    assert abs(times[-1] - expected_s) < 1e-9


@given(st.lists(asked, min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_decodes_never_exceed_the_sequences_allowed_nor_prefills_the_token_budget(asks):
    engine = Engine(PROFILE, max_num_seqs=3, max_batched_tokens=50)
    for number, ask in enumerate(asks):
        engine.add(to_request(number, ask, shared=False))
    now_s = 0.0
    while True:
        result = engine.step(now_s)
        assert len(engine.running) <= 3
        assert result.prefill_tokens <= 50
        if result.duration_s:
            now_s += result.duration_s
        elif engine.next_event_s() is None:
            break
        else:
            now_s = max(now_s, engine.next_event_s())
