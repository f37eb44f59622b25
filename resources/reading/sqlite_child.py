"""The process that reads a SQLite file while another one writes the archive.

Lives here: `python -m resources.reading.sqlite_child`: reading, converting, and sending pages or writing files.
Add here: nothing that needs MLflow, which this process does without.
Not here: starting it (`sqlite_process.py`), the columns (`page_columns.py`), files (`delta/data_files.py`).

It is a process of its own because ADBC's copy of SQLite must not meet MLflow's (`sqlite_database.py`), and because
what is converted here does not wait for the writer. Where pages are sent, a thread reads the next one while one is
converted; of two processes that write files, one computes while the other waits for the disk. It ends when nobody
takes what it says any more.
"""

import gc
import json
import queue
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from resources.delta.data_files import DayWriter
from resources.explain import explained
from resources.reading.page_columns import Page, page_columns, read_stored
from resources.reading.span_columns import SpanColumns
from resources.reading.sqlite_database import SqliteColumns
from resources.reading.stamp import stamped
from resources.reading.stored_traces import Stored

if TYPE_CHECKING:
    import pyarrow as pa


def main(given: IO[bytes], said: IO[bytes]) -> None:
    """Answer one request: its first line says what is asked, the lines after it are the ids of a message each."""
    import pyarrow as pa

    gc.disable()  # Nothing that is made here refers to itself.
    asked = json.loads(given.readline())
    pages = given.readlines()
    pipe = pa.PythonFile(said, "w")  # Which closes what it was given when it ends.
    try:
        (_send_files if "folders" in asked else _send_pages)(asked, pages, pipe)
    except Exception as fault:
        from lifecycle_assets.refused import Refused  # Brings Dagster: not before it is needed.

        if not isinstance(fault, Refused):
            raise
        _send(pipe, {"refused": str(fault)}, ())


def _send_files(asked: dict[str, Any], parts: list[bytes], pipe: "pa.PythonFile") -> None:
    """Write each part into files of its own; send what they are, and what the writer of the log has to know."""
    import pyarrow as pa

    database, made, size = SqliteColumns(Path(asked["path"])), SpanColumns(), asked["page"]
    for part in parts:
        ids = json.loads(part)
        writers = {table: DayWriter(Path(folder), table) for table, folder in asked["folders"].items()}
        heads, said, odd = [], [], []
        try:
            for start in range(0, len(ids), size):
                page = page_columns(_stored(database, asked, ids[start : start + size]), asked["experiment_id"], made)
                heads.append(_copy(page.traces.select(asked["heads"])))
                said.append(_copy(page.assessments))
                odd += [start + nth for nth in page.odd]
                for table, rows in (("spans", page.spans), ("traces", stamped(page.traces))):
                    with explained(asked["folders"][table]):
                        writers[table].write(rows)
                del page, rows  # Not to be held while the next one is read.
            files = {}
            for table, writer in writers.items():
                with explained(asked["folders"][table]):
                    files[table] = [asdict(one) for one in writer.close()]
        except BaseException:
            for writer in writers.values():
                writer.discard()
            raise
        _send(pipe, {"odd": odd, "files": files}, (pa.concat_tables(heads), pa.concat_tables(said)))


def _send_pages(asked: dict[str, Any], pages: list[bytes], pipe: "pa.PythonFile") -> None:
    # The thread that reads asks for Python's lock many times a page, and must not wait 5 ms each.
    sys.setswitchinterval(0.0002)
    waiting: queue.Queue[Any] = queue.Queue()
    taken = threading.Semaphore()  # One page is ahead, no more: each takes memory.
    threading.Thread(target=_read, args=(asked, pages, waiting, taken), daemon=True).start()
    made = SpanColumns()
    for _ in pages:
        stored = waiting.get()
        taken.release()
        if isinstance(stored, BaseException):
            raise stored
        _send_page(page_columns(stored, asked["experiment_id"], made), pipe)


def _read(asked: dict[str, Any], pages: list[bytes], waiting: "queue.Queue[Any]", taken: threading.Semaphore) -> None:
    try:
        database = SqliteColumns(Path(asked["path"]))
        for ids in pages:
            taken.acquire()
            waiting.put(_stored(database, asked, json.loads(ids)))
    except BaseException as fault:  # noqa: BLE001 the thread that converts raises it
        waiting.put(fault)


def _stored(database: SqliteColumns, asked: dict[str, Any], ids: list[str]) -> Stored:
    stored = read_stored(database, asked["experiment_id"], ids, with_spans=asked["with_spans"], copies=False)
    database.require(asked["revision"])
    return stored


def _send_page(page: Page, pipe: "pa.PythonFile") -> None:
    tables = [page.traces, page.assessments, *([] if page.spans is None else [page.spans])]
    _send(pipe, {"odd": page.odd}, tables)


def _send(pipe: "pa.PythonFile", head: dict[str, Any], tables: "Sequence[pa.Table]") -> None:
    import pyarrow as pa

    sizes = []
    for table in tables:
        counted = pa.MockOutputStream()
        _write(table, counted)
        sizes.append(counted.size())
    pipe.write(json.dumps(head | {"sizes": sizes}).encode() + b"\n")
    for table in tables:
        _write(table, pipe)
    pipe.flush()


def _copy(table: "pa.Table") -> "pa.Table":
    """The same in memory of its own, so that nothing else of its page is kept."""
    import pyarrow as pa

    held = pa.BufferOutputStream()
    _write(table, held)
    with pa.ipc.open_stream(held.getvalue()) as stream:
        return stream.read_all()


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
