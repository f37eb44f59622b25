"""The UTC days on which listed traces started.

Lives here: from epoch milliseconds to days, many at a time.
Add here: another question about the days of a listing.
Not here: the days of an archiving (`marks.py`), the day of one trace (`trace_rows.py`).
"""

from collections import Counter
from collections.abc import Iterable
from datetime import date, timedelta
from typing import TYPE_CHECKING

from resources.arrow_compute import compute

if TYPE_CHECKING:
    import pyarrow as pa

_EPOCH, _DAY_MS = date(1970, 1, 1), 86_400_000


def started_on(listing: "pa.Table", days: Iterable[date]) -> "pa.ChunkedArray":
    """Of each listed trace, whether it started on one of these days."""
    import pyarrow as pa

    wanted = pa.array([(day - _EPOCH).days for day in days], pa.int64())
    return compute().is_in(_numbers(listing), value_set=wanted)


def traces_by_day(listing: "pa.Table") -> Counter[date]:
    """How many listed traces started on each day."""
    counted = compute().value_counts(_numbers(listing)).to_pylist()
    return Counter({_day(one["values"]): one["counts"] for one in counted})


def days_of(listing: "pa.Table") -> list[date]:
    """The days on which listed traces started, oldest first."""
    return [_day(number) for number in sorted(compute().unique(_numbers(listing)).to_pylist())]


def each_day(listing: "pa.Table") -> list[date]:
    """The day of each listed trace, in the order of the listing."""
    known = {number: _day(number) for number in compute().unique(_numbers(listing)).to_pylist()}
    return [known[number] for number in _numbers(listing).to_pylist()]


def _numbers(listing: "pa.Table") -> "pa.ChunkedArray":
    """Days since 1970. A trace before that is one of the first day."""
    return compute().divide(listing.column("request_ms"), _DAY_MS)


def _day(number: int) -> date:
    return _EPOCH + timedelta(days=number)
