"""Whether the last hours differ from the same hours of earlier weeks: volume, error rate, latency, scores.

Lives here: the statistics, pure functions over numbers by window.
Add here: a number that is compared with earlier weeks.
Not here: reading the numbers and saying what came of it (`anomaly_step.py`), windows for rollbacks (`windows.py`).

A window is `HOURS` hours of the week, counted from a Monday 00:00 UTC on; the window `WEEK` numbers earlier is that of
the same hours one week before. A year has 2190 windows and each is judged by itself, so a check that may raise a
alarms in a quiet year tests each at the level a / 2190 (Bonferroni: the expected number of alarms is the sum over
windows, dependent or not).

What is expected is the mean of the same hours of the earlier weeks. How far a quiet window may lie from it is
estimated from all hours of those weeks: four numbers alone say little about their spread, the 42 windows of four weeks
say it well. Each kind of number has its distribution: counts, shares, and levels (below).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CHECKS = {
    "volume_anomaly": "As many traces as in the same hours of earlier weeks.",
    "error_rate_anomaly": "No more errors than in the same hours of earlier weeks.",
    "latency_anomaly": "Not slower than in the same hours of earlier weeks.",
    "score_anomaly": "Scores not lower than in the same hours of earlier weeks.",
}
"""The checks and what each promises."""

HOURS = 4
"""Hours of one window; a day has six."""

WEEK = 168 // HOURS
"""Windows of a week."""

YEAR = 365 * 24 // HOURS
"""Windows of a year."""

FEWEST, FEWEST_P95 = 5, 20
"""Numbers a window's median or mean, and its 95th percentile, must rest on to be compared."""


@dataclass(frozen=True)
class Finding:
    """A number of the last window against what earlier weeks let expect, as a closed range; an end may be open (None).

    `why_not` says why it was not judged, empty when it was. `before` are the same hours of the earlier weeks, the
    newest first, None where there is no number.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    before: tuple[float | None, ...] = ()
    why_not: str = ""

    @property
    def is_anomaly(self) -> bool:
        """Whether the number was judged and lies outside."""
        if self.why_not or self.value is None:
            return False
        return (self.low is not None and self.value < self.low) or (self.high is not None and self.value > self.high)


def level_of(false_alarms_per_year: float, tests: int = 1) -> float:
    """The level of one test when `tests` of them are made in each window."""
    return min(false_alarms_per_year / YEAR / tests, 0.5)


def judge_count(counts: Mapping[int, int], now: int, weeks: int, level: float) -> Finding:
    """The number of traces, either way. `counts` maps window to traces, 0 when missing; needs `weeks` + 1 weeks.

    Earlier weeks are scaled to this week's level by the traffic of the seven days before each, so that growth is no
    anomaly. The count is negative binomial with variance m + d m² (NB2; Cameron and Trivedi, Regression Analysis of
    Count Data, 2nd edition 2013, section 3.3), d by the method of moments over all windows of the earlier weeks; the
    error of the mean is added to the variance. The range is widened as Student's t is wider than the normal
    distribution with the freedom that d was estimated with (Satterthwaite, Biometrics 2 (1946), 110-114).
    """
    import numpy as np
    from scipy.stats import nbinom, norm, poisson, t

    def traffic(week: int) -> int:
        return sum(counts.get(now - WEEK * week - one, 0) for one in range(1, WEEK + 1))

    value, levels = counts.get(now, 0), [traffic(week) for week in range(weeks + 1)]
    before = tuple(float(counts.get(now - WEEK * week, 0)) for week in range(1, weeks + 1))
    if not all(levels):
        return Finding(value, before=before, why_not="there is a week without any trace before it")
    scale = np.array([levels[0] / one for one in levels[1:]])[:, None]
    scaled = _earlier(counts, now, weeks, 0) * scale
    mean = scaled.mean(axis=0)
    noise = float((scale * mean).sum() / weeks) * weeks
    squares = float(((scaled - mean) ** 2).sum()) * weeks / (weeks - 1)
    spread = max(0.0, (squares - noise) / (weeks * float((mean**2).sum())))
    expected = max(float(mean[0]), 0.5 / weeks)
    of_mean = (expected * float(scale.mean()) + spread * expected**2) / weeks
    variance = expected + spread * expected**2 + of_mean
    size = expected**2 / (variance - expected) if variance > expected * (1 + 1e-9) else None
    found = poisson(expected) if size is None else nbinom(size, size / (size + expected))
    freedom = (weeks - 1) * float((mean**2).sum()) ** 2 / max(float((mean**4).sum()), 1e-300)
    wider = float(t.ppf(1 - level / 2, freedom) / norm.ppf(1 - level / 2))
    low, high = (expected + (float(found.ppf(end)) - expected) * wider for end in (level / 2, 1 - level / 2))
    return Finding(value, max(0.0, math.ceil(low)), math.floor(high), before)


def judge_share(hits: Mapping[int, int], of: Mapping[int, int], now: int, weeks: int, level: float) -> Finding:
    """A share that should not rise: of `of` things `hits` were bad, by window.

    Hits are beta-binomial; their correlation within a window is Williams' moment estimate (Appl. Statist. 31 (1982),
    144-148) over all windows of the earlier weeks. The error of the earlier share is added to the variance.
    """
    import numpy as np
    from scipy.stats import betabinom, binom

    n, bad, totals = of.get(now, 0), _earlier(hits, now, weeks, 0), _earlier(of, now, weeks, 0)
    before = tuple(float(one) / total if total else None for one, total in zip(bad[:, 0], totals[:, 0], strict=True))
    if not n:
        return Finding(before=before, why_not="nothing happened in these hours")
    value = hits.get(now, 0) / n
    if not totals[:, 0].all():
        return Finding(value, before=before, why_not="nothing happened in these hours of an earlier week")
    share = (bad.sum(axis=0) + 0.5) / (totals.sum(axis=0) + 1)
    terms = np.where(totals > 0, (bad - totals * share) ** 2 / (share * (1 - share)), 0.0)
    squares = float(terms.sum()) * weeks / (weeks - 1)
    pairs = float((totals * np.maximum(totals - 1, 0)).sum())
    together = min(max(0.0, (squares - float(totals.sum())) / pairs) if pairs else 0.0, 0.99)
    expected, of_slot = float(share[0]), totals[:, 0]
    one = expected * (1 - expected)
    of_share = float((of_slot * (1 + (of_slot - 1) * together)).sum()) * one / float(of_slot.sum()) ** 2
    variance = n * one * (1 + (n - 1) * together) + n**2 * of_share
    together = min(max((variance / (n * one) - 1) / (n - 1), 0.0), 0.99) if n > 1 else 0.0
    if together > 1e-9:
        size = 1 / together - 1
        limit = betabinom(n, expected * size, (1 - expected) * size).ppf(1 - level)
    else:
        limit = binom(n, expected).ppf(1 - level)
    return Finding(value, None, float(limit) / n, before)


def judge_level(
    values: Mapping[int, float],
    of: Mapping[int, int],
    now: int,
    weeks: int,
    level: float,
    *,
    sign: int,
    fewest: int = FEWEST,
) -> Finding:
    """A percentile or a mean that should not move by `sign` (1: rise, -1: fall); `of` is what each rests on.

    The variance of a window's number is a + b / n: what differs from week to week, and what n numbers leave open. Both
    are fitted to the residuals of all windows of the earlier weeks by non-negative least squares, weighted by the fit
    (iteratively, as squared residuals spread like their mean). The distance from the mean is held against Student's t.
    """
    import numpy as np
    from scipy.optimize import nnls
    from scipy.stats import t

    numbers, totals = _earlier(values, now, weeks, np.nan), _earlier(of, now, weeks, 0)
    numbers[totals < fewest] = np.nan
    before = tuple(None if np.isnan(one) else float(one) for one in numbers[:, 0])
    n, value = of.get(now, 0), values.get(now)
    if value is None or n < fewest:
        return Finding(value, before=before, why_not=f"{n} in these hours are too few to compare")
    there = ~np.isnan(numbers)
    count = there.sum(axis=0)
    if count[0] < min(3, weeks):
        return Finding(value, before=before, why_not="the same hours of fewer than three earlier weeks have a number")
    enough = there & (count >= 2)
    mean = np.where(there, numbers, 0.0).sum(axis=0) / np.maximum(count, 1)
    squares = (((numbers - mean) ** 2) * count / np.maximum(count - 1, 1))[enough]
    causes = np.column_stack([np.ones(squares.size), 1 / totals[enough]])
    fitted = np.full(squares.size, max(float(squares.mean()), 1e-18))
    parts = np.array([fitted[0], 0.0])
    for _ in range(4):
        parts, _rest = nnls(causes / fitted[:, None], squares / fitted)
        fitted = np.maximum(causes @ parts, 1e-6 * max(float(squares.mean()), 1e-18))
    of_slot = totals[:, 0][there[:, 0]]
    variance = parts[0] + parts[1] / n + float((parts[0] + parts[1] / of_slot).sum()) / of_slot.size**2
    freedom = int((count[count >= 2] - 1).sum())
    bound = float(mean[0] + sign * t.ppf(1 - level, freedom) * np.sqrt(max(variance, 0.0)))
    return Finding(value, None if sign > 0 else bound, bound if sign > 0 else None, before)


def _earlier(found: Mapping[int, float], now: int, weeks: int, absent: float) -> "np.ndarray":
    """One row for each earlier week, the newest first: the same hours, then those before them through a week."""
    import numpy as np

    return np.array(
        [[found.get(now - WEEK * week - one, absent) for one in range(WEEK)] for week in range(1, weeks + 1)],
        dtype=float,
    )


def judged_from(first: int, weeks: int) -> int:
    """The first window that can be judged when traces began in the window `first`."""
    return first + (weeks + 1) * WEEK + 1
