"""Which runs are in traces of single calls? Mooncake and Azure rows, ServeGen windows, recorded texts."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from agentserve.errors import BadInput
from agentserve.lab.plans import RunPlan, StepPlan, join_blocks
from agentserve.lab.trace_files import Line, TraceFormat, number, parse_object, tokens

SINGLE: Final = "single"
RECORDED: Final = "recorded-agent"
MOONCAKE_BLOCK_TOKENS: Final = 512
CHARS_PER_TOKEN: Final = 4
_WINDOW_S: Final = 600.0
_MAX_ROWS: Final = 1_000_000


def read_rows(path: Path, found: TraceFormat, lines: Iterable[Line], seed: int, limit: int) -> Iterator[RunPlan]:
    """The runs of a trace in any format but that of sessions; `seed` and `limit` are for those that are drawn."""
    if found is TraceFormat.MOONCAKE:
        return read_mooncake(path, lines)
    if found is TraceFormat.AZURE:
        return read_azure(path, lines)
    if found is TraceFormat.SERVEGEN:
        return read_servegen(path, lines, seed, limit)
    return read_texts(path, lines)


def read_mooncake(path: Path, lines: Iterable[Line]) -> Iterator[RunPlan]:
    """Each row is a run of one call; `hash_ids` name 512-token blocks, equal across the whole trace."""
    seen: set[int] = set()
    for line in lines:
        row = parse_object(path, line)
        ids = row.get("hash_ids")
        if not isinstance(ids, list) or not {int, bool}.issuperset(map(type, ids)) or min(ids, default=0) < 0:
            raise BadInput(f"{path}: line {line[0]}: hash_ids must be a list of block numbers")
        known = next((i for i, block in enumerate(ids) if block not in seen), len(ids))
        seen.update(ids)
        prompt = tokens(path, line[0], "input_length", row.get("input_length"), 1)
        step = StepPlan(
            step_id="s0",
            node="call",
            prompt_tokens=prompt,
            output_tokens=max(1, tokens(path, line[0], "output_length", row.get("output_length"))),
            shared_prefix_tokens=min(prompt, known * MOONCAKE_BLOCK_TOKENS),
            blocks=join_blocks([], [(block, 1) for block in ids]),
            block_tokens=MOONCAKE_BLOCK_TOKENS,
            block_space="mooncake",
        )
        arrival_s = number(path, line[0], "timestamp", row.get("timestamp"), 0, 1e15) / 1000
        yield _single(f"r{line[0]}", arrival_s, step)


def read_azure(path: Path, lines: Iterable[Line]) -> Iterator[RunPlan]:
    """Each row is a run of one call with a prompt of its own; the first row arrives at 0."""
    origin_s: float | None = None
    for line_no, line in lines:
        fields = line.split(b",")
        if len(fields) != 3:
            raise BadInput(f"{path}: line {line_no}: expected TIMESTAMP,ContextTokens,GeneratedTokens")
        at_s = _utc_s(path, line_no, fields[0])
        origin_s = at_s if origin_s is None else origin_s
        step = StepPlan(
            step_id="s0",
            node="call",
            prompt_tokens=max(1, tokens(path, line_no, "ContextTokens", fields[1])),
            output_tokens=max(1, tokens(path, line_no, "GeneratedTokens", fields[2])),
        )
        yield _single(f"r{line_no}", max(0.0, at_s - origin_s), step)


def read_texts(path: Path, lines: Iterable[Line]) -> Iterator[RunPlan]:
    """Rows of one `session_id` are one run, its calls one after the other; a row without one is a run of its own.

    Tokens are counted as characters / 4. Times are `timestamp` in microseconds, if there are any.
    """
    sessions: dict[str, list[tuple[float, StepPlan]]] = {}
    for line in lines:
        row = parse_object(path, line)
        asked, said = row.get("input", row.get("prompt")), row.get("output", row.get("response"))
        if not isinstance(asked, str) or not isinstance(said, str):
            raise BadInput(f"{path}: line {line[0]}: input and output (or prompt and response) must be texts")
        at_s = number(path, line[0], "timestamp", row.get("timestamp", 0), 0, 1e18) / 1e6
        step = StepPlan(
            step_id="",
            node="call",
            prompt_tokens=_estimate(asked),
            output_tokens=_estimate(said),
            prompt_text=asked,
        )
        sessions.setdefault(str(row.get("session_id") or f"r{line[0]}"), []).append((at_s, step))
    origin_s = min((at_s for rows in sessions.values() for at_s, _ in rows), default=0.0)
    for session_id, rows in sessions.items():
        rows.sort(key=lambda pair: pair[0])
        yield _recorded(session_id, rows[0][0] - origin_s, [step for _, step in rows])


def read_servegen(path: Path, lines: Iterable[Line], seed: int, limit: int | None) -> Iterator[RunPlan]:
    """Arrivals drawn from the clients' windows, from the first window in which anyone calls until `limit` runs.

    Gamma or Weibull gaps with the window's rate and CV (Weibull: its fitted shape); lengths from the quantiles of the
    client's latest window that has them. Each client is one session and one tenant, without shared prefixes.
    """
    windows, lengths = _servegen_windows(path, lines)
    made = 0
    for start_s in sorted(windows):
        batch: list[tuple[float, str, np.random.Generator]] = []
        for client, rate, cv, family, shape in windows[start_s]:
            draw = np.random.default_rng([seed, round(start_s), *client.encode()])
            gaps = _gaps(draw, rate, cv, family, shape)
            batch += [(start_s + at_s, client, draw) for at_s in np.cumsum(gaps) if at_s < _WINDOW_S]
        first_s = min(windows)
        for at_s, client, draw in sorted(batch, key=lambda row: (row[0], row[1])):
            known = lengths.get(client, (_DEFAULT_IN, _DEFAULT_OUT))
            prompt, output = (max(1, round(_quantile(draw.random(), points))) for points in known)
            step = StepPlan(step_id="s0", node="call", prompt_tokens=prompt, output_tokens=output)
            yield replace(
                _single(f"r{made}", at_s - first_s, step, session=f"client{client}"), tenant=f"client{client}"
            )
            made += 1
            if made >= (limit or _MAX_ROWS):
                return


def client_rates(path: Path, lines: Iterable[Line]) -> dict[str, float]:
    """Mean rate of each client over all windows in which anyone calls, the greatest first."""
    windows, _ = _servegen_windows(path, lines)
    rates: dict[str, float] = {}
    for rows in windows.values():
        for client, rate, *_ in rows:
            rates[client] = rates.get(client, 0.0) + rate / len(windows)
    return dict(sorted(rates.items(), key=lambda pair: (-pair[1], pair[0])))


_Window = tuple[str, float, float, str, float]
_Points = tuple[float, ...]
_DEFAULT_IN: Final[_Points] = (50.0, 500.0, 2000.0, 6000.0)
_DEFAULT_OUT: Final[_Points] = (20.0, 200.0, 600.0, 1500.0)
_QUANTILES: Final = (0.1, 0.5, 0.9, 0.99)


def _servegen_windows(
    path: Path, lines: Iterable[Line]
) -> tuple[dict[float, list[_Window]], dict[str, tuple[_Points, _Points]]]:
    windows: dict[float, list[_Window]] = {}
    lengths: dict[str, tuple[_Points, _Points]] = {}
    for line_no, line in lines:
        fields = line.decode("utf-8", "replace").split(",")
        if len(fields) < 7:
            raise BadInput(f"{path}: line {line_no}: expected client,t_s,rate_rps,iat_cv,iat_family,p1,p2,…")
        client = fields[0][:64]
        if len(fields) >= 16 and all(fields[7:11]) and all(fields[12:16]):
            points = [number(path, line_no, "a length quantile", field, 0, 1e7) for field in fields[7:16]]
            lengths[client] = (tuple(points[:4]), tuple(points[5:9]))
        rate = number(path, line_no, "rate_rps", fields[2], 0, 1e6)
        if rate > 0 and fields[4] in ("Gamma", "Weibull"):
            cv = max(1e-3, number(path, line_no, "iat_cv", fields[3], 0, 1e4))
            shape = max(1e-2, number(path, line_no, "p1", fields[5], 0, 1e6))
            start_s = number(path, line_no, "t_s", fields[1], 0, 1e9)
            windows.setdefault(start_s, []).append((client, rate, cv, fields[4], shape))
    if not windows:
        raise BadInput(f"{path}: no window has a rate above 0")
    return windows, lengths


def _gaps(
    draw: np.random.Generator, rate: float, cv: float, family: str, shape: float
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    count = math.ceil(rate * _WINDOW_S * 1.5) + 10
    if family == "Weibull":
        return draw.weibull(shape, count) / (rate * math.gamma(1 + 1 / shape))
    return draw.gamma(1 / cv**2, cv**2 / rate, count)


def _quantile(u: float, points: _Points) -> float:
    """The length at quantile `u`, between the known ones on a logarithmic scale."""
    logs = [math.log(max(1.0, point)) for point in points]
    return math.exp(float(np.interp(u, _QUANTILES, logs)))


def _single(run_id: str, arrival_s: float, step: StepPlan, session: str | None = None) -> RunPlan:
    return RunPlan(run_id=run_id, workflow=SINGLE, arrival_s=arrival_s, session_id=session or run_id, steps=(step,))


def _recorded(session_id: str, arrival_s: float, steps: list[StepPlan]) -> RunPlan:
    chained = []
    for index, step in enumerate(steps):
        before = steps[index - 1].prompt_text if index else None
        chained.append(
            StepPlan(
                step_id=f"s{index}",
                node=step.node,
                prompt_tokens=step.prompt_tokens,
                output_tokens=step.output_tokens,
                parents=(f"s{index - 1}",) if index else (),
                shared_prefix_tokens=_common_chars(before, step.prompt_text) // CHARS_PER_TOKEN,
                prompt_text=step.prompt_text,
            )
        )
    workflow = RECORDED if len(chained) > 1 else SINGLE
    return RunPlan(
        run_id=session_id[:64], workflow=workflow, arrival_s=arrival_s, session_id=session_id[:64], steps=tuple(chained)
    )


def _common_chars(before: str | None, text: str | None) -> int:
    if not before or not text:
        return 0
    low, high = 0, min(len(before), len(text))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if before[:middle] == text[:middle] else (low, middle - 1)
    return low


def _estimate(text: str) -> int:
    return max(1, math.ceil(len(text) / CHARS_PER_TOKEN))


def _utc_s(path: Path, line_no: int, field: bytes) -> float:
    try:
        return datetime.fromisoformat(field.decode()[:26]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        shown = field[:40].decode("utf-8", "replace")
        raise BadInput(
            f"{path}: line {line_no}: TIMESTAMP is {shown!r}; expected a time such as 2023-11-16 18:15:46.68"
        ) from None
