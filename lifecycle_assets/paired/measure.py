"""One metric of candidate and champion on the same records: which formulas are about it.

Lives here: the choice by aggregation and kind of score.
Add here: an aggregation. Not here: the formulas (`shares.py`, `numbers.py`), what follows (`../comparison.py`).
"""

from collections.abc import Sequence

from lifecycle_assets.paired.measured import Measured
from lifecycle_assets.paired.numbers import extreme_of, mean_of, percentile_of
from lifecycle_assets.paired.shares import pass_fail

_RESAMPLES, _DRAWS = 9_999, 5_000_000
"""Resamples of one metric at most, and numbers drawn for them in all."""


def measure(
    candidate: Sequence[float],
    champion: Sequence[float],
    aggregation: str,
    *,
    higher_is_better: bool,
    confidence: float,
    seed: int,
    resamples: int | None = None,
) -> Measured:
    """Compare two equally long, non-empty sequences of finite numbers; `seed` makes a rerun say the same.

    At most `resamples` resamples are drawn, fewer for many pairs: 10,000 pairs take about a second and 100 MB.
    """
    import numpy as np

    sign = 1.0 if higher_is_better else -1.0
    ours, theirs = sign * np.asarray(candidate, dtype=float), sign * np.asarray(champion, dtype=float)
    if aggregation in ("min", "max"):
        return extreme_of(ours, theirs, aggregation if higher_is_better else {"min": "max", "max": "min"}[aggregation])
    if aggregation == "mean" and np.isin(ours * sign, (0, 1)).all() and np.isin(theirs * sign, (0, 1)).all():
        return pass_fail(int((ours < theirs).sum()), int((ours > theirs).sum()), len(ours), confidence)
    draws = min(resamples or _RESAMPLES, max(999, _DRAWS // len(ours)))
    if aggregation == "mean":
        return mean_of(ours - theirs, confidence, seed, draws)
    share = int(aggregation.removeprefix("p")) / 100
    return percentile_of(ours, theirs, share if higher_is_better else 1 - share, confidence, seed, draws)
