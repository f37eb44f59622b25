"""Days that are replaced as a whole.

Lives here: making a table say what is given of a day, in one commit or none.
Add here: nothing about what the rows mean.
Not here: rows that come and change one by one (`archive/run.py`).
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from resources.archive.row_changes import Written, replacement
from resources.delta.shape import fitted
from resources.delta.table import open_table, rows_of_day, zstd
from resources.delta.write import retried, table_to_write
from resources.tables import PARTITION, arrow_table


def replace_day(where: str, table: str, day: date, rows: Sequence[Mapping[str, Any]]) -> Written:
    """Make `rows` the rows of `day`; no commit when they already are. Readers see the old rows or the new ones."""
    source = arrow_table(table, [{**row, PARTITION: day} for row in rows])

    def attempt() -> Written:
        from deltalake import write_deltalake

        if not rows and open_table(where) is None:
            return Written(0, 0)
        target = table_to_write(where, table)
        written = replacement(source, rows_of_day(target, table, day), table)
        if written != Written(0, 0):
            write_deltalake(
                target,
                fitted(source, target),
                mode="overwrite",
                predicate=f"{PARTITION} = '{day}'",
                writer_properties=zstd(),
            )
        return written

    return retried(where, attempt)
