"""The three tables of one archiving, each at one snapshot, and the guard that makes a batch land once.

Lives here: opening them, the number of a batch, committing rows under it, asking them for ids.
Add here: a further question the archive has of its own tables.
Not here: what is written (`append.py`, `upsert.py`), the notes' meaning (`marks.py`).

Every commit carries the number of its batch for each of its days. Before it, the number in the snapshot the write
goes through is compared with the one this archiving began with: a writer that came later must read again, one that
comes at the same time is refused by Delta. So no batch lands twice, and no number goes backwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.archive.marks import BATCH, Days, Files, Notes, files_by_day, log_of, paths_of
from resources.delta.compaction import compact_busy_days
from resources.delta.data_files import DataFile
from resources.delta.table import open_table
from resources.delta.write import Overtaken, add_files, append_rows, merge_rows, table_to_write, takes_files
from resources.platform import Platform
from resources.tables import KEYS, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

CHILDREN = ("spans", "assessments")
ARCHIVED = (*CHILDREN, "traces")
"""The tables of traces, in the order they are written: a trace that is there has its spans and assessments."""


class ArchiveTables:
    """`prefix` is `catalog.schema.prefix_`. Not shared between threads, but for different tables."""

    def __init__(self, platform: Platform, prefix: str, experiment_id: str) -> None:
        self._platform, self._prefix, self._experiment_id = platform, prefix, experiment_id
        self._opened: dict[str, DeltaTable | None] = {}
        self._numbers: dict[tuple[str, date], int] = {}
        self._notes: dict[str, tuple[int, Notes]] = {}
        self._logs: dict[str, tuple[int, pa.Table | None]] = {}

    def held(self, table: str) -> "DeltaTable | None":
        """The table as it was when first asked for; None when it was not there."""
        if table not in self._opened:
            self._opened[table] = open_table(self._where(table))
        return self._opened[table]

    def newest(self, table: str) -> "DeltaTable":
        """The table as it is now, made when it is not there; from here on this snapshot is the one written through."""
        opened = self._opened.get(table)
        if opened is None:
            opened = self._opened[table] = table_to_write(self._where(table), table)
        else:
            opened.update_incremental()
        return opened

    def notes(self, table: str) -> Notes:
        """The notes of the snapshot that is open."""
        version = self._version(table)
        if table not in self._notes or self._notes[table][0] != version:
            self._notes[table] = version, Notes(self.held(table), self._experiment_id)
        return self._notes[table][1]

    def log(self, table: str) -> "pa.Table | None":
        """See `log_of`, of the snapshot that is open."""
        version = self._version(table)
        if table not in self._logs or self._logs[table][0] != version:
            self._logs[table] = version, log_of(self.held(table))
        return self._logs[table][1]

    def files(self, table: str, days: Days) -> dict[date, Files]:
        """See `files_by_day`, of the snapshot that is open."""
        return files_by_day(self.log(table), days)

    def paths(self, table: str, day: date) -> list[str]:
        """The files of a day that the snapshot that is open lists."""
        log = self.log(table)
        return [] if log is None else paths_of(log, Days(day, day))

    def lost(self, table: str, days: Days) -> list[str]:
        """Files of these days that the log lists and that are gone; known only of tables in folders."""
        log, where = self.log(table), Path(self._where(table).removeprefix("file://"))
        if log is None or not where.is_absolute():
            return []
        return [path for path in paths_of(log, days) if not (where / path).exists()]

    def number(self, table: str, day: date) -> int:
        """The last batch of a day when this archiving first looked, or the one it wrote since."""
        if (table, day) not in self._numbers:
            self._numbers[table, day] = self.notes(table).get(BATCH, day)
        return self._numbers[table, day]

    def pin(self, days: Iterable[date]) -> None:
        """Remember the numbers of the snapshots that were looked at: who commits after it is found out by them.

        Before `newest` is asked for, which goes on to later snapshots.
        """
        for day in days:
            for table in ARCHIVED:
                self.number(table, day)

    def interrupted(self, day: date) -> bool:
        """Whether a batch of the day ended before its traces were written."""
        return max(self.number(table, day) for table in CHILDREN) > self.number("traces", day)

    def next_batch(self, days: Iterable[date]) -> dict[date, int]:
        """The number that the next batch of these days has."""
        return {day: max(self.number(table, day) for table in ARCHIVED) + 1 for day in days}

    def append(
        self,
        table: str,
        rows: "pa.Table | pa.RecordBatchReader",
        batch: Mapping[date, int],
        notes: Mapping[str, int] | None = None,
    ) -> None:
        """Append rows as a batch, with notes. Raises `Overtaken` or `CommitFailedError` when another was faster."""
        append_rows(self._guarded(table, batch), rows, self._transactions(batch) | dict(notes or {}))
        self._wrote(table, batch)

    def add(
        self, table: str, files: Sequence[DataFile], batch: Mapping[date, int], notes: Mapping[str, int] | None = None
    ) -> None:
        """Append the rows of files as a batch, with notes. Raises as `append` does."""
        add_files(self._guarded(table, batch), files, self._transactions(batch) | dict(notes or {}))
        self._wrote(table, batch)

    def folder(self, table: str) -> Path | None:
        """The table's folder, when files may be written into it and added; None where delta-rs has to write."""
        where = Path(self._where(table).removeprefix("file://"))
        return where if where.is_absolute() and takes_files(self.held(table) or self.newest(table), table) else None

    def merge(
        self, table: str, rows: "pa.Table", keys: Sequence[str], batch: Mapping[date, int], keep: Sequence[str] = ()
    ) -> None:
        """Update the rows with the same keys, but for the columns in `keep`, and insert the others, as a batch."""
        days = ", ".join(f"'{day}'" for day in sorted(batch))
        same = " AND ".join(f"t.{key} = s.{key}" for key in keys)
        merger = merge_rows(
            self._guarded(table, batch), rows, f"t.trace_date IN ({days}) AND {same}", self._transactions(batch)
        )
        changed = {f'"{name}"': f's."{name}"' for name in arrow_schema(table).names if name not in keep}
        merger.when_matched_update(changed).when_not_matched_insert_all().execute()
        self._wrote(table, batch)

    def compact(self, days: Days) -> None:
        """Rewrite days of many small files, when the rows are all there: the next run reads fewer."""
        for table in ARCHIVED:
            target = self.held(table)
            if target is not None:
                compact_busy_days(target, days)

    def ids(self, table: str, days: Days, *, since_ms: int = 0) -> "pa.ChunkedArray":
        """Ids of traces the table holds of these days; of `traces` those that started at `since_ms` or later."""
        later = (
            f" AND request_time >= arrow_cast(to_timestamp_millis({since_ms}), 'Timestamp(Microsecond, Some(\"UTC\"))')"
        )
        query = f"SELECT DISTINCT trace_id FROM t WHERE {days.condition}{later if since_ms else ''}"  # noqa: S608
        return self.select(table, query, ["trace_id"]).column("trace_id")

    def keys(self, table: str, days: Sequence[date]) -> "pa.Table":
        """The keys the table has now of the rows of these days."""
        self.newest(table)
        listed, among = ", ".join(KEYS[table]), ", ".join(f"DATE '{day}'" for day in days)
        return self.select(table, f"SELECT {listed} FROM t WHERE trace_date IN ({among})", KEYS[table])  # noqa: S608

    def select(self, table: str, query: str, names: Sequence[str]) -> "pa.Table":
        """What the snapshot answers to a query over `t`, in the columns and types of the table."""
        import pyarrow as pa

        whole = arrow_schema(table)
        schema = pa.schema([whole.field(name) for name in names])
        return pa.table(self.stream(table, query)).cast(schema) if self.held(table) else schema.empty_table()

    def stream(self, table: str, query: str) -> Any:
        """The same a batch at a time, as delta-rs gives it."""
        from deltalake import QueryBuilder

        target = self.held(table)
        assert target is not None
        return QueryBuilder().register("t", target).execute(query)

    def _guarded(self, table: str, batch: Mapping[date, int]) -> "DeltaTable":
        expected = {day: self.number(table, day) for day in batch}
        target = self.held(table) or self.newest(table)
        now = self.notes(table)
        if any(now.get(BATCH, day) != number for day, number in expected.items()):
            raise Overtaken(f"{self._prefix}{table}")
        return target

    def _transactions(self, batch: Mapping[date, int]) -> dict[str, int]:
        return {Notes(None, self._experiment_id).name(BATCH, day): number for day, number in batch.items()}

    def _wrote(self, table: str, batch: Mapping[date, int]) -> None:
        self._numbers |= {(table, day): number for day, number in batch.items()}

    def _version(self, table: str) -> int:
        """The version of the snapshot that is open, -1 without a table."""
        target = self.held(table)
        return -1 if target is None else target.version()

    def _where(self, table: str) -> str:
        return self._platform.table_uri(self._prefix + table)
