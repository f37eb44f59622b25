"""Confidence intervals of daily numbers, 95 of 100.

Lives here: pure functions over plain numbers.
Add here: an interval a metric needs.
Not here: agreement between people and judges (`agreement.py`), intervals of percentiles (`quality_sql.py`).
"""

import hashlib
import math
import warnings
from collections.abc import Sequence

Z = 1.959963984540054
"""The 97.5th percentile of the normal distribution."""

RESAMPLES = 999
"""Resamples of one bootstrap (Davison and Hinkley 1997, section 5.2.2: 999 for intervals of 95 in 100)."""


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of `hits / n`. Raises `ValueError` unless 0 <= hits <= n > 0.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.
    """
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} of {n} is no share")
    share, spread = hits / n, Z * Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)


def mean_interval(values: Sequence[float], n: int, mean: float, name: str) -> tuple[float, float] | None:
    """The bootstrap's interval of the mean of `n` numbers, of which `values` are all or a random part.

    By scipy: BCa (Efron 1987), or percentiles where so few values leave BCa undefined. Of a part, the distances of
    the bounds from the part's mean shrink by the root of part to whole and are laid about `mean`, that of all: the
    mean of n numbers spreads like 1 / sqrt(n) (Bickel, Goetze, van Zwet, Statistica Sinica 7 (1997), 1-31). The same
    `name` and values give the same interval. None for fewer than two values, which say nothing about spread.
    """
    import numpy as np
    from scipy.stats import bootstrap

    if len(values) < 2:
        return None
    found = np.asarray(values, dtype=float)
    if found.min() == found.max():
        return (mean, mean) if len(values) == n else None
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    shrunk, middle = math.sqrt(len(values) / n), float(found.mean())
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It says that BCa is undefined, as the bounds do.
            bounds = bootstrap(
                (found,), np.mean, n_resamples=RESAMPLES, method=method, rng=np.random.default_rng(seed)
            ).confidence_interval
        if math.isfinite(bounds.low) and math.isfinite(bounds.high):
            return mean + (float(bounds.low) - middle) * shrunk, mean + (float(bounds.high) - middle) * shrunk
    return None
