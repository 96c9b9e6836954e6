"""What does a vLLM-like engine do in its next iteration, and how long does it take?

The model follows vLLM V1's scheduler: decodes first, then chunks of unfinished prefills, then waiting requests while
the token budget, `max_num_seqs` and the KV blocks allow; out of blocks, the request of the largest rank is preempted
and later recomputed. Time comes from the GPU profile: a step of B decodes over Σctx tokens takes `decode_step_s`, a
chunk of m tokens after P adds c·(p1·m + p2·(m² + 2Pm)), and c·p0 once where nothing decodes. It keeps no clock: the
caller says what time it is, so the HTTP server and virtual time drive the same code.
"""

from heapq import heapify, heappop, heappush

from agentserve.emulator.kv import BlockPool
from agentserve.emulator.sequence import (
    EngineCounters,
    EngineRequest,
    EngineState,
    IterationResult,
    Lease,
    Phase,
    RunningSequence,
)
from scheduler.profiles import GpuProfile

_HOLDS_KV = -(2**63)
"""Goes before any priority: a request whose KV has arrived occupies blocks until it runs."""


class Engine:
    """One engine instance. Times are engine seconds; the caller's clock never goes back.

    Call `add` and `abort` between iterations; `step(now_s)` runs one and says how long it took, so the next begins at
    `now_s + duration_s`. `slowdown` stretches every iteration from then on.
    """

    def __init__(
        self,
        profile: GpuProfile,
        *,
        max_num_seqs: int = 256,
        max_batched_tokens: int = 8192,
        block_tokens: int = 16,
        kv_capacity_tokens: int | None = None,
        kv_link_bytes_per_s: float | None = None,
        use_priority: bool = False,
        lease_s: float = 30.0,
    ) -> None:
        capacity = profile.kv_capacity_tokens if kv_capacity_tokens is None else kv_capacity_tokens
        self.profile = profile
        self.max_num_seqs = max_num_seqs
        self.max_batched_tokens = max_batched_tokens
        self.block_tokens = block_tokens
        self.link_bytes_per_s = profile.kv_link_bytes_per_s if kv_link_bytes_per_s is None else kv_link_bytes_per_s
        self.use_priority = use_priority
        self.lease_s = lease_s
        self.slowdown = 1.0
        self.pool = BlockPool(capacity // block_tokens)
        self.counters = EngineCounters()
        self.running: list[RunningSequence] = []
        self._sequences: dict[str, RunningSequence] = {}
        self._waiting: list[tuple[tuple[int, int], RunningSequence]] = []
        self._transfers: list[tuple[float, tuple[int, int], RunningSequence]] = []
        self._leases: dict[str, Lease] = {}
        self._arrivals = 0
        self.is_stuck = False
        """Nobody who waits can begin before a sequence ends or something is freed or added."""

    # Requests ---------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises ValueError for an id in use or sizes that can never be served."""
        if request.request_id in self._sequences or request.request_id in self._leases:
            raise ValueError(f"request {request.request_id!r} already exists")
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise ValueError(f"request {request.request_id!r} needs at least one prompt and one output token")
        if request.prompt_tokens + request.output_tokens > self.pool.total * self.block_tokens:
            raise ValueError(f"request {request.request_id!r} does not fit the KV cache")
        rank = (request.priority if self.use_priority else 0, self._arrivals)
        self._arrivals += 1
        self.counters.requests += 1
        sequence = RunningSequence(request, rank, total=request.prompt_tokens)
        self._sequences[request.request_id] = sequence
        heappush(self._waiting, (rank, sequence))
        self.is_stuck = False

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its KV at once; False if it is unknown or finished."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        if sequence.phase is Phase.RUNNING:
            self.running.remove(sequence)
        elif sequence.phase is Phase.WAITING:
            self._waiting = [entry for entry in self._waiting if entry[1] is not sequence]
            heapify(self._waiting)
        else:
            self._transfers = [entry for entry in self._transfers if entry[2] is not sequence]
            heapify(self._transfers)
        self._free(sequence)
        sequence.phase = Phase.DONE
        self.is_stuck = False
        return True

    def lease(self, request_id: str) -> Lease | None:
        """The KV pinned under a finished request's id."""
        return self._leases.get(request_id)

    def release(self, request_id: str) -> bool:
        """Unpin KV that was fetched or is not wanted any more; False if there is none."""
        lease = self._leases.pop(request_id, None)
        if lease is not None:
            self.pool.release(lease.blocks)
            self.is_stuck = False
        return lease is not None

    # State ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        """Figures of the moment."""
        waiting = len(self._waiting) + len(self._transfers)
        return EngineState(len(self.running), waiting, self.pool.used / self.pool.total)

    def next_event_s(self) -> float | None:
        """When time alone changes something: a transfer ends or a lease expires."""
        times = [lease.expires_s for lease in self._leases.values()]
        if self._transfers:
            times.append(self._transfers[0][0])
        return min(times, default=None)

    def check_integrity(self) -> None:
        """Raise AssertionError unless blocks, sequences and leases agree."""
        self.pool.check_integrity()
        holders = [sequence.blocks for sequence in self._sequences.values()]
        held = {block for blocks in (*holders, *(lease.blocks for lease in self._leases.values())) for block in blocks}
        if len(held) != self.pool.used:
            raise AssertionError(f"{self.pool.used} blocks are in use, but {len(held)} have a holder")
        if len(self.running) > self.max_num_seqs:
            raise AssertionError(f"{len(self.running)} sequences run, {self.max_num_seqs} may")

    # One iteration ----------------------------------------------------------------------------------------------

    def step(self, now_s: float) -> IterationResult:
        """Run the iteration that begins at `now_s`."""
        result = IterationResult()
        self.is_stuck = False
        self._let_time_pass(now_s, result)
        budget = self._reserve_decodes(result)
        chunks: list[tuple[RunningSequence, int]] = []
        budget = self._continue_prefills(budget, chunks, result)
        if not self.running:
            chunks.clear()
        if not result.preempted or not self.running:
            self._admit(budget, chunks, now_s, result)
        while not self.running and self._preempt_last(result):
            self._admit(budget, chunks, now_s, result)
        self._run(chunks, now_s, result)
        return result

    def _let_time_pass(self, now_s: float, result: IterationResult) -> None:
        while self._transfers and self._transfers[0][0] <= now_s:
            _, rank, sequence = heappop(self._transfers)
            sequence.phase = Phase.WAITING
            heappush(self._waiting, ((_HOLDS_KV, rank[1]), sequence))
            result.transferred.append(sequence.request.request_id)
        if self._leases:
            for request_id in [name for name, lease in self._leases.items() if lease.expires_s <= now_s]:
                self.release(request_id)
                self.counters.expired_leases += 1

    def _reserve_decodes(self, result: IterationResult) -> int:
        """Give every decode the block it needs, preempting where there is none; returns the token budget left."""
        full = [s for s in self.running if s.decoding and s.total > s.room]
        for sequence in full:
            if sequence.phase is Phase.RUNNING:
                self._make_room(sequence, sequence.total, result)
        return self.max_batched_tokens - sum(1 for s in self.running if s.decoding)

    def _continue_prefills(
        self, budget: int, chunks: list[tuple[RunningSequence, int]], result: IterationResult
    ) -> int:
        for sequence in [s for s in self.running if not s.decoding]:
            if budget <= 0:
                break
            if sequence.phase is not Phase.RUNNING:
                continue
            tokens = min(sequence.total - sequence.computed, budget)
            if self._make_room(sequence, sequence.computed + tokens, result):
                chunks.append((sequence, tokens))
                budget -= tokens
        return budget

    def _make_room(self, sequence: RunningSequence, tokens: int, result: IterationResult) -> bool:
        """Let a running sequence hold `tokens`; False if it had to be preempted itself."""
        needed = -(-(tokens - sequence.room) // self.block_tokens)
        if needed <= 0:
            return True
        while self.pool.free < needed:
            if self._preempt_last(result) is sequence:
                return False
        self.grow(sequence, needed)
        return True

    def grow(self, sequence: RunningSequence, blocks: int) -> None:
        """Give a sequence free blocks, of which there must be enough."""
        sequence.blocks += self.pool.allocate(blocks)
        sequence.room += blocks * self.block_tokens

    def _preempt_last(self, result: IterationResult) -> RunningSequence | None:
        """Take the blocks of the holder that is served last; it waits and recomputes. None where nobody can give any.

        Requests whose remote KV has come hold blocks too, before they run.
        """
        holders = [*self.running, *(sequence for _, sequence in self._waiting if sequence.blocks)]
        if not holders:
            return None
        victim = max(holders, key=lambda s: s.rank)
        if victim.phase is Phase.RUNNING:
            self.running.remove(victim)
        else:
            self._waiting = [entry for entry in self._waiting if entry[1] is not victim]
            heapify(self._waiting)
        self._free(victim)
        victim.phase = Phase.WAITING
        heappush(self._waiting, (victim.rank, victim))
        self.counters.preemptions += 1
        result.preempted.append(victim.request.request_id)
        return victim

    def _free(self, sequence: RunningSequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.room = sequence.computed = sequence.remembered = 0
        sequence.decoding = False

    def _admit(
        self, budget: int, chunks: list[tuple[RunningSequence, int]], now_s: float, result: IterationResult
    ) -> None:
        """Start waiting sequences in rank order until one does not fit."""
        while self._waiting and budget > 0:
            sequence = self._waiting[0][1]
            fetches = sequence.request.remote_kv is not None and not sequence.admitted
            is_full = not fetches and len(self.running) >= self.max_num_seqs
            if is_full or not (self._begin_transfer(sequence, now_s) if fetches else self._place(sequence, budget)):
                self.is_stuck = True
                break
            heappop(self._waiting)
            if not sequence.admitted:
                sequence.admitted = True
                result.started.append(sequence.request.request_id)
                result.cached_tokens[sequence.request.request_id] = sequence.cached_tokens or 0
            if fetches:
                continue
            sequence.phase = Phase.RUNNING
            self.running.append(sequence)
            if sequence.decoding:
                budget -= 1
            else:
                tokens = min(sequence.total - sequence.computed, budget)
                chunks.append((sequence, tokens))
                budget -= tokens

    def _place(self, sequence: RunningSequence, budget: int) -> bool:
        """Find the cached prefix and the blocks for a first chunk of at most `budget`; False if they do not fit."""
        hits = [] if sequence.blocks else self._cached_prefix(sequence)
        computed = max(sequence.computed, len(hits) * self.block_tokens)
        target = min(sequence.total, computed + budget)
        needed = -(-target // self.block_tokens) - max(len(sequence.blocks), len(hits))
        if self.pool.free - self.pool.idle(hits) < needed:
            return False
        self._take_prefix(sequence, hits)
        if needed > 0:
            self.grow(sequence, needed)
        return True

    def _begin_transfer(self, sequence: RunningSequence, now_s: float) -> bool:
        """Reserve blocks for the KV held elsewhere and start fetching what is not cached here."""
        remote = sequence.request.remote_kv
        if remote is None:
            raise ValueError("no remote KV to fetch")
        hits = self._cached_prefix(sequence)
        arriving = max(min(remote.tokens, sequence.total - 1), len(hits) * self.block_tokens)
        needed = -(-arriving // self.block_tokens) - len(hits)
        if self.pool.free - self.pool.idle(hits) < needed:
            return False
        self._take_prefix(sequence, hits)
        fetched = arriving - sequence.computed
        self.grow(sequence, needed)
        link = min(self.link_bytes_per_s, remote.link_bytes_per_s)
        sequence.computed = arriving
        sequence.decoding = arriving == sequence.total - 1
        sequence.phase = Phase.TRANSFERRING
        self.counters.transferred_tokens += fetched
        ready_s = now_s + fetched * self.profile.kv_bytes_per_token / link
        heappush(self._transfers, (ready_s, sequence.rank, sequence))
        return True

    def _cached_prefix(self, sequence: RunningSequence) -> list[int]:
        """Blocks whose tokens need no computing; at least one token is always left to compute."""
        return self.pool.match(sequence.request.block_keys, (sequence.total - 1) // self.block_tokens)

    def _take_prefix(self, sequence: RunningSequence, hits: list[int]) -> None:
        if sequence.blocks:
            return
        self.pool.share(hits)
        sequence.blocks = list(hits)
        sequence.remembered = len(hits)
        sequence.room = sequence.computed = len(hits) * self.block_tokens
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            self.counters.prefix_queries += sequence.request.prompt_tokens
            self.counters.prefix_hits += sequence.computed

    def _run(self, chunks: list[tuple[RunningSequence, int]], now_s: float, result: IterationResult) -> None:
        """Compute what was planned: advance the sequences, add up the time, emit, finish."""
        batch = context = 0
        done: list[RunningSequence] = []
        emitted = result.emitted
        for sequence in self.running:
            if sequence.decoding:
                batch += 1
                context += sequence.total
                sequence.computed = sequence.total
                self._emit(sequence, emitted, done)
        duration_s = self.profile.decode_step_s(batch, context) if batch else 0.0
        duration_s += self._prefill(chunks, batch == 0, result, done)
        result.duration_s = duration_s * self.slowdown
        if duration_s:
            self.counters.iterations += 1
            self.counters.busy_s += result.duration_s
        for sequence in done:
            self.finish(sequence, now_s + result.duration_s, result)

    def _prefill(
        self,
        chunks: list[tuple[RunningSequence, int]],
        alone: bool,
        result: IterationResult,
        done: list[RunningSequence],
    ) -> float:
        profile = self.profile
        base_s = profile.calibration * profile.prefill_base_s
        seconds = 0.0
        for sequence, tokens in chunks:
            if sequence.phase is not Phase.RUNNING:
                continue
            seconds += profile.prefill_s(tokens, sequence.computed) - base_s
            sequence.computed += tokens
            result.prefill_tokens += tokens
            self.counters.prefill_tokens += tokens
            if sequence.computed == sequence.total:
                sequence.decoding = True
                self._emit(sequence, result.emitted, done)
            else:
                self._share_new_blocks(sequence)
        return seconds + base_s if alone and result.prefill_tokens else seconds

    def _emit(self, sequence: RunningSequence, emitted: list[str], done: list[RunningSequence]) -> None:
        """One token more, after all of `total` was computed."""
        request = sequence.request
        if sequence.computed // self.block_tokens > sequence.remembered:
            self._share_new_blocks(sequence)
        if not sequence.emitted:
            self.counters.prompt_tokens += request.prompt_tokens
        sequence.emitted += 1
        sequence.total += 1
        self.counters.generation_tokens += 1
        emitted.append(request.request_id)
        if sequence.emitted == request.output_tokens:
            done.append(sequence)

    def _share_new_blocks(self, sequence: RunningSequence) -> None:
        """Who waits may find its prefix now, and then needs fewer blocks."""
        self.remember(sequence)
        self.is_stuck = False

    def remember(self, sequence: RunningSequence) -> None:
        """Let the full blocks of what was computed be found by their keys."""
        keys = sequence.request.block_keys
        full = min(sequence.computed // self.block_tokens, len(keys))
        if sequence.remembered < full:
            self.pool.remember(sequence.blocks, keys, sequence.remembered, full)
        sequence.remembered = max(sequence.remembered, sequence.computed // self.block_tokens)

    def has_waiting(self) -> bool:
        """Whether a request waits to begin."""
        return bool(self._waiting)

    def finish(self, sequence: RunningSequence, at_s: float, result: IterationResult) -> None:
        """Let a running sequence end at `at_s`, with its KV freed or pinned."""
        request_id = sequence.request.request_id
        self.running.remove(sequence)
        del self._sequences[request_id]
        if sequence.request.keep_kv:
            self._leases[request_id] = Lease(sequence.blocks, sequence.computed, at_s + self.lease_s)
        else:
            self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.phase = Phase.DONE
        self.is_stuck = False
        result.finished.append(request_id)
