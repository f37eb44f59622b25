"""Alert rules, held against daily numbers.

Lives here: what a rule says of some days, and when it may not say anything yet.
Add here: a further reason for which a rule has to wait.
Not here: the numbers (`quality.py`), messages (`sensors/alerts.py`), what coverage is (`coverage.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lifecycle_assets.spec import TRACE_NUMBERS, AlertRule


@dataclass(frozen=True)
class Breach:
    """How an alert rule stands.

    `breached` when k of the last n days, the newest included, lie beyond the line; `unknown` when there is no value
    to judge, which is no pass either.
    """

    breached: bool
    sentence: str
    unknown: bool = False


def scorer_of(metric: str) -> str:
    """The scorer a metric is about, without the slice; empty for a number of traces themselves."""
    scorer, _, what = metric.partition("{")[0].rpartition("/")
    return scorer if what in ("mean", "error_rate") and scorer not in TRACE_NUMBERS else ""


MEASURES = TRACE_NUMBERS[1:]
"""Numbers of traces that have means and sums."""


def hold(rule: AlertRule, days: Sequence[tuple[str, float]], day: str, *, awaited: str = "") -> Breach:
    """Hold the daily values `(day, value)`, oldest first, against `rule` on `day`.

    Without a value of that very day nothing is known, whatever earlier days say. `awaited` is what the day's value
    has to wait for; while it says something the rule neither passes nor alarms.
    """
    if awaited:
        return Breach(True, f"{rule.metric} is not judged on {day} yet: {awaited}.", unknown=True)
    recent = [point for point in days if point[0] <= day][-rule.n :]
    if not recent or recent[-1][0] != day:
        return Breach(True, f"{rule.metric} has no value on {day}: score and archive the day first.", unknown=True)
    limit, word = (rule.at_least, "at least") if rule.at_least is not None else (rule.at_most, "at most")
    assert limit is not None  # AlertRule holds exactly one of the two.

    def beyond(value: float) -> bool:
        return value < limit if rule.at_least is not None else value > limit

    count = sum(1 for _, value in recent if beyond(value))
    value = recent[-1][1]
    sentence = f"{rule.metric} is {value:.4g} on {day}, {word} {limit:g}; beyond it on {count} of {len(recent)} days."
    return Breach(count >= rule.k and beyond(value), sentence)


def waiting_for(metric: str, awaited: Mapping[str, str]) -> str:
    """What `metric` has to wait for; `awaited` maps declared scorers to a sentence, empty where none is owed."""
    scorer = scorer_of(metric)
    return awaited.get(scorer, "") if scorer else ""
