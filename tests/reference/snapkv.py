"""SnapKV (arXiv 2404.14469): once, when the prompt is over, keep what its last queries looked at."""

from __future__ import annotations

from .keeping import Keeper, keeping, steps, top


def pooled(scores: list[float], kernel: int) -> list[float]:
    """Mean over `kernel` neighbours around each, zeros beyond the ends counted as neighbours."""
    reach = kernel // 2
    return [
        sum(scores[n] for n in range(m - reach, m + reach + 1) if 0 <= n < len(scores)) / kernel
        for m in range(len(scores))
    ]


class LastQueriesChoose(Keeper):
    """After row `prompt - 1`: the last `window` tokens, and before them the best pooled scores."""

    def __init__(self, prompt: int, budget: int, window: int, kernel: int) -> None:
        self.prompt, self.budget, self.window, self.kernel = prompt, budget, window, kernel
        self.rows: list[dict[int, float]] = []

    def note(self, t, row):
        if self.prompt - self.window <= t < self.prompt:
            self.rows.append(row)

    def keep(self, t, held):
        if t != self.prompt - 1 or self.prompt <= self.budget:
            return held
        before = list(range(self.prompt - self.window))
        sums = [sum(row.get(j, 0.0) for row in self.rows) for j in before]
        scores = dict(zip(before, pooled(sums, self.kernel), strict=True))
        return top(scores, self.budget - self.window) + held[-self.window :]


def snapkv(
    layer, calls, budget: int = 256, window: int = 32, kernel: int = 5, prompt_length: int | None = None
):
    """`prompt_length`: as declared for the sequence; undeclared, the first call is the prompt.

    Nothing is dropped before the prompt ends, so cuts into calls make no difference.
    """
    assert 0 < window < budget, "snapkv needs 0 < window < budget"
    assert kernel % 2 == 1, "snapkv needs an odd kernel"
    prompt = calls[0] if prompt_length is None else prompt_length
    return keeping(layer, steps(calls), lambda: LastQueriesChoose(prompt, budget, window, kernel), "head")
