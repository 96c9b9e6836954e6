"""How long would a call take alone on its cluster? One figure, from the fastest prefill and the fastest decode there.

    alone = p0 + p1·n + p2·n² + L·(d0 + d1 + d2·(n + L/2))        n prompt tokens, none of them cached; L output tokens

The constants are the GPU profiles', as announced: what a run needs does not depend on how it happens to go.
"""

from scheduler.estimate import Pool
from scheduler.events import RequestArrived

_Constants = tuple[float, float, float, float, float, float]
_UNKNOWN: _Constants = (0.0,) * 6


class Alone:
    """The fastest constants per model, taken anew when an instance joins or leaves."""

    def __init__(self) -> None:
        self._fastest: dict[str, _Constants] = {}

    def changed(self, pool: Pool) -> None:
        """An instance joined or left a pool; of one that is empty now the last constants stay."""
        p1, d0 = pool.base_p1.tolist(), pool.base_d0.tolist()
        givers = [row for row in range(len(pool.ids)) if pool.can_prefill[row]]
        takers = [row for row in range(len(pool.ids)) if pool.can_decode[row]]
        if not givers or not takers:
            return
        p, d = min(givers, key=p1.__getitem__), min(takers, key=d0.__getitem__)
        self._fastest[pool.model] = (
            pool.base_p0.item(p), p1[p], pool.base_p2.item(p), d0[d], pool.base_d1.item(d), pool.base_d2.item(d),
        )  # fmt: skip

    def prefill_s(self, model: str, fresh_tokens: float, cached_tokens: float) -> float:
        """Prefill of so many tokens after so many cached ones; 0 for a model that no instance has served yet."""
        p0, p1, p2, _, _, _ = self._fastest.get(model, _UNKNOWN)
        return p0 + fresh_tokens * (p1 + p2 * (fresh_tokens + 2.0 * cached_tokens))

    def step_s(self, model: str, context_tokens: float) -> float:
        """One decode step after so many tokens, at least 1 µs."""
        _, _, _, d0, d1, d2 = self._fastest.get(model, _UNKNOWN)
        return max(d0 + d1 + d2 * context_tokens, 1e-6)

    def needs(self, arrived: RequestArrived, cached_tokens: float) -> tuple[float, float]:
        """Seconds of a call's prefill with so many tokens of its prompt cached, and of one token."""
        cached = min(cached_tokens, arrived.prompt_tokens - 1.0)
        prefill_s = self.prefill_s(arrived.model, arrived.prompt_tokens - cached, cached)
        return prefill_s, self.step_s(arrived.model, arrived.prompt_tokens)

    def of(self, arrived: RequestArrived, output_tokens: float) -> float:
        """Seconds of a call with so many output tokens."""
        return self.seconds(arrived.model, arrived.prompt_tokens, output_tokens)

    def seconds(self, model: str, prompt_tokens: float, output_tokens: float) -> float:
        """Time of a call alone; 0 for a model that no instance has served yet."""
        fastest = self._fastest.get(model)
        if fastest is None:
            return 0.0
        p0, p1, p2, d0, d1, d2 = fastest
        prefill_s = p0 + prompt_tokens * (p1 + p2 * prompt_tokens)
        return prefill_s + output_tokens * (d0 + d1 + d2 * (prompt_tokens + 0.5 * output_tokens))
