"""Is an event well formed in itself? Figures from outside are refused before they can spoil the state."""

from math import isfinite

from scheduler.errors import InvalidEvent
from scheduler.events import InstanceReported, InstanceSpec, RequestArrived

_MAX_TOKENS = 2**31


def check_instance(spec: InstanceSpec) -> None:
    """Raise InvalidEvent if a figure of an announced instance is impossible."""
    for name in ("kv_capacity_tokens", "block_tokens", "max_num_seqs", "max_batched_tokens", "kv_bytes_per_token"):
        _within(f"instance {spec.instance_id!r}: {name}", getattr(spec, name), 1, _MAX_TOKENS)
    _within(f"instance {spec.instance_id!r}: speed", spec.speed, 1e-6, 1e6)
    if spec.kv_link_bytes_per_s is not None:
        _within(f"instance {spec.instance_id!r}: kv_link_bytes_per_s", spec.kv_link_bytes_per_s, 1.0, 1e18)


def check_report(event: InstanceReported) -> None:
    """Raise InvalidEvent if a figure of a report is impossible."""
    running, waiting, usage, preemptions = event.running, event.waiting, event.kv_usage, event.preemptions
    if (
        event.prefix_hit_rate is None
        and -1e18 <= event.measured_at_s <= 1e18
        and (running is None or 0 <= running <= _MAX_TOKENS)
        and (waiting is None or 0 <= waiting <= _MAX_TOKENS)
        and (preemptions is None or 0 <= preemptions <= _MAX_TOKENS)
        and (usage is None or 0.0 <= usage <= 1.0)
    ):
        return  # the usual case, without building any message
    about = f"report of {event.instance_id!r}"
    _within(f"{about}: measured_at_s", event.measured_at_s, -1e18, 1e18)
    for name in ("running", "waiting", "preemptions"):
        _within(f"{about}: {name}", getattr(event, name), 0, _MAX_TOKENS)
    for name in ("kv_usage", "prefix_hit_rate"):
        _within(f"{about}: {name}", getattr(event, name), 0.0, 1.0)


def check_request(event: RequestArrived) -> None:
    """Raise InvalidEvent if a figure of a call is impossible."""
    if _is_plain(event):
        return
    about = f"request {event.request_id!r}"
    _within(f"{about}: prompt_tokens", event.prompt_tokens, 0, _MAX_TOKENS)
    _within(f"{about}: max_tokens", event.max_tokens, 1, _MAX_TOKENS)
    _within(f"{about}: prefix_block_tokens", event.prefix_block_tokens, 1, _MAX_TOKENS)
    _within(f"{about}: tenant_weight", event.tenant_weight, 1e-3, 1e6)
    check_deadlines(event.request_id, event.target_deadline_s, event.latest_deadline_s)


def _is_plain(event: RequestArrived) -> bool:
    """Quick test of the usual case, without building any message."""
    target_s, latest_s = event.target_deadline_s, event.latest_deadline_s
    return (
        0 <= event.prompt_tokens <= _MAX_TOKENS
        and (event.max_tokens is None or 1 <= event.max_tokens <= _MAX_TOKENS)
        and 1 <= event.prefix_block_tokens <= _MAX_TOKENS
        and 1e-3 <= event.tenant_weight <= 1e6
        and (target_s is None or -1e15 <= target_s <= 1e15)
        and (latest_s is None or -1e15 <= latest_s <= 1e15)
    )


def check_deadlines(request_id: str, target_s: float | None, latest_s: float | None) -> None:
    """Raise InvalidEvent if a deadline is not a time."""
    _within(f"request {request_id!r}: target_deadline_s", target_s, -1e15, 1e15)
    _within(f"request {request_id!r}: latest_deadline_s", latest_s, -1e15, 1e15)


def check_output(request_id: str, tokens: int) -> None:
    """Raise InvalidEvent if a count of output tokens is impossible."""
    if not 0 <= tokens <= _MAX_TOKENS:
        _within(f"request {request_id!r}: output_tokens", tokens, 0, _MAX_TOKENS)


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (isfinite(value) and low <= value <= high):
        raise InvalidEvent(f"{name} is {value}; allowed are {low} to {high}")
