"""Data files of a table kept by day, written by Arrow for a commit that adds them.

Lives here: writing rows into one file a day, and what Delta's log has to know of each.
Add here: a further fact of a file the log should hold.
Not here: the commit (`write.py`), looking at files (`files.py`).

For a process that makes very many rows while another one commits: they need not pass from one to the other, and Arrow
writes them in two thirds of delta-rs' time. A file belongs to no table until it is committed; one that never is, is
swept away by upkeep as delta-rs' own would be. Nothing here imports delta-rs.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from resources.arrow_compute import compute
from resources.tables import PARTITION, PAYLOADS, ROW_GROUP, STATISTICS, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP_BYTES = 1024**2  # Memory of rows that wait until they are a row group; twice as many take 14 MB more.
_LONGEST = 64  # Characters of a text the log repeats: as many as delta-rs does.
_ONE_EACH = ("span_id", "start_time", "end_time", "request_time", "archived_at", "rationale", "error")


@dataclass(frozen=True)
class DataFile:
    """A file below a table's folder: its day (ISO), rows, bytes; least and greatest value, and nulls, by column."""

    path: str
    day: str
    rows: int
    size: int
    least: Mapping[str, str]
    greatest: Mapping[str, str]
    nulls: Mapping[str, int]

    @property
    def statistics(self) -> str:
        """What the log keeps of it: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#per-file-statistics."""
        ends = {"minValues": self.least, "maxValues": self.greatest}
        return json.dumps({"numRecords": self.rows, **ends, "nullCount": self.nulls})


class DayWriter:
    """Writes rows of a table kept by day into one file a day. Raises `OSError` as Arrow does."""

    def __init__(self, folder: Path, table: str) -> None:
        self._folder, self._table = folder, table
        self._schema = arrow_schema(table).remove(arrow_schema(table).get_field_index(PARTITION))
        self._open: dict[str, _OpenFile] = {}

    def write(self, rows: "pa.Table") -> None:
        """Append rows, which need not be of one day."""
        pc = compute()

        days = rows.column(PARTITION)
        listed = pc.unique(days).to_pylist()
        for day in listed:
            part = rows if len(listed) == 1 else rows.filter(pc.equal(days, day))
            if str(day) not in self._open:
                self._open[str(day)] = _OpenFile(self._folder, self._table, str(day), self._schema)
            self._open[str(day)].write(part.select(self._schema.names))

    def close(self) -> tuple[DataFile, ...]:
        """End all files; which they are."""
        return tuple(one.close() for one in self._open.values())

    def discard(self) -> None:
        """Delete all files, which nobody will commit."""
        for one in self._open.values():
            one.discard()


class _OpenFile:
    """One file. Named as delta-rs names them, so that a foreign file is told from one of a writer of Delta."""

    def __init__(self, folder: Path, table: str, day: str, schema: "pa.Schema") -> None:
        import pyarrow.parquet as pq

        self.day = day
        self.path = f"{PARTITION}={day}/part-00000-{uuid.uuid4()}-c000.zstd.parquet"
        self._file, self._known, self._rows, self._nulls = folder / self.path, STATISTICS[table], 0, {}
        self._ends: dict[str, list[str]] = {name: [] for name in self._known}
        self._waiting: list[pa.Table] = []
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # As `table.zstd` has delta-rs pack them.
        leaves = {field.name: _leaves(field) for field in schema if field.name not in PAYLOADS}
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[leaf for name, known in leaves.items() if name not in _ONE_EACH for leaf in known],
            write_statistics=[leaf for known in leaves.values() for leaf in known],
        )

    def write(self, rows: "pa.Table") -> None:
        import pyarrow as pa

        pc = compute()

        self._rows += rows.num_rows
        for name in self._known:
            column = rows.column(name)
            moments = pa.types.is_timestamp(column.type)  # As numbers: Python's would bring time zones along.
            found = pc.min_max(column.cast(pa.int64()) if moments else column).as_py()
            self._ends[name] += [_moment(one) if moments else one for one in found.values() if one is not None]
            self._nulls[name] = self._nulls.get(name, 0) + column.null_count
        self._waiting.append(rows)
        if sum(one.get_total_buffer_size() for one in self._waiting) >= _GROUP_BYTES:
            self._flush()

    def close(self) -> DataFile:
        self._flush()
        self._writer.close()
        known = {name: ends for name, ends in self._ends.items() if _is_short(ends)}
        least, greatest = ({name: end(ends) for name, ends in known.items()} for end in (min, max))
        return DataFile(self.path, self.day, self._rows, self._file.stat().st_size, least, greatest, self._nulls)

    def discard(self) -> None:
        self._file.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow as pa

        waiting, self._waiting = self._waiting, []
        if waiting:
            self._writer.write_table(pa.concat_tables(waiting), ROW_GROUP)


def _leaves(field: "pa.Field") -> list[str]:
    """What Parquet calls a column, or the columns of a map."""
    import pyarrow as pa

    return (
        [f"{field.name}.key_value.{part}" for part in ("key", "value")] if pa.types.is_map(field.type) else [field.name]
    )


def _is_short(ends: list[str]) -> bool:
    """Whether there are values, and none that the log should not repeat: leaving a column out is allowed."""
    return bool(ends) and all(len(one) <= _LONGEST for one in ends)


def _moment(us: int) -> str:
    """A moment as Delta's log says it: of equal length, so that they are ordered as texts too."""
    return (datetime(1970, 1, 1) + timedelta(microseconds=us)).isoformat(timespec="microseconds") + "Z"
