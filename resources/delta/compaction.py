"""Rewriting the small files of a day as few.

Lives here: one day of one table, in a commit of its own; and doing so in passing, for a day that is written often.
Add here: another way to rewrite a day.
Not here: which days the daily upkeep rewrites (`upkeep/delta_upkeep.py`).

Rows stay the same, and the files that were replaced stay until a vacuum, for queries that have their list. An append
that comes meanwhile is not touched; when another writer removed one of the day's files, nothing is committed.
"""

from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING

from resources.delta.table import files_of_day, zstd
from resources.tables import PARTITION

if TYPE_CHECKING:
    from deltalake import DeltaTable

IN_PASSING = 64
"""Files of one day from which a writer rewrites them itself: reading them costs 0.1 ms each, rewriting 1 ms each."""

_ATTEMPTS = 3  # Another writer may win each.
_SPILL_BYTES = 512 * 1024**2  # Memory of sorting a day; beyond it delta-rs uses the disk.


def compact_busy_days(target: "DeltaTable", days: Iterable[date], *, at_least: int = IN_PASSING) -> int:
    """Rewrite those of `days` that have many files, as somebody who has just written to them; returns how many.

    `target` is at its newest version. Left for the next time when another writer wins.
    """
    busy = [day for day in days if len(files_of_day(target, day)) >= at_least]
    return sum(rewritten(target, day) for day in busy)


def rewritten(target: "DeltaTable", day: date | None, *, by_id: bool = False) -> bool:
    """Whether a day's rows (None: all rows) are in few files now, `by_id` sorted; False when others won each time."""
    from deltalake import DeltaTable
    from deltalake.exceptions import CommitFailedError

    only = [(PARTITION, "=", str(day))] if day else None
    for _ in range(_ATTEMPTS):
        fresh = DeltaTable(target.table_uri)
        try:
            if by_id:
                fresh.optimize.z_order(
                    ["trace_id"], partition_filters=only, writer_properties=zstd(), max_spill_size=_SPILL_BYTES
                )
            else:
                fresh.optimize.compact(partition_filters=only, writer_properties=zstd())
        except CommitFailedError:
            continue
        return True
    return False
