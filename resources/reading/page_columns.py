"""One page of stored traces in the columns of the archive, and who has to be made into rows alone.

Lives here: putting traces, assessments and spans of a page together, and what makes a trace odd.
Add here: a further reason why a trace is not ordinary.
Not here: the columns (`head_columns.py`, `assessment_columns.py`, `span_columns.py`), odd traces (`page_rows.py`).

Nothing here imports MLflow: the process that reads SQLite has none.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resources.arrow_compute import compute
from resources.reading import database_sql
from resources.reading.assessment_columns import assessment_columns
from resources.reading.database import Database
from resources.reading.head_columns import as_field, by_place, trace_columns
from resources.reading.span_columns import SpanColumns
from resources.reading.stored_traces import Stored
from resources.tables import arrow_schema
from resources.trace_rows import COPIES

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Page:
    """The ordinary traces of a page, in its order, and the places of the others; `spans` is None for heads only."""

    traces: "pa.Table"
    assessments: "pa.Table"
    spans: "pa.Table | None"
    odd: list[int]


def read_stored(
    database: Database, experiment_id: str, ids: list[str], *, with_spans: bool, copies: bool = True
) -> Stored:
    """What is stored of these traces; without `copies`, not the metadata that repeats request and response."""
    import orjson

    asked = (orjson.dumps(ids).decode(),)
    return Stored(
        ids,
        database.query(database_sql.heads(database, int(experiment_id)), asked),
        database.query(database_sql.tags(database), asked),
        database.query(database_sql.metadata(database, *(() if copies else COPIES)), asked),
        database.query(database_sql.assessments(database), asked),
        database.query(database_sql.spans(database), asked) if with_spans else None,
    )


def page_columns(stored: Stored, experiment_id: str, made: SpanColumns) -> Page:
    """The columns of a page."""
    pc = compute()

    heads, odd = trace_columns(stored, experiment_id)
    nth = heads.column("nth").combine_chunks()
    said, odd_said = assessment_columns(stored.assessments, heads)
    odd |= odd_said | elsewhere(stored)
    spans = None
    if stored.spans is not None:
        spans = made.of(stored.spans)
        odd |= set(spans.column("nth").filter(spans.column("odd")).to_pylist())
        at = pc.index_in(spans.column("nth"), nth)
        if at.null_count:  # Of traces that came or went in between.
            spans, at = spans.filter(pc.is_valid(at)), at.drop_null()
        for name in ("trace_id", "trace_date"):
            spans = spans.append_column(name, heads.column(name).take(at))
    traces = _answered(heads, stored.heads, spans)
    odd &= set(nth.to_pylist())
    return Page(
        _ordinary("traces", traces, odd),
        _ordinary("assessments", said, odd),
        None if spans is None else _ordinary("spans", spans, odd),
        sorted(odd),
    )


def _ordinary(table: str, made: "pa.Table", odd: set[int]) -> "pa.Table":
    """The columns of a table, without the traces at these places."""
    import pyarrow as pa

    pc = compute()

    if odd:
        made = made.filter(pc.invert(pc.is_in(made.column("nth"), pa.array(sorted(odd), pa.int64()))))
    return made.select(arrow_schema(table).names)


def elsewhere(stored: Stored) -> set[int]:
    """Places of traces whose spans MLflow does not keep in the database, or moved away while we read."""
    pc = compute()

    if stored.spans is None:
        return set()
    tags, known = stored.tags, set(stored.heads.column("nth").to_pylist())
    place = pc.equal(tags.column("key"), database_sql.SPANS_AT)
    here = pc.and_(place, pc.equal(tags.column("value"), "TRACKING_STORE"))
    moved = pc.equal(stored.spans.column("content"), "")
    in_place, gone = (
        set(of.column("nth").filter(which).to_pylist()) for of, which in ((tags, here), (stored.spans, moved))
    )
    return (known - in_place) | (gone & known)


def _answered(heads: "pa.Table", stored: "pa.Table", spans: "pa.Table | None") -> "pa.Table":
    """Columns of `traces` with `nth`: with the root's inputs and outputs, or the previews MLflow kept of them."""
    import pyarrow as pa

    pc = compute()

    columns: dict[str, Any] = {name: heads.column(name) for name in heads.column_names}
    columns |= dict.fromkeys(("request", "response", "archived_at"), pa.nulls(heads.num_rows))
    if spans is not None:
        at, previews = _roots(heads, spans), by_place(stored)
        for name, of in (("request", "inputs"), ("response", "outputs")):
            columns[name] = pc.coalesce(spans.column(of).take(at), previews.column(f"{name}_preview"))
    schema = pa.schema([*arrow_schema("traces"), pa.field("nth", pa.int64())])
    return pa.Table.from_arrays([as_field(columns[field.name], field) for field in schema], schema=schema)


def _roots(heads: "pa.Table", spans: "pa.Table") -> "pa.Array":
    """The row of each trace's root among `spans`, of several the first; null without one."""
    import numpy as np
    import pyarrow as pa

    pc = compute()

    places = np.flatnonzero(pc.is_null(spans.column("parent_span_id")).to_numpy())
    roots = spans.select(["nth", "start_ns", "span_id"]).take(pa.array(places))
    nth = roots.column("nth").to_numpy()
    if not (nth[1:] > nth[:-1]).all():
        order = pc.sort_indices(roots, [("nth", "ascending"), ("start_ns", "ascending"), ("span_id", "ascending")])
        roots, places = roots.take(order), places[order.to_numpy()]
    first = pc.index_in(heads.column("nth"), roots.column("nth").combine_chunks())
    return pa.array(places).take(first.combine_chunks())
