"""What if all calls of a session stay where its first one went? Sticky sessions.

A session is what the client named so, else the run. I: where a session begins: at the least loaded instance, or by
rendezvous hashing, which also keeps it in place after the gateway forgot it.
"""

from dataclasses import dataclass
from hashlib import blake2b

from scheduler.call import Call
from scheduler.placement import Options, Placement
from scheduler.ranking import at_decode, decode_rows, decoding_at, offers, take
from scheduler.runs import session_of
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAffinity:
    """The instance of the session's last call, while it is open."""

    name = "session_affinity"

    by_hash: bool = False
    """Sessions begin by rendezvous hashing instead of at the fewest outstanding calls."""
    by_speed: bool = False
    """Divide outstanding calls by the instance's capability."""

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The session's own instance, else a new one."""
        demand, options = offers(call, state, now_s)
        rows = decode_rows(options)
        if not rows:
            return None
        pool = options.pool
        count = at_decode(options, pool.batch)
        row, rule = self._home(call, state, options, rows)
        return take(
            self.name,
            f"{rule}, of {len(rows)}",
            call,
            state,
            demand,
            options,
            at_decode(options, pool.batch / pool.relative_capability) if self.by_speed else count,
            now_s,
            among=None if row is None else decoding_at(options, [row]),
            verdict=lambda option: f"not the session's instance; {count.item(option):.0f} outstanding calls",
        )

    def _home(self, call: Call, state: ClusterState, options: Options, rows: list[int]) -> tuple[int | None, str]:
        pool, last = options.pool, state.runs.last_instance(call)
        if last is not None and pool.row.get(last) in rows:
            return pool.row[last], "where the session's last call went"
        if self.by_hash:
            session = session_of(call)
            return max(rows, key=lambda row: _weight(session, pool.ids[row])), "the session's hash"
        return None, "a session without an open instance: the fewest outstanding calls"


def _weight(session: str, instance_id: str) -> bytes:
    return blake2b(f"{session}\n{instance_id}".encode(), digest_size=8).digest()


POLICY = SessionAffinity
