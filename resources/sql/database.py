"""The agent's tables as one DuckDB database that queries share.

Lives here: which tables a query can mean, when a table must be read anew, and the locked database they are in.
Add here: a setting of the database.
Not here: asking (`engine.py`), which SQL is answered (`guard.py`), one table's files (`files.py`), what the views say
of a version (`answers.py`, `kept.py`).

A database is locked before any user's SQL reaches it: no other file, no setting, no extension, no Python variable. It
is built for the newest version of the tables a query names, and used again for as long as that is the newest: a
table's files never change, only the list of them does, and that list is looked at before every query. What views say
is taken from where another process left it, or worked out and left there; a whole view is read from there without a
database. Each query has a cursor of its own, and nobody's cursor can change what others see, because nothing but
reading is answered.
"""

import atexit
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.platform import Platform
from resources.sql import kept, kept_rows
from resources.sql.answers import READS, VIEWED, answer
from resources.sql.files import Held, define, paths_of, quoted
from resources.sql.views import VIEWS
from resources.tables import TABLES

if TYPE_CHECKING:
    import duckdb

KEPT = 4
"""Databases kept at a time in one process."""

_LISTING = re.compile(r"show|describe|summarize|information_schema|duckdb_|pragma_|sqlite_|pg_", re.IGNORECASE)


_ELSE = re.compile(rf"'(?:{'|'.join(VIEWS)})'|\bas\s+\w+")
"""Where a view's name means something else: a kind of assessment, the name of a column."""


def names_in(sql: str) -> tuple[frozenset[str], frozenset[str]]:
    """The tables and the views a text of SQL can mean. Too many do no harm."""
    text = sql.lower()
    if _LISTING.search(text):
        return frozenset(TABLES), frozenset(VIEWS)
    rest = _ELSE.sub(" ", text)
    return frozenset(one for one in TABLES if one in text), frozenset(one for one in VIEWS if one in rest)


class Database:
    """The tables of one prefix. `costs` maps registered scorer names to USD a call. Safe to use from threads."""

    def __init__(self, platform: Platform, prefix: str, costs: Mapping[str, float]) -> None:
        self._platform, self._prefix, self._costs = platform, prefix, dict(costs)
        self._held = {table: Held(platform.table_uri(prefix + table)) for table in TABLES}
        self._lock = threading.Lock()
        self._con: duckdb.DuckDBPyConnection | None = None
        self._defined: frozenset[str] = frozenset()
        self._answers = False
        self._named: set[str] = set()
        self._setups: list[Callable[[Any], None]] = []
        self._alike = True
        self._rows: kept_rows.KeptRows | None = None

    def rows_of(self, view: str) -> kept_rows.KeptRows | None:
        """Where the rows of this view are kept as they are now, None when the tables must be asked."""
        with self._lock:
            if self._rows is None or not self._rows.is_newest(READS[view]):
                self._rows = kept_rows.find(kept.folder_of(self._platform, self._prefix), kept.rest_of(self._costs))
            return self._rows

    def cursor(self, sql: str) -> "duckdb.DuckDBPyConnection":
        """A cursor that sees what `sql` can mean at its newest version; with prefix too, when `sql` uses the prefix.

        A table that was never written is there with no rows. Raises `Refused` for a table that must not be read.
        """
        tables, views = names_in(sql)
        read = tables.union(*(READS[view] for view in views))
        with self._lock:
            if self._con is not None:
                self._look(read)
            if self._con is None or not tables <= self._defined or (views and not self._answers):
                self._build(tables | self._defined, answers=bool(views) or self._answers)
            assert self._con is not None  # It was built.
            self._name(self._con, sql)
            cursor, setups = self._con.cursor(), list(self._setups)
        for setup in setups:
            setup(cursor)
        return cursor

    def read_each_schema(self) -> bool:
        """From now on look into every file for its columns. False when that was so already."""
        with self._lock:
            changed, self._alike, self._con = self._alike, False, None
        return changed

    def _look(self, tables: frozenset[str]) -> None:
        """Take up the newest versions; a database of another one is given up."""
        # Traces first: what they refer to was written before them.
        for table in [table for table in TABLES if table in tables]:
            if self._held[table].look():
                self._con = None

    def _build(self, tables: frozenset[str], *, answers: bool) -> None:
        """A new database; with `answers` it has the views, and all of them: who asks one asks the others too."""
        self._con = None
        opened = tables | (VIEWED if answers else frozenset())
        with ThreadPoolExecutor(1) as pool:
            # DuckDB takes as long to start as the tables to open.
            starting = pool.submit(_started)
            self._look(opened)  # One the question does not name may have lost files to a vacuum since.
            con = starting.result()
        con.execute("CREATE TABLE scorer_costs (name VARCHAR, cost_per_call DOUBLE)")
        if self._costs:
            con.executemany("INSERT INTO scorer_costs VALUES (?, ?)", [list(item) for item in self._costs.items()])
        paths = {table: paths_of(self._held[table].target) for table in opened}
        defined = tables | {table for table in opened if paths[table] is None}
        setups = [define(con, table, self._held[table].target, alike=self._alike) for table in sorted(defined)]
        self._setups = [setup for setup in setups if setup]
        for setup in self._setups:
            setup(con)
        whole, made = self._answer(con) if answers else (True, None)
        read = [path for table in (defined if whole else opened) for path in paths[table] or ()]
        allowed = ", ".join(quoted(path) for path in (*read, *(kept.paths_in(made[0]) if made else ())))
        con.execute(f"SET allowed_paths = [{allowed}]")
        for name in ("enable_external_access", "python_enable_replacements", "lock_configuration"):
            con.execute(f"SET {name} = {str(name == 'lock_configuration').lower()}")
        self._con, self._defined, self._answers, self._named = con, defined, answers, set()
        if made:
            # After the question, which has all it needs; a process waits for it when it ends.
            threading.Thread(target=kept.leave_later, args=(con.cursor(), *made), name="keep-answers").start()

    def _answer(self, con: "duckdb.DuckDBPyConnection") -> tuple[bool, tuple[Path, kept.Place] | None]:
        """Make the views: whether they read nothing any more, and where their answers are to be left, if anywhere."""
        place = kept.place_of(self._platform, self._prefix, self._held, self._costs)
        if place and kept.take(con, place):
            return True, None
        whole = answer(con, self._held, alike=self._alike)
        folder = kept.begin(place) if place and whole else None
        return whole, (folder, place) if folder and place else None

    def _name(self, con: "duckdb.DuckDBPyConnection", sql: str) -> None:
        """Make the names with prefix that `sql` uses, once."""
        short = self._prefix.rpartition(".")[2]
        if short and short in sql:
            for name, alias in product((*TABLES, *VIEWS), (self._prefix, short)):
                if f"{alias}{name}" in sql and f"{alias}{name}" not in self._named:
                    con.execute(f'CREATE VIEW "{alias}{name}" AS FROM {name}')
                    self._named.add(f"{alias}{name}")


def _started() -> "duckdb.DuckDBPyConnection":
    import duckdb

    con = duckdb.connect(":memory:", config={"threads": 2, "memory_limit": "1GB", "temp_directory": ""})
    con.execute("SET GLOBAL TimeZone = 'UTC'")
    con.execute("SET GLOBAL parquet_metadata_cache = true")
    return con


_databases: "OrderedDict[tuple[Any, ...], Database]" = OrderedDict()
_opening = threading.Lock()
atexit.register(_databases.clear)  # DuckDB complains on stderr of connections that outlive the interpreter.


def open_database(platform: Platform, prefix: str, costs: Mapping[str, float]) -> Database:
    """The database of these tables, the one this process has when it has one."""
    costs = {name: cost for name, cost in costs.items() if cost}  # Without a price, a call costs nothing too.
    # A child of this process must not use its parent's: the threads that work for it are not there.
    key = (os.getpid(), platform.warehouse, prefix, *sorted(costs.items()))
    with _opening:
        found = _databases.pop(key, None) or Database(platform, prefix, costs)
        _databases[key] = found
        for old in [one for one in _databases if one[0] == os.getpid()][:-KEPT]:
            del _databases[old]
    return found
