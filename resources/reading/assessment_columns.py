"""From stored assessments to the columns of `assessments`, many at a time.

Lives here: the columns of a page, and telling which assessments are out of the ordinary.
Add here: a further kind of value that need not be read by MLflow.
Not here: the rows of single assessments (`trace_rows.py`), reading (`database_sql.py`).

What is made here is what `trace_rows.assessment_row` makes of the same assessment; what is odd is left to it.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from resources.reading.head_columns import LATEST_MS
from resources.reading.row_batches import UNREADABLE
from resources.tables import arrow_schema
from resources.trace_rows import NOT_APPLICABLE, OUTCOME, SCORER_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

_SOURCES = ("HUMAN", "LLM_JUDGE", "CODE", "SOURCE_TYPE_UNSPECIFIED")
_KINDS = ("feedback", "expectation")
_NUMBER = re.compile(r"-?[0-9]{1,15}([.][0-9]{1,15})?")
_TEXT = re.compile(r'"[^"\\\x00-\x1f]*"')


def assessment_columns(stored: "pa.Table", heads: "pa.Table") -> "tuple[pa.Table, set[int]]":
    """Columns of `assessments` with `nth`, and the places of traces with an odd one; issues are left out.

    `heads` are the columns of the traces that are there, with `nth`.
    """
    import pyarrow as pa

    days = dict(zip(heads.column("nth").to_pylist(), heads.column("trace_date").to_pylist(), strict=True))
    schema = pa.schema([*arrow_schema("assessments"), pa.field("nth", pa.int64())])
    rows: list[dict[str, Any]] = []
    odd: set[int] = set()
    for said in stored.to_pylist():
        nth = said["nth"]
        if nth not in days or nth in odd or _is_issue(said):
            continue
        row = _row(said)
        if row is None:
            odd.add(nth)
        else:
            rows.append({**row, "trace_date": days[nth], "nth": nth})
    names = schema.names
    arrays = [pa.array([row[name] for row in rows], schema.field(name).type) for name in names]
    return pa.Table.from_arrays(arrays, schema=schema), odd


def _row(said: dict[str, Any]) -> dict[str, Any] | None:
    """The row of an ordinary assessment, None for an odd one; times are microseconds."""
    metadata: Any = {}
    if said["assessment_metadata"] is not None:
        try:
            metadata = json.loads(said["assessment_metadata"])
        except UNREADABLE:
            return None
    created, updated = said["created_timestamp"], said["last_updated_timestamp"]
    value = said["value"]
    if (
        metadata.__class__ is not dict
        or not all(isinstance(metadata.get(key, ""), str) for key in (SCORER_VERSION, OUTCOME))
        or said["error"] is not None
        or value is None
        or said["assessment_type"] not in _KINDS
        or said["source_type"] not in _SOURCES
        or not all(moment is not None and 1 <= moment <= LATEST_MS for moment in (created, updated))
    ):
        return None
    number, words = None, None
    if value in ("true", "false"):
        number = float(value == "true")
    elif _NUMBER.fullmatch(value):
        number = float(value)
    elif _TEXT.fullmatch(value):
        words = value[1:-1]
    elif value != "null":
        return None
    elif metadata.get(OUTCOME) == NOT_APPLICABLE:
        words = NOT_APPLICABLE
    return {
        "trace_id": said["trace_id"],
        "assessment_id": said["assessment_id"],
        "name": said["name"],
        "kind": said["assessment_type"],
        "source_type": said["source_type"],
        "source_id": said["source_id"],
        "value_number": number,
        "value_text": words,
        "rationale": said["rationale"],
        "error": None,
        "scorer_version": metadata.get(SCORER_VERSION),
        "valid": said["valid"] != 0,
        "created_at": created * 1000,
        "updated_at": updated * 1000,
    }


def _is_issue(said: dict[str, Any]) -> bool:
    """Whether it refers to an issue, which is neither feedback nor expectation."""
    if said["assessment_type"] != "issue":
        return False
    try:
        json.loads(said["value"])
    except UNREADABLE:
        return False
    return True
