"""Reading production traces straight from the tracking database, in columns.

Lives here: `DatabaseReader`: pages, who reads them, and joining what is ordinary and what is not.
Add here: a kind of trace that has to be read otherwise.
Not here: queries (`database_sql.py`), columns (`page_columns.py`), rows (`page_rows.py`), connections (`database.py`).

The rows are those of `public_reader.py`. Many traces of a SQLite file are read and converted by a process of its own
while the caller writes; of PostgreSQL by a thread. Traces whose spans are not in the database are read by MLflow.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.arrow_compute import compute
from resources.platform import Platform
from resources.reading import database_sql
from resources.reading.database import Database
from resources.reading.database_changes import digests, touched
from resources.reading.page_columns import Page, elsewhere, page_columns, read_stored
from resources.reading.page_rows import rows
from resources.reading.public_reader import PublicReader
from resources.reading.row_batches import oldest_first
from resources.reading.span_columns import SpanColumns
from resources.reading.sqlite_database import SqliteDatabase
from resources.reading.stored_traces import Stored, infos, spans
from resources.reading.trace_reader import Batch, Filed, Listing, Marks, Touched, TraceReader
from resources.redaction import Redaction

if TYPE_CHECKING:
    import pyarrow as pa

Ids = list[str]

_PAGE = 250  # Twice as many take 20 MB more, here and in the process that reads, and a tenth less of its time.
_FILED_PAGE = 320  # As many more as two processes of 120 MB allow: each 50 take 3 MB, and save a fiftieth of the time.
_HEADS_PAGE = 2_000
_SCORED_PAGE = 200
_FEW = 1_000  # Traces that are read before another process has started.


class DatabaseReader(TraceReader):
    """Reads traces from SQLite or PostgreSQL with connections that cannot write."""

    cheap_listing = 2_000
    page_size = _PAGE

    def __init__(self, platform: Platform, database: Database, experiment_id: str, revision: str) -> None:
        self._platform, self._database = platform, database
        self._experiment_id, self._revision = experiment_id, revision
        self._public = PublicReader(platform, experiment_id)
        self.files_from = _FEW + 1 if isinstance(database, SqliteDatabase) else None

    def state(self) -> int:
        """See `TraceReader.state`."""
        return self._database.state()

    def list(self, since_ms: int, until_ms: int, *, settled_before_ms: int) -> Listing:
        """See `TraceReader.list`; one query."""
        pc = compute()

        query = database_sql.listing(self._database, int(self._experiment_id), int(since_ms), int(until_ms))
        found = self._database.query(query)
        self._database.require(self._revision)
        settled = found.filter(pc.less(found.column("ended_ms"), settled_before_ms))
        listed = oldest_first(settled.select(["trace_id", "request_ms"]))
        return Listing(listed, found.num_rows - settled.num_rows, settled.select(["trace_id", "ended_ms"]))

    def touched(self, since_ms: int, until_ms: int, marks: Marks) -> Touched:
        """See `TraceReader.touched`."""
        return touched(self._database, int(self._experiment_id), int(since_ms), int(until_ms), marks)

    def digests(self, listing: "pa.Table") -> Sequence[int] | None:
        """See `TraceReader.digests`; one query."""
        return digests(self._database, int(self._experiment_id), listing.column("trace_id").to_pylist())

    def heads(self, listing: "pa.Table", *, redact: Redaction = ()) -> Iterator[Batch]:
        """See `TraceReader.heads`."""
        return self._read(listing, _HEADS_PAGE, redact, with_spans=False)

    def batches(self, listing: "pa.Table", *, redact: Redaction = ()) -> Iterator[Batch]:
        """See `TraceReader.batches`."""
        return self._read(listing, _PAGE, redact, with_spans=True)

    def filed(self, listings: "Sequence[pa.Table]", folders: Mapping[str, Path]) -> Iterator[Filed]:
        """See `TraceReader.filed`; only of a SQLite file."""
        from resources.reading.sqlite_files import write_files

        assert isinstance(self._database, SqliteDatabase)
        ids = [listing.column("trace_id") for listing in listings]
        made = write_files(self._database, self._experiment_id, self._revision, ids, folders, page=_FILED_PAGE)
        for one, listing in zip(made, listings, strict=True):
            odd = listing.take(one.odd)
            asked, began = (odd.column(name).to_pylist() for name in ("trace_id", "request_ms"))
            yield Filed(one.files, one.heads, one.assessments, self._apart(asked, began, with_spans=True))

    def _read(self, listing: "pa.Table", size: int, redact: Redaction, *, with_spans: bool) -> Iterator[Batch]:
        parts = [listing.slice(start, size) for start in range(0, listing.num_rows, size)]
        ids, starts = ([part.column(name).to_pylist() for part in parts] for name in ("trace_id", "request_ms"))
        if redact:  # Rules meet each text as it was said.
            for asked, began in zip(ids, starts, strict=True):
                yield rows(self._stored(asked, with_spans), began, self._experiment_id, self._public, redact)
            return
        yield from map(self._whole, self._pages(ids, with_spans=with_spans), ids, starts)  # Which holds no page.

    def _pages(self, ids: Sequence[Ids], *, with_spans: bool) -> Iterator[Page]:
        """Pages of these ids."""
        many = sum(map(len, ids)) > _FEW
        if many and isinstance(self._database, SqliteDatabase):
            from resources.reading.sqlite_pages import read_pages

            yield from read_pages(self._database, self._experiment_id, self._revision, ids, with_spans=with_spans)
            return
        made = SpanColumns()
        if len(ids) < 2:
            for one in ids:
                yield page_columns(self._stored(one, with_spans, copies=False), self._experiment_id, made)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="traces") as ahead:
            waiting = ahead.submit(self._stored, ids[0], with_spans, copies=False)
            for following in [*ids[1:], None]:
                stored = waiting.result()
                if following is not None:
                    waiting = ahead.submit(self._stored, following, with_spans, copies=False)
                yield page_columns(stored, self._experiment_id, made)

    def _whole(self, page: Page, ids: Ids, starts: Sequence[int]) -> Batch:
        """A page with its odd traces, made into rows by themselves, in the order of the listing."""
        odd, began = [ids[nth] for nth in page.odd], [starts[nth] for nth in page.odd]
        apart = self._apart(odd, began, with_spans=page.spans is not None)
        if apart is None:
            return Batch(page.traces, page.assessments, page.spans)
        return Batch(
            _in_order(page.traces, apart.traces, ids),
            _joined(page.assessments, apart.assessments),
            None if page.spans is None or apart.spans is None else _joined(page.spans, apart.spans),
            apart.quarantined,
        )

    def _apart(self, odd: Ids, starts: Sequence[int], *, with_spans: bool) -> Batch | None:
        """The rows of odd traces; None without any."""
        if not odd:
            return None
        return rows(self._stored(odd, with_spans), starts, self._experiment_id, self._public)

    def _stored(self, ids: Ids, with_spans: bool, *, copies: bool = True) -> Stored:
        """What is stored of these traces. Raises `Refused` when MLflow was upgraded meanwhile."""
        stored = read_stored(self._database, self._experiment_id, ids, with_spans=with_spans, copies=copies)
        self._database.require(self._revision)
        return stored

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Any]:
        """See `TraceReader.traces`."""
        for start in range(0, len(trace_ids), _SCORED_PAGE):
            yield from self._entities(list(trace_ids[start : start + _SCORED_PAGE]))

    def _entities(self, trace_ids: Ids) -> Iterator[Any]:
        stored = self._stored(trace_ids, with_spans=True)
        from mlflow.entities import Trace, TraceData

        found, held = infos(stored, self._experiment_id), spans(stored.spans)
        away = elsewhere(stored)
        for nth, trace_id in enumerate(trace_ids):
            failed = next((one for one in (found.get(nth), held.get(nth)) if isinstance(one, Exception)), None)
            if nth in away or failed is not None:
                yield from self._public.traces([trace_id])  # Which says what is wrong with it.
            elif nth in found:
                yield Trace(found[nth], TraceData(spans=held.get(nth, [])))


def _joined(made: "pa.Table", apart: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    return pa.concat_tables([made, apart]) if apart.num_rows else made


def _in_order(made: "pa.Table", apart: "pa.Table", ids: Ids) -> "pa.Table":
    import pyarrow as pa

    pc = compute()

    whole = _joined(made, apart)
    return whole.take(pc.sort_indices(pc.index_in(whole.column("trace_id"), pa.array(ids, pa.string()))))
