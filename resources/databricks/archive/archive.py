"""The archive in a workspace: Delta tables of Unity Catalog, written by SQL on the warehouse.

Lives here: `WarehouseArchive`: the order of statements, and what their answers mean.
Add here: a further way the tables are written or maintained.
Not here: where traces are read from (`trace_source.py`), the statements (`archive_sql.py`, `rows_sql.py`).

No trace passes through this process: counts come back, and ids of traces that are missing. Native archival runs some
minutes behind, so there the experiment's listing, without spans, says what should be there. Every statement may run
twice, because a lost answer makes the client send it again: merges are fed with differing rows only. Killed between
two tables, a run leaves children without their trace; the next run writes what is missing.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from lifecycle_assets.spec_file import Agent
from resources.archive.archive import Archive, ArchivedDay
from resources.archive.row_changes import Written
from resources.databricks.archive.archive_sources import Source
from resources.databricks.archive.archive_sql import CHILDREN, DaySql
from resources.databricks.archive.redaction_sql import Redactor
from resources.databricks.archive.rows_sql import append_row, create, replace_rows
from resources.databricks.archive.trace_source import is_absent, trace_source
from resources.databricks.sql.dialect import translate
from resources.databricks.sql.statements import StatementFailed, run_statement, ticked
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from resources.sql.views import VIEWS
from resources.tables import LOCAL, TABLES, columns
from resources.worker import Progress

_MERGE_SECONDS = 1800.0
_SENSOR_SECONDS = 20.0  # For `version`: two of them fit a tick.
_ATTEMPTS = 4  # Each lost race means another writer got through.


class WarehouseArchive(Archive):
    """Tables of Unity Catalog, brought up to date from its trace tables or from native archival."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def archive_day(
        self, agent: Agent, day: date, *, settled_before_ms: int, progress: Progress, anew: bool = False
    ) -> ArchivedDay:
        """See `Archive.archive_day`. One query says what differs; only tables with something to write are merged.

        Nothing is noted between runs, so every run compares the whole day, as `anew` asks.
        Raises `Refused` when traces are kept in no place that can be read, or a redaction rule cannot be said in SQL.
        """
        redactor = Redactor(agent.redactions)
        experiment = experiment_id(self._platform, agent.spec.experiment)
        source, native = trace_source(self._platform, agent, experiment, progress)
        if source is None:
            return self._late(agent, day, settled_before_ms, set())
        prefix = agent.spec.table_prefix
        sql = DaySql(
            source,
            day,
            prefix=prefix,
            experiment_id=experiment,
            settled_before_ms=settled_before_ms,
            redactor=redactor,
        )
        differing = self._differing(sql, prefix, progress)
        settled, newest = differing.pop("taken")
        written = {table: self._merged(sql, table, *differing.get(table, (0, 0))) for table in CHILDREN}
        progress(f"{day}: {settled} traces compared with the tables by the SQL warehouse")
        absent = self._rows(sql.absent(), sql.parameters) if any(written[table].inserted for table in CHILDREN) else []
        archived = ArchivedDay(settled, tuple(row["trace_id"] for row in absent), written, newest)
        return self._with_late(agent, day, settled_before_ms, archived) if native else archived

    def replace_day(self, prefix: str, table: str, day: date, rows: Sequence[Mapping[str, Any]]) -> Written:
        """See `Archive.replace_day`. One merge is one commit; none when the rows are there already."""
        counts, merge, parameters = replace_rows(prefix, table, day, rows)
        found = self._rows_or_none(counts, parameters, prefix + table)
        if found is None:
            if not rows:
                return Written(0, 0)
            self._create(prefix, table)
            found = self._rows(counts, parameters)
        changed = {(row["operation"], bool(row["known"])): int(row["n"]) for row in found}
        if changed:
            self._run(merge, parameters)
        return Written(
            changed.get(("write", False), 0), changed.get(("write", True), 0), changed.get(("remove", True), 0)
        )

    def append_once(self, prefix: str, table: str, row: Mapping[str, Any], *, key: Sequence[str]) -> bool:
        """See `Archive.append_once`. Of two writers at once the warehouse lets one append.

        An append whose answer was lost is sent again and finds its own row: it counts as appended.
        """
        known, merge, parameters = append_row(prefix, table, row, key)
        found = self._rows_or_none(known, parameters, prefix + table)
        if found is None:
            self._create(prefix, table)
        elif found[0]["n"]:
            return False
        written = _written(self._run(merge, parameters))
        if written and written.inserted:
            return True
        own, _, parameters = append_row(prefix, table, row, list(columns(table)))
        return bool(self._rows(own, parameters)[0]["n"])

    def version(self, prefix: str, table: str) -> int:
        """See `Archive.version`. One statement; where the warehouse gives no history, a digest of the table."""
        columns(table)
        name, seconds = ticked(prefix + table), _SENSOR_SECONDS
        try:
            return int(self._rows(f"DESCRIBE HISTORY {name} LIMIT 1", seconds=seconds)[0]["version"])
        except StatementFailed as failed:
            if is_absent(self._platform, failed, prefix + table):
                return -1
            stamp = next(one for one in ("archived_at", "updated_at", "at", "trace_date") if one in columns(table))
            query = f"SELECT count(*) AS n, max(`{stamp}`) AS newest FROM {name}"  # noqa: S608 names of ours
            row = self._rows(query, seconds=seconds)[0]
            return int(zlib.crc32(f"{row['newest']} {row['n']}".encode()))

    def source(self, agent: Agent, progress: Progress) -> tuple[Source | None, bool]:
        """See `trace_source`."""
        return trace_source(self._platform, agent, experiment_id(self._platform, agent.spec.experiment), progress)

    def _with_late(self, agent: Agent, day: date, settled_before_ms: int, archived: ArchivedDay) -> ArchivedDay:
        """Native archival runs some minutes behind: what MLflow has and the table has not is absent."""
        table = f"{agent.spec.table_prefix}traces"
        name = ticked(table)
        held = self._rows_or_none(f"SELECT trace_id FROM {name} WHERE trace_date = DATE'{day}'", None, table)  # noqa: S608 names of ours
        found = self._late(agent, day, settled_before_ms, {row["trace_id"] for row in held or ()})
        absent = sorted({*archived.absent, *found.absent})
        newest = max(archived.newest_ms, found.newest_ms)
        return ArchivedDay(max(found.settled, archived.settled), tuple(absent), archived.written, newest)

    def _late(self, agent: Agent, day: date, settled_before_ms: int, held: set[str]) -> ArchivedDay:
        from resources.databricks.tracing.trace_store import DatabricksTraceStore

        infos = DatabricksTraceStore(self._platform).infos(
            agent.spec.experiment, day, settled_before_ms=settled_before_ms
        )
        absent = sorted({info.trace_id for info in infos} - held)
        nothing = dict.fromkeys(CHILDREN, Written(0, 0))
        return ArchivedDay(len(infos), tuple(absent), nothing, max((info.request_ms for info in infos), default=0))

    def _differing(self, sql: DaySql, prefix: str, progress: Progress) -> dict[str, tuple[int, int]]:
        """Name to (rows that differ, of these known), and `taken` to (settled traces, start of the newest)."""
        found = self._rows_or_none(sql.differing(), sql.parameters, *(prefix + table for table in CHILDREN))
        if found is None:
            taken = self._rows(sql.taken(), sql.parameters)[0]
            if not taken["settled"]:
                return {"taken": (0, 0)}
            for table in [one for one in TABLES if one not in LOCAL]:
                self._create(prefix, table)
            self._make_views(prefix, progress)
            found = self._rows(sql.differing(), sql.parameters)
        return {row["name"]: (int(row["n"]), int(row["m"] or 0)) for row in found}

    def _merged(self, sql: DaySql, table: str, changed: int, known: int) -> Written:
        if not changed:
            return Written(0, 0)
        counted = Written(changed - known, known)
        written = _written(self._run(sql.merge(table), sql.parameters))
        # A merge that was sent twice reports what the second one did: nothing.
        return written if written and (written.inserted or written.updated) else counted

    def _create(self, prefix: str, table: str) -> None:
        self._run(create(prefix + table, table))

    def _make_views(self, prefix: str, progress: Progress) -> None:
        """The contract's views as views of Unity Catalog, for people and dashboards; this product does not need them.

        Prices are given with a question, so `judge_cost` says 0 USD here.
        """
        for view in VIEWS:
            query = translate(f"SELECT * FROM {view}", (), prefix=prefix).sql  # noqa: S608 names of ours
            try:
                self._run(f"CREATE OR REPLACE VIEW {ticked(prefix + view)} AS {query}")
            except StatementFailed as failed:
                progress(f"view {prefix}{view} was not made: {failed}")

    def _rows_or_none(
        self, sql: str, parameters: Mapping[str, Any] | None, *tables: str
    ) -> list[dict[str, Any]] | None:
        """Rows of a query, None when one of its `tables` was never written."""
        try:
            return self._rows(sql, parameters)
        except StatementFailed as failed:
            if not is_absent(self._platform, failed, *tables):
                raise
            return None

    def _rows(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, seconds: float = _MERGE_SECONDS
    ) -> list[dict[str, Any]]:
        return run_statement(self._platform, sql, _used(sql, parameters), timeout_seconds=seconds).dicts()

    def _run(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """A statement that writes, again when another writer committed in between."""
        for attempt in range(_ATTEMPTS):
            try:
                return self._rows(sql, parameters)
            except StatementFailed as failed:
                if "CONCURRENT" not in failed.condition or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")


def _used(sql: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters a statement names."""
    named = set(re.findall(r":([a-z_]+[0-9]*)\b", sql))
    return {name: value for name, value in (parameters or {}).items() if name in named}


def _written(rows: list[dict[str, Any]]) -> Written | None:
    """What a merge reports; None when the server gives no numbers."""
    row = rows[0] if rows else {}
    if "num_inserted_rows" not in row:
        return None
    return Written(int(row["num_inserted_rows"] or 0), int(row.get("num_updated_rows") or 0))
