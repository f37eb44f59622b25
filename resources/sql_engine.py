"""SQL over the agent's tables and views: DuckDB, read-only.

Lives here: `SqlEngine` and its local implementation: what a query may see, may do and may cost.
Add here: a further limit on queries, or a way to reach tables on another storage.
Not here: which SQL is answered (`sql_guard.py`), the views (`tables.py`), what assets ask (they hold their own SQL).

Every query has a connection of its own, in memory, that knows the tables at their newest version and is locked
before the user's SQL is seen: no other file, no setting, no extension, no Python variable.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from itertools import product
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from lifecycle_assets.refused import Refused
from resources.delta_table import open_table, storage
from resources.platform import Platform
from resources.sql_guard import refuse_unless_query, wrong_sql
from resources.tables import PARTITION, TABLES, arrow_schema
from resources.views import VIEWS

if TYPE_CHECKING:
    import duckdb
    from deltalake import DeltaTable


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

        try:
            with storage(self._platform.warehouse), self._connect(prefix, sql, costs or {}) as con:
                refuse_unless_query(con, sql)
                timer = threading.Timer(self._timeout, con.interrupt)
                timer.daemon = True
                timer.start()
                try:
                    cursor = con.execute(sql, list(params))
                    names = tuple(column[0] for column in cursor.description)
                    zoned = [i for i, column in enumerate(cursor.description) if "TIME ZONE" in str(column[1])]
                    rows = cursor.fetchmany(limit + 1)
                finally:
                    timer.cancel()
        except duckdb.InterruptException:
            raise Refused(
                f"The query took longer than {self._timeout:g} s; narrow it, such as by trace_date."
            ) from None
        except duckdb.Error as error:
            raise wrong_sql(error, sql) from None
        return SqlResult(names, tuple(_in_utc(row, zoned) for row in rows[:limit]), len(rows) > limit)

    def tables(self, prefix: str) -> dict[str, int]:
        """See `SqlEngine.tables`. Counts come from the files' footers."""
        counts = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in TABLES)  # noqa: S608
        return dict(self.query(prefix, counts).rows)

    def _connect(self, prefix: str, sql: str, costs: Mapping[str, float]) -> "duckdb.DuckDBPyConnection":
        """A locked connection with tables and views.

        They are there as `"catalog.schema.prefix_traces"` and `prefix_traces` too when `sql` uses the prefix.
        """
        import duckdb

        con = duckdb.connect(":memory:", config={"threads": 2, "memory_limit": "1GB", "temp_directory": ""})
        con.execute("SET TimeZone = 'UTC'")
        allowed: list[str] = []
        for table in TABLES:  # Traces first: what they refer to was written before them.
            target = open_table(self._platform.table_uri(prefix + table))
            allowed += _define(con, table, target)
        con.execute("CREATE TABLE scorer_costs (name VARCHAR, cost_per_call DOUBLE)")
        if costs:
            con.executemany("INSERT INTO scorer_costs VALUES (?, ?)", [list(item) for item in costs.items()])
        for view, query in VIEWS.items():
            con.execute(f"CREATE VIEW {view} AS {query}")
        short = prefix.rpartition(".")[2]
        if short and short in sql:
            for name, alias in product((*TABLES, *VIEWS), (prefix, short)):
                con.execute(f'CREATE VIEW "{alias}{name}" AS FROM {name}')
        con.execute(f"SET allowed_paths = [{', '.join(_quoted(path) for path in allowed)}]")
        for name in ("enable_external_access", "python_enable_replacements", "lock_configuration"):
            con.execute(f"SET {name} = {str(name == 'lock_configuration').lower()}")
        return con


def _define(con: "duckdb.DuckDBPyConnection", table: str, target: "DeltaTable | None") -> list[str]:
    """Make the view of one table; returns the files it reads by path."""
    uris = target.file_uris() if target else []
    known = {field.name for field in target.schema().fields} if target and uris else set()
    held = {name: f'"{name}"' if name in known else "NULL" for name in TABLES[table]}
    listed = ", ".join(f'CAST({held[name]} AS {kind}) AS "{name}"' for name, kind in TABLES[table].items())
    if target is None or not uris:
        con.execute(f"CREATE VIEW {table} AS SELECT {listed} WHERE false")
        return []
    paths = [unquote(uri.removeprefix("file://")) for uri in uris]
    if not all(path.startswith("/") and not set(path) & set("*?[") for path in paths):
        # Object stores, and folders DuckDB would read as a pattern: delta-rs reads, DuckDB sees Arrow.
        con.register(f"{table}_files", _dataset(target, table))
        con.execute(f"CREATE TEMP VIEW {table}_typed AS SELECT {listed} FROM {table}_files")  # noqa: S608
        con.execute(f"CREATE TEMP VIEW {table} AS FROM {table}_typed")
        return []
    days = f", hive_partitioning = true, hive_types = {{'{PARTITION}': DATE}}" if PARTITION in known else ""
    files = f"read_parquet([{', '.join(_quoted(path) for path in paths)}], union_by_name = true{days})"
    con.execute(f"CREATE VIEW {table} AS SELECT {listed} FROM {files}")  # noqa: S608 names and paths of ours
    return paths


def _dataset(target: "DeltaTable", table: str) -> Any:
    """The table's files as an Arrow dataset, read by delta-rs wherever they are.

    Text is string_view, as delta-rs writes it: Arrow cannot compare a string with the string_view of a file's
    statistics, but it can the other way round. For the same reason this is not `to_pyarrow_dataset`.
    """
    import pyarrow as pa
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.dataset import dataset, partitioning
    from pyarrow.fs import PyFileSystem

    days = partitioning(pa.schema([(PARTITION, pa.date32())]), flavor="hive")
    fields = [pa.field(f.name, pa.string_view() if f.type == pa.string() else f.type) for f in arrow_schema(table)]
    paths = pa.table(target.get_add_actions(flatten=True)).column("path").to_pylist()
    return dataset(
        paths,
        schema=pa.schema(fields),
        format="parquet",
        filesystem=PyFileSystem(DeltaStorageHandler(target.table_uri)),
        partitioning=days if PARTITION in TABLES[table] else None,
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _in_utc(row: tuple[Any, ...], zoned: list[int]) -> tuple[Any, ...]:
    """The row with the times at these places in the standard library's UTC."""
    if not zoned:
        return row
    return tuple(v.astimezone(UTC) if i in zoned and v is not None else v for i, v in enumerate(row))
