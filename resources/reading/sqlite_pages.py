"""Pages of a SQLite file, read by a process of its own.

Lives here: asking it, and taking its pages.
Add here: nothing of what it does (`sqlite_child.py`).
Not here: the process (`sqlite_process.py`), who asks for how many (`database_reader.py`).
"""

from collections.abc import Iterator, Sequence

from resources.reading.page_columns import Page
from resources.reading.sqlite_database import SqliteDatabase
from resources.reading.sqlite_process import SqliteProcess

_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
"""Pages are as large as each other, so memory that is freed is used again, a third faster."""


def read_pages(
    database: SqliteDatabase, experiment_id: str, revision: str, pages: Sequence[list[str]], *, with_spans: bool
) -> Iterator[Page]:
    """The pages of these ids, in order. Raises `Refused` when the file cannot be read, or the process dies."""
    asked = {"path": str(database.path), "experiment_id": experiment_id, "revision": revision, "with_spans": with_spans}
    with SqliteProcess(database.where, asked, pages, _KEEP_MEMORY) as process:
        for _ in pages:
            yield _page(process)


def _page(process: SqliteProcess) -> Page:
    said, (traces, assessments, *spans) = process.take()
    return Page(traces, assessments, spans[0] if spans else None, said["odd"])
