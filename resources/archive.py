"""The tables: Delta by delta-rs.

Lives here: `Archive` and its local implementation: how rows get into a table once, and stay right.
Add here: a further way to write or maintain the tables.
Not here: columns (`tables.py`), what becomes a row (`trace_rows.py`), comparing rows (`row_changes.py`).

A write compares with what the table holds of that day, and commits only the rows that differ, by a MERGE that
names the day. So a step that was killed and runs again writes what is missing, and a step that has nothing to
say makes no commit. `traces` is written last: a trace that is there has its spans and assessments.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.delta_table import files_of_day, holds, literally, open_table, rows_of_day, storage, zstd
from resources.platform import Platform
from resources.row_changes import Written, changes, replacement
from resources.tables import KEYS, PARTITION, STATISTICS, arrow_schema, arrow_table, columns, is_partitioned
from resources.trace_rows import TraceRows
from resources.trace_store import MlflowTraceStore
from resources.worker import Progress

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

_ATTEMPTS = 8  # Each lost race means another writer got through, so this many in a row is no accident.
_COMPACT_FROM = 64  # Files of one day from which reading them costs more than rewriting them once.

Result = TypeVar("Result")


@dataclass(frozen=True)
class ArchivedDay:
    """A day after archiving: settled traces the platform holds, those the table lacks, and rows written by table.

    `newest_ms` is the start of the newest settled trace, epoch milliseconds; 0 without one.
    """

    settled: int
    absent: tuple[str, ...]
    written: dict[str, Written]
    newest_ms: int


class Archive(ABC):
    """Writes the agent's tables, each row once however often a step is run. `prefix` is `catalog.schema.prefix_`."""

    @abstractmethod
    def archive_day(self, agent: Agent, day: date, *, settled_before_ms: int, progress: Progress) -> ArchivedDay:
        """Bring `spans`, `assessments`, then `traces` of `day` up to the production traces the platform holds.

        Taken are traces that started on `day` (UTC) and ended before `settled_before_ms`; text is redacted as
        declared before it is written; only rows that differ are written. An assessment that is gone becomes invalid.
        """

    @abstractmethod
    def replace_day(self, prefix: str, table: str, day: date, rows: Sequence[Mapping[str, Any]]) -> Written:
        """Make `rows` the table's rows of `day`; no commit when they already are."""

    @abstractmethod
    def append_once(self, prefix: str, table: str, row: Mapping[str, Any], *, key: Sequence[str]) -> bool:
        """Append `row` unless a row with the same values of `key` is there; False then."""

    @abstractmethod
    def version(self, prefix: str, table: str) -> int:
        """Delta version of a table, -1 when it does not exist; changes with every commit."""


class DeltaArchive(Archive):
    """Delta tables in a folder or an object store (`s3://…`; credentials are the environment's)."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def archive_day(self, agent: Agent, day: date, *, settled_before_ms: int, progress: Progress) -> ArchivedDay:
        """See `Archive.archive_day`. Reads the day's traces from MLflow and compares them with the tables."""
        traces, prefix = MlflowTraceStore(self._platform), agent.spec.table_prefix
        infos = traces.infos(agent.spec.experiment, day, settled_before_ms=settled_before_ms)
        ids = [info.trace_id for info in infos]
        written = self.upsert_day(prefix, day, [traces.rows(one, redact=agent.redactions) for one in traces.read(ids)])
        progress(f"{day}: {len(ids)} traces compared with the tables")
        absent = sorted(set(ids) - self.trace_ids(prefix, day))
        return ArchivedDay(len(ids), tuple(absent), written, max((info.request_ms for info in infos), default=0))

    def upsert_day(self, prefix: str, day: date, traces: Sequence[TraceRows]) -> dict[str, Written]:
        """Bring `spans`, `assessments`, then `traces` of `day` up to date; only rows that differ are written.

        An assessment of these traces that the table holds and MLflow no longer does becomes invalid. Of a trace given
        twice the last one counts. Raises `ValueError` for a trace of another day, `Refused` when the storage fails or
        other writers win.
        """
        now = datetime.now(UTC)
        distinct = {rows.trace["trace_id"]: rows for rows in traces}
        strangers = [rows.trace["trace_id"] for rows in distinct.values() if rows.trace[PARTITION] != day]
        if strangers:
            raise ValueError(f"trace {strangers[0]} did not start on {day}")
        children = {
            "spans": [row for rows in distinct.values() for row in rows.spans],
            "assessments": [row for rows in distinct.values() for row in rows.assessments],
            "traces": [{**rows.trace, "archived_at": now} for rows in distinct.values()],
        }
        return {
            table: self._retried(prefix + table, self._upsert_into(prefix + table, table, day, rows, list(distinct)))
            for table, rows in children.items()
        }

    def _upsert_into(
        self, name: str, table: str, day: date, rows: list[dict[str, Any]], trace_ids: list[str]
    ) -> Callable[[], Written]:
        source = arrow_table(table, {tuple(row[key] for key in KEYS[table]): row for row in rows}.values())

        def attempt() -> Written:
            target = self._open(name)
            if target is None and not rows:
                return Written(0, 0)
            target = target or self._create(name, table)
            changed, written = changes(source, rows_of_day(target, table, day), table, trace_ids)
            if changed.num_rows:
                same = " AND ".join(f"t.{key} = s.{key}" for key in KEYS[table])
                merge = self._merge(target, changed, f"t.{PARTITION} = '{day}' AND {same}")
                merge.when_matched_update_all().when_not_matched_insert_all().execute()
                self._compact(target, day)
            return written

        return attempt

    def replace_day(self, prefix: str, table: str, day: date, rows: Sequence[Mapping[str, Any]]) -> Written:
        """See `Archive.replace_day`. The whole day is one commit, so readers see the old rows or the new ones."""
        source = arrow_table(table, [{**row, PARTITION: day} for row in rows])

        def attempt() -> Written:
            from deltalake import write_deltalake

            target = self._open(prefix + table)
            if target is None and not rows:
                return Written(0, 0)
            target = target or self._create(prefix + table, table)
            written = replacement(source, rows_of_day(target, table, day), table)
            if written != Written(0, 0):
                write_deltalake(
                    target,
                    source,
                    mode="overwrite",
                    predicate=f"{PARTITION} = '{day}'",
                    writer_properties=zstd(),
                )
            return written

        return self._retried(prefix + table, attempt)

    def append_once(self, prefix: str, table: str, row: Mapping[str, Any], *, key: Sequence[str]) -> bool:
        """See `Archive.append_once`.

        The key is looked up and written under one table version, so of two writers at once one appends and the
        other, trying again, finds the row.
        """
        source = arrow_table(table, [row])
        same = " AND ".join(f"(t.{name} = s.{name} OR (t.{name} IS NULL AND s.{name} IS NULL))" for name in key)
        same = f"{literally({name: row.get(name) for name in key})} AND {same}"

        def attempt() -> bool:
            target = self._open(prefix + table) or self._create(prefix + table, table)
            if holds(target, table, source, key):
                return False
            done = self._merge(target, source, same).when_not_matched_insert_all().execute()
            return done["num_target_rows_inserted"] == 1

        return self._retried(prefix + table, attempt)

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

    def _create(self, name: str, table: str) -> "DeltaTable":
        """The empty table; of two processes at once one makes it and both go on."""
        from deltalake import DeltaTable

        where = self._platform.table_uri(name)
        if "%" in where and "://" not in where:
            raise Refused(f"{where}: Delta cannot keep a table in a folder with % in its name; use another folder.")
        return DeltaTable.create(
            where,
            arrow_schema(table),
            mode="ignore",
            partition_by=[PARTITION] if is_partitioned(table) else None,
            configuration={"delta.dataSkippingStatsColumns": ",".join(STATISTICS[table])},
        )

    @staticmethod
    def _merge(target: "DeltaTable", source: "pa.Table", predicate: str) -> Any:
        return target.merge(
            source, predicate, source_alias="s", target_alias="t", writer_properties=zstd(), streamed_exec=False
        )

    def _compact(self, target: "DeltaTable", day: date) -> None:
        """Rewrite a day of many small files as one. Rows stay the same; the older files stay until a vacuum."""
        if len(files_of_day(target, day)) >= _COMPACT_FROM:
            target.optimize.compact(partition_filters=[(PARTITION, "=", str(day))], writer_properties=zstd())

    def _retried(self, name: str, attempt: Callable[[], Result]) -> Result:
        """`attempt`, again from reading the table whenever another writer committed in between."""
        from deltalake.exceptions import CommitFailedError, DeltaError

        where = self._platform.table_uri(name)
        with storage(where):
            for _ in range(_ATTEMPTS):
                try:
                    return attempt()
                except CommitFailedError:
                    continue
                except DeltaError as error:
                    # Making a table is not a commit to delta-rs, but it too can be lost to another process.
                    if "version 0 already exists" not in str(error).lower():
                        raise
        raise Refused(
            f"{where}: other writers committed {_ATTEMPTS} times while this step tried to; one writer a table is "
            "foreseen: let the other run end, then run this step again."
        )
