"""What is the state of every instance now? The last report, plus what was dispatched and seen since, as arrays.

A `Pool` holds the instances of one model, in the order of their ids (so that the first of equals has the smallest id),
one array per quantity. Speeds are the GPU profile's constants x calibration / `speed`, corrected by the ratio of
observed to predicted times: an EMA per instance, shrunk to the EMA of its GPU type while it has few samples.
"""

from bisect import bisect_left
from math import ceil, exp

import numpy as np
from numpy.typing import NDArray

from scheduler.config import EstimateConfig
from scheduler.events import InstanceReported, InstanceSpec
from scheduler.pairs import BrokenPairs
from scheduler.prefix import PrefixIndex
from scheduler.profiles.profile import GpuProfile
from scheduler.quantities import DERIVED, FLAGS, INPUTS, NEVER_S, TABLE, derive, facts

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_SHARE_EVERY = 16
"""After this many speed samples, instances that gave none take in what their GPU type's others showed."""
_LONG = 10.0
"""A speed sample counts fully from this many times `overhead_s` on."""
_REFRESH_ROWS = 8
"""Up to this many changed rows are derived one by one, more all at once (measured: equal cost near 8 rows)."""


class Pool:
    """The instances of one model. Written only by `state.py`; everybody else reads."""

    kv_capacity: Floats
    max_seqs: Floats
    max_batched: Floats
    kv_bytes: Floats
    link: Floats
    """KV link, bytes/s; 0: none."""
    capability: Floats
    base_p0: Floats
    base_p1: Floats
    base_p2: Floats
    base_d0: Floats
    base_d1: Floats
    base_d2: Floats
    p0: Floats
    """`p0 … d2`: the profile's constants with calibration, speed and correction: times come out in seconds."""
    p1: Floats
    p2: Floats
    d0: Floats
    d1: Floats
    d2: Floats
    own_prefill: Floats
    own_decode: Floats
    prefill_samples: Floats
    decode_samples: Floats
    gpu_prefill: Floats
    gpu_decode: Floats
    queued: Floats
    """Calls dispatched to prefill here, first token not yet seen."""
    queued_tokens: Floats
    queued_work_s: Floats
    free_at_s: Floats
    """When the queued prefills are expected to be done."""
    running: Floats
    """Calls that decode here."""
    bound: Floats
    """Calls that will decode here once their prefill is done."""
    kv_own: Floats
    """Context tokens of running and bound calls."""
    remaining: Floats
    """Output tokens that running and bound calls are predicted to put out still."""
    kv_offset: Floats
    """KV tokens by the last report - kv_own at that time."""
    foreign: Floats
    """Calls that the last report shows beyond our own."""
    foreign_wait_s: Floats
    reported_at_s: Floats
    preempted: Floats
    cache_tokens: Floats
    """Tokens of prefixes the index holds for the instance."""
    trust: Floats
    """Reported ÷ expected cached tokens, EMA, at most 1."""
    box_q: Floats
    """GoodServe's black box: queue wait in seconds, prefill and decode seconds per token, EMA."""
    box_p: Floats
    box_d: Floats
    stake: Floats
    """Chance of ending in time that the runs of calls here lose per second of delay, in sum (stakes.py)."""
    stake_tokens: Floats
    """The same per second by which every one of their tokens is slowed."""
    draw: Floats
    """`stake` of the calls that came here lately, decayed: what calls to come stand to lose here by delay …"""
    draw_tokens: Floats
    """… and their `stake_tokens`: what they lose by slower tokens."""
    draw_at_s: Floats
    batch: Floats
    """Derived: calls that decode or will decode here, ours and others'."""
    chunk_base_s: Floats
    """Derived: what a prefill chunk costs beside its tokens: p0, or the decode step it is mixed into."""
    step_base_s: Floats
    """Derived: decode step of the calls that one more would share the batch with, without growth."""
    step_growth_s: Floats
    """Derived: what one more output token per such call adds to the average step."""
    mean_remaining_s: Floats
    """Derived: how long a resident call still decodes, on average."""
    seat_wait_s: Floats
    """Derived: wait for a free sequence slot."""
    free_from_s: Floats
    """Derived: when a call could begin: after the prefills sent before, others' prefills and the wait for a slot."""
    least_wait_s: Floats
    """Derived: what it would wait even if those sent before should have ended by now."""
    kv_used: Floats
    """Derived: KV tokens in use, by our own calls and by the last report's difference."""
    kv_slack: Floats
    """Derived: KV tokens to the use from which it is priced."""
    cache_excess: Floats
    """Derived: tokens of prefixes held, less what the cache can hold."""
    is_open: Bools
    """Takes new work: neither draining nor lost."""
    can_prefill: Bools
    can_decode: Bools
    can_replay: Bools

    def __init__(self, model: str, config: EstimateConfig) -> None:
        self.model = model
        self.config = config
        self.may_split = True
        """Whether calls that one instance could serve may be split over two."""
        self.prefixes = PrefixIndex()
        self.specs: dict[str, InstanceSpec] = {}
        self.ids: tuple[str, ...] = ()
        self.row: dict[str, int] = {}
        self.residents: dict[str, dict[str, None]] = {}
        """Calls per instance (on either leg), in the order they came."""
        self.reports: dict[str, InstanceReported] = {}
        self.mean_prompt_tokens = 1024.0
        self.last_placed: str | None = None
        """Where the last call went: whose turn comes next."""
        self.kv_groups: tuple[Bools, ...] = ()
        """The linked instances of every KV group that has two or more: only these can hand KV to each other."""
        self.broken = BrokenPairs()
        self._bits: dict[str, int] = {}
        self.bits = np.zeros(0, dtype=np.intp)
        self.gpu_code = np.zeros(0, dtype=np.intp)
        self.kv_code = np.zeros(0, dtype=np.intp)
        self.mixed = np.zeros(0, dtype=bool)
        """Open instances that serve both phases."""
        self.mixed_count = 0
        self.least_capacity = 0.0
        """The smallest KV cache of any instance."""
        self.least_batched = 0.0
        """The smallest prefill chunk of any instance."""
        self.least_kv_slack = 0.0
        self.most_cache_excess = 0.0
        self.relative_capability = np.zeros(0)
        """Capability against the weakest instance's."""
        self._dirty: set[int] = set()
        self._draws: tuple[float, Floats, Floats] | None = None  # when `draw_per_s` was last asked, and what it gave
        self._learned = 0
        self._stale_at_s = float("inf")
        self._adopt(np.zeros((len(TABLE), 0)), np.zeros((len(FLAGS), 0), dtype=bool))

    # Membership

    def join(self, spec: InstanceSpec, profile: GpuProfile) -> None:
        """Add an instance; it must not be in the pool."""
        mates = [self.row[other] for other in self.ids if self.specs[other].gpu == spec.gpu]
        shared = (float(self.gpu_prefill[mates[0]]), float(self.gpu_decode[mates[0]])) if mates else (1.0, 1.0)
        self.specs[spec.instance_id] = spec
        self.residents[spec.instance_id] = {}
        self._bits[spec.instance_id] = self.prefixes.add_instance(spec.instance_id, float(spec.kv_capacity_tokens))
        row = bisect_left(self.ids, spec.instance_id)
        self._adopt(np.insert(self._floats, row, 0.0, axis=1), np.insert(self._flags, row, False, axis=1))
        self._index(tuple(sorted(self.specs)))
        for name, value in facts(spec, profile, shared).items():
            getattr(self, name)[row] = value
        self._apply_corrections()
        self._membership()

    def leave(self, instance_id: str) -> None:
        """Remove an instance and all that was known of it."""
        row = self.row[instance_id]
        self.prefixes.drop_instance(instance_id)
        self.broken.forget(instance_id)
        for table in (self.specs, self.residents, self._bits):
            del table[instance_id]
        self.reports.pop(instance_id, None)
        self._adopt(np.delete(self._floats, row, axis=1), np.delete(self._flags, row, axis=1))
        self._index(tuple(sorted(self.specs)))
        self._membership()

    def open(self, instance_id: str, is_open: bool) -> bool:
        """Let an instance take new work, or none; returns whether that changed anything."""
        row = self.row[instance_id]
        was_open = bool(self.is_open[row])
        self.is_open[row] = is_open
        self._membership()
        return was_open is not is_open

    def _adopt(self, floats: Floats, flags: Bools) -> None:
        """One row per quantity in two tables; the named arrays are views of them."""
        self._floats, self._flags = np.ascontiguousarray(floats), np.ascontiguousarray(flags)
        self._inputs = self._floats[: len(INPUTS)]
        self._derived = self._floats[len(INPUTS) : len(INPUTS) + len(DERIVED)]
        for i, name in enumerate(TABLE):
            setattr(self, name, self._floats[i])
        for i, name in enumerate(FLAGS):
            setattr(self, name, self._flags[i])

    def _membership(self) -> None:
        self.mixed = self.is_open & self.can_prefill & self.can_decode
        self.mixed_count = int(np.count_nonzero(self.mixed))
        linked = self.link > 0.0
        groups = (linked & (self.kv_code == code) for code in np.unique(self.kv_code[linked]))
        self.kv_groups = tuple(members for members in groups if np.count_nonzero(members) > 1)
        self.least_capacity = float(self.kv_capacity.min()) if self.ids else 0.0
        self.least_batched = float(self.max_batched.min()) if self.ids else 0.0
        self.relative_capability = self.capability / (self.capability.min() if self.ids else 1.0)
        self._dirty = set(range(len(self.ids)))
        self._draws = None

    def _index(self, ids: tuple[str, ...]) -> None:
        self.ids = ids
        self.row = {name: i for i, name in enumerate(ids)}
        self.bits = np.array([self._bits[name] for name in ids], dtype=np.intp)
        gpus = sorted({spec.gpu for spec in self.specs.values()})
        self.gpu_code = np.array([gpus.index(self.specs[name].gpu) for name in ids], dtype=np.intp)
        self._mates = [np.flatnonzero(self.gpu_code == code) for code in self.gpu_code]
        codes: dict[str | None, int] = {}
        self.kv_code = np.array(
            [codes.setdefault(self.specs[name].kv_group, len(codes)) for name in ids], dtype=np.intp
        )

    # Load

    def queue(self, row: int, tokens: float, work_s: float, now_s: float) -> None:
        """A call was sent to prefill `tokens` new tokens, `work_s` of work."""
        self._dirty.add(row)
        self.queued[row] = self.queued.item(row) + 1.0
        self.queued_tokens[row] = self.queued_tokens.item(row) + tokens
        self.queued_work_s[row] = self.queued_work_s.item(row) + work_s
        self.free_at_s[row] = max(self.free_at_s.item(row), now_s) + work_s

    def unqueue(self, row: int, tokens: float, work_s: float, now_s: float) -> None:
        """That prefill is done or given up; what is still queued cannot take longer than its own work."""
        self._dirty.add(row)
        queued = self.queued.item(row) - 1.0
        if queued <= 0.0:
            left_s = self.queued[row] = self.queued_tokens[row] = self.queued_work_s[row] = 0.0
        else:
            self.queued[row] = queued
            self.queued_tokens[row] = max(self.queued_tokens.item(row) - tokens, 0.0)
            left_s = self.queued_work_s[row] = max(self.queued_work_s.item(row) - work_s, 0.0)
        self.free_at_s[row] = min(self.free_at_s.item(row), now_s + left_s)

    def bind(self, row: int, tokens: float, remaining: float) -> None:
        """A call will decode here: its KV fills `tokens`, and `remaining` are still to come."""
        self._dirty.add(row)
        self.bound[row] = self.bound.item(row) + 1.0
        self.kv_own[row] = self.kv_own.item(row) + tokens
        self.remaining[row] = self.remaining.item(row) + remaining

    def start(self, row: int) -> None:
        """A bound call began to decode."""
        self._dirty.add(row)
        self.bound[row] = self.bound.item(row) - 1.0
        self.running[row] = self.running.item(row) + 1.0

    def grow(self, row: int, tokens: float, remaining_change: float) -> None:
        """A call put out `tokens`; what it still has to put out changed."""
        self._dirty.add(row)
        if tokens:
            self.kv_own[row] = self.kv_own.item(row) + tokens
        self.remaining[row] = self.remaining.item(row) + remaining_change

    def unbind(self, row: int, tokens: float, remaining: float, *, is_running: bool) -> None:
        """A call left its decode instance; sums are exact zero again when the last one left (no float drift)."""
        self._dirty.add(row)
        left = self.running if is_running else self.bound
        left[row] = left.item(row) - 1.0
        if self.running.item(row) + self.bound.item(row) <= 0.0:
            self.kv_own[row] = self.remaining[row] = self.stake[row] = self.stake_tokens[row] = 0.0
        else:
            self.kv_own[row] = self.kv_own.item(row) - tokens
            self.remaining[row] = max(self.remaining.item(row) - remaining, 0.0)

    def restake(self, row: int, stake: float, stake_tokens: float) -> None:
        """What residents stand to lose changed."""
        self.stake[row] = max(self.stake.item(row) + stake, 0.0)
        self.stake_tokens[row] = max(self.stake_tokens.item(row) + stake_tokens, 0.0)

    def draw_more(self, row: int, stake: float, stake_tokens: float, now_s: float) -> None:
        """A call came here that stands to lose so much."""
        kept = exp((self.draw_at_s.item(row) - now_s) / self.config.draw_memory_s)
        self.draw[row] = self.draw.item(row) * kept + stake
        self.draw_tokens[row] = self.draw_tokens.item(row) * kept + stake_tokens
        self.draw_at_s[row] = now_s
        self._draws = None

    def draw_per_s(self, now_s: float) -> tuple[Floats, Floats]:
        """`draw` and `draw_tokens` per second of coming, taken once for all calls of one moment."""
        if self._draws is None or self._draws[0] != now_s:
            memory_s = self.config.draw_memory_s
            kept = np.exp((self.draw_at_s - now_s) / memory_s) / memory_s
            self._draws = now_s, self.draw * kept, self.draw_tokens * kept
        return self._draws[1], self._draws[2]

    # What others say and what was seen

    def report(self, event: InstanceReported, own_before: int, now_s: float) -> None:
        """Take in a worker's report; `own_before` of our calls had been sent there when it was measured."""
        row = self.row[event.instance_id]
        self._dirty.add(row)
        self.reports[event.instance_id] = event
        reported_at_s = self.reported_at_s[row] = min(event.measured_at_s, now_s)
        self._stale_at_s = min(self._stale_at_s, reported_at_s + self.config.stale_after_s)
        if event.running is not None:
            self.foreign[row] = max(event.running + (event.waiting or 0) - own_before, 0)
        if event.waiting is not None:
            waiting = min(max(event.waiting - self.queued.item(row), 0.0), self.foreign.item(row))
            self.foreign_wait_s[row] = waiting * self.mean_prompt_tokens * self.p1.item(row)
        if event.kv_usage is not None:
            self.kv_offset[row] = event.kv_usage * self.kv_capacity.item(row) - self.kv_own.item(row)
        if event.preemptions is not None:
            before = self.preempted.item(row)
            self.preempted[row] = before + self.config.instance_alpha * (event.preemptions - before)

    def hold_prefix(self, instance_id: str, hashes: tuple[int, ...], block_tokens: int) -> None:
        """An instance holds, or is about to compute, a prefix."""
        row = self.row[instance_id]
        self._dirty.add(row)
        self.cache_tokens[row] = self.prefixes.insert(instance_id, hashes, block_tokens)

    def expire(self, now_s: float) -> None:
        """Forget load that only a stale report knew of, and doubts about pairs that are over."""
        if now_s > self._stale_at_s:
            self._forget_stale(now_s)
        if self.broken:
            self.broken.expire(now_s)

    def refresh(self, now_s: float) -> None:
        """Bring the derived quantities up to date, after `expire`."""
        self.expire(now_s)
        if not self._dirty:
            return
        if len(self._dirty) > _REFRESH_ROWS:
            self._derived[:] = derive(self._inputs, np.maximum, np.minimum)
        else:
            for row in self._dirty:
                self._derived[:, row] = derive(self._inputs[:, row].tolist(), max, min)
        self._dirty.clear()
        # argmin and item: a fifth of the time of min().
        self.least_kv_slack = self.kv_slack.item(self.kv_slack.argmin())
        self.most_cache_excess = self.cache_excess.item(self.cache_excess.argmax())

    def _forget_stale(self, now_s: float) -> None:
        known = self.reported_at_s + self.config.stale_after_s
        for row in np.flatnonzero((known < now_s) & (self.reported_at_s > NEVER_S)).tolist():
            self.foreign[row] = self.foreign_wait_s[row] = self.kv_offset[row] = 0.0
            self.reported_at_s[row] = NEVER_S
            self._dirty.add(row)
        fresh = known[self.reported_at_s > NEVER_S]
        self._stale_at_s = float(fresh.min()) if len(fresh) else float("inf")

    def profile_prefill_s(self, row: int, fresh_tokens: float, cached_tokens: float) -> float:
        """What the GPU profile says, uncorrected, of a prefill on this instance when it runs alone."""
        quadratic = fresh_tokens * (fresh_tokens + 2.0 * cached_tokens)
        base = self.base_p0.item(row) * max(ceil(fresh_tokens / self.max_batched.item(row)), 1.0)
        return base + self.base_p1.item(row) * fresh_tokens + self.base_p2.item(row) * quadratic

    def profile_step_s(self, row: int) -> float:
        """What the GPU profile says, uncorrected, of a decode step with what is believed to run there."""
        batch = self.running.item(row) + self.foreign.item(row)
        return self.base_d0.item(row) + self.base_d1.item(row) * batch + self.base_d2.item(row) * self.kv_own.item(row)

    def step_s(self, row: int) -> float:
        """Predicted seconds of a decode step, corrected by what was observed."""
        batch = self.running.item(row) + self.foreign.item(row)
        return self.d0.item(row) + self.d1.item(row) * batch + self.d2.item(row) * self.kv_own.item(row)

    def observe_prefill(self, row: int, observed_s: float, profile_s: float) -> None:
        """Learn from a prefill that did not have to queue."""
        self._learn(self.own_prefill, self.prefill_samples, self.gpu_prefill, row, observed_s, profile_s)

    def observe_decode(self, row: int, observed_s: float, profile_s: float) -> None:
        """Learn from a window of one call's decode steps."""
        self._learn(self.own_decode, self.decode_samples, self.gpu_decode, row, observed_s, profile_s)

    def observe_cached(self, row: int, expected_tokens: float, cached_tokens: float) -> None:
        """Learn how far the prefix index may be trusted on this instance."""
        self.prefixes.correct(self.ids[row], expected_tokens, cached_tokens)
        if expected_tokens > 0.0:
            ratio = min(cached_tokens / expected_tokens, 1.0)
            before = self.trust.item(row)
            self.trust[row] = before + self.config.instance_alpha * (ratio - before)

    def observe_black_box(self, name: str, row: int, value: float) -> None:
        """Smooth one of GoodServe's `box_q`, `box_p`, `box_d`."""
        values: Floats = getattr(self, name)
        before = values.item(row)
        values[row] = before + self.config.black_box_alpha * (value - before)

    def _learn(
        self, own: Floats, samples: Floats, shared: Floats, row: int, observed_s: float, profile_s: float
    ) -> None:
        bounded = min(max(observed_s / profile_s, self.config.min_correction), self.config.max_correction)
        # The first samples count fully: an EMA that starts at 1 would hide a straggler for many calls.
        # Short ones count less: what HTTP and the relay add is a large part of them.
        trust = min(profile_s / max(_LONG * self.config.overhead_s, 1e-9), 1.0)
        seen, before = samples.item(row), own.item(row)
        own[row] = before + trust * max(self.config.instance_alpha, 1.0 / (seen + 1.0)) * (bounded - before)
        samples[row] = seen + trust
        mates, share = self._mates[row], shared.item(row)
        shared[mates] = share + trust * self.config.gpu_alpha * (bounded - share)
        self._learned += 1
        if self._learned % _SHARE_EVERY:
            self._apply_correction(row)
        else:
            self._apply_corrections()

    def _apply_correction(self, row: int) -> None:
        """The same as `_apply_corrections`, of one instance: scalars are quicker than arrays of one."""
        k = self.config.gpu_samples + 1e-9
        prefill_n, decode_n = self.prefill_samples.item(row), self.decode_samples.item(row)
        prefill = (self.own_prefill.item(row) * prefill_n + k * self.gpu_prefill.item(row)) / (prefill_n + k)
        decode = (self.own_decode.item(row) * decode_n + k * self.gpu_decode.item(row)) / (decode_n + k)
        self._dirty.add(row)
        self.p0[row] = self.base_p0.item(row) * prefill
        self.p1[row] = self.base_p1.item(row) * prefill
        self.p2[row] = self.base_p2.item(row) * prefill
        self.d0[row] = self.base_d0.item(row) * decode
        self.d1[row] = self.base_d1.item(row) * decode
        self.d2[row] = self.base_d2.item(row) * decode

    def _apply_corrections(self) -> None:
        prefill, decode = self.corrections()
        self._dirty.update(range(len(self.ids)))
        for name in ("p0", "p1", "p2", "d0", "d1", "d2"):
            getattr(self, name)[:] = getattr(self, f"base_{name}") * (prefill if name[0] == "p" else decode)

    def corrections(self) -> tuple[Floats, Floats]:
        """Observed ÷ predicted times of prefill and decode, per instance, as they are applied."""
        k = self.config.gpu_samples + 1e-9  # k = 0 and no samples: the shared ratio stands
        prefill_n, decode_n = self.prefill_samples, self.decode_samples
        prefill = (self.own_prefill * prefill_n + k * self.gpu_prefill) / (prefill_n + k)
        decode = (self.own_decode * decode_n + k * self.gpu_decode) / (decode_n + k)
        return prefill, decode
