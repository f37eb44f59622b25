"""Confidence intervals of daily numbers.

Lives here: pure functions over plain numbers.
Add here: an interval a metric needs.
Not here: agreement between people and judges (`agreement.py`).
"""

import math
from collections.abc import Sequence


def share_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of `hits / n` (Wilson 1927), by scipy. Raises `ValueError` unless 0 <= hits <= n > 0."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean; None for fewer than two values, which say nothing about spread."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * math.sqrt(variance / n)
    return mean - half, mean + half
