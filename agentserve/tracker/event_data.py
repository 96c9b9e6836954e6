"""May an event that was read be believed? Its values by the types that `journal.Kind` says, at any depth.

Redis may hold what another version wrote, or damage. Every reader of events counts with times and compares them, so
what is not of its type is found here, once.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from agentserve.journal import RunEvent
from workflows.wire import MAX_TIME_S

MAX_DEPTH: Final = 16
_TEXTS: Final = frozenset(
    {
        *("workflow", "traceparent", "mode", "before", "node", "kind", "model", "type", "instance", "source", "target"),
        *(
            "cause",
            "by",
            "error",
            "outcome",
            "status",
            "prefill_instance",
            "decode_instance",
            "verdict",
            "policy",
            "rule",
        ),
        *("step_id", "request_id", "refusal", "message", "cause_id"),
    }
)
_NUMBERS: Final = frozenset(
    {
        *("slo_s", "deadline_s", "target_deadline_s", "latest_deadline_s", "slack_s", "predicted_s", "downstream_s"),
        *("ttft_s", "tpot_s", "e2e_s", "lost_s", "taken_e2e_s", "predicted_queue_s", "predicted_prefill_s"),
        *("predicted_transfer_s", "predicted_decode_s", "predicted_finish_s", "predicted_gain_s", "predicted_cost_s"),
        *(
            "prompt_tokens",
            "output_tokens",
            "cached_tokens",
            "replayed_tokens",
            "p10_tokens",
            "p50_tokens",
            "p90_tokens",
        ),
        *("attempt", "priority", "candidates_total"),
    }
)
_TRUTHS: Final = frozenset({"attained", "stream", "taken_attained"})
_OBJECTS: Final = frozenset({"blame", "foreseen", "length"})


def check_event(event: RunEvent) -> RunEvent:
    """The event; TypeError naming the first value that is not of its type."""
    _number("at_s", event.at_s)
    if not all(isinstance(name, str | None) for name in (event.step_id, event.request_id)):
        raise TypeError("step_id or request_id")
    if not isinstance(event.run_id, str) or not isinstance(event.data, Mapping):
        raise TypeError("run_id or data")
    _check(event.data, 0)
    return event


def _check(data: Mapping[str, Any], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TypeError("nested too deeply")
    for name, value in data.items():
        if value is None:
            continue
        if check := RULES.get(name):
            check(name, value)
        if isinstance(value, Mapping):
            _check(value, depth + 1)


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_TIME_S:
        raise TypeError(name)


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(name)


def _truth(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(name)


def _object(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(name)


def _reason(name: str, value: object) -> None:
    """Of a decision an object, of a refused move its words."""
    if not isinstance(value, Mapping | str):
        raise TypeError(name)


def _texts(name: str, value: object) -> None:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(name)


def _objects(name: str, value: object) -> None:
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise TypeError(name)
    for item in value:
        _check(item, MAX_DEPTH - 2)  # a candidate holds no objects of its own worth more depth


RULES: Final[Mapping[str, Callable[[str, Any], None]]] = {
    **dict.fromkeys(_TEXTS, _text),
    **dict.fromkeys(_TRUTHS, _truth),
    **dict.fromkeys(_OBJECTS, _object),
    **dict.fromkeys(_NUMBERS, _number),
    "parents": _texts,
    "candidates": _objects,
    "reason": _reason,
}
"""What is checked, by its name; other values may be anything."""
