"""What is the story of a run, told from its journal and from what is stored of it? One reading for every view."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from agentserve.journal import RunEvent
from agentserve.telemetry.blame import losses, told_blame
from agentserve.telemetry.story import RunStory, StepStory, event_from_plain, tell_run
from workflows.run import Run

Events = Sequence[RunEvent | Mapping[str, Any]]
"""Journal events, as such or as plain data from the gateway's REST answers."""


def explain_json(run: Run | Mapping[str, Any], events: Events) -> dict[str, Any]:
    """What render_run draws, as plain data: run, its blame and losses, steps, calls with phases, decisions, moves."""
    story = run_story(run, events)
    told = asdict(story)
    for step, plain in zip(story.steps, told["steps"], strict=True):
        for call, entry in zip(step.calls, plain["calls"], strict=True):
            entry["why"] = dict(call.explanation)
    worst = told_blame(story)
    told["blame"] = None if worst is None else worst.to_plain()
    told["losses"] = [] if story.finished_s is None else [loss.to_plain() for loss in losses(story)]
    return told


def run_story(run: Run | Mapping[str, Any], events: Events) -> RunStory:
    """The story of a run from its journal, with what only its stored state knows added."""
    plain = _plain(run)
    run_id = str(plain.get("run_id") or "?")
    journal = [event if isinstance(event, RunEvent) else event_from_plain(run_id, event) for event in events]
    submitted_s = float(plain.get("submitted_s") or (journal[0].at_s if journal else 0.0))
    story = tell_run(journal)
    if story is None:
        story = RunStory(run_id, submitted_s, plain.get("finished_s") or submitted_s)
    if plain.get("submitted_s") is not None:
        story.submitted_s = submitted_s
    for name in ("workflow", "slo_s", "deadline_s", "finished_s", "error"):
        if getattr(story, name) is None:
            setattr(story, name, plain.get(name))
    if story.status == "running" and plain.get("status"):
        story.status = str(plain["status"])
    if story.e2e_s is None and story.finished_s is not None:
        story.e2e_s = story.finished_s - story.submitted_s
    if story.attained is None and story.e2e_s is not None and story.slo_s is not None:
        story.attained = story.status == "succeeded" and story.e2e_s <= story.slo_s
    _add_steps(story, plain.get("steps"))
    return story


def _plain(run: Run | Mapping[str, Any]) -> Mapping[str, Any]:
    if is_dataclass(run):
        return {item.name: getattr(run, item.name) for item in fields(run)}
    inner = run.get("run")
    return inner if isinstance(inner, Mapping) else run


def _add_steps(story: RunStory, steps: Any) -> None:
    """Steps whose events are gone, and deadlines that the events do not tell, from the stored run."""
    rows = list(steps.values()) if isinstance(steps, Mapping) else list(steps or ())
    known = {step.step_id: step for step in story.steps}
    for row in rows:
        plain = _plain(row)
        step_id = str(plain["step_id"])
        step = known.get(step_id)
        if step is None:
            step = StepStory(step_id, str(plain["node"]), str(plain.get("kind") or "llm"), float(plain["started_s"]))
            step.parents = tuple(plain.get("parents") or ())
            story.steps.append(step)
        for name in ("finished_s", "target_deadline_s", "latest_deadline_s", "error"):
            if getattr(step, name) is None:
                setattr(step, name, plain.get(name))
        status = str(plain.get("status") or "running")
        if step.outcome is None and status != "running":
            step.outcome = "ok" if status == "succeeded" else status
    story.steps.sort(key=lambda step: (step.started_s, step.step_id))
