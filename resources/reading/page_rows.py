"""One page of stored traces as a batch of the archive: the ordinary in columns, the rest row by row.

Lives here: deciding which trace goes which way, and joining the ways.
Add here: a further reason why a trace is not ordinary.
Not here: the ways themselves (`head_columns.py`, `span_columns.py`, `trace_rows.py`, `public_reader.py`).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from resources.arrow_compute import compute
from resources.reading import stored_traces
from resources.reading.database_sql import SPANS_AT
from resources.reading.head_columns import assessment_columns, trace_columns
from resources.reading.public_reader import PublicReader
from resources.reading.row_batches import UNREADABLE, batch_of, rows_or_why, unreadable
from resources.reading.span_columns import SpanColumns
from resources.reading.stored_traces import Stored
from resources.reading.trace_reader import Batch, Quarantined
from resources.redaction import Redaction, Text
from resources.tables import arrow_schema, arrow_table
from resources.trace_rows import assessment_row, day_of, span_row

if TYPE_CHECKING:
    import pyarrow as pa

    Table = pa.Table

Odd = Callable[["pa.Table"], tuple[list[int], list[dict[str, Any]]]]
"""Makes rows of what is out of the ordinary: places of their traces, and the rows."""


class PageRows:
    """The rows of one page: `stored` is what the database holds of it, `starts` are the starts of its traces."""

    def __init__(self, stored: Stored, starts: Sequence[int], experiment_id: str, public: PublicReader) -> None:
        self._stored, self._starts = stored, starts
        self._experiment_id, self._public = experiment_id, public
        self._text = Text(())
        self._lost: dict[int, str] = {}

    def columns(self, made: SpanColumns) -> Batch:
        """Ordinary traces in columns, others by themselves."""
        import pyarrow as pa

        heads, alone = trace_columns(self._stored, self._experiment_id)
        alone = (alone | elsewhere(self._stored)) & set(heads.column("nth").to_pylist())
        said = assessment_columns(self._stored, made.connection)
        said = _whole("assessments", said, heads, self._stored.assessments, self._odd_assessments)
        held = self._stored.spans
        if held is not None:
            held = _whole("spans", made.of(held), heads, held, self._odd_spans)
        traces = _answered(heads, self._stored.heads, held)
        for nth in alone:  # Whose stored spans say nothing.
            self._lost.pop(nth, None)
        apart = self.rows(sorted(alone), ())
        gone = pa.array(sorted(alone | set(self._lost)), pa.int64())
        return Batch(
            traces=_joined("traces", traces, gone, apart.traces),
            assessments=_joined("assessments", said, gone, apart.assessments),
            spans=None if held is None or apart.spans is None else _joined("spans", held, gone, apart.spans),
            quarantined=(*self._quarantined(self._lost), *apart.quarantined),
        )

    def redacted(self, redact: Redaction) -> Batch:
        """Every trace by itself: rules meet each text as it was said."""
        return self.rows(sorted(self._stored.heads.column("nth").to_pylist()), redact)

    def rows(self, places: Sequence[int], redact: Redaction) -> Batch:
        """Traces of these places by `trace_rows`, those whose spans are elsewhere through MLflow."""
        import pyarrow as pa

        rows, lost, text = [], {}, Text(redact)
        if places:
            some = self._stored.only(pa.array(places, pa.int64()))
            infos, away = stored_traces.infos(some, self._experiment_id), elsewhere(some)
            spans = {} if some.spans is None else stored_traces.span_dicts(some.spans)
            for nth in places:
                found: Any = (infos[nth], _listed(spans.get(nth)))
                failed = next((one for one in (infos[nth], spans.get(nth)) if isinstance(one, Exception)), None)
                if nth in away:
                    found = self._public.fetch.parts(self._stored.ids[nth])
                elif failed is not None:
                    found = unreadable(failed)
                made = rows_or_why(*found, text) if isinstance(found, tuple) else found
                if isinstance(made, str):
                    lost[nth] = made
                elif made is not None:
                    rows.append(made)
        return batch_of(rows, with_spans=self._stored.spans is not None, quarantined=self._quarantined(lost))

    def _quarantined(self, lost: dict[int, str]) -> tuple[Quarantined, ...]:
        return tuple(Quarantined(self._stored.ids[nth], self._starts[nth], lost[nth]) for nth in sorted(lost))

    def _odd_spans(self, odd: "pa.Table") -> tuple[list[int], list[dict[str, Any]]]:
        return self._odd_rows(stored_traces.span_dicts(odd), span_row)

    def _odd_assessments(self, odd: "pa.Table") -> tuple[list[int], list[dict[str, Any]]]:
        return self._odd_rows(stored_traces.assessments(odd), assessment_row)

    def _odd_rows(self, found: dict[int, Any], row_of: Callable[..., Any]) -> tuple[list[int], list[dict[str, Any]]]:
        places, rows = [], []
        for nth, entities in found.items():
            try:
                if isinstance(entities, Exception):
                    raise entities
                trace_id, day = self._stored.ids[nth], day_of(self._starts[nth])
                made = [row for one in entities if (row := row_of(trace_id, day, one, self._text))]
            except UNREADABLE as error:
                self._lost[nth] = unreadable(error)
                continue
            places += [nth] * len(made)
            rows += made
        return places, rows


def elsewhere(stored: Stored) -> set[int]:
    """Places of traces whose spans MLflow does not keep in the database, or moved away while we read."""
    pc = compute()

    if stored.spans is None:
        return set()
    tags, known = stored.tags, set(stored.heads.column("nth").to_pylist())
    here = pc.and_(pc.equal(tags.column("key"), SPANS_AT), pc.equal(tags.column("value"), "TRACKING_STORE"))
    moved = stored.spans.filter(pc.equal(stored.spans.column("content"), ""))
    return (known - set(tags.filter(here).column("nth").to_pylist())) | (set(moved.column("nth").to_pylist()) & known)


def _whole(table: str, ordinary: "Table", heads: "Table", stored: "Table", odd_rows: Odd) -> "Table":
    """Columns of `table` with `nth` and `start_ns`, for traces that are there: ordinary rows, then odd ones."""
    import pyarrow as pa

    pc = compute()

    at = pc.index_in(ordinary.column("nth"), heads.column("nth").combine_chunks())
    there = pc.is_valid(at)
    odd = pc.and_(ordinary.column("odd"), there)
    plain = pc.and_(pc.invert(ordinary.column("odd")), there)
    kept = ordinary
    if not pc.all(plain).as_py():
        kept, at = ordinary.filter(plain), at.filter(plain)
    known = {name: kept.column(name) for name in kept.column_names}
    known |= {name: heads.column(name).take(at) for name in ("trace_id", "trace_date")}
    schema = arrow_schema(table)
    beside = ["nth", "start_ns"] if table == "spans" else ["nth"]
    fields = [*schema, *(pa.field(name, pa.int64()) for name in beside)]
    made = pa.Table.from_arrays([known[field.name].cast(field.type) for field in fields], schema=pa.schema(fields))
    places, rows = odd_rows(stored.filter(odd)) if pc.any(odd).as_py() else ([], [])
    if not rows:
        return made
    more = arrow_table(table, rows).append_column("nth", pa.array(places, pa.int64()))
    if table == "spans":
        more = more.append_column("start_ns", pc.multiply(more.column("start_time").cast(pa.int64()), 1000))
    return pa.concat_tables([made, more.cast(made.schema)])


def _answered(heads: "Table", stored: "Table", spans: "Table | None") -> "Table":
    """Columns of `traces` with `nth`: with the root's inputs and outputs, or the previews MLflow kept of them."""
    import pyarrow as pa

    pc = compute()

    columns = {name: heads.column(name) for name in heads.column_names}
    nothing = pa.nulls(heads.num_rows)
    columns |= dict.fromkeys(("request", "response"), nothing.cast(pa.string()))
    columns["archived_at"] = nothing
    if spans is not None:
        roots = spans.filter(pc.is_null(spans.column("parent_span_id")))
        roots = roots.select(["nth", "start_ns", "span_id", "inputs", "outputs"])
        roots = roots.sort_by([("nth", "ascending"), ("start_ns", "ascending"), ("span_id", "ascending")])
        at = pc.index_in(heads.column("nth"), roots.column("nth").combine_chunks())
        previews = stored.sort_by("nth")
        for name, of in (("request", "inputs"), ("response", "outputs")):
            columns[name] = pc.coalesce(roots.column(of).take(at), previews.column(f"{name}_preview"))
    schema = pa.schema([*arrow_schema("traces"), pa.field("nth", pa.int64())])
    return pa.Table.from_arrays([columns[field.name].cast(field.type) for field in schema], schema=schema)


def _joined(table: str, made: "Table", gone: "pa.Array", apart: "Table") -> "Table":
    """Rows in columns without those of some traces, and rows made apart, with the table's columns."""
    import pyarrow as pa

    pc = compute()

    kept = made.filter(pc.invert(pc.is_in(made.column("nth"), gone))) if len(gone) else made
    schema = arrow_schema(table)
    return (
        pa.concat_tables([kept.select(schema.names).cast(schema), apart])
        if apart.num_rows
        else kept.select(schema.names).cast(schema)
    )


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []
