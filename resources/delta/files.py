"""The files of a Delta table: those its log lists, and those its folder holds.

Lives here: looking; nothing here changes a file.
Add here: a further fact about files that upkeep decides by.
Not here: rewriting and deleting (`upkeep/delta_upkeep.py`), mending (`repair.py`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from resources.tables import PARTITION

if TYPE_CHECKING:
    from deltalake import DeltaTable

SMALL_BYTES = 50 * 1024**2
"""Below this a file is small: half of what delta-rs makes of them (`delta.targetFileSize`, 100 MB)."""

_OURS = re.compile(r"(?:[^/]+=[^/]+/)?part-\d+-[0-9a-f-]{36}[-.]c\d{3}(?:\.\w+)?\.parquet")
"""What delta-rs and Spark name a data file, in a table without or with one partition column."""


@dataclass(frozen=True)
class DayFiles:
    """The files the log lists of one day (None in a table that is not kept by day).

    `small` of `files` are small; `newest_ms` is when the newest was written, epoch milliseconds; `sizes` are bytes by
    path below the table's folder; `rows` those the log says they hold.
    """

    day: date | None
    files: int
    small: int
    newest_ms: int
    rows: int
    sizes: tuple[tuple[str, int], ...]

    @property
    def paths(self) -> list[str]:
        """The files below the table's folder."""
        return [path for path, _ in self.sizes]


def active_days(target: "DeltaTable") -> list[DayFiles]:
    """The days of a table, oldest first, by its log."""
    by_day: dict[date | None, list[dict[str, Any]]] = {}
    for row in _actions(target):
        by_day.setdefault(row.get(f"partition.{PARTITION}"), []).append(row)
    return [
        DayFiles(
            day,
            len(rows),
            sum(row["size_bytes"] < SMALL_BYTES for row in rows),
            max(row["modification_time"] for row in rows),
            sum(row.get("num_records") or 0 for row in rows),
            tuple((row["path"], row["size_bytes"]) for row in rows),
        )
        for day, rows in sorted(by_day.items(), key=lambda item: item[0] or date.min)
    ]


def files_in_folder(target: "DeltaTable") -> dict[str, int]:
    """Path to size of every file below the table's folder that is not hidden; one listing, no file is opened."""
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import FileSelector, FileType, PyFileSystem

    folder = PyFileSystem(DeltaStorageHandler(target.table_uri))
    found = folder.get_file_info(FileSelector("", recursive=True))
    return {one.path: one.size for one in found if one.type == FileType.File and not _is_hidden(one.path)}


def is_foreign(path: str, is_partitioned: bool) -> bool:
    """Whether a file below a table's folder is named as no writer of Delta names one, or lies where none puts it."""
    return not _OURS.fullmatch(path) or ("/" in path) != is_partitioned


def _is_hidden(path: str) -> bool:
    """Whether Delta looks away from a file, as it does from its own log."""
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def _actions(target: "DeltaTable") -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    table = pa.table(target.get_add_actions(flatten=True))
    wanted = ("path", "size_bytes", "modification_time", "num_records", f"partition.{PARTITION}")
    yield from table.select([name for name in wanted if name in table.column_names]).to_pylist()
