"""Cohen's kappa against published tables, its interval against the formula, and tables without an answer."""

import math
from statistics import NormalDist

import pytest

from lifecycle_assets.review.agreement import Agreement, cohen_kappa


def pairs(both_yes: int, first_only: int, second_only: int, both_no: int) -> list[tuple[bool, bool]]:
    return (
        [(True, True)] * both_yes
        + [(True, False)] * first_only
        + [(False, True)] * second_only
        + [(False, False)] * both_no
    )


PUBLISHED = [
    # Sim and Wright 2005, "The kappa statistic in reliability studies", Physical Therapy 85(3).
    ((22, 2, 4, 11), 0.67),
    # Feinstein and Cicchetti 1990, "High agreement but low kappa: I", J Clin Epidemiol 43(6): balanced, then skewed.
    ((40, 9, 6, 45), 0.70),
    ((80, 10, 5, 5), 0.32),
    # Fifty grant proposals read by two readers, the worked example of many textbooks.
    ((20, 5, 10, 15), 0.40),
]


@pytest.mark.parametrize(("table", "kappa"), PUBLISHED)
def test_kappa_is_the_published_one(table: tuple[int, int, int, int], kappa: float):
    found = cohen_kappa(pairs(*table))
    assert found is not None
    assert found.kappa == pytest.approx(kappa, abs=0.005)
    assert (found.n, found.agreed) == (sum(table), table[0] + table[3])


def fleiss_1969(a: int, b: int, c: int, d: int, confidence: float) -> tuple[float, float]:
    """The interval written out from Fleiss, Cohen and Everitt 1969."""
    n = a + b + c + d
    cells = {(0, 0): a / n, (0, 1): b / n, (1, 0): c / n, (1, 1): d / n}
    row = [(a + b) / n, (c + d) / n]
    column = [(a + c) / n, (b + d) / n]
    observed = cells[0, 0] + cells[1, 1]
    expected = sum(row[i] * column[i] for i in (0, 1))
    kappa = (observed - expected) / (1 - expected)
    diagonal = sum(cells[i, i] * ((1 - expected) - (column[i] + row[i]) * (1 - observed)) ** 2 for i in (0, 1))
    beside = (1 - observed) ** 2 * sum(cells[i, 1 - i] * (column[i] + row[1 - i]) ** 2 for i in (0, 1))
    chance = (observed * expected - 2 * expected + observed) ** 2
    error = math.sqrt((diagonal + beside - chance) / n) / (1 - expected) ** 2
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return kappa - z * error, kappa + z * error


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("table", [table for table, _ in PUBLISHED])
def test_the_interval_is_that_of_fleiss(table: tuple[int, int, int, int], confidence: float):
    found = cohen_kappa(pairs(*table), confidence)
    assert found is not None
    assert (found.ci_low, found.ci_high) == pytest.approx(fleiss_1969(*table, confidence))


def test_no_pairs_is_no_agreement():
    assert cohen_kappa([]) is None


@pytest.mark.parametrize("table", [(12, 0, 0, 0), (0, 0, 0, 7), (1, 0, 0, 0)])
def test_one_answer_throughout_has_no_kappa(table: tuple[int, int, int, int]):
    assert cohen_kappa(pairs(*table)) == Agreement(None, None, None, sum(table), sum(table))


@pytest.mark.parametrize("table", [(8, 2, 0, 0), (5, 0, 5, 0), (0, 6, 0, 0)])
def test_a_rater_with_one_answer_throughout_gives_no_kappa(table: tuple[int, int, int, int]):
    """The formula says 0 with an interval of no width: five labels against a constant judge looked like certainty."""
    assert cohen_kappa(pairs(*table)) == Agreement(None, None, None, sum(table), table[0] + table[3])


def test_perfect_and_opposite_raters():
    perfect, opposite = cohen_kappa(pairs(5, 0, 0, 5)), cohen_kappa(pairs(0, 5, 5, 0))
    assert perfect is not None
    assert opposite is not None
    assert (perfect.kappa, perfect.ci_low, perfect.ci_high) == pytest.approx((1.0, 1.0, 1.0))
    assert opposite.kappa == pytest.approx(-1.0)
    assert opposite.ci_low is not None
    assert opposite.ci_low >= -1.0
