"""From stored assessments to the columns of `assessments`, many at a time.

Lives here: the columns of a page, and telling which assessments are out of the ordinary.
Add here: a further kind of value that need not be read by MLflow.
Not here: the rows of single assessments (`trace_rows.py`), reading (`database_sql.py`).

What is made here is what `trace_rows.assessment_row` makes of the same assessment; what is odd is left to it.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from resources.arrow_compute import compute
from resources.reading.head_columns import LATEST_MS
from resources.reading.row_batches import UNREADABLE
from resources.tables import arrow_schema
from resources.trace_rows import NOT_APPLICABLE, OUTCOME, SCORER_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

Value = tuple[float | None, str | None, str | None]

_SOURCES = ("HUMAN", "LLM_JUDGE", "CODE", "SOURCE_TYPE_UNSPECIFIED")
_KINDS = ("feedback", "expectation")
_NUMBER = re.compile(r"-?[0-9]{1,15}([.][0-9]{1,15})?")
_TEXT = re.compile(r'"[^"\\\x00-\x1f]*"')


def assessment_columns(stored: "pa.Table", heads: "pa.Table") -> "tuple[pa.Table, set[int]]":
    """Columns of `assessments` with `nth`, and the places of traces with an odd one; issues are left out.

    `heads` are the columns of the traces that are there, with `nth`.
    """
    import pyarrow as pa

    pc = compute()

    at = pc.index_in(stored.column("nth"), heads.column("nth").combine_chunks())
    kept = pc.and_(pc.is_valid(at), pc.invert(_issues(stored)))
    if not pc.all(kept).as_py():
        stored, at = stored.filter(kept), at.filter(kept)
    said = {name: stored.column(name) for name in stored.column_names}
    values = list(map(_value, said["value"].to_pylist(), said["assessment_metadata"].to_pylist()))
    sound = pa.chunked_array([pa.array([one is not None for one in values], pa.bool_())])
    for good in (
        pc.is_null(said["error"]),
        pc.is_in(said["assessment_type"], value_set=pa.array(_KINDS, pa.string())),
        pc.is_in(said["source_type"], value_set=pa.array(_SOURCES, pa.string())),
        _dated(said["created_timestamp"]),
        _dated(said["last_updated_timestamp"]),
    ):
        sound = pc.and_(sound, good)
    odd = set(said["nth"].filter(pc.invert(sound)).to_pylist())
    numbers, words, versions = ([one and one[place] for one in values] for place in range(3))
    moment = pa.timestamp("us", tz="UTC")
    said |= {
        "trace_date": heads.column("trace_date").take(at),
        "kind": said["assessment_type"],
        "value_number": pa.array(numbers, pa.float64()),
        "value_text": pa.array(words, pa.string()),
        "error": pa.nulls(len(values), pa.string()),
        "scorer_version": pa.array(versions, pa.string()),
        "valid": pc.fill_null(pc.not_equal(said["valid"], 0), True),
        "created_at": pc.multiply(pc.if_else(sound, said["created_timestamp"], 0), 1000).cast(moment),
        "updated_at": pc.multiply(pc.if_else(sound, said["last_updated_timestamp"], 0), 1000).cast(moment),
    }
    schema = pa.schema([*arrow_schema("assessments"), pa.field("nth", pa.int64())])
    return pa.Table.from_arrays([said[name] for name in schema.names], schema=schema), odd


def _dated(moments: "pa.ChunkedArray") -> Any:
    """Which of these are dates, in milliseconds."""
    pc = compute()

    dated = pc.and_(pc.greater_equal(moments, 1), pc.less_equal(moments, LATEST_MS))
    return pc.fill_null(dated, False)


def _value(value: str | None, described: str | None) -> Value | None:
    """Number, text and the scorer's version of an ordinary assessment; None for an odd one."""
    metadata: Any = {}
    if described is not None:
        try:
            metadata = json.loads(described)
        except UNREADABLE:
            return None
        if metadata.__class__ is not dict or not all(
            isinstance(metadata.get(key, ""), str) for key in (SCORER_VERSION, OUTCOME)
        ):
            return None
    number, words = None, None
    if value in ("true", "false"):
        number = float(value == "true")
    elif value is None:
        return None
    elif _NUMBER.fullmatch(value):
        number = float(value)
    elif _TEXT.fullmatch(value):
        words = value[1:-1]
    elif value != "null":
        return None
    elif metadata.get(OUTCOME) == NOT_APPLICABLE:
        words = NOT_APPLICABLE
    return number, words, metadata.get(SCORER_VERSION)


def _issues(stored: "pa.Table") -> Any:
    """Which of these refer to an issue, which is neither feedback nor expectation."""
    import pyarrow as pa

    pc = compute()

    named = pc.fill_null(pc.equal(stored.column("assessment_type"), "issue"), False)
    if not pc.any(named).as_py():
        return named
    pairs = zip(named.to_pylist(), stored.column("value").to_pylist(), strict=True)
    return pa.chunked_array([pa.array([one and _is_json(value) for one, value in pairs], pa.bool_())])


def _is_json(value: Any) -> bool:
    try:
        json.loads(value)
    except UNREADABLE:
        return False
    return True
