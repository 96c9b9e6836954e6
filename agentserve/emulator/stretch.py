"""How are many pure decode iterations run at once? In closed form: nothing joins or leaves a batch between two events.

With B sequences of Σctx tokens at first, iteration i (from 0) takes

    f + g·i,      f = slowdown·(c·(d0 + d1·B + d2·Σctx) + s·B),      g = slowdown·c·d2·B

so k of them take k·f + g·k·(k - 1)/2. A stretch ends with the first sequence that does, when the free blocks run out,
or before time alone changes something; whoever disturbs the engine earlier runs only the iterations begun by then.
"""

from dataclasses import dataclass
from math import ceil, sqrt

from agentserve.emulator.engine import Engine
from agentserve.emulator.sequence import IterationResult


@dataclass(slots=True)
class Stretch:
    """`iterations` decode iterations that can be run at once, from `begun_s` on."""

    begun_s: float
    iterations: int
    batch: int
    first_s: float
    growth_s: float

    def end_s(self, iterations: int) -> float:
        """When so many iterations have ended."""
        return self.begun_s + iterations * (self.first_s + 0.5 * self.growth_s * (iterations - 1))

    def ended_by(self, at_s: float) -> int:
        """How many iterations have ended at `at_s`."""
        done = min(int(self._position(at_s)), self.iterations)
        # The square root may be off by a rounding either way.
        while done < self.iterations and self.end_s(done + 1) <= at_s:
            done += 1
        while done > 0 and self.end_s(done) > at_s:
            done -= 1
        return done

    def begun_before(self, at_s: float) -> int:
        """How many iterations have begun before `at_s`: an iteration that runs is run to its end."""
        begun = min(ceil(self._position(at_s)), self.iterations)
        while begun > 0 and self.end_s(begun - 1) >= at_s:
            begun -= 1
        while begun < self.iterations and self.end_s(begun) < at_s:
            begun += 1
        return begun

    def _position(self, at_s: float) -> float:
        """The count of iterations, in fractions, that end_s takes to `at_s`."""
        elapsed_s = at_s - self.begun_s
        if elapsed_s <= 0.0:
            return 0.0
        if self.growth_s <= 0.0:
            return elapsed_s / self.first_s
        half = self.first_s - 0.5 * self.growth_s
        return (sqrt(half * half + 2.0 * self.growth_s * elapsed_s) - half) / self.growth_s


def plan(engine: Engine, now_s: float) -> Stretch | None:
    """The stretch that begins now; None where the next iteration does more than decode, or has to make room."""
    running = engine.running
    if not running or (engine.has_waiting() and not engine.is_stuck):
        return None
    iterations, context = 2**31, 0
    for sequence in running:
        if not sequence.decoding or not sequence.emitted:
            return None
        context += sequence.total
        left = sequence.request.output_tokens - sequence.emitted
        if left < iterations:
            iterations = left
    iterations = _with_room(engine, iterations)
    profile, batch = engine.profile, len(running)
    first_s = engine.slowdown * profile.decode_step_s(batch, context)
    growth_s = engine.slowdown * profile.calibration * profile.decode_per_context_token_s * batch
    stretch = Stretch(now_s, iterations, batch, first_s, growth_s)
    event_s = engine.next_event_s()
    if event_s is not None:
        stretch.iterations = stretch.begun_before(event_s)
    return stretch if stretch.iterations > 0 else None


def run(engine: Engine, stretch: Stretch, iterations: int) -> IterationResult:
    """Run the first so many iterations of a stretch; `emitted` stays empty, since all that run got that many."""
    result = IterationResult(duration_s=stretch.end_s(iterations) - stretch.begun_s)
    if not iterations:
        return result
    block_tokens, done = engine.block_tokens, []
    for sequence in engine.running:
        computed = sequence.total + iterations - 1
        if computed > sequence.room:
            engine.grow(sequence, -(-(computed - sequence.room) // block_tokens))
        sequence.computed = computed
        sequence.total = computed + 1
        sequence.emitted += iterations
        if computed // block_tokens > sequence.remembered:
            engine.remember(sequence)
        if sequence.emitted == sequence.request.output_tokens:
            done.append(sequence)
    engine.counters.generation_tokens += iterations * stretch.batch
    engine.counters.iterations += iterations
    engine.counters.busy_s += result.duration_s
    end_s = stretch.begun_s + result.duration_s
    for sequence in done:
        engine.finish(sequence, end_s, result)
    return result


def _with_room(engine: Engine, iterations: int) -> int:
    """As many of the iterations as the free blocks allow without taking any from a sequence."""
    while iterations > 0 and _blocks(engine, iterations) > engine.pool.free:
        iterations //= 2
    return iterations


def _blocks(engine: Engine, iterations: int) -> int:
    block_tokens = engine.block_tokens
    return sum(
        -(-(short) // block_tokens)
        for sequence in engine.running
        if (short := sequence.total + iterations - 1 - sequence.room) > 0
    )
