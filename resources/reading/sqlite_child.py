"""The process that reads a SQLite file while another one writes the archive.

Lives here: `python -m resources.reading.sqlite_child`: reading, converting, and sending pages.
Add here: nothing that needs MLflow, which this process does without.
Not here: starting it (`sqlite_pages.py`), the columns (`page_columns.py`).

It is a process of its own because ADBC's copy of SQLite must not meet MLflow's (`sqlite_database.py`), and because
what is converted here does not wait for the writer. A thread reads the next page while one is converted. It ends
when nobody takes its pages any more.
"""

import gc
import json
import queue
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from resources.reading.page_columns import Page, page_columns, read_stored
from resources.reading.span_columns import SpanColumns
from resources.reading.sqlite_database import SqliteColumns

if TYPE_CHECKING:
    import pyarrow as pa


def main(given: IO[bytes], said: IO[bytes]) -> None:
    """Answer one request: its first line says what is asked, the lines after it are the ids of a page each."""
    import pyarrow as pa

    # The thread that reads asks for Python's lock many times a page, and must not wait 5 ms each.
    sys.setswitchinterval(0.0002)
    gc.disable()  # Nothing that is made here refers to itself.
    asked = json.loads(given.readline())
    pages = [json.loads(line) for line in given]
    waiting: queue.Queue[Any] = queue.Queue()
    taken = threading.Semaphore()  # One page is ahead, no more: each takes memory.
    threading.Thread(target=_read, args=(asked, pages, waiting, taken), daemon=True).start()
    made, pipe = SpanColumns(), pa.PythonFile(said, "w")  # Which closes what it was given when it ends.
    for _ in pages:
        stored = waiting.get()
        taken.release()
        if isinstance(stored, BaseException):
            from lifecycle_assets.refused import Refused  # Brings Dagster: not before it is needed.

            if not isinstance(stored, Refused):
                raise stored
            said.write(json.dumps({"refused": str(stored)}).encode() + b"\n")
            said.flush()
            return
        _send(page_columns(stored, asked["experiment_id"], made), pipe)


def _read(
    asked: dict[str, Any], pages: list[list[str]], waiting: "queue.Queue[Any]", taken: threading.Semaphore
) -> None:
    try:
        database = SqliteColumns(Path(asked["path"]))
        for ids in pages:
            taken.acquire()
            stored = read_stored(database, asked["experiment_id"], ids, with_spans=asked["with_spans"], copies=False)
            database.require(asked["revision"])
            waiting.put(stored)
    except BaseException as fault:  # noqa: BLE001 the thread that converts raises it
        waiting.put(fault)


def _send(page: Page, pipe: "pa.PythonFile") -> None:
    import pyarrow as pa

    tables = [page.traces, page.assessments, *([] if page.spans is None else [page.spans])]
    sizes = []
    for table in tables:
        counted = pa.MockOutputStream()
        _write(table, counted)
        sizes.append(counted.size())
    pipe.write(json.dumps({"odd": page.odd, "sizes": sizes}).encode() + b"\n")
    for table in tables:
        _write(table, pipe)
    pipe.flush()


def _write(table: "pa.Table", where: "pa.NativeFile") -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(where, table.schema) as stream:
        stream.write_table(table)


class _Spared:
    """Keeps out what Arrow and ADBC bring along and nothing here uses: 50 MB, and 0.2 s of each start."""

    names = ("pandas", "pyarrow.dataset")

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> None:
        """For these, what Python says where they are not installed; anything else is looked for as ever."""
        if name in cls.names:
            raise ModuleNotFoundError(f"{name} is not brought into this process", name=name)


if __name__ == "__main__":
    sys.meta_path.insert(0, _Spared)
    try:
        main(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:
        sys.stderr.close()  # Nobody reads any more.
