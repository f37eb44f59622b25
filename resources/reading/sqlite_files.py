"""Traces of a SQLite file, made into data files by processes of their own.

Lives here: how many, and which of them makes what.
Add here: nothing of what they do (`sqlite_child.py`).
Not here: the process (`sqlite_process.py`), committing the files (`archive/append_files.py`).

Neither the texts of spans nor those of traces pass through this process. Each of two makes every other part, so that
their files can be committed in order while the next ones are made.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resources.delta.data_files import DataFile
from resources.reading.sqlite_database import SqliteDatabase
from resources.reading.sqlite_process import SqliteProcess
from resources.reading.trace_reader import HEADS

if TYPE_CHECKING:
    import pyarrow as pa

_AT_MOST = 2  # Processes: each takes some 120 MB.
_GIVE_BACK = {"MALLOC_TRIM_THRESHOLD_": str(4 << 20), "MALLOC_MMAP_THRESHOLD_": str(512 << 10)}
"""Of a process that reads, converts and writes in turn, memory one of them kept is 20 MB the others cannot use."""


@dataclass(frozen=True)
class Made:
    """Files by table of the ordinary traces of a part; columns of these, their assessments; places of the others."""

    files: dict[str, tuple[DataFile, ...]]
    heads: "pa.Table"
    assessments: "pa.Table"
    odd: "pa.Array"


def write_files(
    database: SqliteDatabase,
    experiment_id: str,
    revision: str,
    parts: "Sequence[pa.ChunkedArray]",
    folders: Mapping[str, Path],
    *,
    page: int,
) -> Iterator[Made]:
    """Files of the traces of these ids, a part after the other, read `page` at a time, in the tables' `folders`.

    Raises `Refused` when the file cannot be read, no file can be written, or a process dies. What was made of the part
    that failed, and of those after it, is in no table.
    """
    asked = {
        "path": str(database.path),
        "experiment_id": experiment_id,
        "revision": revision,
        "with_spans": True,
        "page": page,
        "heads": list(HEADS),
        "folders": {table: str(folder) for table, folder in folders.items()},
    }
    number = processes(len(parts))
    with ExitStack() as ends:
        running = []
        for nth in range(number):
            ids = (part.to_pylist() for part in parts[nth::number])
            running.append(ends.enter_context(SqliteProcess(database.where, asked, ids, _GIVE_BACK)))
        for nth in range(len(parts)):
            yield _made(running[nth % number])


def processes(parts: int) -> int:
    """How many processes make so many parts: on one core a second one would only take memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_AT_MOST, cores, parts)


def _made(process: SqliteProcess) -> Made:
    import pyarrow as pa

    said, (heads, assessments) = process.take()
    files = {table: tuple(DataFile(**one) for one in made) for table, made in said["files"].items()}
    return Made(files, heads, assessments, pa.array(said["odd"], pa.int64()))
