"""Scores as MLflow assessments.

Lives here: the form in which an outcome of a scorer is written on a trace, and how it is known again.
Add here: something every score has to say.
Not here: writing it (`trace_store.py`), labels of people (`labeling_desk.py`).
"""

import hashlib
import math
from typing import Any

from lifecycle_assets.gate import Outcome
from lifecycle_assets.records import ScorerVersion
from resources.trace_rows import NOT_APPLICABLE, OUTCOME, SCORER_VERSION


def score_id(trace_id: str, scorer: ScorerVersion) -> str:
    """The id of the one assessment a scorer's version may have on a trace."""
    key = f"{trace_id}|{scorer.registered_name}|{scorer.version}"
    return "a-" + hashlib.sha256(key.encode()).hexdigest()[:32]


def score_assessment(trace_id: str, scorer: ScorerVersion, outcome: Outcome) -> Any:
    """The MLflow feedback that says the outcome; a value that is not a finite number is said to be an error."""
    from mlflow.entities import AssessmentError, AssessmentSource, Feedback

    error, value = outcome.error, outcome.value
    if not error and value is not None and not math.isfinite(value):
        error = f"the scorer gave {value}, which is not a finite number"
    metadata = {SCORER_VERSION: scorer.version, "lifecycle.scorer_digest": scorer.digest}
    # Metadata is merged when an error gives way, so the outcome is always said.
    metadata[OUTCOME] = "error" if error else NOT_APPLICABLE if value is None else "value"
    message = error.encode("utf-8", "replace").decode()[:500]
    assessment = Feedback(
        name=scorer.registered_name,
        value=None if error or value is None else float(value),
        error=AssessmentError("SCORER_ERROR", message) if error else None,
        source=AssessmentSource(source_type="CODE", source_id=scorer.registered_name),
        metadata=metadata,
    )
    assessment.assessment_id = score_id(trace_id, scorer)
    return assessment


def scored_pair(assessment: Any) -> tuple[str, str] | None:
    """`(name, version)` of a valid score of a registered scorer; None for what people or the agent itself said."""
    version = (assessment.metadata or {}).get(SCORER_VERSION)
    return (assessment.name, version) if version and is_score(assessment) else None


def is_score(assessment: Any) -> bool:
    """Whether a scorer said it, and it counts."""
    by_scorer = assessment.feedback and assessment.source.source_type in ("CODE", "LLM_JUDGE")
    return bool(by_scorer) and assessment.valid is not False


def scores_of(info: Any) -> frozenset[tuple[str, str, int, bool]]:
    """What scorers said of a trace: name, version (empty where none is noted), when in epoch milliseconds, failed.

    A scorer that named its feedback itself is known by its source, so a score may be here under both names.
    """
    return frozenset(
        (name, (a.metadata or {}).get(SCORER_VERSION) or "", a.create_time_ms or 0, is_error(a))
        for a in info.assessments
        if is_score(a)
        for name in {a.name, a.source.source_id or a.name}
    )


def is_error(assessment: Any) -> bool:
    """Whether the scorer failed."""
    return assessment.feedback.error is not None


def said_by(assessment: Any) -> tuple[Any, str]:
    """Value and message of the error, to tell whether there is anything new to write."""
    error = assessment.feedback.error
    return assessment.feedback.value, error.error_message or "" if error else ""
