"""What does each mode allow, and what would a policy that only looks on have done with a call?

    mode      who places             running calls move    splits where one instance could serve
    observe   the observed policy    no                    as that policy does by itself
    route     our policy             no                    no
    migrate   our policy             yes                   no
    split     our policy             yes                   yes

A call whose instance broke goes on elsewhere in every mode, and one that only a split can serve gets it. In `observe`
our policy is asked about the first attempt of every call, from the state in which it is placed, and changes nothing:
decisions are those of the observed policy alone, with a `Shadow` beside.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from scheduler.call import Call
from scheduler.decisions import Shadow
from scheduler.errors import InvalidConfig
from scheduler.events import Mode
from scheduler.placement import Placement, demand_of
from scheduler.policies import make_policy
from scheduler.policy import Balancer, Evacuator, Policy, Rectifier, Wait
from scheduler.state import ClusterState


def moves_calls(mode: Mode) -> bool:
    """Whether running calls may move."""
    return mode in (Mode.MIGRATE, Mode.SPLIT)


def plain_policy(name: str) -> Policy:
    """The policy of that name, with its defaults. Raises UnknownPolicy, and InvalidConfig for one that moves calls."""
    policy = make_policy(name)
    if isinstance(policy, Rectifier | Evacuator | Balancer):
        raise InvalidConfig(f"policy {name} moves running calls; a balancer that is observed only places them")
    return policy


def foresee(own: Policy, call: Call, state: ClusterState, taken: Placement, now_s: float) -> Shadow:
    """What `own` would do with a call that is about to be placed at `taken`, and the predictions for both."""
    with _aside(state, call):
        answer = own.place(call, state, now_s)
    tokens = demand_of(call).output_tokens
    taken_ready_s, taken_token_s = _times(taken, tokens)
    if isinstance(answer, Placement):
        prefill, decode, rule = answer.prefill, answer.decode, answer.reason.rule
        ready_s, token_s = _times(answer, tokens)
        return Shadow(
            policy=own.name,
            rule=rule,
            prefill_instance=prefill,
            decode_instance=decode,
            ready_s=ready_s,
            token_s=token_s,
            taken_ready_s=taken_ready_s,
            taken_token_s=taken_token_s,
        )
    return Shadow(
        policy=own.name,
        rule=answer.rule if isinstance(answer, Wait) else "no open instance can serve it",
        prefill_instance=None,
        decode_instance=None,
        ready_s=None,
        token_s=None,
        taken_ready_s=taken_ready_s,
        taken_token_s=taken_token_s,
    )


@contextmanager
def _aside(state: ClusterState, call: Call) -> Iterator[None]:
    """While a policy only looks on: its draws are not those of the one that places, and it splits nothing."""
    pool = state.pool_of(call)
    state.random, state.random_aside = state.random_aside, state.random
    pool.may_split = False
    try:
        yield
    finally:
        state.random, state.random_aside = state.random_aside, state.random
        pool.may_split = state.may_split


def _times(placement: Placement, tokens: float) -> tuple[float, float]:
    """Predicted seconds before the first token, and of each one."""
    return placement.queue_s + placement.prefill_s + placement.transfer_s, placement.decode_s / tokens
