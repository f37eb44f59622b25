"""One table of files: its newest version, and DuckDB's view of it.

Lives here: when a table must be read anew, which of its files may be held in memory, and reading files by DuckDB.
Add here: a way to reach tables on another storage.
Not here: the database these are put together in (`database.py`), opening a table (`delta/table.py`).
"""

from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from resources.delta.faults import require_sound, sound
from resources.delta.table import open_table
from resources.tables import PARTITION, TABLES, arrow_schema

if TYPE_CHECKING:
    import duckdb
    from deltalake import DeltaTable

HELD_ROWS = 500_000
"""Rows of one table that are held in memory at most: some 60 MB. Of a larger one, those in small files."""


class Held:
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

    def entry(self) -> tuple[str, int, tuple[int, int, int] | None] | None:
        """The table's folder, the version (-1 without a table) and what tells that entry of the log from others.

        None for a table that is on no disk, or whose entry was gone when it was looked at.
        """
        if self._log is None or (self.target is not None and self._seen is None):
            return None
        return str(self._log.parent), self.target.version() if self.target else -1, self._seen

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


def paths_of(target: "DeltaTable | None") -> list[str] | None:
    """The table's files for DuckDB to read; None when it cannot, and delta-rs must."""
    paths = [unquote(uri.removeprefix("file://")) for uri in target.file_uris()] if target else []
    # Object stores, and folders DuckDB would read as a pattern.
    return paths if all(path.startswith("/") and not set(path) & set("*?[") for path in paths) else None


def typed(table: str, target: "DeltaTable | None", names: Iterable[str]) -> str:
    """These columns as SQL selects them: with the types of the contract, null where the table has none."""
    known = {field.name for field in target.schema().fields} if target and target.file_uris() else set()
    listed = ((f'"{name}"' if name in known else "NULL", TABLES[table][name], name) for name in names)
    return ", ".join(f'CAST({held} AS {kind}) AS "{name}"' for held, kind, name in listed)


def define(
    con: "duckdb.DuckDBPyConnection", table: str, target: "DeltaTable | None", *, alike: bool
) -> Callable[[Any], None] | None:
    """Make the view of one table; what every cursor needs besides."""
    import duckdb

    paths, listed = paths_of(target), typed(table, target, TABLES[table])
    if paths is None and target is not None:
        files = _dataset(target, table)

        def setup(cursor: Any) -> None:
            cursor.register(f"{table}_files", files)
            cursor.execute(f"CREATE OR REPLACE TEMP VIEW {table}_typed AS SELECT {listed} FROM {table}_files")  # noqa: S608
            cursor.execute(f"CREATE OR REPLACE TEMP VIEW {table} AS FROM {table}_typed")

        return setup
    if not paths:
        con.execute(f"CREATE VIEW {table} AS SELECT {listed} WHERE false")
        return None
    try:
        con.execute(f"CREATE VIEW {table} AS SELECT {listed} FROM {files_sql(table, paths, alike=alike)}")  # noqa: S608
    except duckdb.BinderException:
        # The first file was written before the table had its newest columns.
        con.execute(f"CREATE VIEW {table} AS SELECT {listed} FROM {files_sql(table, paths, alike=False)}")  # noqa: S608
    return None


def files_sql(table: str, paths: Iterable[str], *, alike: bool) -> str:
    """The files as DuckDB reads them; unless they are `alike`, each is opened for its columns first."""
    days = f", hive_partitioning = true, hive_types = {{'{PARTITION}': DATE}}" if PARTITION in TABLES[table] else ""
    listed = ", ".join(quoted(path) for path in paths)
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


def quoted(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("'", "''") + "'"
