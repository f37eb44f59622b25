"""The comparison with the champion, held against what it says of itself.

Lives here: how often it errs, computed over every table of passes and fails or simulated with numbers; its sentences.
Add here: a promise of `comparison.py` or `paired/`. Not here: what follows from an outcome (`test_gate.py`).

Simulations are seeded. A rate that must be at most r is let pass up to the number of hits that a true rate of r
exceeds in one of 10,000 repetitions (binomial), so that another seed would not fail either.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from lifecycle_assets.comparison import Comparison, Pairing, compare, holm, overall
from lifecycle_assets.paired.measure import measure
from lifecycle_assets.paired.measured import pairs_needed
from lifecycle_assets.paired.shares import lower_of_shares

SURE, POWER = 0.95, 0.8
ALPHA = 1 - SURE
FEW = 199
"""Resamples in simulations: each decides on its own, so that fewer make it less exact, not wrong."""


def at_most(hits: int, of: int, rate: float) -> bool:
    """Whether a true rate of `rate` gives as many hits once in 10,000 times."""
    return hits <= binom.isf(1e-4, of, rate)


def pairing(ours: Sequence[float], theirs: Sequence[float], **changes: Any) -> Pairing:
    fields = {"metric": "s/mean", "unpaired": 0, "higher_is_better": True, "allowed": 0.0, "seed": 1, **changes}
    return Pairing(candidate=list(map(float, ours)), champion=list(map(float, theirs)), **fields)


def said(ours: Sequence[float], theirs: Sequence[float], **changes: Any) -> Comparison:
    (found,) = compare([pairing(ours, theirs, **changes)], confidence=SURE, power=POWER)
    return found


def table(losses: int, gains: int, pairs: int, allowed: float) -> str:
    """The outcome of a table of passes and fails."""
    ours = [0] * losses + [1] * gains + [1] * (pairs - losses - gains)
    return said(ours, [1] * losses + [0] * gains + [1] * (pairs - losses - gains), allowed=allowed).outcome


def tables(pairs: int) -> np.ndarray:
    return np.array([(b, c) for b, c in product(range(pairs + 1), repeat=2) if b + c <= pairs])


def chances(found: np.ndarray, pairs: int, losses: float, gains: float) -> np.ndarray:
    """How likely each table is when these shares of records are lost and gained."""
    counts = np.column_stack([found, pairs - found.sum(axis=1)])
    return np.nan_to_num(multinomial.pmf(counts, pairs, [losses, gains, 1 - losses - gains]))


class TestPassFail:
    """Every table is looked at, so that these rates are exact and not simulated."""

    @pytest.mark.parametrize(("pairs", "sure"), [(8, 0.95), (40, 0.95), (75, 0.95), (40, 0.99)])
    def test_the_interval_misses_at_most_as_often_as_it_says(self, pairs: int, sure: float):
        """Also with few discordant pairs, where Tango's interval misses twice as often on one side."""
        found = tables(pairs)
        low = np.array([lower_of_shares(b, c, pairs, sure) for b, c in found])
        by_table = dict(zip(map(tuple, found), low, strict=True))
        high = -np.array([by_table[c, b] for b, c in found])
        for discordant, tilt in product((0.01, 0.02, 0.05, 0.1, 0.2, 0.4), np.linspace(-1, 1, 17)):
            losses, gains = discordant * (1 - tilt) / 2, discordant * (1 + tilt) / 2
            chance, true = chances(found, pairs, losses, gains), gains - losses
            above, below = chance[low > true + 1e-9].sum(), chance[high < true - 1e-9].sum()
            assert max(above, below) <= (1 - sure) / 2
            assert above + below <= 1 - sure

    def test_no_difference_is_called_better_and_a_loss_let_through_at_most_at_the_stated_rate(self):
        pairs, allowed = 40, 0.1
        found = tables(pairs)
        found = found[found.sum(axis=1) <= 20]  # More discordant pairs are out of reach of the shares below.
        outcomes = np.array([table(b, c, pairs, allowed) for b, c in found.tolist()])
        for discordant in (0.02, 0.05, 0.1, 0.2):
            chance = chances(found, pairs, discordant / 2, discordant / 2)
            assert chance[outcomes == "better"].sum() <= ALPHA / 2
            assert chance[outcomes == "worse"].sum() <= ALPHA / 2
        for gains in (0.0, 0.02, 0.05):
            chance = chances(found, pairs, allowed + gains, gains)
            assert chance[np.isin(outcomes, ("better", "not_worse"))].sum() <= ALPHA / 2

    @pytest.mark.parametrize(
        ("losses", "gains", "allowed"), [(0.015, 0.015, 0.05), (0.05, 0.05, 0.05), (0.02, 0.01, 0.05), (0.05, 0.15, 0)]
    )
    def test_with_the_rows_it_asks_for_it_tells(self, losses: float, gains: float, allowed: float):
        pilot = [0] * round(losses * 200) + [1] * 200, [1] * round(losses * 200) + [0] * round(gains * 200)
        ours = pilot[0][:200]
        theirs = (pilot[1] + [1] * 200)[:200]
        found = measure(ours, theirs, "mean", higher_is_better=True, confidence=SURE, seed=1)
        needed = found.needed(allowed, POWER)
        assert needed is not None
        rng, of = np.random.default_rng(7), 1_000
        shares = {"no loss": (losses, gains), "lost": (max(allowed, 0.05) + 0.01, 0.01)}
        told = {}
        for name, (lost, gained) in shares.items():
            drawn = rng.multinomial(needed, [lost, gained, 1 - lost - gained], size=of)[:, :2]
            unique, counts = np.unique(drawn, axis=0, return_counts=True)
            outcomes = np.array([table(b, c, needed, allowed) for b, c in unique.tolist()])
            told[name] = int(counts[np.isin(outcomes, ("better", "not_worse"))].sum())
        assert at_most(of - told["no loss"], of, 1 - POWER), f"{told} of {of} with {needed} rows"
        assert at_most(told["lost"], of, ALPHA / 2), "a loss of the size that is not allowed passes"


def skewed(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Times: most are short, some very long."""
    return rng.lognormal(sigma=1.0, size=rows)


def ratings(rng: np.random.Generator, rows: int) -> np.ndarray:
    """1 to 5, mostly 4."""
    return rng.choice([1.0, 3.0, 4.0, 5.0], p=[0.1, 0.1, 0.6, 0.2], size=rows)


class TestNumbers:
    """Simulated: both sides are drawn alike, or one is shifted."""

    def test_without_a_difference_better_is_said_of_any_metric_at_most_at_the_stated_rate(self):
        rng, of, rows = np.random.default_rng(11), 120, 40
        kinds: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], bool]] = {
            "latency/mean": (skewed, False),
            "rating/mean": (ratings, True),
            "latency/p50": (skewed, False),
            "pass/mean": (lambda rng, rows: rng.binomial(1, 0.8, size=rows).astype(float), True),
        }
        alone, worse, together = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0), 0
        for seed in range(of):
            drawn = []
            for metric, (draw, higher) in kinds.items():
                same = rng.random(rows) < 0.5  # Half of the answers do not change.
                ours, theirs = draw(rng, rows), draw(rng, rows)
                drawn.append(
                    pairing(np.where(same, theirs, ours), theirs, metric=metric, higher_is_better=higher, seed=seed)
                )
            found = compare(drawn, confidence=SURE, power=POWER, resamples=FEW)
            together += "better" in {one.outcome for one in found}
            for metric, one in zip(kinds, found, strict=True):
                assert one.p is not None
                assert one.low is not None
                alone[metric] += one.low > 0 and one.p <= ALPHA
                worse[metric] += one.outcome == "worse"
        assert at_most(together, of, ALPHA), together
        for metric in kinds:
            assert at_most(alone[metric], of, ALPHA), alone
            assert at_most(worse[metric], of, ALPHA), worse

    @pytest.mark.parametrize("tail", [1, -1])
    def test_with_the_rows_it_asks_for_it_tells_and_a_loss_does_not_pass(self, tail: int):
        """Differences skewed either way; a loss of exactly the size that is not allowed passes at most 1 - power."""
        rng, of, allowed = np.random.default_rng(5), 100, 0.4
        assert pairs_needed(0.0, 1.0, allowed, SURE, POWER) == 50, "(1.96 + 0.84)^2 / 0.4^2"
        needed = pairs_needed(0.0, 1.0, allowed, SURE, POWER, skewness=2.0 * tail)
        told = {0.0: 0, -allowed: 0}
        for shift in told:
            for seed in range(of):
                base, noise = rng.normal(size=needed), tail * (rng.exponential(size=needed) - 1)
                one = pairing(base + noise + shift, base, allowed=allowed, seed=seed)
                (found,) = compare([one], confidence=SURE, power=POWER, resamples=FEW)
                told[shift] += found.outcome in ("better", "not_worse")
        assert at_most(of - told[0.0], of, 1 - POWER), told
        assert at_most(told[-allowed], of, 1 - POWER), told

    def test_ten_thousand_rows_are_told_the_same_twice_in_little_time_and_memory(self):
        import time
        import tracemalloc

        rng = np.random.default_rng(3)
        theirs = skewed(rng, 10_000)
        one = pairing(theirs * 0.97, theirs, higher_is_better=False)
        (small,) = compare([pairing([1, 2], [2, 1])], confidence=SURE, power=POWER)  # imports scipy
        assert small.outcome == "unsure"
        tracemalloc.start()
        began = time.process_time()
        (found,) = compare([one], confidence=SURE, power=POWER)
        seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (found.outcome, found.pairs) == ("better", 10_000)
        assert seconds < 4, "about 1 s on a machine of its own"
        assert peak < 200 * 2**20
        assert compare([one], confidence=SURE, power=POWER) == [found]


class TestOutcomes:
    """What is said, and in which words."""

    def test_the_same_scores_are_not_worse_and_say_what_may_hide(self):
        found = said([1] * 40, [1] * 40)
        assert (found.outcome, found.difference, found.needed) == ("not_worse", 0.0, None)
        assert found.sentence == (
            "s/mean is the same as the champion's on all 40 rows; up to 0.072 of all rows could still be worse (95 %)."
        )

    def test_a_row_more_that_passes_never_makes_it_worse(self):
        """With nothing allowed, an interval alone would call one gain and no loss undecided."""
        found = said([1] * 40, [1] * 39 + [0])
        assert found.outcome == "not_worse"
        assert "worse than the champion's on none of 40 rows, better by 0.025" in found.sentence

    def test_worse_says_by_how_much_and_how_sure(self):
        found = said([0] * 24 + [1] * 176, [1] * 200, allowed=0.05)
        assert found.outcome == "worse"
        assert found.sentence == (
            "s/mean is worse than the champion's by 0.12 (95 % interval -0.173 to -0.0746), 0.05 is allowed."
        )

    def test_unsure_asks_for_a_number_of_rows_or_says_that_none_helps(self):
        found = said([0] + [1] * 39, [1] * 40, allowed=0.05)
        assert (found.outcome, found.needed) == ("unsure", 547)
        assert "not enough rows to tell: about 547 needed, there are 40; it looks worse by 0.025" in found.sentence
        beyond = said([0] * 3 + [1] * 37, [1] * 40, allowed=0.05)
        assert (beyond.outcome, beyond.needed) == ("unsure", None)
        assert "more would not help: the difference itself is beyond what is allowed" in beyond.sentence
        even = said([0, 1] * 20, [1, 0] * 20)
        assert "with none allowed no number of rows would show it: set max_regression" in even.sentence

    def test_lower_is_better_where_declared(self):
        slow, quick = [2.0 + i / 10 for i in range(20)], [1.0 + i / 10 for i in range(20)]
        assert said(quick, slow, higher_is_better=False).outcome == "better"
        assert said(slow, quick, higher_is_better=False, allowed=0.5).outcome == "worse"
        assert said(slow, quick, higher_is_better=False, allowed=1.0).outcome == "not_worse", "just what is allowed"

    def test_a_few_numbers_prove_nothing(self):
        """All of three resamples lie between the smallest and the largest of three differences."""
        found = said([0.94, 0.95, 0.96], [0.95, 0.95, 0.95], allowed=0.02)
        assert (found.outcome, found.needed) == ("unsure", 10)
        tail = said(range(60), [*range(59), 0], metric="s/p95", allowed=5)
        assert tail.outcome == "not_worse", "worse on none"
        tail = said([*range(59), 0], range(60), metric="s/p95", allowed=5)
        assert (tail.outcome, tail.needed) == ("unsure", 72), "0.95^72 is the first below 2.5 %"

    def test_extremes_are_compared_as_they_are(self):
        """The bootstrap is not valid for them, so that better is never said."""
        found = said([1, 2, 3], [1, 2, 9], metric="s/max", higher_is_better=False)
        assert (found.outcome, found.difference, found.low, found.p) == ("not_worse", 6.0, None, None)
        assert said([1, 2, 9], [1, 2, 3], metric="s/max", higher_is_better=False, allowed=5).outcome == "worse"
        assert said([0, 5], [1, 5], metric="s/min", allowed=1).outcome == "not_worse"
        assert said([0, 5], [1, 5], metric="s/min").outcome == "worse"

    def test_better_needs_to_pass_holm_over_all_metrics(self):
        """p is 0.031: enough alone, not among three."""
        clear, even = pairing([1] * 46, [0] * 6 + [1] * 40), pairing([0, 1] * 20, [1, 0] * 20, allowed=0.9)
        alone, many = (compare(drawn, confidence=SURE, power=POWER)[0] for drawn in ([clear], [clear, even, even]))
        assert (alone.outcome, many.outcome) == ("better", "not_worse")
        assert holm([0.01, None, 0.04, 0.03], 0.05) == [True, False, False, False]
        assert holm([0.01, 0.02, 0.05], 0.05) == [True, True, True]

    def test_no_pair_at_all_is_unsure(self):
        found = said([], [])
        assert (found.outcome, found.pairs, found.difference) == ("unsure", 0, None)
        assert "no record has a score of both" in found.sentence

    def test_all_metrics_together(self):
        assert overall(["better", "worse", "unsure"]) == "worse"
        assert overall(["better", "unsure"]) == "unsure"
        assert overall(["better", "not_worse"]) == "better"
        assert overall(["not_worse"]) == "not_worse"
        assert overall([]) == "none"
