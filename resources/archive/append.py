"""New traces, from the reader into the tables: a stream, a thousand traces a batch.

Lives here: reading ahead in a thread, and the three commits of a batch.
Add here: nothing that looks at rows the tables hold.
Not here: which traces are new (`run.py`), what changed of known ones (`upsert.py`), rows in files (`append_files.py`).

Spans go to the disk while they are read, so memory holds some pages of them however many traces there are. Killed
between two commits, a batch leaves children without their trace; their number, ahead of the one of `traces`, says so.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date
from itertools import islice
from typing import TYPE_CHECKING, cast

from resources.archive.row_changes import without_held
from resources.archive.snapshots import ARCHIVED, ArchiveTables
from resources.archive.utc_days import days_of
from resources.reading.stamp import stamped
from resources.reading.trace_reader import PAGE, Batch, Quarantined, TraceReader
from resources.redaction import Redaction
from resources.tables import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_TRACES = 2 * PAGE
"""Traces of one commit of each table: what a kill may cost, and what delta-rs holds in memory, twice: some 15 MB each.
A reader starts once for all of them if they are pages."""

_AHEAD = 1  # Pages read before they are asked for; the readers read ahead themselves.


@dataclass
class Appended:
    """What a stream of new traces came to: rows by table, ids of the traces, and those that could not be written."""

    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ARCHIVED, 0))
    trace_ids: "list[pa.Array]" = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)


Last = Callable[[Appended, "pa.Table"], tuple[Mapping[date, int], Mapping[str, int]]]
"""What the last commit of traces carries, given all that was appended, these traces among it: batch and notes."""


def append_new(
    tables: ArchiveTables,
    reader: TraceReader,
    listing: "pa.Table",
    redact: Redaction,
    progress: Callable[[int], None],
    last: Last,
) -> Appended:
    """Append the traces of a listing, none of which the tables hold, spans and assessments first.

    `progress` hears how many traces are written so far; `last` is asked before the last commit of traces, unless no
    trace of the last batch made rows. Raises what the reader raises, after whole batches.
    """
    done = Appended()
    parts = [listing.slice(start, BATCH_TRACES) for start in range(0, listing.num_rows, BATCH_TRACES)]
    streams = [(listing, len(parts))] if BATCH_TRACES % reader.page_size == 0 else [(part, 1) for part in parts]
    with _ReadAhead(reader, streams, redact) as pages:
        for part in parts:
            _append_batch(tables, pages.part(), days_of(part), done, last if part is parts[-1] else None)
            progress(done.rows["traces"])
    return done


def _append_batch(
    tables: ArchiveTables, pages: Iterator[Batch], days: Sequence[date], done: Appended, last: Last | None
) -> None:
    import pyarrow as pa

    number = tables.next_batch(days)
    heads: list[Batch] = []
    stream = _SpanStream(pages, heads)
    stream.into(lambda reader: tables.append("spans", reader, number))
    done.quarantined += [one for batch in heads for one in batch.quarantined]
    traces = pa.concat_tables([batch.traces for batch in heads]) if heads else None
    if traces is None or not traces.num_rows:
        return
    assessments = pa.concat_tables([batch.assessments for batch in heads])
    # Scores of ours are there before their trace: they landed in the table first.
    if assessments.num_rows:
        assessments = without_held(assessments, tables.keys("assessments", days), "assessments")
    if assessments.num_rows:
        tables.append("assessments", assessments, number)
    done.rows["spans"] += stream.rows
    done.rows["assessments"] += assessments.num_rows
    done.rows["traces"] += traces.num_rows
    # A copy: the column itself would keep its whole page in memory until the end.
    done.trace_ids.append(pa.array(traces.column("trace_id").to_pylist(), pa.string()))
    batch, notes = last(done, traces) if last else (number, {})
    tables.append("traces", stamped(traces), batch, notes)


class _SpanStream:
    """The spans of some pages as one Arrow stream; what else they hold is put aside."""

    def __init__(self, pages: Iterator[Batch], aside: list[Batch]) -> None:
        self._pages, self._aside = pages, aside
        self._fault: BaseException | None = None
        self.rows = 0

    def into(self, write: "Callable[[pa.RecordBatchReader], None]") -> None:
        """Have the stream written; no commit without spans. A fault of the reader is raised as it was."""
        import pyarrow as pa

        batches = self._batches()
        first = next(batches, None)
        if first is None:
            return
        try:
            write(pa.RecordBatchReader.from_batches(arrow_schema("spans"), self._guarded(first, batches)))
        except Exception:
            if self._fault is not None:
                raise self._fault from None
            raise

    def _batches(self) -> "Iterator[pa.RecordBatch]":
        for page in self._pages:
            assert page.spans is not None
            self._aside.append(Batch(page.traces, page.assessments, None, page.quarantined))
            for batch in page.spans.to_batches():
                self.rows += batch.num_rows
                yield batch

    def _guarded(self, first: "pa.RecordBatch", others: "Iterator[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        yield first
        try:
            yield from others
        except BaseException as fault:  # Arrow turns it into an error of its own on the way through delta-rs.
            self._fault = fault
            raise


class _ReadAhead:
    """Pages of listings, each in some parts of `BATCH_TRACES`, read by a thread while others are written."""

    def __init__(self, reader: TraceReader, streams: "Sequence[tuple[pa.Table, int]]", redact: Redaction) -> None:
        self._reader, self._streams, self._redact = reader, streams, redact
        self._pages: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="archive-reader", daemon=True)

    def __enter__(self) -> "_ReadAhead":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._pages.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def part(self) -> Iterator[Batch]:
        """The pages of the next part."""
        while (page := self._pages.get()) is not None:
            if isinstance(page, BaseException):
                raise page
            yield page

    def _read(self) -> None:
        try:
            for listing, parts in self._streams:
                with closing(cast(Generator[Batch], self._reader.batches(listing, redact=self._redact))) as pages:
                    for _ in range(parts):
                        for page in islice(pages, BATCH_TRACES // self._reader.page_size) if parts > 1 else pages:
                            if self._stopped.is_set():
                                return
                            self._pages.put(page)
                            del page  # Not to be held while the next one is read.
                        self._pages.put(None)
        except BaseException as fault:  # noqa: BLE001 the thread that writes raises it
            self._pages.put(fault)
