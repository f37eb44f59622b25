"""A view's kept answer as rows, without DuckDB and without opening a table.

Lives here: the first rows of each view beside its answer, what answers follow from, and whether that is so now.
Add here: a type that a column of a new view has.
Not here: where answers are kept and under which name (`kept.py`), any other question (`database.py`).

Starting DuckDB and opening the tables takes longer than reading all that a dashboard shows. So beside the answers lie
their first rows as JSON, and what they follow from: of each table the newest entry in its log, and of each of its data
files the size and when it was written. Where one of these is different now, or cannot be looked at, or a row holds
what JSON cannot say (NaN), nothing is said here, and the tables are asked.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.sql.answers import VIEWED
from resources.sql.files import quoted
from resources.sql.views import VIEWS

if TYPE_CHECKING:
    import duckdb

FIRST = 10_000
"""Rows of a view that are kept so: as many as a query answers at most when it is not told otherwise."""

_ABOUT = "about.json"


@dataclass(frozen=True)
class Follows:
    """What answers follow from.

    `entries`: table to its folder, its version (-1: there is no table) and what tells that version's file in the log
    from another's. `files`: data file to its size in bytes and when it was written (nanoseconds since 1970).
    """

    entries: Mapping[str, Sequence[Any]]
    files: Mapping[str, Sequence[int]]

    def is_newest(self, tables: Iterable[str]) -> bool:
        """Whether these tables are at that version still. Raises `OSError` where that cannot be seen."""
        return all(_is_newest(*self.entries[table]) for table in tables)

    def has_its_files(self) -> bool:
        """Whether each data file is as it was. Raises `OSError` where that cannot be seen."""
        return all([found.st_size, found.st_mtime_ns] == [*said] for found, said in self._looked_at())

    def _looked_at(self) -> Iterable[tuple[os.stat_result, Sequence[int]]]:
        # A Path for each would take longer than looking.
        return ((os.stat(path), said) for path, said in self.files.items())  # noqa: PTH116


class KeptRows:
    """The rows of the answers in one folder."""

    def __init__(self, folder: Path, follows: Follows, views: Mapping[str, Any]) -> None:
        self._folder, self._follows, self._views = folder, follows, views

    def is_newest(self, tables: Iterable[str]) -> bool:
        """Whether these tables are at the version the answers follow from. Looks at two names a table."""
        try:
            return self._follows.is_newest(tables)
        except OSError:
            return False

    def rows(self, view: str, limit: int) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...], bool] | None:
        """Columns, at most `limit` rows, and whether there are more; None when they cannot be read here."""
        import orjson

        try:
            said = self._views[view]
            if limit > FIRST < said["rows"]:
                return None
            held = orjson.loads((self._folder / f"{view}.json").read_bytes())
            names = tuple(name for name, _ in said["columns"])
            read = [_READ[kind](held[str(i)] or []) for i, (_, kind) in enumerate(said["columns"])]
            rows = tuple(zip(*read, strict=True))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # Deleted this moment, or not to be said in JSON; or damaged.
        whole = len(rows) == min(said["rows"], FIRST)
        return (names, rows[:limit], said["rows"] > limit) if whole else None


def find(folder: Path, rest: str) -> KeptRows | None:
    """The rows of answers in this folder that are those of now, None without any. `rest` ends their folder's name."""
    import orjson

    try:
        places = sorted(place for place in folder.iterdir() if place.name.endswith(f"-{rest}"))
    except OSError:
        return None
    for place in places:
        try:
            about = orjson.loads((place / _ABOUT).read_bytes())
            follows = Follows(about["entries"], about["files"])
            if follows.is_newest(VIEWED) and follows.has_its_files():
                return KeptRows(place, follows, about["views"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # Deleted this moment, or damaged, or a file is gone: who reads the tables will say so.
    return None


def write(con: "duckdb.DuckDBPyConnection", folder: Path, follows: Follows) -> None:
    """Write the first rows of the views, which are tables in `con`, and what they follow from.

    Raises DuckDB's errors and `OSError` when they cannot be written.
    """
    views = {}
    for view in VIEWS:
        columns = [[row[0], row[1]] for row in con.execute(f"DESCRIBE {view}").fetchall()]
        if all(kind in _READ for _, kind in columns):
            (count,) = con.execute(f"SELECT count(*) FROM {view}").fetchall()[0]  # noqa: S608 a view of ours
            listed = ", ".join(f'list("{name}" ORDER BY place) AS "{i}"' for i, (name, _) in enumerate(columns))
            first = f"SELECT *, rowid AS place FROM {view} ORDER BY rowid LIMIT {FIRST}"  # noqa: S608
            file = quoted(str(folder / f"{view}.json"))
            con.execute(f"COPY (SELECT {listed} FROM ({first})) TO {file} (FORMAT json)")  # noqa: S608
            views[view] = {"columns": columns, "rows": count}
    _write_about(folder / _ABOUT, follows, views)


def renew(folder: Path, follows: Follows) -> None:
    """Answers in this folder follow from these entries too, where a log has new ones that name no other files.

    Left as it is when it cannot be written.
    """
    import orjson

    try:
        about = orjson.loads((folder / _ABOUT).read_bytes())
        if about["entries"] != orjson.loads(orjson.dumps(follows.entries)):
            made = folder / f"{_ABOUT}-{os.getpid()}-{threading.get_native_id()}"
            _write_about(made, follows, about["views"])
            made.rename(folder / _ABOUT)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.getLogger(__name__).info("What is said in %s of its files stays (%s).", folder, str(error)[:200])


def paths_in(folder: Path) -> list[str]:
    """The files in a folder that DuckDB writes."""
    return [str(folder / f"{view}.json") for view in VIEWS]


def _write_about(file: Path, follows: Follows, views: Mapping[str, Any]) -> None:
    about = {"entries": dict(follows.entries), "files": dict(follows.files), "views": views}
    file.write_text(json.dumps(about), encoding="utf-8")


def _is_newest(folder: str, version: int, identity: Sequence[int] | None) -> bool:
    if version < 0:
        return not _there(Path(folder))
    log = Path(folder, "_delta_log")
    found = (log / f"{version:020d}.json").stat()
    same = identity is not None and [found.st_ino, found.st_mtime_ns, found.st_size] == [*identity]
    return same and not _there(log / f"{version + 1:020d}.json")


def _there(path: Path) -> bool:
    """Whether there is a file or folder. Raises `OSError` where that cannot be seen."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _as_it_is(values: list[Any]) -> list[Any]:
    return values


def _each(read: Callable[[str], Any]) -> Callable[[list[Any]], Iterable[Any]]:
    def column(values: list[Any]) -> Iterable[Any]:
        return [None if one is None else read(one) for one in values] if None in values else map(read, values)

    return column


_READ: dict[str, Callable[[list[Any]], Iterable[Any]]] = {
    "VARCHAR": _as_it_is,
    "BIGINT": _as_it_is,
    "DOUBLE": _as_it_is,
    "BOOLEAN": _as_it_is,
    "DATE": _each(date.fromisoformat),
    "TIMESTAMP WITH TIME ZONE": _each(datetime.fromisoformat),
}
"""DuckDB's name of a type to how its JSON becomes Python's values. Times are written in UTC."""
