"""A process that reads a SQLite file, and what it says.

Lives here: starting it, taking its messages, and ending it.
Add here: nothing of what it does (`sqlite_child.py`).
Not here: what it is asked (`sqlite_pages.py`, `sqlite_files.py`).
"""

import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused

if TYPE_CHECKING:
    import pyarrow as pa

_CHILD = "resources.reading.sqlite_child"
_ROOT = Path(__file__).resolve().parents[2]
_MEMORY = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Settings of Arrow, glibc and NumPy: one heap for all threads takes 30 MB less, and NumPy's stand idle."""

_PIPE_BYTES = 1 << 20  # As many as Linux allows anybody.
_F_SETPIPE_SZ = 1031  # Of Linux' fcntl.
_LAST_WORDS = 4_096  # Bytes.


class SqliteProcess:
    """One process, asked once: the first line says what, each one after it is a list of trace ids.

    `where` is named when it fails, `memory` are further settings of glibc. To be used in a `with`, which ends it.
    """

    def __init__(
        self, where: str, asked: Mapping[str, Any], ids: Iterable[list[str]], memory: Mapping[str, str]
    ) -> None:
        paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self._where = where
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 a pipe nobody reads would stop it when it is full
        self._child = subprocess.Popen(
            [sys.executable, "-m", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # What lies in the folder a command is called in is nobody's module.
            env={**os.environ, **_MEMORY, **memory, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._said: IO[bytes] = self._child.stdout
        _widen(self._said)
        try:
            with self._child.stdin as request:
                for line in chain([dict(asked)], ids):
                    request.write(json.dumps(line).encode() + b"\n")
        except OSError as fault:
            refused = self._ended()
            self.__exit__()
            raise refused from fault

    def __enter__(self) -> "SqliteProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self._child.kill()
        self._child.stdin = None
        with self._child, self._errors:  # Closes the pipe and waits.
            pass

    def take(self) -> "tuple[dict[str, Any], list[pa.Table]]":
        """Its next message: what it says, and tables. Raises `Refused` when the file cannot be read, or it died."""
        import pyarrow as pa

        try:
            line = self._said.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            head, tables = json.loads(line), []
            if "refused" in head:
                raise Refused(head["refused"])
            for size in head["sizes"]:
                # Memory that goes back at once: bytes of Python's would leave holes of some 100 MB.
                held = mmap.mmap(-1, size)
                _fill(memoryview(held), self._said)
                with pa.ipc.open_stream(pa.py_buffer(held)) as stream:
                    tables.append(stream.read_all())
        except (EOFError, OSError, ValueError) as fault:
            raise self._ended() from fault
        return head, tables

    def _ended(self) -> Refused:
        """Why the process ended, in its own last words."""
        self._child.terminate()
        self._child.wait()
        self._errors.seek(max(self._errors.seek(0, os.SEEK_END) - _LAST_WORDS, 0))
        words = (self._errors.read().decode(errors="replace").strip().splitlines() or [""])[-1][:300].rstrip(". ")
        said = f" ({words})" if words else ""
        return Refused(f"{self._where}: the process that read it ended in the middle{said}; run again.")


def _fill(held: memoryview, said: IO[bytes]) -> None:
    filled = 0
    while filled < len(held):
        got = said.readinto(held[filled:])  # ty: ignore[missing-attribute]
        if not got:
            raise EOFError
        filled += got


def _widen(pipe: IO[bytes]) -> None:
    """Have the pipe hold more at once, where that can be set."""
    if sys.platform == "linux":
        import fcntl

        try:
            fcntl.fcntl(pipe.fileno(), _F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            return
