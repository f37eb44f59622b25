"""What is measured of a metric on the same records, and how many records it takes.

Lives here: the measurement every kind of score comes to, the formula of the sample size.
Add here: a further fact of a comparison. Not here: the intervals (`shares.py`, `numbers.py`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """The difference of one metric with its two-sided interval; `p` of "no difference", two-sided.

    `low`, `high` and `p` are None where no such statement can be made. `is_enough` says whether there are pairs enough
    for the interval to hold. `method` names the formulas. `needed(margin, power)` is the number of pairs with which the
    lower bound is above `-margin` with chance `power`, if difference and spread are those observed; None when no
    number is enough.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    is_enough: bool
    method: str
    needed: Callable[[float, float], int | None]


def pairs_needed(
    difference: float, spread: float, margin: float, confidence: float, power: float, *, skewness: float = 0.0
) -> int | None:
    """Pairs to show that a difference is above `-margin`; None when it is not.

    n = ((z_alpha + z_beta) * spread / (difference + margin))^2, alpha being one side of the interval: the paired test
    of non-inferiority, Chow, Shao, Wang, Sample Size Calculations in Clinical Research, 2nd edition 2008, section 3.1.
    Rare large losses (negative skewness) lower a bootstrap's lower bound by spread * skewness * (2 z^2 + 1) / (6 n)
    (Hall, The Bootstrap and Edgeworth Expansion, 1992, section 3.6); n is then the root of what that makes of it.
    """
    from scipy.stats import norm

    if difference + margin <= 0:
        return None
    if spread == 0:
        return 1
    distance, quantiles = (difference + margin) / spread, two_quantiles(confidence, power)
    lowered = -min(skewness, 0.0) * (2 * float(norm.isf((1 - confidence) / 2)) ** 2 + 1) / 6
    return math.ceil(((quantiles + math.sqrt(quantiles**2 + 4 * distance * lowered)) / (2 * distance)) ** 2)


def two_quantiles(confidence: float, power: float) -> float:
    """The normal quantiles of one side of an interval and of the power, added."""
    from scipy.stats import norm

    return float(norm.isf((1 - confidence) / 2) + norm.ppf(power))
