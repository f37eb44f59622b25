"""What an evaluation must be before an alias moves on it."""

from datetime import UTC, datetime

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.release.promotion import require_evidence
from lifecycle_assets.spec_release import Gate
from tests.building import evaluation_of

NOW = datetime(2026, 11, 20, tzinfo=UTC)
LENIENT = Gate.model_validate({"thresholds": [{"metric": "a/mean", "at_least": 0.5}]})
STRICT = Gate.model_validate({"thresholds": [{"metric": "a/mean", "at_least": 0.95}]})
PASSED = evaluation_of(gate_digest=LENIENT.digest, at=NOW.isoformat())


def test_evidence_that_passed_this_gate_is_enough():
    require_evidence(PASSED, "m-1", LENIENT, now=NOW)


def test_evidence_that_passed_another_gate_is_refused():
    """A threshold was raised after the evaluation: the word 'passed' said nothing about it."""
    with pytest.raises(Refused, match=r"another gate than defs\.yaml declares now: materialize eval_results again"):
        require_evidence(PASSED, "m-1", STRICT, now=NOW)


def test_evidence_about_another_model_is_refused():
    with pytest.raises(Refused, match="is about m-1, not about m-2"):
        require_evidence(PASSED, "m-2", LENIENT, now=NOW)
