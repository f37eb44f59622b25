"""Scores that are numbers, of the same records: intervals of means and percentiles, the test of swapped pairs.

Lives here: formulas over numbers, each with its source. A difference is an improvement: positive is better.
Add here: the interval of a further aggregation. Not here: passes and fails (`shares.py`).

SciPy and NumPy are imported inside the functions: loading the code location must stay fast.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

from lifecycle_assets.paired.measured import Measured, pairs_needed

MIN_MEAN = 10
"""Pairs below which no interval of a mean of numbers is trusted: in simulation with skewed differences one that should
miss in 2.5 % of cases misses in 20 % of 6 pairs, and in 13 % of 10."""

_AT_ONCE = 2_000_000
_BCA_PAIRS = 1_000
"""Numbers held at once (16 MB an array), and pairs up to which BCa is used."""


def mean_of(differences: Any, confidence: float, seed: int, draws: int) -> Measured:
    """A mean of numbers: the bootstrap's interval or Student's, whichever is the wider at each end.

    BCa (Efron, Journal of the American Statistical Association 82, 1987) follows skewness but is too short for few
    pairs; Student's is right for few pairs but ignores skewness. Beyond 1,000 pairs the percentile bootstrap is used:
    the two agree there.
    """
    import numpy as np
    from scipy.stats import DegenerateDataWarning, bootstrap, skew
    from scipy.stats import t as student

    pairs, mean = len(differences), float(differences.mean())
    method = "BCa" if pairs <= _BCA_PAIRS else "percentile"
    spread = float(differences.std(ddof=1)) if pairs > 1 else 0.0
    low, high, skewness = mean, mean, 0.0
    if spread > 1e-12 * abs(mean):
        half = float(student.isf((1 - confidence) / 2, pairs - 1)) * spread / math.sqrt(pairs)
        with warnings.catch_warnings():
            # Where BCa has no limit it says NaN and warns: Student's limit is taken then.
            warnings.simplefilter("ignore", DegenerateDataWarning)
            found = bootstrap(
                (differences,),
                np.mean,
                vectorized=True,
                confidence_level=confidence,
                n_resamples=draws,
                method=method,
                batch=max(1, _AT_ONCE // pairs),
                rng=np.random.default_rng(seed),
            ).confidence_interval
        low, high = float(np.fmin(found.low, mean - half)), float(np.fmax(found.high, mean + half))
        skewness = float(skew(differences))
    return Measured(
        difference=mean,
        low=low,
        high=high,
        p=_swapped(differences, np.zeros(pairs), lambda one, other: (one - other).mean(axis=-1), seed, draws),
        is_enough=pairs >= MIN_MEAN,
        method=f"{method} bootstrap, widened to Student's t; sign-flipping test",
        needed=lambda margin, power: _at_least(
            pairs_needed(mean, spread, margin, confidence, power, skewness=skewness),
            MIN_MEAN if pairs < MIN_MEAN else pairs + 1,
        ),
    )


def percentile_of(ours: Any, theirs: Any, share: float, confidence: float, seed: int, draws: int) -> Measured:
    """A percentile: percentile bootstrap of whole pairs (Efron, Tibshirani, An Introduction to the Bootstrap, 1993).

    BCa is not used, as the jackknife fails for quantiles. A quantile q has an interval free of assumptions only from n
    pairs with max(q, 1 - q)^n <= alpha / 2 on (David and Nagaraja, Order Statistics, 2003, section 7.1): 6 for p50,
    72 for p95, 368 for p99 at 95 %; below, no resample can show what lies beyond the sample.
    """
    import numpy as np
    from scipy.stats import bootstrap

    def statistic(one: Any, other: Any, axis: int = -1) -> Any:
        return np.quantile(one, share, axis=axis) - np.quantile(other, share, axis=axis)

    pairs = len(ours)
    enough = max(MIN_MEAN, math.ceil(math.log((1 - confidence) / 2) / math.log(max(share, 1 - share))))
    difference = float(statistic(ours, theirs))
    batch = max(1, _AT_ONCE // pairs)
    found = bootstrap(
        (ours, theirs),
        statistic,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=draws,
        method="percentile",
        batch=batch,
        rng=np.random.default_rng(seed),
    )
    spread = float(found.standard_error) * math.sqrt(pairs)
    low, high = float(found.confidence_interval.low), float(found.confidence_interval.high)
    return Measured(
        difference=difference,
        low=min(low, difference),
        high=max(high, difference),
        p=_swapped(ours, theirs, statistic, seed, draws),
        is_enough=pairs >= enough,
        method="percentile bootstrap of pairs; test of swapped pairs",
        needed=lambda margin, power: _at_least(
            pairs_needed(difference, spread, margin, confidence, power), enough if pairs < enough else pairs + 1
        ),
    )


def extreme_of(ours: Any, theirs: Any, which: str) -> Measured:
    """The smallest or largest score: compared as they are, without a word of how sure the difference is.

    The bootstrap is not valid for extremes (Bickel and Freedman, Annals of Statistics 9, 1981, section 6).
    """
    difference = float(ours.min() - theirs.min() if which == "min" else ours.max() - theirs.max())
    return Measured(difference, None, None, None, True, "the values themselves", lambda _margin, _power: None)


def _swapped(ours: Any, theirs: Any, statistic: Callable[[Any, Any], Any], seed: int, draws: int) -> float:
    """Two-sided p of "candidate and champion can be swapped in any pair": (hits + 1) / (draws + 1), never too small.

    Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010.
    """
    import numpy as np

    rng, observed, hits, done = np.random.default_rng(seed), abs(float(statistic(ours, theirs))), 0, 0
    while done < draws:
        now = min(draws - done, max(1, _AT_ONCE // len(ours)))
        stays = rng.random((now, len(ours))) < 0.5
        drawn = statistic(np.where(stays, ours, theirs), np.where(stays, theirs, ours))
        hits += int((np.abs(drawn) >= observed * (1 - 1e-9)).sum())
        done += now
    return (hits + 1) / (draws + 1)


def _at_least(number: int | None, least: int) -> int | None:
    return None if number is None else max(number, least)
