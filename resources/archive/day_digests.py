"""What the store says of days, in a number each: a day that says the same as before need not be compared.

Lives here: asking the reader for digests of traces, and putting them together by day.
Add here: nothing about how a trace is digested (the reader does it).
Not here: when a day is asked about (`look.py`), the note (`marks.py`).

The number of a day is about its traces in the table, taken before their rows are read: what comes meanwhile makes
another one next time. It is noted with the rows, so it never says more than they do.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import TYPE_CHECKING

from resources.archive import marks
from resources.archive.marks import Days, Notes
from resources.archive.utc_days import each_day, traces_by_day
from resources.reading.trace_reader import TraceReader

if TYPE_CHECKING:
    import pyarrow as pa

Digests = Mapping[date, Mapping[str, int]]
"""Day to trace id to digest. A day that is not among them was not asked about."""


def digests_of(reader: TraceReader, listing: "pa.Table", days: Days, *, most: int) -> Digests:
    """What the store says of the listed traces of the newest of these days, as many as make up to `most` traces."""
    counted, asked, total = traces_by_day(listing), list[date](), 0
    for day in reversed(list(days)):
        if total + counted[day] > most:
            break
        asked, total = [*asked, day], total + counted[day]
    newest = listing.slice(listing.num_rows - total)  # A listing begins with the oldest.
    found = reader.digests(newest)
    if found is None:
        return {}
    digests: dict[date, dict[str, int]] = {day: {} for day in asked}
    for day, trace_id, digest in zip(each_day(newest), newest.column("trace_id").to_pylist(), found, strict=True):
        if day in digests:
            digests[day][trace_id] = digest
    return digests


def noted_of(digests: Digests, day: date, trace_ids: set[str]) -> int:
    """The number to note of a day whose traces in the table are among these; 0 when it was not asked about."""
    if day not in digests:
        return 0
    return marks.said_digest(digest for trace_id, digest in digests[day].items() if trace_id in trace_ids)


def is_the_same(notes: Notes, digests: Digests, held: "pa.ChunkedArray", days: Iterable[date]) -> bool:
    """Whether the store says of the traces held what it said when that was noted, of every one of these days."""
    trace_ids = set(held.to_pylist())
    return all(day in digests and notes.get(marks.SAID, day) == noted_of(digests, day, trace_ids) for day in days)
