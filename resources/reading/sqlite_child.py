"""The process that reads a SQLite file while another one writes the archive.

Lives here: `python -m resources.reading.sqlite_child`: reading, converting, and sending pages.
Add here: nothing that needs MLflow, which this process does without.
Not here: starting it (`sqlite_pages.py`), the columns (`page_columns.py`).

It is a process of its own because ADBC's copy of SQLite must not meet MLflow's (`sqlite_database.py`), and because
what is converted here does not wait for the writer. A thread reads ahead of the conversion by one page. It ends when
nobody takes its pages any more.
"""

import gc
import json
import queue
import sys
import threading
from pathlib import Path
from typing import IO, Any

from resources.reading.page_columns import Page, page_columns, read_stored
from resources.reading.span_columns import SpanColumns
from resources.reading.sqlite_database import SqliteColumns

_AHEAD = 1


def main(given: IO[bytes], said: IO[bytes]) -> None:
    """Answer one request: its first line says what is asked, the lines after it are the ids of a page each."""
    # The thread that reads asks for Python's lock many times a page, and must not wait 5 ms each.
    sys.setswitchinterval(0.0002)
    gc.disable()  # Nothing that is made here refers to itself.
    asked = json.loads(given.readline())
    pages = [json.loads(line) for line in given]
    waiting: queue.Queue[Any] = queue.Queue(_AHEAD)
    threading.Thread(target=_read, args=(asked, pages, waiting), daemon=True).start()
    made = SpanColumns()
    for _ in pages:
        stored = waiting.get()
        if isinstance(stored, BaseException):
            from lifecycle_assets.refused import Refused  # Brings Dagster: not before it is needed.

            if not isinstance(stored, Refused):
                raise stored
            said.write(json.dumps({"refused": str(stored)}).encode() + b"\n")
            said.flush()
            return
        _send(page_columns(stored, asked["experiment_id"], made), said)


def _read(asked: dict[str, Any], pages: list[list[str]], waiting: "queue.Queue[Any]") -> None:
    try:
        database = SqliteColumns(Path(asked["path"]))
        for ids in pages:
            stored = read_stored(database, asked["experiment_id"], ids, with_spans=asked["with_spans"], copies=False)
            database.require(asked["revision"])
            waiting.put(stored)
    except BaseException as fault:  # noqa: BLE001 the thread that converts raises it
        waiting.put(fault)


def _send(page: Page, said: IO[bytes]) -> None:
    import pyarrow as pa

    tables = [page.traces, page.assessments, *([] if page.spans is None else [page.spans])]
    parts = []
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        parts.append(sink.getvalue())
    said.write(json.dumps({"odd": page.odd, "sizes": [part.size for part in parts]}).encode() + b"\n")
    for part in parts:
        said.write(part)
    said.flush()


if __name__ == "__main__":
    try:
        main(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:
        sys.stderr.close()  # Nobody reads any more.
