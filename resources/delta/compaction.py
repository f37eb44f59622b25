"""Rewriting the small files of a day as few.

Lives here: one day of one table, in a commit of its own; and doing so in passing, for a day that is written often.
Add here: another way to rewrite a day.
Not here: which days the daily upkeep rewrites (`upkeep/delta_upkeep.py`).

Rows stay the same, and the files that were replaced stay until a vacuum, for queries that have their list. An append
that comes meanwhile is not touched; when another writer removed one of the day's files, nothing is committed. Two
rewrites at once would double every row, so one process at a time rewrites (`alone.py`). In passing only small files
are rewritten, as larger ones: each row once or twice, however much a day holds.
"""

from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING

from resources.arrow_compute import compute
from resources.delta.alone import alone
from resources.delta.table import zstd
from resources.tables import PARTITION

if TYPE_CHECKING:
    from deltalake import DeltaTable

IN_PASSING = 32
"""Small files of one day from which a writer rewrites them itself: reading them costs 0.1 ms each, rewriting 1 ms."""

PIECE_BYTES = 4 * 1024**2
"""What small files become in passing, some 0.1 s of work; half of it is small. The daily upkeep makes more of them."""

_ATTEMPTS = 3  # Another writer may win each.
_SPILL_BYTES = 512 * 1024**2  # Memory of sorting a day; beyond it delta-rs uses the disk.


def compact_busy_days(target: "DeltaTable", days: Iterable[date], *, at_least: int = IN_PASSING) -> int:
    """Rewrite those of `days` that have many small files, as somebody who has just written; returns how many.

    `target` is at its newest version. Left for the next time when another writer wins.
    """
    small = _small_files(target)
    busy = [day for day in days if small.get(day, 0) >= at_least]
    return sum(rewritten(target, day, piece_bytes=PIECE_BYTES) for day in busy)


def _small_files(target: "DeltaTable") -> dict[date, int]:
    """Small files by day, of the days that have some."""
    import pyarrow as pa

    pc = compute()

    files = pa.table(target.get_add_actions(flatten=True))
    if not files.num_rows:
        return {}
    small = files.filter(pc.less(files.column("size_bytes"), PIECE_BYTES // 2))
    counted = pc.value_counts(small.column(f"partition.{PARTITION}")).to_pylist()
    return {one["values"]: one["counts"] for one in counted}


def rewritten(target: "DeltaTable", day: date | None, *, by_id: bool = False, piece_bytes: int | None = None) -> bool:
    """Whether a day's rows (None: all rows) are in few files now, `by_id` sorted; False when others won each time.

    Without `by_id` those of some `piece_bytes` stay as they are (default: delta-rs' 100 MB).
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import CommitFailedError

    only = [(PARTITION, "=", str(day))] if day else None
    with alone(target.table_uri) as claimed:
        for _ in range(_ATTEMPTS if claimed else 0):
            fresh = DeltaTable(target.table_uri)
            try:
                if by_id:
                    fresh.optimize.z_order(
                        ["trace_id"], partition_filters=only, writer_properties=zstd(), max_spill_size=_SPILL_BYTES
                    )
                else:
                    fresh.optimize.compact(partition_filters=only, target_size=piece_bytes, writer_properties=zstd())
            except CommitFailedError:
                continue
            return True
    return False
