"""The tables as Delta tables, in a folder or an object store.

Lives here: `DeltaArchive`: opening what a write needs, and trying again after another writer.
Add here: a further way to write the tables.
Not here: the steps of archiving (`run.py`), writing to one table (`delta/write.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.archive.archive import Archive, ArchivedDay
from resources.archive.look import Asked, LostFiles
from resources.archive.lost_store import known_experiment
from resources.archive.marks import Days
from resources.archive.row_changes import Written
from resources.archive.run import ArchiveRun
from resources.delta.days import replace_day, undouble_day
from resources.delta.table import holds, literally, open_table, rows_of_day, storage
from resources.delta.write import Overtaken, merge_rows, retried, table_to_write
from resources.platform import Platform
from resources.reading.reading import open_reader
from resources.reading.trace_reader import TraceReader
from resources.tables import arrow_table, columns
from resources.worker import Progress

if TYPE_CHECKING:
    from deltalake import DeltaTable


class DeltaArchive(Archive):
    """Delta tables in a folder or an object store (`s3://…`; credentials are the environment's)."""

    def __init__(
        self, platform: Platform, *, read: Callable[[Platform, str, Progress], TraceReader] = open_reader
    ) -> None:
        self._platform, self._read = platform, read

    def archive_day(
        self, agent: Agent, day: date, *, settled_before_ms: int, progress: Progress, anew: bool = False
    ) -> ArchivedDay:
        """See `Archive.archive_day`. Raises `Refused` when store or storage fail, or other writers win."""
        return self._archive(agent, Days(day, day), settled_before_ms, progress, anew=anew)

    def archive_days(
        self, agent: Agent, first: date, last: date, *, settled_before_ms: int, progress: Progress
    ) -> ArchivedDay:
        """See `Archive.archive_days`. One stream over all days."""
        return self._archive(agent, Days(first, last), settled_before_ms, progress)

    def _archive(
        self, agent: Agent, days: Days, settled_before_ms: int, progress: Progress, *, anew: bool = False
    ) -> ArchivedDay:
        prefix, experiment = agent.spec.table_prefix, agent.spec.experiment
        known = known_experiment(self._platform, prefix, experiment)
        reader = self._read(self._platform, known, progress)
        asked = Asked(prefix, experiment, known, days, settled_before_ms, agent.redactions, anew)
        restored = False

        def attempt() -> ArchivedDay:
            nonlocal restored
            try:
                return ArchiveRun(self._platform, reader, asked, progress).run()
            except LostFiles as lost:
                if restored:
                    raise Refused(f"{lost}: these files are gone; put them back from a backup.") from None
                self._restore(agent, lost, progress)
                restored = True
                raise Overtaken(prefix) from None

        return retried(self._platform.table_uri(f"{prefix}traces"), attempt)

    def _restore(self, agent: Agent, lost: LostFiles, progress: Progress) -> None:
        from resources.delta.repair import restore

        for one in restore(self._platform, agent, progress):
            if one.is_lost and one.day in lost.days:
                raise Refused(one.said)

    def replace_day(self, prefix: str, table: str, day: date, rows: Sequence[Mapping[str, Any]]) -> Written:
        """See `Archive.replace_day`. The whole day is one commit, so readers see the old rows or the new ones."""
        return replace_day(self._platform.table_uri(prefix + table), table, day, rows)

    def undouble_day(self, prefix: str, table: str, day: date) -> int:
        """See `Archive.undouble_day`."""
        return undouble_day(self._platform.table_uri(prefix + table), table, day)

    def append_once(self, prefix: str, table: str, row: Mapping[str, Any], *, key: Sequence[str]) -> bool:
        """See `Archive.append_once`.

        The key is looked up and written under one table version, so of two writers at once one appends and the
        other, trying again, finds the row.
        """
        source, where = arrow_table(table, [row]), self._platform.table_uri(prefix + table)
        same = " AND ".join(f"(t.{name} = s.{name} OR (t.{name} IS NULL AND s.{name} IS NULL))" for name in key)
        same = f"{literally({name: row.get(name) for name in key})} AND {same}"

        def attempt() -> bool:
            target = table_to_write(where, table)
            if holds(target, table, source, key):
                return False
            done = merge_rows(target, source, same).when_not_matched_insert_all().execute()
            return done["num_target_rows_inserted"] == 1

        return retried(where, attempt)

    def trace_ids(self, prefix: str, day: date) -> set[str]:
        """Ids in `traces` of `day`; empty when the table does not exist."""
        with storage(self._platform.table_uri(prefix + "traces")):
            target = self._open(prefix + "traces")
            return set() if target is None else set(rows_of_day(target, "traces", day, "trace_id")[0].to_pylist())

    def version(self, prefix: str, table: str) -> int:
        """See `Archive.version`."""
        columns(table)
        with storage(self._platform.table_uri(prefix + table)):
            target = self._open(prefix + table)
            return -1 if target is None else target.version()

    def _open(self, name: str) -> "DeltaTable | None":
        """The table at its newest version; None only when nothing is there."""
        return open_table(self._platform.table_uri(name))
