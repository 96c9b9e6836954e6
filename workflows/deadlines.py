"""By when must each running step be done? What is left of a run's SLO, shared out over what remains to do.

With the run's deadline D, the time now t, and for each running step i

    T_i   the expected rest of the step: E[X - a | X > a] for its node's durations X and the time a it has run,
    R_i   the expected time from its end to the run's end along the critical path (`workflows.chain`),

the run is expected to end at t + max(T_i + R_i), and its slack is D less that. Let j be the nearest node that the steps
all lead to (their join; END if nothing nearer) and tail(j) the expected time from when j could begin to the run's end.
The branch of step i takes T_i + P_i until j may begin, with P_i = R_i - tail(j). The join is due, stretched in
proportion, when the slowest branch should be there:

    J = t + (D - t) * L / (L + tail(j)),      L = max over i of (T_i + P_i)

All branches share it: one that is shorter may use the slack of the longest. Within its branch a step is due at

    target_i = t + (J - t) * T_i / (T_i + P_i)

and steps that meet before j (in a fork inside a branch) share that nearer join in the same way, with J in place of D
and tail(j') - tail(j) in place of tail(j'). For a lone step: target = t + (D - t) * T / (T + R).

    latest_i = D - F_i       with F_i the rest of the run along its shortest plausible path, each node at its p10

and target_i is never later. With slack left, every target leaves its step at least the time expected of it; without,
targets shrink in proportion, down to `latest_i` once t is past D.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workflows.counts import leaf_steps
from workflows.forecast import Forecast, Outlook
from workflows.graph import END, Workflow
from workflows.run import Run, Step


@dataclass(frozen=True, slots=True)
class StepDeadline:
    """Of one running step: absolute `target_s` (its fair share) and `latest_s` (past which the run is lost).

    `predicted_s`: expected time the step still takes; `downstream_s`: expected time from its end to the run's end;
    `slack_s`: deadline less now less the predicted remaining time, of the whole run.
    """

    target_s: float
    latest_s: float
    predicted_s: float
    downstream_s: float
    slack_s: float


@dataclass(frozen=True, slots=True)
class _Running:
    step_id: str
    node: str
    rest_s: float
    downstream_s: float

    def until_s(self, tail_s: float) -> float:
        """Expected time from the step's end to the join which has `tail_s` after it."""
        return max(0.0, self.downstream_s - tail_s)


def derive(run: Run, workflow: Workflow, forecast: Forecast, now_s: float) -> Mapping[str, StepDeadline]:
    """Deadlines of the run's running steps, by step id; empty without an SLO or without running steps.

    `forecast` is that of `workflow`; steps of nodes that neither knows are taken to end the run. A step in which other
    steps run (of a node `outer`, beside `outer:inner`) is due with the last of them.
    """
    active = run.active
    if run.deadline_s is None or not active:
        return {}
    outlook = forecast.outlook_of(run)
    leaves = [
        _Running(
            step.step_id,
            step.node,
            forecast.durations(step.node).remaining_s(now_s - step.started_s),
            outlook.remaining_s(step.node),
        )
        for step in leaf_steps(active)
    ]
    slack_s = run.deadline_s - now_s - max(step.rest_s + step.downstream_s for step in leaves)
    targets = _targets(leaves, forecast, outlook, run.deadline_s, now_s)
    found: dict[str, StepDeadline] = {}
    for step in leaves:
        latest_s = run.deadline_s - min(forecast.remaining_fast_s(step.node), step.downstream_s)
        target_s = min(targets[step.step_id], latest_s) if now_s < run.deadline_s else latest_s
        found[step.step_id] = StepDeadline(target_s, latest_s, step.rest_s, step.downstream_s, slack_s)
    return found | _around(active, leaves, found)


def _targets(
    leaves: Sequence[_Running], forecast: Forecast, outlook: Outlook, deadline_s: float, now_s: float
) -> dict[str, float]:
    """The target of each step: joins from the farthest in, each group with the time its join is due at."""
    due: dict[str, float] = {}
    groups: list[tuple[Sequence[_Running], float, float]] = [(leaves, deadline_s, 0.0)]
    while groups:
        steps, due_s, after_s = groups.pop()
        join = END if len(steps) == 1 else forecast.join(step.node for step in steps)
        tail_s = after_s if len(steps) == 1 else max(after_s, outlook.tail_s(join))
        longest_s = max(step.rest_s + step.until_s(tail_s) for step in steps)
        join_due_s = now_s + (due_s - now_s) * _share(longest_s, tail_s - after_s)
        for branch, members in _branches(steps, forecast, join).items():
            ending = [step for step in members if step.node == branch or len(members) == 1]
            for step in ending:
                due[step.step_id] = now_s + (join_due_s - now_s) * _share(step.rest_s, step.until_s(tail_s))
            if inner := [step for step in members if step not in ending]:
                groups.append((inner, join_due_s, tail_s))
    return due


def _branches(steps: Sequence[_Running], forecast: Forecast, join: str) -> dict[str, list[_Running]]:
    """The steps by the last node before `join` that all they lead to goes through: steps of one branch meet there."""
    found: dict[str, list[_Running]] = {}
    for step in steps:
        path = [step.node, *forecast.joins_after(step.node)]
        found.setdefault(path[path.index(join) - 1], []).append(step)
    return found


def _share(part_s: float, rest_s: float) -> float:
    whole_s = part_s + rest_s
    return part_s / whole_s if whole_s > 0 else 1.0


def _around(
    active: Sequence[Step], leaves: Sequence[_Running], found: Mapping[str, StepDeadline]
) -> dict[str, StepDeadline]:
    """Deadlines of the running steps that others run in: those of the last inner one."""
    outer: dict[str, StepDeadline] = {}
    for step in active:
        if step.step_id not in found:
            inner = [found[leaf.step_id] for leaf in leaves if leaf.node.startswith(f"{step.node}:")]
            outer[step.step_id] = max(inner, key=lambda deadline: (deadline.target_s, deadline.latest_s))
    return outer
