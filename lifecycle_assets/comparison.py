"""Whether a candidate is better, not worse or worse than the champion, or whether there are too few rows to tell.

Lives here: what follows from the interval of a paired difference, for one metric and for all of them; pure.
Add here: a further outcome. Not here: the formulas (`paired/`), which rows are pairs, what blocks (`gate.py`).

Of one metric, with `allowed` what it may lose (`max_regression`) and alpha = 1 - `confidence`:

- worse: the interval lies below -allowed; or it lies below 0, p is at most alpha, and the difference itself is beyond
  what is allowed. The second is for a loss that is certain and looks too large, while the interval still touches what
  is allowed: waiting for rows would not help, so it must not count as undecided.
- better: the interval lies above 0 and p passes Holm's correction over all metrics (Holm, Scandinavian Journal of
  Statistics 6, 1979): the chance of saying it of any metric without a difference is at most alpha.
- not worse: the lower bound is at least -allowed, with pairs enough for the bound to hold. All metrics must be
  not worse, so this needs no correction (intersection-union test: Berger, Technometrics 24, 1982).
- not worse, too: no pair is worse for the candidate. Nothing can prove that nothing at all is lost, which is what
  `max_regression: 0` asks for; the sentence says what may still hide (the rule of three: Hanley and Lippman-Hand,
  JAMA 249, 1983), and `min_rows` keeps small datasets from it.
- unsure: none of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle_assets.paired.measure import measure
from lifecycle_assets.paired.measured import Measured

OUTCOMES = ("better", "not_worse", "worse", "unsure")


@dataclass(frozen=True)
class Pairing:
    """The scores of one metric on the same records: `candidate[i]` and `champion[i]` are about one record.

    `allowed` is what the metric may lose, in its own unit; `unpaired` counts records the champion has a score of
    and the candidate has none.
    """

    metric: str
    candidate: Sequence[float]
    champion: Sequence[float]
    unpaired: int
    higher_is_better: bool
    allowed: float
    seed: int


@dataclass(frozen=True)
class Comparison:
    """What the comparison of one metric says. `difference`, `low` and `high` are improvements: positive is better.

    `low` and `high` are None for smallest and largest scores; all numbers are, and `pairs` is 0, when no record has a
    score of both. `needed` is the number of rows with which it could be told, None when there is none or it is told.
    """

    outcome: str
    pairs: int
    unpaired: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    confidence: float
    allowed: float
    needed: int | None
    method: str
    sentence: str


def compare(
    pairings: Sequence[Pairing], *, confidence: float, power: float, resamples: int | None = None
) -> list[Comparison]:
    """Compare every metric, in the order given; which are better depends on all of them (Holm)."""
    measured = [
        measure(
            one.candidate,
            one.champion,
            one.metric.rpartition("/")[2],
            higher_is_better=one.higher_is_better,
            confidence=confidence,
            seed=one.seed,
            resamples=resamples,
        )
        if one.candidate
        else None
        for one in pairings
    ]
    significant = holm([one.p if one else None for one in measured], 1 - confidence)
    return [
        _comparison(one, found, differs, confidence, power) if found else _nothing(one, confidence)
        for one, found, differs in zip(pairings, measured, significant, strict=True)
    ]


def overall(outcomes: Sequence[str]) -> str:
    """All metrics as one word: `worse` or `unsure` if any is, `better` if any is, else `not_worse`; `none` of none."""
    return next((word for word in ("worse", "unsure", "better", "not_worse") if word in outcomes), "none")


def holm(values: Sequence[float | None], alpha: float) -> list[bool]:
    """Which p-values are significant together at `alpha`, by Holm's step-down procedure; None is none of the family."""
    order = sorted((value, index) for index, value in enumerate(values) if value is not None)
    significant = [False] * len(values)
    for rank, (value, index) in enumerate(order):
        if value > alpha / (len(order) - rank) + _LAST_DIGIT:
            break
        significant[index] = True
    return significant


_LAST_DIGIT = 1e-12


def _comparison(one: Pairing, found: Measured, differs: bool, confidence: float, power: float) -> Comparison:
    outcome = _outcome(one, found, differs, 1 - confidence)
    needed = found.needed(one.allowed, power) if outcome == "unsure" else None
    return Comparison(
        outcome=outcome,
        pairs=len(one.candidate),
        unpaired=one.unpaired,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p=found.p,
        confidence=confidence,
        allowed=one.allowed,
        needed=needed,
        method=found.method,
        sentence=_sentence(one, found, outcome, needed, confidence),
    )


def _outcome(one: Pairing, found: Measured, differs: bool, alpha: float) -> str:
    # Differences of decimal fractions are off in their last digits: 0.94 - 0.95 is below -0.01.
    least = -one.allowed - 1e-9 * max(1.0, *map(abs, (*one.candidate[:1], *one.champion[:1], one.allowed)))
    if found.low is None or found.high is None or found.p is None:
        return "not_worse" if found.difference >= least else "worse"
    if found.is_enough and found.low > 0 and differs:
        return "better"
    if _worse_on(one) == 0 or (found.is_enough and found.low >= least):
        return "not_worse"
    beyond = one.allowed > 0 and found.high < least and found.is_enough
    lost = found.high < 0 and found.p <= alpha and found.difference < least
    return "worse" if beyond or lost else "unsure"


def _worse_on(one: Pairing) -> int:
    pairs = zip(one.candidate, one.champion, strict=True)
    return sum(1 for ours, theirs in pairs if (ours < theirs if one.higher_is_better else ours > theirs))


def _sentence(one: Pairing, found: Measured, outcome: str, needed: int | None, confidence: float) -> str:
    """The outcome in words and numbers, complete on its own."""
    pairs, sure = len(one.candidate), f"{confidence * 100:g} %"
    interval = (
        "no interval exists for an extreme"
        if found.low is None or found.high is None
        else f"{sure} interval {found.low:.3g} to {found.high:.3g}"
    )
    allowed = f"{one.allowed:g} is allowed"
    if outcome == "worse":
        return f"{one.metric} is worse than the champion's by {-found.difference:.3g} ({interval}), {allowed}."
    if outcome == "better":
        return f"{one.metric} is better than the champion's by {found.difference:.3g} ({interval}, {pairs} rows)."
    if outcome == "unsure":
        enough = (
            f": about {needed} needed, there are {pairs}"
            if needed
            else ", and with none allowed no number of rows would show it: set max_regression"
            if found.difference == one.allowed == 0
            else ", and more would not help: the difference itself is beyond what is allowed"
        )
        looks = f"it looks {_by(found.difference)} ({interval}), {allowed}"
        return f"{one.metric}: not enough rows to tell{enough}; {looks}."
    if found.low is not None and _worse_on(one) == 0:
        hidden = f"up to {1 - (1 - confidence) ** (1 / pairs):.2g} of all rows could still be worse ({sure})"
        if tuple(one.candidate) == tuple(one.champion):
            return f"{one.metric} is the same as the champion's on all {pairs} rows; {hidden}."
        return (
            f"{one.metric} is worse than the champion's on none of {pairs} rows, {_by(found.difference)} "
            f"({interval}); {hidden}."
        )
    return f"{one.metric} is not worse than the champion's: {_by(found.difference)} ({interval}), {allowed}."


def _by(difference: float) -> str:
    return "no different" if difference == 0 else f"{'better' if difference > 0 else 'worse'} by {abs(difference):.3g}"


def _nothing(one: Pairing, confidence: float) -> Comparison:
    sentence = f"{one.metric}: no record has a score of both candidate and champion; see which rows failed."
    return Comparison(
        "unsure", 0, one.unpaired, None, None, None, None, confidence, one.allowed, None, "none", sentence
    )
