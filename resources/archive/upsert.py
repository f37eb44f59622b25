"""What changed of traces the tables hold: late assessments and spans, changed tags, what is gone.

Lives here: comparing pages of the reader with the rows held, and writing what differs.
Add here: a further change that comes late.
Not here: which traces to compare (`run.py`), new ones (`append.py`), comparing rows (`row_changes.py`).

Only rows that differ are written, by a MERGE that names their days, so a rerun after a kill writes what is left.
"""

from collections.abc import Iterable, Sequence
from datetime import date
from typing import TYPE_CHECKING

from resources.archive.few_rows import FEW, any_gone, few_changes, held_rows
from resources.archive.marks import Days
from resources.archive.row_changes import Written, changes, digests, gone, without_held
from resources.archive.snapshots import ARCHIVED, ArchiveTables
from resources.reading.stamp import stamped
from resources.reading.trace_reader import Batch
from resources.scoring.score_table import OURS
from resources.tables import KEYS, arrow_schema, columns

if TYPE_CHECKING:
    import pyarrow as pa

_FEW = 1_000  # Ids up to which the tables are asked for these traces; above, for the whole days.
_PAYLOAD = ("request", "response")  # What a trace's head does not say.
_TRACES_AT_ONCE = 2_000  # Compared and written together: a MERGE reads the files of its days once.


class Upsert:
    """Brings rows of some traces up to date. `trace_ids` are all that will be given: what is held of them is read once.

    Whole batches say everything of a trace, heads all but its spans, request and response.
    """

    def __init__(self, tables: ArchiveTables, days: Days, trace_ids: "pa.Array", *, whole: bool) -> None:
        self._tables, self._days, self._trace_ids, self._whole = tables, days, trace_ids, whole
        self._is_few = not whole and len(trace_ids) <= FEW
        self._held: dict[str, pa.Table] = {}
        self._is_later = False
        self.written = dict.fromkeys(ARCHIVED, Written(0, 0))

    def write(self, batches: Iterable[Batch]) -> None:
        """Compare all batches and write what differs, some at a time, children first."""
        waiting: list[Batch] = []
        for batch in batches:
            waiting.append(batch)
            if sum(one.traces.num_rows for one in waiting) >= _TRACES_AT_ONCE:
                self._write(waiting)
                waiting = []
        if waiting:
            self._write(waiting)

    def _write(self, batches: list[Batch]) -> None:
        import pyarrow as pa

        self._is_later = "assessments" in self._held
        if self._whole:
            self._into("spans", pa.concat_tables([batch.spans for batch in batches if batch.spans is not None]))
        traces = pa.concat_tables([batch.traces for batch in batches])
        assessments = pa.concat_tables([batch.assessments for batch in batches])
        lost = self._gone(assessments, traces.column("trace_id"))
        self._into("assessments", pa.concat_tables([assessments, lost]))
        self._into("traces", stamped(traces))

    def _into(self, table: str, source: "pa.Table") -> None:
        import pyarrow as pa

        compare = few_changes if self._is_few else changes
        found = compare(source, self._held_of(table), table, self._names(table))
        # A score lands in the table first, so one of a page that was read after the rows held may be there by now.
        is_old = table == "assessments" and self._is_later and found.new.num_rows
        new = without_held(found.new, self._tables.keys(table, _days_in(found.new)), table) if is_old else found.new
        self.written[table] += Written(new.num_rows, found.changed.num_rows)
        if found.changed.num_rows:
            rows = pa.concat_tables([new, found.changed])
            keep = () if self._whole or table != "traces" else _PAYLOAD
            self._tables.merge(table, rows, KEYS[table], self._tables.next_batch(_days_in(rows)), keep)
        elif new.num_rows:
            self._tables.append(table, new, self._tables.next_batch(_days_in(new)))

    def _gone(self, source: "pa.Table", trace_ids: "pa.ChunkedArray") -> "pa.Table":
        """Rows that become invalid: the table holds them, and MLflow no longer does."""
        import pyarrow as pa

        schema, held = arrow_schema("assessments"), self._held_of("assessments")
        if not held.num_rows or (self._is_few and not any_gone(source, held)):
            return schema.empty_table()
        lost = gone(source, held, trace_ids, held.slice(0, 0), ours="false")
        lost = gone(source, held, trace_ids, self._published(), ours=OURS) if lost.num_rows else lost
        if not lost.num_rows:
            return schema.empty_table()
        where = _among(lost.column("trace_id"))
        query = f"SELECT {_listed(schema.names)} FROM t WHERE {self._days.condition}{where}"  # noqa: S608
        rows = self._tables.select("assessments", query, schema.names)
        valid = schema.get_field_index("valid")
        rows = rows.set_column(valid, schema.field(valid), pa.array([False] * rows.num_rows, pa.bool_()))
        return without_held(rows, without_held(rows, lost, "assessments"), "assessments")

    def _published(self) -> "pa.Table":
        keys = KEYS["publications"]
        query = f"SELECT {_listed(keys)} FROM t WHERE {self._days.condition}"  # noqa: S608
        return self._tables.select("publications", query, keys)

    def _held_of(self, table: str) -> "pa.Table":
        """Keys and digests of what the table holds of these traces."""
        if table not in self._held:
            self._tables.newest(table)
            names = self._names(table)
            read = dict.fromkeys([*KEYS[table], *names])
            where = _among(self._trace_ids) if len(self._trace_ids) <= _FEW else ""
            query = f"SELECT {_listed(list(read))} FROM t WHERE {self._days.condition}{where}"  # noqa: S608
            rows = self._tables.stream(table, query)
            self._held[table] = held_rows(rows, table) if self._is_few else digests(rows, table, names)
        return self._held[table]

    def _names(self, table: str) -> list[str]:
        """The columns that are compared."""
        left_out = {"archived_at", *(() if self._whole else _PAYLOAD)}
        return [name for name in columns(table) if name not in left_out]


def _days_in(rows: "pa.Table") -> list[date]:
    return rows.column("trace_date").unique().to_pylist()


def _among(trace_ids: "pa.ChunkedArray | pa.Array") -> str:
    """A condition that rows of these traces meet. Their ids are MLflow's, but the text is quoted all the same."""
    quoted = ", ".join("'" + one.replace("'", "''") + "'" for one in trace_ids.unique().to_pylist())
    return f" AND trace_id IN ({quoted})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
