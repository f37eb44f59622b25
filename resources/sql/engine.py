"""SQL over the agent's tables and views: DuckDB, read-only.

Lives here: `SqlEngine` and its local implementation: what a query may see, may do and may cost.
Add here: a further limit on queries, or a way to reach tables on another storage.
Not here: which SQL is answered (`guard.py`), the database it reaches (`database.py`), the views (`views.py`),
what assets ask (they hold their own SQL).
"""

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from operator import add, itemgetter
from typing import Any

from lifecycle_assets.refused import Refused
from resources.delta.table import storage
from resources.platform import Platform
from resources.sql.database import Database, open_database
from resources.sql.guard import refuse_unless_query, whole_view, wrong_sql
from resources.tables import TABLES

_SELECTING = re.compile(r"\s*(?:select|from|with)\b", re.IGNORECASE)


@dataclass(frozen=True)
class SqlResult:
    """Columns and rows of a query; `truncated` when more rows than the limit were there. Times are in UTC."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool = False

    def dicts(self) -> list[dict[str, Any]]:
        """Rows as dictionaries."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class SqlEngine(ABC):
    """Answers read-only SQL over tables and views, named without prefix: `traces`, `quality_by_version`, ….

    A table that was never written is there with no rows.
    """

    @abstractmethod
    def query(
        self,
        prefix: str,
        sql: str,
        params: Sequence[Any] = (),
        *,
        limit: int = 10_000,
        costs: Mapping[str, float] | None = None,
    ) -> SqlResult:
        """Run one statement. Raises `Refused` when it is not a query, writes, reads files, or is wrong SQL.

        `params` are bound to `?`. `costs` maps registered scorer names to USD a call, for the view `judge_cost`.
        """

    @abstractmethod
    def tables(self, prefix: str) -> dict[str, int]:
        """Table to its number of rows; 0 for one that was never written."""


class DuckDbEngine(SqlEngine):
    """DuckDB in this process over Delta's Parquet files; `timeout_seconds` bounds one query."""

    def __init__(self, platform: Platform, *, timeout_seconds: float = 120) -> None:
        self._platform = platform
        self._timeout = timeout_seconds

    def query(
        self,
        prefix: str,
        sql: str,
        params: Sequence[Any] = (),
        *,
        limit: int = 10_000,
        costs: Mapping[str, float] | None = None,
    ) -> SqlResult:
        """See `SqlEngine.query`. At most 1 GB of memory and two threads; nothing spills to disk."""
        import duckdb

        database = open_database(self._platform, prefix, costs or {})
        view = "" if params else whole_view(sql)
        kept = database.rows_of(view) if view else None
        found = kept.rows(view, limit) if kept else None
        if found:
            return SqlResult(*found)
        try:
            with storage(self._platform.warehouse):
                try:
                    return self._answered(database, sql, params, limit)
                except duckdb.InvalidInputException as error:
                    # A file from before its table had the newest columns.
                    if "schema mismatch" not in str(error) or not database.read_each_schema():
                        raise
                    return self._answered(database, sql, params, limit)
        except duckdb.InterruptException:
            raise Refused(
                f"The query took longer than {self._timeout:g} s; narrow it, such as by trace_date."
            ) from None
        except duckdb.Error as error:
            raise wrong_sql(error, sql) from None

    def _answered(self, database: Database, sql: str, params: Sequence[Any], limit: int) -> SqlResult:
        with database.cursor(sql) as cursor:
            refuse_unless_query(cursor, sql)
            timer = threading.Timer(self._timeout, cursor.interrupt)
            timer.daemon = True
            timer.start()
            try:
                quick = None if params or not _SELECTING.match(sql) else _without_zones(cursor.sql(sql), limit)
                if quick:
                    return quick
                cursor.execute(sql, list(params))
                names = tuple(str(column[0]) for column in cursor.description)
                zoned = [i for i, column in enumerate(cursor.description) if "TIME ZONE" in str(column[1])]
                return _result(names, cursor.fetchmany(limit + 1), zoned, limit)
            finally:
                timer.cancel()

    def tables(self, prefix: str) -> dict[str, int]:
        """See `SqlEngine.tables`. Counts come from the files' footers."""
        counts = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in TABLES)  # noqa: S608
        return dict(self.query(prefix, counts).rows)


def _without_zones(found: Any, limit: int) -> SqlResult | None:
    """The rows of a query with times in it, None without: for each time DuckDB asks Python for its zone, which is UTC.

    That would take longer than everything else, so the times are read without.
    """
    names, zoned = tuple(found.columns), [i for i, kind in enumerate(found.types) if "TIME ZONE" in str(kind)]
    if not zoned or len({name.lower() for name in names}) < len(names):
        return None
    listed = ['"' + name.replace('"', '""') + '"' for name in names]
    for i in zoned:
        listed[i] = f"CAST({listed[i]} AS TIMESTAMP) AS {listed[i]}"
    return _result(names, found.project(", ".join(listed)).limit(limit + 1).fetchall(), zoned, limit)


def _result(names: tuple[str, ...], rows: list[tuple[Any, ...]], zoned: list[int], limit: int) -> SqlResult:
    """The rows with the times at these places in the standard library's UTC; they are in UTC, said or unsaid."""
    kept = rows[:limit]
    if zoned and kept:
        # Row by row, and without a loop of Python's: by columns, rows of thousands take twice as long.
        moments = [_in_utc(tuple(map(itemgetter(i), kept))) for i in zoned]
        places = [len(names) + zoned.index(i) if i in zoned else i for i in range(len(names))]
        both = map(add, kept, zip(*moments, strict=True))
        kept = list(map(itemgetter(*places), both)) if len(places) > 1 else list(zip(*moments, strict=True))
    return SqlResult(names, tuple(kept), len(rows) > limit)


def _in_utc(moments: tuple[datetime | None, ...]) -> Iterable[datetime | None]:
    there = [one for one in moments if one is not None]
    # Without a loop of Python's: a tenth of what replace(tzinfo=UTC) takes.
    zoned = map(datetime.combine, there, map(datetime.time, there), repeat(UTC))
    return zoned if len(there) == len(moments) else [None if one is None else next(zoned) for one in moments]
