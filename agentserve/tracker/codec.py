"""How do runs, steps, events and workflows look in Redis? As JSON, bounded in size."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, Final

import orjson

from agentserve.errors import BadInput, TooLarge, Unavailable
from agentserve.journal import Kind, RunEvent
from agentserve.tracker.event_data import check_event
from agentserve.tracker.store import RunSummary
from workflows.errors import WorkflowError
from workflows.graph import Workflow
from workflows.run import Run, Step
from workflows.wire import run_from_plain, run_to_plain, step_to_plain

MAX_STEP_BYTES: Final = 256 * 2**10
MAX_EVENT_BYTES: Final = 64 * 2**10
MAX_WORKFLOW_BYTES: Final = 2**20

STEP_PREFIX: Final = b"s:"
_own_fields = attrgetter(*(field.name for field in fields(Run) if field.name not in ("steps", "version")))


def changes(before: Run | None, after: Run) -> list[bytes | int]:
    """Fields and values, in turn, that turn a run's hash from `before` (None: nothing) into `after`.

    TooLarge if a value is past its limit, BadInput if it is no Unicode.
    """
    changed: list[bytes | int] = [b"version", after.version]
    if before is None or _own_fields(before) != _own_fields(after):
        changed += (b"run", _run_bytes(after))
    if before is None or len(before.steps) != len(after.steps):
        changed += (b"steps", len(after.steps))
    known: Mapping[str, Step] = {} if before is None else before.steps
    for position, (step_id, step) in enumerate(after.steps.items()):
        old = known.get(step_id)
        if old is not step and old != step:
            changed += (_step_field(step_id), _step_bytes(position, step))
    return changed


def run_from_fields(stored: Mapping[bytes, bytes]) -> Run:
    """The run that a hash holds; Unavailable if it is not one of ours."""
    try:
        placed = [orjson.loads(value) for name, value in stored.items() if name.startswith(STEP_PREFIX)]
        placed.sort(key=lambda pair: pair[0])
        plain = orjson.loads(stored[b"run"])
        return run_from_plain(plain | {"steps": [step for _, step in placed], "version": int(stored[b"version"])})
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, WorkflowError) as error:
        raise Unavailable(f"a stored run cannot be read: {error}") from error


def summary(run_json: bytes, steps: bytes | None) -> RunSummary:
    """A line of the list, from a run's own fields and its number of steps."""
    run = run_from_fields({b"run": run_json, b"version": b"0"})
    if not (steps or b"0").isdigit():
        raise Unavailable("a stored run cannot be read: its number of steps is no number")
    return RunSummary(
        run_id=run.run_id,
        workflow=run.workflow,
        status=run.status,
        submitted_s=run.submitted_s,
        finished_s=run.finished_s,
        slo_s=run.slo_s,
        steps=int(steps or 0),
        tenant=run.tenant,
    )


def event_bytes(event: RunEvent) -> bytes:
    """An event; data past the limit loses its largest values, whose keys are then listed under `omitted`."""
    what = f"a {event.kind} event of run {event.run_id}"
    whole = _dump(_event_plain(event, event.data), what)
    if len(whole) <= MAX_EVENT_BYTES:
        return whole
    size_of = {key: len(_dump(value, what)) for key, value in event.data.items()}
    kept = dict(event.data)
    omitted: list[str] = []
    for largest in sorted(size_of, key=lambda key: (-size_of[key], key)):
        del kept[largest]
        omitted.append(largest)
        stored = _dump(_event_plain(event, {**kept, "omitted": omitted}), what)
        if len(stored) <= MAX_EVENT_BYTES:
            return stored
    raise TooLarge(f"{what} has {len(whole)} bytes; at most {MAX_EVENT_BYTES} are kept")


def event_from_bytes(run_id: str, stored: bytes) -> RunEvent:
    """The event that `event_bytes` wrote; Unavailable if it is not one of ours."""
    try:
        plain = orjson.loads(stored)
        return check_event(
            RunEvent(
                run_id=run_id,
                kind=Kind(plain["kind"]),
                at_s=plain["at_s"],
                step_id=plain.get("step_id"),
                request_id=plain.get("request_id"),
                data=plain.get("data", {}),
            )
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unavailable(f"a stored event of run {run_id} cannot be read: {type(error).__name__}") from error


def counters(answer: Mapping[bytes, bytes] | Iterable[bytes]) -> dict[str, int]:
    """The counters that a hash holds; Unavailable if it holds anything else."""
    try:
        return {name.decode(): int(count) for name, count in pairs(answer).items()}
    except ValueError as error:
        raise Unavailable("stored counters cannot be read") from error


def workflow_bytes(workflow: Workflow) -> bytes:
    """A workflow; TooLarge past the limit."""
    return _bounded(workflow.to_dict(), f"workflow {workflow.name}", MAX_WORKFLOW_BYTES)


def workflow_from_bytes(stored: bytes) -> Workflow:
    """The workflow that `workflow_bytes` wrote; Unavailable if it is not one of ours."""
    try:
        return Workflow.from_dict(orjson.loads(stored))
    except (KeyError, TypeError, ValueError, WorkflowError) as error:
        raise Unavailable(f"a stored workflow cannot be read: {error}") from error


def pairs(answer: Mapping[bytes, bytes] | Iterable[bytes]) -> dict[bytes, bytes]:
    """The fields of a hash, which a server answers as a map or, from a script, as a flat list."""
    if isinstance(answer, Mapping):
        return dict(answer)
    flat = list(answer)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _run_bytes(run: Run) -> bytes:
    """The run's own fields: without its steps, and without its version, which every change changes."""
    return _bounded(run_to_plain(replace(run, steps={}, version=0)), f"run {run.run_id}", MAX_STEP_BYTES)


def _step_field(step_id: str) -> bytes:
    try:
        return STEP_PREFIX + step_id.encode()
    except UnicodeEncodeError:
        raise BadInput("a step id must be valid Unicode") from None


def _step_bytes(position: int, step: Step) -> bytes:
    """A step and its place among the run's steps, since a hash has no order."""
    return _bounded([position, step_to_plain(step)], f"step {step.step_id}", MAX_STEP_BYTES)


def _bounded(value: object, what: str, limit: int) -> bytes:
    stored = _dump(value, what)
    if len(stored) > limit:
        raise TooLarge(f"{what} has {len(stored)} bytes; at most {limit} are kept")
    return stored


def _event_plain(event: RunEvent, data: Mapping[str, Any]) -> dict[str, Any]:
    plain = {"kind": event.kind, "at_s": event.at_s, "step_id": event.step_id, "request_id": event.request_id}
    return {name: value for name, value in plain.items() if value is not None} | {"data": data}


def _dump(value: object, what: str) -> bytes:
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:
        raise BadInput(f"{what} cannot be kept: {error}") from None


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return str(value)
