"""How far two raters agree beyond chance.

Lives here: agreement statistics over plain pairs; nothing in this module knows MLflow or Dagster.
Add here: a statistic for other kinds of answers, such as weighted kappa for ordered ones.
Not here: which labels are paired (`review.py`), what agreement is enough (`labeling.min_kappa` in `spec.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Agreement:
    """Cohen's kappa of `n` pairs with its confidence interval, and how many of the pairs `agreed`.

    Kappa is 1 for perfect agreement, 0 for what chance gives, negative below that. All three numbers are None when
    a rater gave one answer throughout: kappa is then 0 with a standard error of 0, or 0/0, whatever the other said.
    """

    kappa: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    agreed: int


def cohen_kappa(pairs: Sequence[tuple[bool, bool]], confidence: float = 0.95) -> Agreement | None:
    """Agreement of two raters who each answered yes or no to the same things; None when there are no pairs.

    Kappa is (p_o - p_e) / (1 - p_e) with the observed agreement p_o and the agreement p_e expected from the raters'
    shares of yes and no (Cohen 1960, "A coefficient of agreement for nominal scales"). The interval is kappa plus or
    minus z times its large-sample standard error (Fleiss, Cohen and Everitt 1969, "Large sample standard errors of
    kappa and weighted kappa"), cut to -1..1; on fewer than some 30 pairs it is rough.
    """
    if not pairs:
        return None
    n = len(pairs)
    agreed = sum(1 for first, second in pairs if first == second)
    if len({first for first, _ in pairs}) == 1 or len({second for _, second in pairs}) == 1:
        return Agreement(None, None, None, n, agreed)
    from statsmodels.stats.inter_rater import cohens_kappa

    counts = [[sum(1 for pair in pairs if pair == (row, column)) for column in (True, False)] for row in (True, False)]
    result = cohens_kappa(counts)
    kappa = float(result.kappa)
    half_width = NormalDist().inv_cdf(0.5 + confidence / 2) * float(result.std_kappa)
    return Agreement(kappa, max(-1.0, kappa - half_width), min(1.0, kappa + half_width), n, agreed)
