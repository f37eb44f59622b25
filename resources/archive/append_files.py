"""New traces, whose rows the reader writes into files, into the tables: some thousand traces a batch.

Lives here: the three commits of such a batch.
Add here: nothing that looks at rows the tables hold.
Not here: batches whose rows pass through this process (`append.py`), the files (`delta/data_files.py`).

As in `append.py`, spans and assessments are committed before their traces, under the number of the batch. Killed
before a commit, its files are in no table: upkeep sweeps them away, and the traces are read again.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, cast

from resources.archive.append import Appended, Last
from resources.archive.row_changes import without_held
from resources.archive.snapshots import ARCHIVED, ArchiveTables
from resources.archive.utc_days import days_of
from resources.delta.data_files import DataFile, DayWriter
from resources.explain import explained
from resources.reading.stamp import stamped
from resources.reading.trace_reader import FILED, HEADS, Filed, TraceReader

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_TRACES = 5_000
"""Traces of a batch at most: what a kill may cost. Three commits take as long as making the rows of 300."""


def folders(tables: ArchiveTables, reader: TraceReader, new: int) -> dict[str, Path]:
    """Folders of the tables for files of `new` traces; none where the rows have to be streamed."""
    if reader.files_from is None or new < reader.files_from:
        return {}
    found = {table: tables.folder(table) for table in ARCHIVED}
    return {} if None in found.values() else cast(dict[str, Path], found)


def append_files(
    tables: ArchiveTables,
    reader: TraceReader,
    listing: "pa.Table",
    into: Mapping[str, Path],
    progress: Callable[[int], None],
    last: Last,
) -> Appended:
    """Append the traces of a listing by files in the folders `into`. See `append.append_new`."""
    number = 2 * -(-listing.num_rows // (2 * BATCH_TRACES))  # Even, and all as large as each other: two write them.
    size = -(-listing.num_rows // number)
    parts = [listing.slice(start, size) for start in range(0, listing.num_rows, size)]
    adding = _Adding(tables, into)
    with closing(cast(Generator[Filed], reader.filed(parts, into))) as batches:
        for part, batch in zip(parts, batches, strict=True):
            adding.add(batch, days_of(part), last if part is parts[-1] else None)
            progress(adding.done.rows["traces"])
    return adding.done


class _Adding:
    """Commits batches, and counts them in `done`."""

    def __init__(self, tables: ArchiveTables, into: Mapping[str, Path]) -> None:
        self.done = Appended()
        self._tables, self._into = tables, into
        self._said: set[str] = set()  # Files of assessments that were added here.

    def add(self, batch: Filed, days: Sequence[date], last: Last | None) -> None:
        """Append a batch, whose traces started on these days: spans, assessments, traces."""
        import pyarrow as pa

        done, apart, number = self.done, batch.apart, self._tables.next_batch(days)
        files = {table: list(batch.files[table]) for table in FILED}
        heads, assessments = batch.heads, batch.assessments
        if apart is not None:
            assert apart.spans is not None
            done.quarantined += apart.quarantined
            for table, rows in (("spans", apart.spans), ("traces", stamped(apart.traces))):
                files[table] += self._written(table, rows)
            heads = pa.concat_tables([heads, apart.traces.select(HEADS)])
            assessments = pa.concat_tables([assessments, apart.assessments])
        if files["spans"]:
            self._tables.add("spans", files["spans"], number)
        assessments = self._without_held(assessments, days)
        said = self._written("assessments", assessments)
        self._said |= {file.path for file in said}
        if said:
            self._tables.add("assessments", said, number)
        if not heads.num_rows:
            return
        done.rows["spans"] += sum(file.rows for file in files["spans"])
        done.rows["assessments"] += assessments.num_rows
        done.rows["traces"] += heads.num_rows
        # A copy: the column itself would keep what it was sent in until the end.
        done.trace_ids.append(pa.array(heads.column("trace_id").to_pylist(), pa.string()))
        batch_of_last, notes = last(done, heads) if last else (number, {})
        self._tables.add("traces", files["traces"], batch_of_last, notes)

    def _without_held(self, assessments: "pa.Table", days: Sequence[date]) -> "pa.Table":
        """Scores of ours are there before their trace: they landed in the table first, in files of others."""
        if not assessments.num_rows:
            return assessments
        self._tables.newest("assessments")
        if self._said.issuperset(path for day in days for path in self._tables.paths("assessments", day)):
            return assessments
        return without_held(assessments, self._tables.keys("assessments", days), "assessments")

    def _written(self, table: str, rows: "pa.Table") -> tuple[DataFile, ...]:
        writer = DayWriter(self._into[table], table)
        with explained(str(self._into[table])):
            writer.write(rows)
            return writer.close()
