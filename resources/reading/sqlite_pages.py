"""Pages of a SQLite file, read by a process of its own.

Lives here: starting it, taking its pages, and ending it.
Add here: nothing of what it does (`sqlite_child.py`).
Not here: who asks for how many (`database_reader.py`).
"""

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from lifecycle_assets.refused import Refused
from resources.reading.page_columns import Page
from resources.reading.sqlite_database import SqliteDatabase

_CHILD = "resources.reading.sqlite_child"
_ROOT = Path(__file__).resolve().parents[2]
_KEEP_MEMORY = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
}
"""Settings of Arrow and glibc: pages are as large as each other, so memory that is freed is used again, a third faster,
and in one heap for all threads, which takes 30 MB less."""

_PIPE_BYTES = 1 << 20  # As many as Linux allows anybody.
_F_SETPIPE_SZ = 1031  # Of Linux' fcntl.


def read_pages(
    database: SqliteDatabase, experiment_id: str, revision: str, pages: Sequence[Sequence[str]], *, with_spans: bool
) -> Iterator[Page]:
    """The pages of these ids, in order. Raises `Refused` when the file cannot be read, or the process dies."""
    asked = {"path": str(database.path), "experiment_id": experiment_id, "revision": revision, "with_spans": with_spans}
    paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    child = subprocess.Popen(
        [sys.executable, "-m", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **_KEEP_MEMORY, "PYTHONPATH": paths},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    _widen(child.stdout)
    try:
        with child.stdin as request:
            child.stdin = None
            request.write(b"".join(json.dumps(line).encode() + b"\n" for line in [asked, *map(list, pages)]))
        for _ in pages:
            yield _taken(child.stdout, with_spans=with_spans)
    except (EOFError, BrokenPipeError, OSError, ValueError) as fault:
        raise Refused(f"{database.where}: {_why(child)}; run again.") from fault
    finally:
        child.kill()
        with child:  # Closes its pipes and waits.
            pass


def _taken(said: IO[bytes], *, with_spans: bool) -> Page:
    import pyarrow as pa

    line = said.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    if "refused" in head:
        raise Refused(head["refused"])
    tables = []
    for size in head["sizes"]:
        # Memory that goes back at once: bytes of Python's would leave holes of some 100 MB.
        held = mmap.mmap(-1, size)
        _fill(memoryview(held), said)
        with pa.ipc.open_stream(pa.py_buffer(held)) as stream:
            tables.append(stream.read_all())
    return Page(tables[0], tables[1], tables[2] if with_spans else None, head["odd"])


def _fill(held: memoryview, said: IO[bytes]) -> None:
    filled = 0
    while filled < len(held):
        got = said.readinto(held[filled:])  # ty: ignore[missing-attribute]
        if not got:
            raise EOFError
        filled += got


def _why(child: "subprocess.Popen[bytes]") -> str:
    """Why the process ended, in its own last words."""
    child.terminate()
    assert child.stderr is not None
    errors = child.stderr.read()
    words = (errors.decode(errors="replace").strip().splitlines() or [""])[-1][:300].rstrip(". ")
    return f"the process that read it ended in the middle{f' ({words})' if words else ''}"


def _widen(pipe: IO[bytes]) -> None:
    """Have the pipe hold more at once, where that can be set."""
    if sys.platform == "linux":
        import fcntl

        try:
            fcntl.fcntl(pipe.fileno(), _F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            return
