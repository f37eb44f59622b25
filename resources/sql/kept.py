"""The views' answers on disk, so that the next process need not work them out again.

Lives here: when answers of another process are those of now, taking them, and leaving them.
Add here: nothing for a new view or column: answers of other views are other answers.
Not here: working them out (`answers.py`), answers in this process's memory (`database.py`), rows (`kept_rows.py`).

Answers are kept under a name made of all they follow from: every data file the tables' logs list now, with its size
and when it was written, the tables' columns, the views, the prices and DuckDB's release. A data file of a Delta table
never changes, so answers under the name of now are never old; and where a file is gone or was touched, there is no
such name, and reading the tables says what is wrong. They are made under another name and renamed, so they are there
whole or not at all. Answers of other files are deleted by whoever leaves new ones, and by upkeep. For views that are
asked as they are, their first rows lie beside them (`kept_rows.py`).
"""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from resources.platform import Platform
from resources.sql import kept_rows
from resources.sql.answers import COLUMNS, VIEWED
from resources.sql.files import Held, paths_of, quoted, typed
from resources.sql.views import VIEWS
from resources.tables import TABLES

if TYPE_CHECKING:
    import duckdb

WORTH_BYTES = 1_000_000
"""Data files below this together are read in no time: nothing is kept."""

LATER_SECONDS = 0.5
"""How long leaving answers waits, unless the process ends: who asked for one view asks for the next ones meanwhile."""

_UNFINISHED = "making-"
_STALE_SECONDS = 3_600
"""By then whoever made answers has ended, one way or another."""


@dataclass(frozen=True)
class Place:
    """Where the answers of these files are, or will be."""

    folder: Path
    files: str
    rest: str
    follows: kept_rows.Follows

    @property
    def whole(self) -> Path:
        """The folder the answers are in: a Parquet file a view, and their first rows."""
        return self.folder / f"{self.files}-{self.rest}"


def place_of(platform: Platform, prefix: str, tables: Mapping[str, Held], costs: Mapping[str, float]) -> Place | None:
    """The place for the tables as they were looked at last; None when nothing can or need be kept."""
    said, size, entries, files = [], 0, {}, {}
    for table in sorted(VIEWED):
        target, entry = tables[table].target, tables[table].entry()
        paths = paths_of(target)
        if entry is None or (target is not None and paths is None):
            return None
        try:
            found = [(path, os.stat(path)) for path in sorted(paths or ())]  # noqa: PTH116 a Path takes longer
        except OSError:
            return None  # Who reads the table will say so.
        size += sum(stat.st_size for _, stat in found)
        of_table = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in found]
        said.append((table, typed(table, target, COLUMNS[table]), of_table))
        entries[table] = entry
        files |= {path: numbers for path, *numbers in of_table}
    folder = folder_of(platform, prefix)
    if size < WORTH_BYTES or set(str(folder)) & set("*?["):  # DuckDB would read that as a pattern.
        return None
    return Place(folder, _digest(said), rest_of(costs), kept_rows.Follows(entries, files))


def rest_of(costs: Mapping[str, float]) -> str:
    """What answers follow from besides the files, as the end of their folder's name."""
    import duckdb

    columns = [(table, *TABLES[table].items()) for table in sorted(VIEWED)]
    return _digest((sorted(costs.items()), sorted(VIEWS.items()), columns, duckdb.__version__))


def folder_of(platform: Platform, prefix: str) -> Path:
    """Where all answers about the tables of one prefix are."""
    return platform.home / "answers" / _digest((platform.warehouse, prefix))


def take(con: "duckdb.DuckDBPyConnection", place: Place) -> bool:
    """Make all views of the answers at this place; False when there are none that can be read."""
    import duckdb

    if not place.whole.is_dir():
        return False
    made = []
    try:
        for view in VIEWS:
            con.execute(f"CREATE TABLE {view} AS FROM read_parquet({quoted(str(place.whole / view))})")
            made.append(view)
    except duckdb.Error as error:
        # Deleted this moment, or damaged: they are worked out again.
        logging.getLogger(__name__).info("Answers in %s cannot be read (%s).", place.whole, str(error)[:200])
        for view in made:
            con.execute(f"DROP TABLE {view}")
        return False
    kept_rows.renew(place.whole, place.follows)
    return True


def begin(place: Place) -> Path | None:
    """An empty folder that only this user can read, to leave answers in; None where nothing can be written."""
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=place.folder))
    except OSError:
        return None


def paths_in(folder: Path) -> list[str]:
    """The files of answers in a folder that DuckDB writes."""
    return [*(str(folder / view) for view in VIEWS), *kept_rows.paths_in(folder)]


def leave_later(con: "duckdb.DuckDBPyConnection", made: Path, place: Place) -> None:
    """Leave answers in a while, or as soon as the main thread has ended."""
    threading.main_thread().join(LATER_SECONDS)
    leave(con, made, place)


def leave(con: "duckdb.DuckDBPyConnection", made: Path, place: Place) -> None:
    """Write the answers that are tables in `con` into the folder `made`, and put it in its place.

    Not when the tables have changed since: somebody may have left newer ones.
    """
    import duckdb

    try:
        if not place.follows.is_newest(VIEWED):
            return shutil.rmtree(made)
        for view in VIEWS:
            con.execute(f"COPY {view} TO {quoted(str(made / view))} (FORMAT parquet, USE_TMP_FILE false)")
        kept_rows.write(con, made, place.follows)
        shutil.rmtree(place.whole, ignore_errors=True)  # There when they could not be read.
        made.rename(place.whole)
        forget(place.folder, but=place.files)
    except (duckdb.Error, OSError) as error:
        # Without space, or another process was first. The next one works them out again.
        logging.getLogger(__name__).info("Answers were not kept in %s (%s).", place.folder, str(error)[:200])
        shutil.rmtree(made, ignore_errors=True)


def forget(folder: Path, *, but: str = "") -> None:
    """Delete the answers in a folder, except those of the files `but`; and what a killed process left half made."""
    for one in folder.iterdir() if folder.is_dir() else ():
        try:
            age = time.time() - one.stat().st_mtime
        except FileNotFoundError:
            continue  # Another process was first.
        making = one.name.startswith(_UNFINISHED) and age < _STALE_SECONDS
        if not making and not (but and one.name.startswith(f"{but}-")):
            shutil.rmtree(one, ignore_errors=True)


def _digest(said: object) -> str:
    return sha256(repr(said).encode()).hexdigest()[:32]
