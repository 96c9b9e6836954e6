"""What is remembered of the runs of a workflow? Named integer counters that several writers can add to in any order.

    d|NODE|KIND|BUCKET          steps that succeeded, by duration
    g|NODE|BUCKET               gap from the last parent's end to the step's start (NODE may be END), by length
    t|NODE|VISIT|TARGET+TARGET  what followed the VISIT-th execution of a node in its run
    f|NODE|TARGET|WIDTH         how often a target followed several times at once, and how many times

Names are percent-encoded. Gaps hold what steps do not: a client's own time, and a join that lets branches wait.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote

from workflows.durations import BUCKETS, bucket_of
from workflows.graph import END, MAX_NAME_CHARS, START, Workflow
from workflows.run import Run, RunStatus, Step, StepKind

MAX_KEYS = 20_000
"""Counters of one workflow: some 100 nodes with all their buckets; names that come later are not learned."""
HALVE_AT = 4_096
"""Observations of one thing after which its counters are halved, so that forecasts follow what changes."""
MAX_VISIT = 8
"""From the eighth execution of a node on, its visits are counted together."""
MAX_TARGETS = 16
WIDTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def observe_step(node: str, kind: StepKind, duration_s: float) -> dict[str, int]:
    """Increments for a step that succeeded after `duration_s`; send them once, when it ends."""
    return {f"d|{encode(node)}|{kind}|{bucket_of(duration_s)}": 1}


def observe_gap(node: str, gap_s: float) -> dict[str, int]:
    """Increments for the time between the end of a step's last parent and its start; END: until the run's end."""
    return {f"g|{encode(node)}|{bucket_of(gap_s)}": 1}


def observe_transition(source: str, targets: Mapping[str, int], *, visit: int = 1) -> dict[str, int]:
    """Increments for what followed a node (or START): target (or END) → how many steps of it, together.

    `visit` counts the executions of `source` in its run, from 1. `observe_run_end` calls this for a whole run.
    """
    kept = sorted(name for name, width in targets.items() if width > 0)[:MAX_TARGETS]
    if not kept:
        return {}
    visit = max(1, min(visit, MAX_VISIT))
    found = {f"t|{encode(source)}|{visit}|{'+'.join(map(encode, kept))}": 1}
    for name in kept:
        if targets[name] > 1:
            width = max(known for known in WIDTHS if known <= targets[name])
            found[f"f|{encode(source)}|{encode(name)}|{width}"] = 1
    return found


def observe_run_end(run: Run, workflow: Workflow | None = None) -> dict[str, int]:
    """Increments for all transitions and gaps of a run that has ended; send them once, with the run's end.

    Steps without parents are taken to follow the steps that ended last before they began. With `workflow`, parents
    that the graph does not know as such are left out. What a failed or cancelled run ended with is not learned.
    """
    steps = leaf_steps(sorted(run.steps.values(), key=lambda step: (step.started_s, step.step_id)))
    parents = _parents(steps, workflow)
    children: dict[str, Counter[str]] = {step.step_id: Counter() for step in steps}
    first: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for step in steps:
        before = parents[step.step_id]
        for parent in before:
            children[parent.step_id][step.node] += 1
        if not before:
            first[step.node] += 1
        since_s = max((_end_s(parent) for parent in before), default=run.submitted_s)
        found.update(observe_gap(step.node, step.started_s - since_s))
    found.update(observe_transition(START, first))
    found.update(_following(run, steps, children, workflow))
    return dict(found)


def leaf_steps(steps: Sequence[Step]) -> list[Step]:
    """The steps in which no other step runs: a step of `outer` is left out beside steps of `outer:inner`."""
    nodes = {step.node for step in steps}
    outer = {node[:at] for node in nodes for at, sign in enumerate(node) if sign == ":"}
    return [step for step in steps if step.node not in outer]


def admit(counts: Mapping[str, int], increments: Mapping[str, int]) -> dict[str, int]:
    """The increments to send to a store that holds `counts`: bounded in keys, and with the halving that is due.

    New keys are refused once there are MAX_KEYS. Things that reached HALVE_AT observations lose half of every counter.
    Two writers that halve at once may leave -1 in a counter; a forecast reads it as 0.
    """
    room = max(0, MAX_KEYS - len(counts))
    sent: Counter[str] = Counter()
    for key, amount in increments.items():
        if key in counts or room > 0:
            room -= key not in counts
            sent[key] += amount
    sent.update(_halving(counts, {_thing(key) for key in increments}))
    return dict(sent)


@lru_cache(maxsize=4_096)
def encode(name: str) -> str:
    """A node's name as it stands in a key."""
    return quote(name[:MAX_NAME_CHARS], safe=" :", errors="surrogatepass")


def decode(part: str) -> str:
    """The node's name that `encode` wrote."""
    return unquote(part, errors="surrogatepass")


class DurationKey(NamedTuple):
    """A key of `observe_step`."""

    node: str
    kind: StepKind
    bucket: int


class GapKey(NamedTuple):
    """A key of `observe_gap`."""

    node: str
    bucket: int


class TransitionKey(NamedTuple):
    """A key of `observe_transition`: the targets sorted."""

    node: str
    visit: int
    targets: tuple[str, ...]


class WidthKey(NamedTuple):
    """A key of `observe_transition` for a target that followed several times at once."""

    node: str
    target: str
    width: int


@lru_cache(maxsize=100_000)
def parsed(key: str) -> DurationKey | GapKey | TransitionKey | WidthKey | None:
    """What a key counts; None for one that is not of this program. Kept, since forecasts read the same ones anew."""
    try:
        match key.split("|"):
            case ["d", node, kind, bucket]:
                return DurationKey(decode(node), StepKind(kind), _within(bucket, 0, BUCKETS - 1))
            case ["g", node, bucket]:
                return GapKey(decode(node), _within(bucket, 0, BUCKETS - 1))
            case ["t", node, visit, targets]:
                names = tuple(sorted(set(map(decode, targets.split("+")))))
                return TransitionKey(decode(node), _within(visit, 1, MAX_VISIT), names)
            case ["f", node, target, width]:
                return WidthKey(decode(node), decode(target), _within(width, 2, WIDTHS[-1]))
    except ValueError:
        return None
    return None


def _within(digits: str, least: int, most: int) -> int:
    number = int(digits)
    if not least <= number <= most:
        raise ValueError(digits)
    return number


@lru_cache(maxsize=100_000)
def _thing(key: str) -> str:
    """What a counter is about; all its counters are halved together."""
    fields = key.split("|")
    if fields[0] == "d":
        return "|".join(fields[:3])
    return f"t|{fields[1]}" if fields[0] == "f" and len(fields) > 1 else "|".join(fields[:2])


def _halving(counts: Mapping[str, int], things: set[str]) -> dict[str, int]:
    held: dict[str, dict[str, int]] = {}
    for key, count in counts.items():
        if count > 0 and (thing := _thing(key)) in things:
            held.setdefault(thing, {})[key] = count
    return {
        key: count // 2 - count
        for counters in held.values()
        if sum(counters.values()) >= HALVE_AT
        for key, count in counters.items()
    }


def _end_s(step: Step) -> float:
    return step.started_s if step.finished_s is None else step.finished_s


def _parents(steps: Sequence[Step], workflow: Workflow | None) -> dict[str, list[Step]]:
    by_id = {step.step_id: step for step in steps}
    found = {}
    for step in steps:
        told = [by_id[parent] for parent in dict.fromkeys(step.parents) if parent in by_id and parent != step.step_id]
        before = told or _ended_last_before(step, steps)
        if workflow is not None:
            known = [one for one in before if step.node in _targets(workflow, one.node)]
            before = known or before
        found[step.step_id] = before
    return found


def _ended_last_before(step: Step, steps: Sequence[Step]) -> list[Step]:
    """The steps that had ended when this one began, without those that another such step had waited for."""
    ended = [
        one for one in steps if one is not step and one.finished_s is not None and one.finished_s <= step.started_s
    ]
    newest_s = max((one.started_s for one in ended), default=0.0)
    return [one for one in ended if _end_s(one) > newest_s or one.started_s == newest_s]


def _targets(workflow: Workflow, node: str) -> set[str]:
    return {edge.target for edge in workflow.edges_from.get(node, ())}


def _following(
    run: Run, steps: Sequence[Step], children: Mapping[str, Counter[str]], workflow: Workflow | None
) -> Counter[str]:
    found: Counter[str] = Counter()
    visits: Counter[str] = Counter()
    newest_s = max((step.started_s for step in steps), default=run.submitted_s)
    last_end_s = max((_end_s(step) for step in steps), default=run.submitted_s)
    for step in steps:
        visits[step.node] += 1
        targets = dict(children[step.step_id])
        if not targets and run.status is RunStatus.SUCCEEDED and _may_end(step, newest_s, workflow):
            targets = {END: 1}
        found.update(observe_transition(step.node, targets, visit=visits[step.node]))
    if run.status is RunStatus.SUCCEEDED and run.finished_s is not None:
        found.update(observe_gap(END, run.finished_s - last_end_s))
    return found


def _may_end(step: Step, newest_s: float, workflow: Workflow | None) -> bool:
    """Whether a step that nothing names as its parent ended its branch; otherwise a client left a parent out."""
    targets = set() if workflow is None else _targets(workflow, step.node)
    return END in targets if targets else newest_s < _end_s(step) or newest_s == step.started_s
