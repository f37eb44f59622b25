"""Sampling decides by ids alone, for ever, and raising a rate only adds traces."""

import itertools

import pytest

from resources.scoring.sampling import is_sampled

IDS = [f"tr-{number:032x}" for number in range(4000)]


def test_rate_one_takes_every_trace_and_rate_zero_none():
    assert all(is_sampled(trace_id, "prod_tiny_length", 1.0) for trace_id in IDS)
    assert not any(is_sampled(trace_id, "prod_tiny_length", 0.0) for trace_id in IDS)


def test_raising_the_rate_only_adds_traces():
    rates = [0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.999, 1.0]
    samples = [{trace_id for trace_id in IDS if is_sampled(trace_id, "s", rate)} for rate in rates]
    for smaller, larger in itertools.pairwise(samples):
        assert smaller <= larger


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_is_the_rate(rate: float):
    share = sum(is_sampled(trace_id, "s", rate) for trace_id in IDS) / len(IDS)
    assert share == pytest.approx(rate, abs=0.03)  # Four standard deviations of 4000 draws at most.


def test_scorers_sample_independently():
    both = sum(is_sampled(i, "a", 0.5) and is_sampled(i, "b", 0.5) for i in IDS) / len(IDS)
    assert both == pytest.approx(0.25, abs=0.03)


def test_the_decision_is_the_same_in_every_release():
    """Literal answers: a change of the hash would score other traces and pay for them again."""
    assert [is_sampled(f"tr-{n}", "prod_docs_grounded", 0.5) for n in range(8)] == [
        True,
        False,
        False,
        False,
        True,
        True,
        True,
        True,
    ]
