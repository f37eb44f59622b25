"""Alert rules over daily numbers."""

import pytest

from lifecycle_assets.monitoring.quality import hold
from lifecycle_assets.spec import AlertRule
from lifecycle_assets.text import lines_plot

RULE = AlertRule(name="grounded_high", metric="grounded/mean", at_least=0.8, k=2, n=3)
DAYS = [("2026-11-18", 0.9), ("2026-11-19", 0.7), ("2026-11-20", 0.6)]


def test_k_of_the_last_n_days_with_the_newest_among_them():
    assert hold(RULE, DAYS, "2026-11-20").breached
    assert not hold(RULE, DAYS[:2], "2026-11-19").breached
    assert not hold(RULE, [*DAYS, ("2026-11-21", 0.9)], "2026-11-21").breached


@pytest.mark.parametrize("days", [[], DAYS])
def test_a_day_without_a_value_is_unknown_however_well_earlier_days_were(days: list[tuple[str, float]]):
    breach = hold(RULE, days, "2026-11-22")
    assert breach.unknown
    assert breach.breached
    assert "has no value on 2026-11-22" in breach.sentence


def test_a_day_of_equal_numbers_is_drawn() -> None:
    """Their mean and its bounds differ in the last digit, on either side."""
    value, bound = 0.20000000000000004, 0.2
    for low, high in ((value, bound), (bound, value), (value + 1e-16, bound)):
        lines_plot("a day", {"latency": [("2026-11-20", value, low, high)]}, unit="s")
