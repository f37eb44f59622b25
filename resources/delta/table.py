"""One Delta table: opening it, reading a day of it, and what its storage may answer.

Lives here: what the archive and the SQL engine both need of delta-rs.
Add here: a further way to look into a table, a fault of a storage that people meet.
Not here: writing (`archive/archive.py`), comparing rows (`archive/row_changes.py`).
"""

import errno
import os
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from resources.delta.faults import require_no_lost_log, require_sound, sound
from resources.explain import explained
from resources.tables import PARTITION, PAYLOADS, ROW_GROUP, arrow_schema, columns

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

_OS_ERROR = re.compile(r"\(os error (\d+)\)|Os \{ code: (\d+)")


def open_table(uri: str) -> "DeltaTable | None":
    """A Delta table at its newest version, None only when there is none. Also used by the SQL engine."""
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    with sound(uri):
        try:
            target = DeltaTable(uri)
        except TableNotFoundError:
            # delta-rs says the same of a folder it may not look into and of a log that lost its files.
            log = Path(uri.removeprefix("file://")) / "_delta_log"
            if "://" in uri.removeprefix("file://") or not (log.exists() and any(log.glob("*.json"))):
                require_no_lost_log(uri)
                return None
            target = DeltaTable(uri)  # Another process may have made it this moment.
        require_sound(target, uri)
        return target


@contextmanager
def storage(where: str) -> Generator[None]:
    """Turn faults of the storage inside the block into `Refused`; everything else passes unchanged."""
    from deltalake.exceptions import DeltaError

    with explained(where), sound(where):
        try:
            yield
        except (DeltaError, OSError) as error:
            number = _OS_ERROR.search(str(error))
            if isinstance(error, FileExistsError | NotADirectoryError) or (
                number and int(number[1] or number[2]) == errno.ENOTDIR
            ):
                raise Refused(f"{where}: a file is where a folder should be; move it away, then run again.") from error
            if number and (not isinstance(error, OSError) or error.errno is None):
                raise OSError(int(number[1] or number[2]), os.strerror(int(number[1] or number[2])), where) from error
            raise


def zstd() -> Any:
    """How delta-rs packs the files."""
    from deltalake import ColumnProperties, WriterProperties

    # Level 1 writes 1.2 times as fast as the default, for files a tenth larger.
    payload = ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE")
    return WriterProperties(
        compression="ZSTD",
        compression_level=1,
        max_row_group_size=ROW_GROUP,
        column_properties=dict.fromkeys(PAYLOADS, payload),
    )


def rows_of_day(target: "DeltaTable", table: str, day: date, column: str = "") -> "pa.Table":
    """What the table holds of one day, with the table's columns and types, or one column of it."""
    import pyarrow as pa
    from deltalake import QueryBuilder

    names = [column] if column else list(columns(table))
    listed = ", ".join(f'"{name}"' for name in names)
    query = f"SELECT {listed} FROM t WHERE {PARTITION} = DATE '{day}'"  # noqa: S608 names and a date of ours
    found = pa.table(QueryBuilder().register("t", target).execute(query).read_all())
    whole = arrow_schema(table)
    return found.cast(pa.schema([whole.field(name) for name in names]))


def holds(target: "DeltaTable", table: str, source: "pa.Table", key: Sequence[str]) -> bool:
    """Whether the table has a row with the values of `key` of the one row in `source`; null equals null."""
    import pyarrow as pa
    from deltalake import QueryBuilder

    listed, wanted = ", ".join(f'"{name}"' for name in key), source.select(list(key)).to_pylist()[0]
    query = f"SELECT {listed} FROM t AS t WHERE {literally(wanted)}"  # noqa: S608 columns of ours, values quoted
    found = pa.table(QueryBuilder().register("t", target).execute(query).read_all())
    schema = arrow_schema(table)
    known = found.cast(pa.schema([schema.field(name) for name in key])).to_pylist()
    return wanted in known


def literally(values: Mapping[str, Any]) -> str:
    """A condition on the alias `t` that every row with these values meets: spares files by Delta's statistics.

    Texts and moments are compared; rows with another value elsewhere meet it too.
    """
    conditions = ["TRUE"]
    for name, value in values.items():
        if isinstance(value, datetime):
            moment = value.astimezone(UTC).isoformat()
            conditions.append(f"t.\"{name}\" = arrow_cast('{moment}', 'Timestamp(Microsecond, Some(\"UTC\"))')")
        elif isinstance(value, str):
            text = value.replace("'", "''")
            conditions.append(f"t.\"{name}\" = '{text}'")
    return " AND ".join(conditions)
