"""Which constants of the profile's formulas come closest to what was measured?

Least squares on relative errors with constants of at least 0, so that a step of 5 ms counts as much as one of 500.
Huber's weights (1.345 times the residuals' scale) keep a point that was disturbed from bending the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agentserve.errors import BadInput
from agentserve.profiler.points import DecodePoint, Points, PrefillPoint

Constants = tuple[float, float, float]
_HUBER: Final = 1.345
_MAD_TO_SIGMA: Final = 1.4826
_ROUNDS: Final = 8
_LEAST_SCALE: Final = 0.002
"""Residuals below this share are all alike: no clock over HTTP tells better."""
_LEAST_SHARE: Final = 0.05
"""Of a measured TTFT, at least this much counts as the engine's, whatever the overhead is."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Constants in seconds, with the relative error of each point in the order of `Points`."""

    prefill_s: Constants
    decode_s: Constants
    prefill_errors: tuple[float, ...]
    decode_errors: tuple[float, ...]


def fit(points: Points, max_batched_tokens: int) -> Fit:
    """Fit both formulas. Raises BadInput where the points are too few or too alike to tell their constants apart."""
    if len({point.new_tokens for point in points.prefill}) < 3:
        raise BadInput("profile: fewer than 3 prompt lengths were measured; give a larger --budget")
    if len({point.batch for point in points.decode}) < 2:
        raise BadInput("profile: fewer than 2 batch sizes were measured; give a larger --budget")
    prefill_rows = [prefill_row(point, max_batched_tokens) for point in points.prefill]
    prefill_times = [max(p.ttft_s - points.overhead_s, _LEAST_SHARE * p.ttft_s) for p in points.prefill]
    decode_rows = [(1.0, float(point.batch), point.context_tokens) for point in points.decode]
    decode_times = [point.step_s for point in points.decode]
    prefill, decode = least_squares(prefill_rows, prefill_times), least_squares(decode_rows, decode_times)
    return Fit(
        prefill,
        decode,
        _errors(prefill_rows, prefill_times, prefill),
        _errors(decode_rows, decode_times, decode),
    )


def prefill_row(point: PrefillPoint, max_batched_tokens: int) -> Constants:
    """What p0, p1 and p2 are multiplied with; p0 is paid for each chunk of at most `max_batched_tokens`."""
    new, cached = float(point.new_tokens), float(point.cached_tokens)
    return float(max(ceil(new / max_batched_tokens), 1)), new, new * new + 2.0 * cached * new


def decode_errors(points: Sequence[DecodePoint], constants: Constants) -> tuple[float, ...]:
    """Relative errors of decode constants at points that may be no part of their fit."""
    rows = [(1.0, float(point.batch), point.context_tokens) for point in points]
    return _errors(rows, [point.step_s for point in points], constants)


def least_squares(rows: Sequence[Sequence[float]], times_s: Sequence[float]) -> Constants:
    """Constants of at least 0 that minimise Huber's loss of the relative errors."""
    matrix = np.array(rows) / np.array(times_s)[:, None]
    weights = np.ones(len(times_s))
    solution = _non_negative(matrix, weights)
    for _ in range(_ROUNDS):
        residuals = np.abs(matrix @ solution - 1.0)
        scale = max(_MAD_TO_SIGMA * float(np.median(residuals)), _LEAST_SCALE)
        weights = np.minimum(1.0, _HUBER * scale / np.maximum(residuals, 1e-12))
        solution = _non_negative(matrix, weights)
    first, second, third = (float(value) for value in solution)
    return first, second, third


def _non_negative(matrix: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted least squares of `matrix · x = 1` with x ≥ 0: of three unknowns, every set of positive ones is tried."""
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-300)
    root = np.sqrt(weights)
    scaled, target = matrix / scale * root[:, None], root
    columns = matrix.shape[1]
    best, best_loss = np.zeros(columns), float(target @ target)
    for size in range(1, columns + 1):
        for chosen in combinations(range(columns), size):
            part, *_ = np.linalg.lstsq(scaled[:, chosen], target, rcond=None)
            if (part < 0.0).any():
                continue
            loss = float(np.sum((scaled[:, chosen] @ part - target) ** 2))
            if loss < best_loss * (1.0 - 1e-9):
                best, best_loss = np.zeros(columns), loss
                best[list(chosen)] = part
    solution: NDArray[np.float64] = best / scale
    return solution


def _errors(rows: Sequence[Sequence[float]], times_s: Sequence[float], constants: Constants) -> tuple[float, ...]:
    predicted = np.array(rows) @ np.array(constants)
    return tuple(float(value) for value in predicted / np.array(times_s) - 1.0)
