"""How many tokens will this call put out? Online quantiles per workflow node, sharpened while the call streams.

Lengths fall into log buckets (four per doubling) of exponentially decayed counts. The distribution of a key is smoothed
by its parents: p(key) = (counts + k·p(parent)) / (n + k), along workflow node and size class → node → model →
log-normal prior, with k = `backoff_samples`. While a call streams, its distribution is conditioned on what is known:
P(L ≤ x | L > emitted) = (F(x) - F(emitted)) / (1 - F(emitted)).
"""

from bisect import bisect_left
from dataclasses import dataclass, field
from math import erf, floor, inf, log, log2, sqrt

import numpy as np
from numpy.typing import NDArray

from scheduler.config import LengthConfig
from scheduler.decisions import LengthForecast

PER_DOUBLING = 4
BUCKETS = 72
"""Up to 2^18 output tokens."""
_TAIL = 1e-6
_REBUILD_SHARE = 0.05
_PARENT_SHARE = 0.25
"""A distribution is built anew when its own samples, or its model's, have grown by these shares."""

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """An immutable distribution of output lengths; `cdf[i]` is P(L < 2^(i/4)), `cdf[0]` = 0."""

    cdf: tuple[float, ...]
    source: str
    quantiles: tuple[float, float, float] = field(init=False)
    """p10, p50 and p90 of a call that has put out nothing yet."""
    unlimited: LengthForecast = field(init=False)
    """The same as a forecast: what most calls get, made once."""
    spread: NDArray[np.float64] = field(init=False, compare=False)
    """Eight equally likely lengths of such a call."""

    def __post_init__(self) -> None:
        quantiles = p10, p50, p90 = tuple(self.quantile(share) for share in (0.1, 0.5, 0.9))
        object.__setattr__(self, "quantiles", quantiles)
        object.__setattr__(self, "spread", np.array([self.quantile((2 * i + 1) / 16) for i in range(8)]))
        object.__setattr__(self, "unlimited", LengthForecast(p10, p50, p90, self.source))

    def below(self, tokens: float) -> float:
        """P(L ≤ tokens)."""
        if tokens < 1.0:
            return 0.0
        position = PER_DOUBLING * log2(tokens)
        bucket = floor(position)
        if bucket >= BUCKETS:
            return 1.0
        left = self.cdf[bucket]
        return left + (position - bucket) * (self.cdf[bucket + 1] - left)

    def quantile(self, share: float, emitted: int = 0) -> float:
        """The length that L, known to exceed `emitted` tokens, stays below with probability `share`."""
        known = self.below(emitted)
        return self._quantile(share, emitted, known)

    def _quantile(self, share: float, emitted: int, known: float) -> float:
        if 1.0 - known < _TAIL:
            return emitted * (1.0 + 0.5 * share) + 1.0
        level = known + (1.0 - known) * share
        bucket = max(bisect_left(self.cdf, level, 1, BUCKETS), 1) - 1
        left, right = self.cdf[bucket], self.cdf[bucket + 1]
        inside = (level - left) / (right - left) if right > left else 0.0
        length: float = 2.0 ** ((bucket + inside) / PER_DOUBLING)
        return max(length, emitted + 1.0)

    def forecast(self, max_tokens: int | None, emitted: int = 0) -> LengthForecast:
        """Quantiles of the whole length, given `emitted` tokens so far and the call's own limit."""
        p10, p50, p90 = self.quantiles
        if not emitted and (max_tokens is None or p90 <= max_tokens):
            return self.unlimited
        limit = inf if max_tokens is None else float(max(max_tokens, emitted + 1))
        if emitted:
            known = self.below(emitted)
            p10, p50, p90 = (self._quantile(share, emitted, known) for share in (0.1, 0.5, 0.9))
        return LengthForecast(min(p10, limit), min(p50, limit), min(p90, limit), self.source)


@dataclass(slots=True)
class _Histogram:
    counts: NDArray[np.float64]
    total: float = 0.0
    seen: int = 0


class QuantityModel:
    """Learns a quantity (tokens, or a time in small units) under keys from the widest to the narrowest.

    Bounded by `max_keys` histograms.
    """

    def __init__(self, config: LengthConfig, prior_median: float, prior_sigma: float) -> None:
        self._config = config
        self._keep = 0.5 ** (1.0 / config.half_life_samples)
        self._prior = _lognormal(prior_median, prior_sigma)
        self._histograms: dict[Key, _Histogram] = {}
        self._cache: dict[Key, tuple[LengthDistribution, int, int]] = {}
        self.changes = 0
        """Grows whenever a distribution that was given out may be another one now."""

    def distribution(self, keys: tuple[Key, ...]) -> LengthDistribution:
        """What is known of the quantity under the narrowest of `keys`."""
        cached = self._cache.get(keys[-1])
        own, widest = self._seen(keys[-1]), self._seen(keys[0])
        if cached is not None:
            found, own_then, widest_then = cached
            if own - own_then <= _REBUILD_SHARE * own_then and widest - widest_then <= _PARENT_SHARE * widest_then:
                return found
        if len(self._cache) >= self._config.max_keys:
            self._cache.clear()
            self.changes += 1
        found = self._smooth(keys)
        self._cache[keys[-1]] = (found, own, widest)
        return found

    def observe(self, keys: tuple[Key, ...], value: float) -> None:
        """Learn from one value; below 1 counts as 1."""
        bucket = min(floor(PER_DOUBLING * log2(max(value, 1.0))), BUCKETS - 1)
        self.changes += 1
        for key in keys:
            histogram = self._histograms.pop(key, None) or _Histogram(np.zeros(BUCKETS))
            self._histograms[key] = histogram
            histogram.counts *= self._keep
            histogram.counts[bucket] += 1.0
            histogram.total = histogram.total * self._keep + 1.0
            histogram.seen += 1
        while len(self._histograms) > self._config.max_keys:
            del self._histograms[next(iter(self._histograms))]
        self.distribution(keys)  # built now, not while the next call waits for it

    def _seen(self, key: Key) -> int:
        histogram = self._histograms.get(key)
        return 0 if histogram is None else histogram.seen

    def _smooth(self, keys: tuple[Key, ...]) -> LengthDistribution:
        shares, source = self._prior, "cold start"
        strength = self._config.backoff_samples
        for key in keys:
            histogram = self._histograms.get(key)
            if histogram is not None:
                shares = (histogram.counts + strength * shares) / (histogram.total + strength)
                source = f"{key[0]}, {histogram.total:.0f} calls"
        cdf = np.concatenate(([0.0], np.cumsum(shares)))
        return LengthDistribution(cdf=tuple((cdf / cdf[-1]).tolist()), source=source)


class LengthModel:
    """Learns lengths of ended calls and predicts those of new ones."""

    def __init__(self, config: LengthConfig) -> None:
        self._bias = config.bias
        self._lengths = QuantityModel(config, config.prior_median_tokens, config.prior_sigma)

    def distribution(self, workflow: str, node: str, model: str, prompt_tokens: int) -> LengthDistribution:
        """What is known of the output length of such calls."""
        return self._lengths.distribution(_keys(workflow, node, model, prompt_tokens))

    def observe(self, workflow: str, node: str, model: str, prompt_tokens: int, output_tokens: int) -> None:
        """Learn from one ended call."""
        self._lengths.observe(_keys(workflow, node, model, prompt_tokens), output_tokens * self._bias)


def _keys(workflow: str, node: str, model: str, prompt_tokens: int) -> tuple[Key, ...]:
    """From the widest to the narrowest; a size class spans a factor of four in prompt tokens."""
    size = str(prompt_tokens.bit_length() // 2)
    return ("model", model), ("node", node), ("workflow node", workflow, node, model, size)


def _lognormal(median: float, sigma: float) -> NDArray[np.float64]:
    edges = [(i / PER_DOUBLING * log(2.0) - log(median)) / (sigma * sqrt(2.0)) for i in range(BUCKETS + 1)]
    cdf = np.array([0.5 * (1.0 + erf(edge)) for edge in edges])
    cdf[0] = 0.0
    shares: NDArray[np.float64] = np.diff(cdf)
    shares /= shares.sum()
    return shares
