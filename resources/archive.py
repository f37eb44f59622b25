"""The tables: Delta by delta-rs.

Lives here: `Archive` and its local implementation: how rows get into a table once, and stay right.
Add here: a further way to write or maintain the tables.
Not here: columns (`tables.py`), what becomes a row (`trace_rows.py`), queries of users (`sql_engine.py`).

A write compares with what the table holds of that day, and commits only the rows that differ, by a MERGE that
names the day. So a step that was killed and runs again writes what is missing, and a step that has nothing to
say makes no commit. `traces` is written last: a trace that is there has its spans and assessments.
"""

import errno
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg

from lifecycle_assets.refused import Refused
from resources.explain import explained
from resources.platform import Platform
from resources.tables import (
    KEYS,
    PARTITION,
    STATISTICS,
    arrow_schema,
    arrow_table,
    columns,
    is_partitioned,
)
from resources.trace_rows import TraceRows

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

_ATTEMPTS = 8  # Each lost race means another writer got through, so this many in a row is no accident.
_COMPACT_FROM = 64  # Files of one day from which reading them costs more than rewriting them once.

_OS_ERROR = re.compile(r"\(os error (\d+)\)|Os \{ code: (\d+)")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Written:
    """Rows of one table that a write inserted, updated and removed; all 0 when the table was up to date.

    There is no commit then.
    """

    inserted: int
    updated: int
    removed: int = 0


class Archive(ABC):
    """Writes the agent's tables, each row once however often a step is run. `prefix` is `catalog.schema.prefix_`."""

    @abstractmethod
    def upsert_day(self, prefix: str, day: date, traces: Sequence[TraceRows]) -> dict[str, Written]:
        """Bring `spans`, `assessments`, then `traces` of `day` up to date; only rows that differ are written.

        An assessment of these traces that the table holds and MLflow no longer does becomes invalid.
        """

    @abstractmethod
    def replace_day(self, prefix: str, table: str, day: date, rows: Sequence[Mapping[str, Any]]) -> Written:
        """Make `rows` the table's rows of `day`; no commit when they already are."""

    @abstractmethod
    def append_once(self, prefix: str, table: str, row: Mapping[str, Any], *, key: Sequence[str]) -> bool:
        """Append `row` unless a row with the same values of `key` is there; False then."""

    @abstractmethod
    def trace_ids(self, prefix: str, day: date) -> set[str]:
        """Ids in `traces` of `day`; empty when the table does not exist."""

    @abstractmethod
    def version(self, prefix: str, table: str) -> int:
        """Delta version of a table, -1 when it does not exist; changes with every commit."""


class DeltaArchive(Archive):
    """Delta tables in a folder or an object store (`s3://…`; credentials are the environment's)."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def upsert_day(self, prefix: str, day: date, traces: Sequence[TraceRows]) -> dict[str, Written]:
        """See `Archive.upsert_day`. Of a trace given twice the last one counts.

        Raises `ValueError` for a trace of another day, `Refused` when the storage fails or other writers win.
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
            changed, written = _changes(source, _of_day(target, table, day), table, trace_ids)
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
            written = _replacement(source, _of_day(target, table, day), table)
            if written != Written(0, 0):
                write_deltalake(
                    target,
                    source,
                    mode="overwrite",
                    predicate=f"{PARTITION} = '{day}'",
                    writer_properties=_zstd(),
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

        def attempt() -> bool:
            target = self._open(prefix + table) or self._create(prefix + table, table)
            if _holds(target, table, source, key):
                return False
            done = self._merge(target, source, same).when_not_matched_insert_all().execute()
            return done["num_target_rows_inserted"] == 1

        return self._retried(prefix + table, attempt)

    def trace_ids(self, prefix: str, day: date) -> set[str]:
        """See `Archive.trace_ids`."""
        with storage(self._platform.table_uri(prefix + "traces")):
            target = self._open(prefix + "traces")
            return set() if target is None else set(_of_day(target, "traces", day, "trace_id")[0].to_pylist())

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
            source, predicate, source_alias="s", target_alias="t", writer_properties=_zstd(), streamed_exec=False
        )

    def _compact(self, target: "DeltaTable", day: date) -> None:
        """Rewrite a day of many small files as one. Rows stay the same; the older files stay until a vacuum."""
        if len(_files_of_day(target, day)) >= _COMPACT_FROM:
            target.optimize.compact(partition_filters=[(PARTITION, "=", str(day))], writer_properties=_zstd())

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


def open_table(uri: str) -> "DeltaTable | None":
    """A Delta table at its newest version, None only when there is none. Also used by the SQL engine."""
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        return DeltaTable(uri)
    except TableNotFoundError:
        # delta-rs says the same of a folder it may not look into and of a log that lost its files.
        log = Path(uri.removeprefix("file://")) / "_delta_log"
        if "://" not in uri.removeprefix("file://") and log.exists() and any(log.glob("*.json")):
            raise
        return None


@contextmanager
def storage(where: str) -> Iterator[None]:
    """Turn faults of the storage inside the block into `Refused`; everything else passes unchanged."""
    from deltalake.exceptions import DeltaError

    with explained(where):
        try:
            yield
        except (DeltaError, OSError) as error:
            number = _OS_ERROR.search(str(error))
            if isinstance(error, FileExistsError | NotADirectoryError) or (
                number and int(number[1] or number[2]) == errno.ENOTDIR
            ):
                raise Refused(f"{where}: a file is where a folder should be; move it away, then run again.") from error
            if number and not isinstance(error, OSError):
                raise OSError(int(number[1] or number[2]), os.strerror(int(number[1] or number[2])), where) from error
            raise


def _zstd() -> Any:
    from deltalake import WriterProperties

    # Level 1 writes 1.2 times as fast as the default, for files a tenth larger.
    return WriterProperties(compression="ZSTD", compression_level=1)


def _files_of_day(target: "DeltaTable", day: date) -> list[str]:
    return [uri for uri in target.file_uris() if f"/{PARTITION}={day}/" in uri]


def _of_day(target: "DeltaTable", table: str, day: date, column: str = "") -> "pa.Table":
    """What the table holds of one day, with the table's columns and types, or one column of it."""
    import pyarrow as pa
    from deltalake import QueryBuilder

    names = [column] if column else list(columns(table))
    listed = ", ".join(f'"{name}"' for name in names)
    query = f"SELECT {listed} FROM t WHERE {PARTITION} = DATE '{day}'"  # noqa: S608 names and a date of ours
    found = pa.table(QueryBuilder().register("t", target).execute(query).read_all())
    whole = arrow_schema(table)
    return found.cast(pa.schema([whole.field(name) for name in names]))


def _holds(target: "DeltaTable", table: str, source: "pa.Table", key: Sequence[str]) -> bool:
    import pyarrow as pa
    from deltalake import QueryBuilder

    listed = ", ".join(f'"{name}"' for name in key)
    query = f"SELECT {listed} FROM t"  # noqa: S608 column names of ours
    found = pa.table(QueryBuilder().register("t", target).execute(query).read_all())
    schema = arrow_schema(table)
    known = found.cast(pa.schema([schema.field(name) for name in key])).to_pylist()
    return source.select(list(key)).to_pylist()[0] in known


def _changes(source: "pa.Table", held: "pa.Table", table: str, trace_ids: list[str]) -> "tuple[pa.Table, Written]":
    """The rows to write so that `held` says what `source` says, and how many of them are new."""
    import pyarrow as pa

    same = [name for name in columns(table) if name != "archived_at"]
    listed, keys = ", ".join(same), ", ".join(KEYS[table])
    with _compare(source=source, held=held, batch=pa.table({"trace_id": pa.array(trace_ids, pa.string())})) as con:
        differing = f"(SELECT {keys} FROM (SELECT {listed} FROM source EXCEPT SELECT {listed} FROM held))"  # noqa: S608
        changed = con.sql(f"SELECT source.* FROM source SEMI JOIN {differing} USING ({keys})").to_arrow_table()  # noqa: S608
        inserted = con.sql(
            f"SELECT count(*) FROM {differing} ANTI JOIN held USING ({keys})"  # noqa: S608
        ).fetchall()[0][0]
        if table == "assessments":
            gone = con.sql(
                "SELECT held.* REPLACE (false AS valid) FROM held SEMI JOIN batch USING (trace_id) "
                "ANTI JOIN source USING (trace_id, assessment_id) WHERE held.valid"
            ).to_arrow_table()
            schema = arrow_schema(table)
            changed = pa.concat_tables([changed.cast(schema), gone.cast(schema)])
    return changed.cast(arrow_schema(table)), Written(inserted, changed.num_rows - inserted)


def _replacement(source: "pa.Table", held: "pa.Table", table: str) -> Written:
    """How many rows of `source` are new or differ, and how many of `held` go."""
    keys = ", ".join(KEYS[table])
    with _compare(source=source, held=held) as con:
        differing = "(SELECT * FROM source EXCEPT ALL SELECT * FROM held)"
        changed, inserted, removed = (
            con.sql(query).fetchall()[0][0]
            for query in (
                f"SELECT count(*) FROM {differing}",  # noqa: S608
                f"SELECT count(*) FROM {differing} ANTI JOIN held USING ({keys})",  # noqa: S608
                "SELECT count(*) FROM (SELECT * FROM held EXCEPT ALL SELECT * FROM source)",
            )
        )
    updated = changed - inserted
    return Written(inserted, updated, removed - updated)


def _compare(**tables: "pa.Table") -> Any:
    """A DuckDB connection that knows these Arrow tables, and nothing of the disk."""
    import duckdb

    con = duckdb.connect(":memory:", config={"threads": 2, "enable_external_access": False})
    for name, table in tables.items():
        con.register(name, table)
    return con


class ArchiveResource(dg.ConfigurableResource):
    """The archive of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> Archive:
        """Opens nothing yet: the tables are opened at each write."""
        return DeltaArchive(Platform.from_env())
