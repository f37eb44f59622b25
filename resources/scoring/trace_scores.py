"""Scores as rows of `assessments` and as MLflow assessments, and how they are known again.

Lives here: the id, the row and the MLflow form of what a scorer said, and which errors are owed again.
Add here: something every score has to say.
Not here: writing rows (`score_table.py`), writing to MLflow (`publisher.py`), labels of people (`labeling_desk.py`).
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from lifecycle_assets.records import ScorerVersion
from resources.trace_rows import NOT_APPLICABLE, OUTCOME, SCORER_VERSION

UNAVAILABLE, TIMEOUT, FAILED = "SCORER_UNAVAILABLE", "SCORER_TIMEOUT", "SCORER_ERROR"
"""Codes of an error: what the scorer asks did not answer, or not in time; anything else."""

TRANSIENT = (UNAVAILABLE, TIMEOUT)
"""Codes of errors that may pass by themselves: such a score is owed again. All others stay."""

OWED_AGAIN_SQL = " OR ".join(f"starts_with(error, '{code}:')" for code in TRANSIENT)
"""Condition over the column `error`: the score is owed again."""

MAX_TRIES = 5
"""Runs that try a score; the last error of so many is no longer transient."""

SESSION = "mlflow.trace.session"
"""Metadata key: the session a trace belongs to, or a score is about."""

DIGEST = "lifecycle.scorer_digest"
"""Metadata key of a score: digest of the scorer's source."""

_TRIES = re.compile(r" \(try (\d{1,3})\)$")
_MESSAGE_CHARS = 500


@dataclass(frozen=True)
class Answer:
    """What a scorer said of one trace or session: a number, nothing (not applicable), or an error with its code."""

    value: float | None = None
    code: str = ""
    message: str = ""


def score_id(trace_id: str, scorer: ScorerVersion) -> str:
    """The id of the one assessment a scorer's version may have on a trace."""
    return id_of(trace_id, scorer.registered_name, scorer.version)


def id_of(trace_id: str, name: str, version: str) -> str:
    """See `score_id`."""
    return "a-" + hashlib.sha256(f"{trace_id}|{name}|{version}".encode()).hexdigest()[:32]


def error_text(answer: Answer, former: str | None = None) -> str | None:
    """The column `error` of an answer after the error `former`; None without an error.

    A transient error counts its tries; the one of the last try no longer is transient.
    """
    if not answer.code:
        return None
    message = answer.message.encode("utf-8", "replace").decode().replace("\x00", " ")[:_MESSAGE_CHARS]
    if answer.code not in TRANSIENT:
        return f"{answer.code}: {message}"
    tries = tries_of(former) + 1
    if tries >= MAX_TRIES:
        return f"{FAILED}: given up after {tries} tries: {message}"
    return f"{answer.code}: {message}" + (f" (try {tries})" if tries > 1 else "")


def tries_of(error: str | None) -> int:
    """Tries a transient error stands for; 0 for none and for another error."""
    if not is_transient(error):
        return 0
    found = _TRIES.search(error or "")
    return int(found[1]) if found else 1


def is_transient(error: str | None) -> bool:
    """Whether the score is owed again."""
    return bool(error) and error.partition(":")[0] in TRANSIENT


def feedback_of(row: Mapping[str, Any], *, digest: str = "", session: str = "") -> Any:
    """The MLflow feedback that says what a row of `assessments` says, under its id and with its times."""
    from mlflow.entities import AssessmentError, Feedback

    value, error = row["value_number"], row["error"]
    metadata = {SCORER_VERSION: row["scorer_version"]}
    # Metadata is merged when an error gives way, so the outcome is always said.
    metadata[OUTCOME] = "error" if error else NOT_APPLICABLE if value is None else "value"
    metadata.update({DIGEST: digest} if digest else {})
    metadata.update({SESSION: session} if session else {})
    code, _, message = (error or "").partition(": ")
    feedback = Feedback(
        name=row["name"],
        value=None if error else value,
        error=AssessmentError(code, message) if error else None,
        source=_source(row["source_type"], row["source_id"]),
        trace_id=row["trace_id"],
        metadata=metadata,
        rationale=row["rationale"],
        create_time_ms=_milliseconds(row["created_at"]),
        last_update_time_ms=_milliseconds(row["updated_at"]),
    )
    feedback.assessment_id = row["assessment_id"]
    return feedback


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


@cache
def _source(kind: str, name: str) -> Any:
    """MLflow looks a kind up each time one is made, which takes longer than all the rest."""
    from mlflow.entities import AssessmentSource

    return AssessmentSource(source_type=kind, source_id=name)


def _milliseconds(moment: Any) -> int:
    return round(moment.timestamp() * 1000)
