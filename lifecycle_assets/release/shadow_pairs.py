"""What pairs of answers say: a version and the champion on the same recorded requests.

Lives here: from scores of both to a comparison for each metric, doubts about it, and the largest losses; pure.
Add here: a further number that decides.
Not here: the formulas and what follows from them (`lifecycle_assets/comparison.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lifecycle_assets.comparison import Comparison, Pairing, compare
from lifecycle_assets.spec_release import Gate, Incumbent, Threshold
from lifecycle_assets.text import literal
from resources.needs import Pair

ANSWERED = "agent answered/mean"
"""Share of requests on which the agent itself did not fail; no loss is allowed. No scorer's name holds a space."""

LOSSES = 3
"""Largest losses that are named for each metric."""


def compare_pairs(
    pairs: Sequence[Pair], thresholds: Sequence[Threshold], gate: Gate, *, seed: int
) -> dict[str, Comparison]:
    """Metric to its paired comparison: those of `thresholds`, and whether the agent answered at all."""
    rules = gate.incumbent or Incumbent()
    asked = {t.metric: (t.higher_is_better, t.max_regression) for t in thresholds} | {ANSWERED: (True, 0.0)}
    pairings = []
    for metric, (higher_is_better, allowed) in asked.items():
        ours, theirs = numbers(pairs, metric)
        pairings.append(
            Pairing(
                metric=metric,
                candidate=ours,
                champion=theirs,
                unpaired=sum(1 for one in pairs if _scores(one, metric).count(None) == 1),
                higher_is_better=higher_is_better,
                allowed=rules.max_regression if allowed is None else allowed,
                seed=seed,
            )
        )
    return dict(zip(asked, compare(pairings, confidence=rules.confidence, power=rules.power), strict=True))


def doubts_about(pairs: Sequence[Pair], threshold: Threshold, found: Comparison) -> list[str]:
    """Why a comparison proves less than its numbers say: too few pairs, or scorers that failed."""
    scorer, sentences = threshold.metric.rpartition("/")[0], []
    if found.pairs < threshold.min_rows:
        sentences.append(f"{threshold.metric} rests on {found.pairs} requests, {threshold.min_rows} are required.")
    # Where the version itself failed its scorers could not run: that is what `ANSWERED` counts.
    sides = [one.champion for one in pairs] + [one.version for one in pairs if not one.failure]
    errors = [side[scorer].failure for side in sides if side[scorer].failure]
    if len(errors) > threshold.max_error_rate * len(sides):
        sentences.append(f"{scorer} failed on {len(errors)} of {len(sides)} answers: {literal(errors[0])}.")
    return sentences


def silent_scorers(pairs: Sequence[Pair], scorers: Sequence[str]) -> list[str]:
    """Scorers that said nothing of any answer and failed on none, as those do that look for expectations."""
    sides = [one.champion for one in pairs] + [one.version for one in pairs if not one.failure]
    return [name for name in scorers if not any(side[name].number is not None or side[name].failure for side in sides)]


def largest_losses(pairs: Sequence[Pair], metrics: Mapping[str, bool]) -> list[dict[str, Any]]:
    """For each metric (and whether higher is better) the requests on which the version lost most, worst first."""
    losses = []
    for metric, higher_is_better in metrics.items():
        lost = []
        for one in pairs:
            ours, theirs = _scores(one, metric)
            if ours is not None and theirs is not None and (ours < theirs if higher_is_better else ours > theirs):
                lost.append((abs(ours - theirs), one.trace_id, one.answered_by, ours, theirs))
        for _, request, answer, ours, theirs in sorted(lost, key=lambda row: (-row[0], row[1]))[:LOSSES]:
            losses.append({"metric": metric, "request": request, "answer": answer, "champion": theirs, "version": ours})
    return losses


def _scores(pair: Pair, metric: str) -> tuple[float | None, float | None]:
    """What the metric's scorer gave the version and the champion on one request."""
    if metric == ANSWERED:
        return float(not pair.failure), float(not pair.champion_failed)
    scorer = metric.rpartition("/")[0]
    return pair.version[scorer].number, pair.champion[scorer].number


def numbers(pairs: Sequence[Pair], metric: str) -> tuple[list[float], list[float]]:
    """Scores of the version and of the champion, on the requests that both have one of."""
    both = [(ours, theirs) for ours, theirs in (_scores(one, metric) for one in pairs) if ours is not None]
    paired = [(ours, theirs) for ours, theirs in both if theirs is not None]
    return [ours for ours, _ in paired], [theirs for _, theirs in paired]
