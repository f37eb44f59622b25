"""Reading production traces straight from the tracking database, in columns.

Lives here: `DatabaseReader`: pages, threads, and putting together what is ordinary and what is not.
Add here: a kind of trace that has to be read otherwise.
Not here: queries (`database_sql.py`), columns (`span_columns.py`, `head_columns.py`), connections (`database.py`).

The rows are those of `public_reader.py`. Two threads read and convert ahead while the caller writes: both databases'
drivers and DuckDB work outside of Python's lock. Traces whose spans are not in the database are read by MLflow.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from resources.arrow_compute import compute
from resources.platform import Platform
from resources.reading import database_sql
from resources.reading.database import Database
from resources.reading.database_changes import touched
from resources.reading.page_rows import PageRows, elsewhere
from resources.reading.public_reader import PublicReader
from resources.reading.row_batches import listing_of
from resources.reading.span_columns import SpanColumns
from resources.reading.stored_traces import Stored, infos, spans
from resources.reading.trace_reader import Batch, Listing, Marks, Touched, TraceReader
from resources.redaction import Redaction

if TYPE_CHECKING:
    import pyarrow as pa

_PAGE = 600  # Traces in memory at once, of some 25 KB each, and as many in each thread.
_HEADS_PAGE = 2_000
_SCORED_PAGE = 200
_THREADS = 2


class DatabaseReader(TraceReader):
    """Reads traces from SQLite or PostgreSQL with a connection that cannot write."""

    cheap_listing = 2_000

    def __init__(self, platform: Platform, database: Database, experiment_id: str, revision: str) -> None:
        self._platform, self._database = platform, database
        self._experiment_id, self._revision = experiment_id, revision
        self._public = PublicReader(platform, experiment_id)
        self._own = threading.local()

    def state(self) -> int:
        """See `TraceReader.state`."""
        return self._database.state()

    def list(self, since_ms: int, until_ms: int, *, settled_before_ms: int) -> Listing:
        """See `TraceReader.list`; one query."""
        pc = compute()

        query = database_sql.listing(self._database, int(self._experiment_id), int(since_ms), int(until_ms))
        found = self._database.query(query)
        self._still_known(self._database)
        settled = found.filter(pc.less(found.column("ended_ms"), settled_before_ms))
        listed = listing_of(settled.column("trace_id"), settled.column("request_ms"))
        return Listing(listed, found.num_rows - settled.num_rows, settled.select(["trace_id", "ended_ms"]))

    def touched(self, since_ms: int, until_ms: int, marks: Marks) -> Touched:
        """See `TraceReader.touched`."""
        return touched(self._database, int(self._experiment_id), int(since_ms), int(until_ms), marks)

    def heads(self, listing: "pa.Table", *, redact: Redaction = ()) -> Iterator[Batch]:
        """See `TraceReader.heads`."""
        return self._read(listing, _HEADS_PAGE, redact, with_spans=False)

    def batches(self, listing: "pa.Table", *, redact: Redaction = ()) -> Iterator[Batch]:
        """See `TraceReader.batches`."""
        return self._read(listing, _PAGE, redact, with_spans=True)

    def _read(self, listing: "pa.Table", size: int, redact: Redaction, *, with_spans: bool) -> Iterator[Batch]:
        pages = (listing.slice(start, size) for start in range(0, listing.num_rows, size))
        if listing.num_rows <= size:
            yield from (self._page(self._database, SpanColumns(), page, redact, with_spans) for page in pages)
            return

        def page_of(page: "pa.Table") -> Batch:
            if not hasattr(self._own, "database"):
                self._own.database, self._own.columns = self._database.again(), SpanColumns()
                opened.append(self._own.database)
            return self._page(self._own.database, self._own.columns, page, redact, with_spans)

        opened: list[Database] = []
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="traces")
        try:
            waiting = deque(pool.submit(page_of, page) for page in islice(pages, _THREADS + 1))
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(pool.submit(page_of, page) for page in islice(pages, 1))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
            self._own = threading.local()
            for database in opened:
                database.close()

    def _page(
        self, database: Database, columns: SpanColumns, page: "pa.Table", redact: Redaction, with_spans: bool
    ) -> Batch:
        stored = self._stored(database, page.column("trace_id").to_pylist(), with_spans)
        rows = PageRows(stored, page.column("request_ms").to_pylist(), self._experiment_id, self._public)
        return rows.redacted(redact) if redact else rows.columns(columns)

    def _stored(self, database: Database, ids: Sequence[str], with_spans: bool) -> Stored:
        """What is stored of these traces. Raises `Refused` when MLflow was upgraded meanwhile."""
        import orjson

        asked = (orjson.dumps(list(ids)).decode(),)
        stored = Stored(
            list(ids),
            database.query(database_sql.heads(database, int(self._experiment_id)), asked),
            database.query(database_sql.tags(database), asked),
            database.query(database_sql.metadata(database), asked),
            database.query(database_sql.assessments(database), asked),
            database.query(database_sql.spans(database), asked) if with_spans else None,
        )
        self._still_known(database)
        return stored

    def _still_known(self, database: Database) -> None:
        revision = database.revision()
        if revision != self._revision:
            raise Refused(
                f"{database.where}: MLflow's schema changed from {self._revision} to {revision[:40] or '(none)'} while "
                "traces were read, and nothing read since was written; let the upgrade end, then run again."
            )

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Any]:
        """See `TraceReader.traces`."""
        for start in range(0, len(trace_ids), _SCORED_PAGE):
            yield from self._entities(trace_ids[start : start + _SCORED_PAGE])

    def _entities(self, trace_ids: Sequence[str]) -> Iterator[Any]:
        stored = self._stored(self._database, trace_ids, with_spans=True)
        from mlflow.entities import Trace, TraceData

        found, held = infos(stored, self._experiment_id), spans(stored.spans)
        away = elsewhere(stored)
        for nth, trace_id in enumerate(trace_ids):
            failed = next((one for one in (found.get(nth), held.get(nth)) if isinstance(one, Exception)), None)
            if nth in away or failed is not None:
                yield from self._public.traces([trace_id])  # Which says what is wrong with it.
            elif nth in found:
                yield Trace(found[nth], TraceData(spans=held.get(nth, [])))
