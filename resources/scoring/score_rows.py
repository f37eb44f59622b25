"""Answers of scorers as rows of `assessments`.

Lives here: which answer becomes which column.
Add here: something a score has to say in the table.
Not here: ids and errors (`trace_scores.py`), landing rows (`score_table.py`).
"""

from collections.abc import Iterable, Sequence
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

from lifecycle_assets.records import ScorerVersion
from resources.redaction import Redaction, Text
from resources.scoring.trace_scores import Answer, error_text, id_of
from resources.scoring.units import Owing
from resources.tables import arrow_schema
from resources.trace_rows import NOT_APPLICABLE

if TYPE_CHECKING:
    import pyarrow as pa


class Scored(NamedTuple):
    """An answer about a trace, or a session of which it is the first, and when it came (epoch milliseconds)."""

    trace_id: str
    scorer: ScorerVersion
    answer: Answer
    about: Owing
    at_ms: int


def rows_of(day: date, scored: Sequence[Scored], redact: Redaction = ()) -> "pa.Table":
    """The rows, with the columns of `assessments`. What is tried again keeps the time it was first written."""
    import pyarrow as pa

    text, schema, n = Text(redact), arrow_schema("assessments"), len(scored)
    errors = [error_text(one.answer, one.about.former) if one.answer.code else None for one in scored]
    names = [one.scorer.registered_name for one in scored]
    columns = {
        "trace_id": [one.trace_id for one in scored],
        "trace_date": pa.repeat(pa.scalar(day, pa.date32()), n),
        "assessment_id": [id_of(one.trace_id, one.scorer.registered_name, one.scorer.version) for one in scored],
        "name": names,
        "kind": ["feedback"] * n,
        "source_type": ["CODE"] * n,
        "source_id": names,
        "value_number": [one.answer.value for one in scored],
        "value_text": [NOT_APPLICABLE if one.answer.value is None and not one.answer.code else None for one in scored],
        "rationale": [of_session(one.about.size) for one in scored],
        "error": [text.plain(error) if error else None for error in errors],
        "scorer_version": [one.scorer.version for one in scored],
        "valid": [True] * n,
        "created_at": _moments(one.about.created_ms or one.at_ms for one in scored),
        "updated_at": _moments(one.at_ms for one in scored),
    }
    return pa.Table.from_pydict({field.name: columns[field.name] for field in schema}, schema=schema)


def of_session(size: int) -> str | None:
    """How many traces a session had: what tells whether it has grown. None for a score of a trace."""
    return f"{size} trace{'s' if size > 1 else ''}" if size else None


def _moments(at_ms: Iterable[int]) -> "pa.Array":
    import pyarrow as pa

    return pa.array([1000 * one for one in at_ms], pa.timestamp("us", tz="UTC"))
