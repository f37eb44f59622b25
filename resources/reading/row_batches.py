"""Rows and listings as Arrow tables of a reader.

Lives here: what both readers hand to the archive, and why a trace is not among it.
Add here: nothing but a further shape a reader answers in.
Not here: columns and types (`tables.py`), which field becomes which column (`trace_rows.py`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from resources.reading.trace_reader import Batch, Quarantined
from resources.redaction import Text
from resources.tables import arrow_table
from resources.trace_rows import TraceRows, rows_of

if TYPE_CHECKING:
    import pyarrow as pa

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What is raised while a trace is read that is not what MLflow writes."""


def unreadable(error: BaseException) -> str:
    """Why a trace is quarantined, in one sentence."""
    said = " ".join(str(error).split())[:200].rstrip(". ")
    return f"its spans or assessments cannot be read ({type(error).__name__}: {said})"


def rows_or_why(info: Any, spans: Sequence[Any], text: Text) -> TraceRows | str:
    """The rows of a trace, or why there are none, in one sentence."""
    try:
        return rows_of(info, spans, text)
    except UNREADABLE as error:
        return unreadable(error)


def listing_of(ids: Sequence[str], starts_ms: Sequence[int]) -> "pa.Table":
    """A listing: ids and the starts of their traces, oldest first, ties by id."""
    import pyarrow as pa

    made = pa.table({"trace_id": pa.array(ids, pa.string()), "request_ms": pa.array(starts_ms, pa.int64())})
    return oldest_first(made)


def oldest_first(listing: "pa.Table") -> "pa.Table":
    """A listing in its order: by start, ties by id."""
    return listing.sort_by([("request_ms", "ascending"), ("trace_id", "ascending")])


def batch_of(rows: Sequence[TraceRows], *, with_spans: bool = True, quarantined: tuple[Quarantined, ...] = ()) -> Batch:
    """Rows of traces as a batch; `request` and `response`, which are a span's, are null without spans."""
    heads = [row.trace if with_spans else {**row.trace, "request": None, "response": None} for row in rows]
    return Batch(
        traces=arrow_table("traces", heads),
        assessments=arrow_table("assessments", [said for row in rows for said in row.assessments]),
        spans=arrow_table("spans", [span for row in rows for span in row.spans]) if with_spans else None,
        quarantined=quarantined,
    )


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches with spans as one, in their order."""
    if len(batches) == 1:
        return batches[0]
    import pyarrow as pa

    return Batch(
        pa.concat_tables([one.traces for one in batches]),
        pa.concat_tables([one.assessments for one in batches]),
        pa.concat_tables([one.spans for one in batches if one.spans is not None]),
        tuple(lost for one in batches for lost in one.quarantined),
    )
