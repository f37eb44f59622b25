"""The agent's tables as one DuckDB database that queries share.

Lives here: which tables a query can mean, when a table must be read anew, and the locked database they are in.
Add here: a column that no view reads and that is large (`PAYLOADS`).
Not here: asking (`engine.py`), which SQL is answered (`guard.py`), one table's files (`files.py`).

A database is locked before any user's SQL reaches it: no other file, no setting, no extension, no Python variable. It
is built for the newest version of the tables a query names, and used again for as long as that is the newest: a
table's files never change, only the list of them does, and that list is looked at before every query. Each query has a
cursor of its own, and nobody's cursor can change what others see, because nothing but reading is answered.

A day that is archived in small steps has hundreds of small files, and opening one costs as much as reading thousands
of rows. So the columns that views read, which are no payloads, are read once into memory, smallest files first, and
views read that copy and the files beyond it. Queries over the tables themselves read the files.
"""

import atexit
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

from resources.platform import Platform
from resources.sql.files import Held, define, files_sql, quoted
from resources.sql.views import VIEWS
from resources.tables import TABLES

if TYPE_CHECKING:
    import duckdb

PAYLOADS: dict[str, frozenset[str]] = {
    "traces": frozenset({"request", "response", "tags", "metadata"}),
    "spans": frozenset({"inputs", "outputs", "attributes"}),
    "assessments": frozenset({"source_id", "rationale"}),
}
"""Columns that no view reads, and that make up most of a table's bytes."""

READS = {view: frozenset(table for table in TABLES if re.search(rf"\b{table}\b", sql)) for view, sql in VIEWS.items()}
"""View to the tables it reads."""

VIEWED = frozenset().union(*READS.values())
"""The tables that views read."""

KEPT = 4
"""Databases kept at a time in one process."""

_LISTING = re.compile(r"show|describe|summarize|information_schema|duckdb_|pragma_|sqlite_|pg_", re.IGNORECASE)


def tables_named(sql: str) -> frozenset[str]:
    """The tables a text of SQL can mean: those it names, by themselves or by a view. Too many do no harm."""
    text = sql.lower()
    if _LISTING.search(text):
        return frozenset(TABLES)
    named = {table for table in TABLES if table in text}
    return frozenset(named.union(*(READS[view] for view in VIEWS if view in text)))


class Database:
    """The tables of one prefix. `costs` maps registered scorer names to USD a call. Safe to use from threads."""

    def __init__(self, platform: Platform, prefix: str, costs: Mapping[str, float]) -> None:
        self._prefix, self._costs = prefix, dict(costs)
        self._held = {table: Held(platform.table_uri(prefix + table)) for table in TABLES}
        self._lock = threading.Lock()
        self._con: duckdb.DuckDBPyConnection | None = None
        self._made: set[str] = set()
        self._defined: frozenset[str] = frozenset()
        self._setups: list[Callable[[Any], None]] = []
        self._files: dict[str, list[str]] = {}
        self._alike = True

    def cursor(self, sql: str) -> "duckdb.DuckDBPyConnection":
        """A cursor that sees what `sql` can mean at its newest version; with prefix too, when `sql` uses the prefix.

        A table that was never written is there with no rows. Raises `Refused` for a table that must not be read.
        """
        named = tables_named(sql)
        with self._lock:
            # Traces first: what they refer to was written before them.
            newer = [table for table in TABLES if table in named and self._held[table].look()]
            if self._con is None or newer or not named <= self._defined:
                # Who asks one view asks the others too, and building again means reading again.
                together = VIEWED if named & VIEWED else frozenset()
                self._build(named | together | self._defined)
            assert self._con is not None  # It was built.
            self._make_views(sql)
            cursor = self._con.cursor()
        for setup in self._setups:
            setup(cursor)
        return cursor

    def read_each_schema(self) -> bool:
        """From now on look into every file for its columns. False when that was so already."""
        with self._lock:
            changed, self._alike, self._con = self._alike, False, None
        return changed

    def _build(self, tables: frozenset[str]) -> None:
        import duckdb

        con = duckdb.connect(":memory:", config={"threads": 2, "memory_limit": "1GB", "temp_directory": ""})
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET parquet_metadata_cache = true")
        con.execute("CREATE SCHEMA held")
        self._setups, self._files = [], {}
        for table in TABLES:
            if table not in tables:
                continue
            held = self._held[table]
            held.look()  # One the question does not name may have lost files to a vacuum since.
            paths, setup = define(con, table, held.target, alike=self._alike)
            self._setups += [setup] if setup else []
            if paths:
                self._files[table] = paths
        con.execute("CREATE TABLE scorer_costs (name VARCHAR, cost_per_call DOUBLE)")
        if self._costs:
            con.executemany("INSERT INTO scorer_costs VALUES (?, ?)", [list(item) for item in self._costs.items()])
        allowed = ", ".join(quoted(path) for paths in self._files.values() for path in paths)
        con.execute(f"SET allowed_paths = [{allowed}]")
        for name in ("enable_external_access", "python_enable_replacements", "lock_configuration"):
            con.execute(f"SET {name} = {str(name == 'lock_configuration').lower()}")
        for setup in self._setups:
            setup(con)
        self._con, self._made, self._defined = con, set(), tables

    def _make_views(self, sql: str) -> None:
        """Make the views `sql` can mean, once, and hold in memory what they read."""
        text, every, short = sql.lower(), _LISTING.search(sql), self._prefix.rpartition(".")[2]
        for view in VIEWS:
            if (every or view in text) and view not in self._made:
                held = sorted(READS[view] & set(PAYLOADS) & set(self._files))
                for table in held:
                    self._hold(table)
                instead = ", ".join(f"{table} AS NOT MATERIALIZED (FROM held.{table})" for table in held)
                self._make(view, f"{'WITH ' if held else ''}{instead} {VIEWS[view]}")
        if short and short in sql:
            for name, alias in product((*TABLES, *VIEWS), (self._prefix, short)):
                if f"{alias}{name}" in sql:
                    self._make(f"{alias}{name}", f"FROM {name}")

    def _hold(self, table: str) -> None:
        """Make `held.<table>`: what views read of it, from memory for as many rows as may be held."""
        assert self._con is not None  # A view is being made in it.
        if f"held.{table}" in self._made:
            return
        listed = ", ".join(name for name in TABLES[table] if name not in PAYLOADS[table])
        inside, beyond = self._held[table].split(self._files[table])
        parts = [f"SELECT {listed} FROM {files_sql(table, beyond, alike=self._alike)}"] if beyond else []  # noqa: S608
        if inside:
            files = files_sql(table, inside, alike=self._alike)
            self._con.execute(f"CREATE TABLE held.{table}_copy AS SELECT {listed} FROM {files}")  # noqa: S608
            parts.insert(0, f"FROM held.{table}_copy")
        self._con.execute(f"CREATE VIEW held.{table} AS {' UNION ALL '.join(parts)}")
        self._made.add(f"held.{table}")

    def _make(self, name: str, query: str) -> None:
        if name not in self._made and self._con is not None:
            self._con.execute(f'CREATE VIEW "{name}" AS {query}')
            self._made.add(name)


_databases: "OrderedDict[tuple[Any, ...], Database]" = OrderedDict()
_opening = threading.Lock()
atexit.register(_databases.clear)  # DuckDB complains on stderr of connections that outlive the interpreter.


def open_database(platform: Platform, prefix: str, costs: Mapping[str, float]) -> Database:
    """The database of these tables, the one this process has when it has one."""
    # A child of this process must not use its parent's: the threads that work for it are not there.
    key = (os.getpid(), platform.warehouse, prefix, *sorted(costs.items()))
    with _opening:
        found = _databases.pop(key, None) or Database(platform, prefix, costs)
        _databases[key] = found
        for old in [one for one in _databases if one[0] == os.getpid()][:-KEPT]:
            del _databases[old]
    return found
