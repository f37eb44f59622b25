"""The agent's tables as one DuckDB database that queries share.

Lives here: which tables a query can mean, when a table must be read anew, and the locked database they are in.
Add here: a column that no view reads and that is large (`PAYLOADS`).
Not here: asking (`sql_engine.py`), which SQL is answered (`sql_guard.py`), opening a table (`delta_table.py`).

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
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from resources.delta_table import open_table
from resources.platform import Platform
from resources.table_faults import require_sound, sound
from resources.tables import PARTITION, TABLES, arrow_schema
from resources.views import VIEWS

if TYPE_CHECKING:
    import duckdb
    from deltalake import DeltaTable

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

HELD_ROWS = 200_000
"""Rows of one table that are held in memory at most: some 40 MB of traces. Of a larger one, those in small files."""

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
        self._held = {table: _Held(platform.table_uri(prefix + table)) for table in TABLES}
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
            paths, setup = _define(con, table, held.target, alike=self._alike)
            self._setups += [setup] if setup else []
            if paths:
                self._files[table] = paths
        con.execute("CREATE TABLE scorer_costs (name VARCHAR, cost_per_call DOUBLE)")
        if self._costs:
            con.executemany("INSERT INTO scorer_costs VALUES (?, ?)", [list(item) for item in self._costs.items()])
        allowed = ", ".join(_quoted(path) for paths in self._files.values() for path in paths)
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
        parts = [f"SELECT {listed} FROM {_read(table, beyond, alike=self._alike)}"] if beyond else []  # noqa: S608
        if inside:
            files = _read(table, inside, alike=self._alike)
            self._con.execute(f"CREATE TABLE held.{table}_copy AS SELECT {listed} FROM {files}")  # noqa: S608
            parts.insert(0, f"FROM held.{table}_copy")
        self._con.execute(f"CREATE VIEW held.{table} AS {' UNION ALL '.join(parts)}")
        self._made.add(f"held.{table}")

    def _make(self, name: str, query: str) -> None:
        if name not in self._made and self._con is not None:
            self._con.execute(f'CREATE VIEW "{name}" AS {query}')
            self._made.add(name)


class _Held:
    """A table at the version that was newest when it was looked at last; `target` is None when there is none."""

    def __init__(self, uri: str) -> None:
        self._uri, self.target = uri, None
        local = "://" not in uri.removeprefix("file://")
        self._log = Path(uri.removeprefix("file://")) / "_delta_log" if local else None
        self._seen: tuple[int, int, int] | None = None

    def look(self) -> bool:
        """Take up the newest version; whether it is another one than before.

        A version is one file in the log, so on a disk two looks at file names tell that nothing is new.
        """
        before = self.target
        if before is not None and self._seen is not None and self._seen == self._identity(before.version()):
            assert self._log is not None  # Something in it was seen.
            if not (self._log / f"{before.version() + 1:020d}.json").exists():
                return False
            with sound(self._uri):
                before.update_incremental()
            require_sound(before, self._uri)
            self._seen = self._identity(before.version())
            return True
        self.target = open_table(self._uri)
        self._seen = self._identity(self.target.version()) if self.target else None
        if self.target is None or before is None:
            return self.target is not before
        return self._log is not None or _named(self.target) != _named(before)

    def split(self, paths: list[str]) -> tuple[list[str], list[str]]:
        """The files that may be held in memory, smallest first, and those beyond them."""
        assert self.target is not None  # It has files.
        log = self.target.get_add_actions(flatten=True)
        counts = zip(log.column("path").to_pylist(), log.column("num_records").to_pylist(), strict=True)
        rows = {unquote(path).rpartition("/")[2]: count for path, count in counts}
        # Without a count, as another program may write it, a file is beyond.
        sized = sorted((rows.get(path.rpartition("/")[2]) or HELD_ROWS + 1, path) for path in paths)
        sums = accumulate(count for count, _ in sized)
        inside = [path for (_, path), total in zip(sized, sums, strict=True) if total <= HELD_ROWS]
        return inside, [path for _, path in sized[len(inside) :]]

    def _identity(self, version: int) -> tuple[int, int, int] | None:
        """What tells this version's file in the log from that of another table made in the same place."""
        try:
            found = (self._log / f"{version:020d}.json").stat() if self._log else None
        except OSError:
            return None
        return (found.st_ino, found.st_mtime_ns, found.st_size) if found else None


def _named(target: "DeltaTable") -> tuple[Any, int]:
    return target.metadata().id, target.version()


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


def _define(
    con: "duckdb.DuckDBPyConnection", table: str, target: "DeltaTable | None", *, alike: bool
) -> tuple[list[str], Callable[[Any], None] | None]:
    """Make the view of one table; the files it reads by path, and what every cursor needs besides."""
    import duckdb

    uris = target.file_uris() if target else []
    known = {field.name for field in target.schema().fields} if target and uris else set()
    held = {name: f'"{name}"' if name in known else "NULL" for name in TABLES[table]}
    listed = ", ".join(f'CAST({held[name]} AS {kind}) AS "{name}"' for name, kind in TABLES[table].items())
    if target is None or not uris:
        con.execute(f"CREATE VIEW {table} AS SELECT {listed} WHERE false")
        return [], None
    paths = [unquote(uri.removeprefix("file://")) for uri in uris]
    if not all(path.startswith("/") and not set(path) & set("*?[") for path in paths):
        # Object stores, and folders DuckDB would read as a pattern: delta-rs reads, DuckDB sees Arrow.
        files = _dataset(target, table)

        def setup(cursor: Any) -> None:
            cursor.register(f"{table}_files", files)
            cursor.execute(f"CREATE OR REPLACE TEMP VIEW {table}_typed AS SELECT {listed} FROM {table}_files")  # noqa: S608
            cursor.execute(f"CREATE OR REPLACE TEMP VIEW {table} AS FROM {table}_typed")

        return [], setup
    try:
        con.execute(f"CREATE VIEW {table} AS SELECT {listed} FROM {_read(table, paths, alike=alike)}")  # noqa: S608
    except duckdb.BinderException:
        # The first file was written before the table had its newest columns.
        con.execute(f"CREATE VIEW {table} AS SELECT {listed} FROM {_read(table, paths, alike=False)}")  # noqa: S608
    return paths, None


def _read(table: str, paths: Iterable[str], *, alike: bool) -> str:
    """The files as DuckDB reads them; unless they are `alike`, each is opened for its columns first."""
    days = f", hive_partitioning = true, hive_types = {{'{PARTITION}': DATE}}" if PARTITION in TABLES[table] else ""
    listed = ", ".join(_quoted(path) for path in paths)
    return f"read_parquet([{listed}], union_by_name = {str(not alike).lower()}{days})"


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
