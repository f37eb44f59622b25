"""The end of an archiving: whether all is there, and the notes on it.

Lives here: what is counted, and what the next run has to know.
Add here: a number that is noted of a day.
Not here: what the notes mean (`marks.py`), what is written before (`run.py`).

The notes travel with the last commit to `traces`: they are there exactly when the rows are. A run that appends no trace
gives them a commit of their own, and only when the next one learns something by them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import date
from typing import TYPE_CHECKING

from resources.archive import day_digests, marks
from resources.archive.append import Appended
from resources.archive.archive import ArchivedDay
from resources.archive.look import MARK, Look, Seen
from resources.archive.marks import Days, Files
from resources.archive.quarantine import Quarantine
from resources.archive.row_changes import Written
from resources.archive.snapshots import ARCHIVED, ArchiveTables
from resources.archive.utc_days import traces_by_day
from resources.arrow_compute import compute
from resources.tables import PARTITION, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa


class Ending:
    """The end of one archiving of `days`, which found `seen` in a store of this `state` and writes by these `rules`."""

    def __init__(
        self, tables: ArchiveTables, look: Look, quarantine: Quarantine, days: Days, state: int, rules: int, seen: Seen
    ) -> None:
        self._tables, self._look, self._quarantine, self._days = tables, look, quarantine, days
        self._state, self._rules, self._seen = state, rules, seen
        self._archived: ArchivedDay | None = None

    def with_traces(self, done: Appended, traces: "pa.Table") -> tuple[dict[date, int], dict[str, int]]:
        """What the last commit of traces carries: the numbers of its batch, and the notes. `done` counts `traces`."""
        files = self._files()
        for day, coming in _coming(traces).items():
            files["traces"][day] = files["traces"].get(day, Files()) + coming
        self._archived, notes = self._counted(done, files)
        return self._tables.next_batch(files["traces"]), notes

    def archived(self, done: Appended) -> ArchivedDay:
        """What came of it, noted."""
        if self._archived is None:
            files = self._files()
            self._archived, notes = self._counted(done, files)
            if files["traces"] and self._has_something_to_note(self._archived, notes):
                batch = self._tables.next_batch(files["traces"])
                self._tables.append("traces", arrow_schema("traces").empty_table(), batch, notes)
        return self._archived

    def _files(self) -> dict[str, dict[date, Files]]:
        return {table: self._tables.files(table, self._days) for table in ARCHIVED}

    def _counted(self, done: Appended, files: Mapping[str, Mapping[date, Files]]) -> tuple[ArchivedDay, dict[str, int]]:
        """The answer and the notes, with the quarantine written: a day that is noted as done has it."""
        self._quarantine.note(done.quarantined)
        absent = self._absent(done)
        self._quarantine.write()
        seen, quarantined = self._seen, Counter(row[PARTITION] for row in self._quarantine.now.values())
        if seen.since_ms == self._days.since_ms:
            settled = traces_by_day(seen.listing.traces)
        else:
            held = {day: files["traces"].get(day, Files()).rows for day in self._days}
            settled = Counter(held) + quarantined + Counter({self._days.first: len(absent)})
        archived = ArchivedDay(
            settled=sum(settled.values()),
            absent=absent,
            written={table: seen.written[table] + Written(done.rows[table], 0) for table in ARCHIVED},
            newest_ms=max((one.newest_ms for one in files["traces"].values()), default=0),
            quarantined=sum(quarantined.values()),
            rows={table: _rows(found) for table, found in files.items()},
        )
        known = 0 if absent or seen.listing.unsettled else self._state
        notes = self._notes(known, files, settled, quarantined)
        return archived, notes | self._said(done, files["traces"])

    def _absent(self, done: Appended) -> tuple[str, ...]:
        """Listed traces the table lacks, but for those in quarantine and those deleted from MLflow meanwhile."""
        import pyarrow as pa

        pc = compute()

        listed = self._seen.listing.traces.column("trace_id")
        held = pa.chunked_array([*self._seen.held.chunks, *done.trace_ids], pa.string())
        lacking = set(listed.filter(pc.invert(pc.is_in(listed, value_set=held))).to_pylist())
        lacking -= set(self._quarantine.now)
        return tuple(sorted(lacking & set(self._look.listing(self._seen.since_ms).ids))) if lacking else ()

    def _said(self, done: Appended, days: Iterable[date]) -> dict[str, int]:
        """What the store said of the traces the table has now, by day; 0 where nobody asked."""
        digests, name = self._seen.digests, self._look.notes.name
        held = {one for part in (self._seen.held, *done.trace_ids) for one in part.to_pylist()} if digests else set()
        return {name(marks.SAID, day): day_digests.noted_of(digests, day, held) for day in days}

    def _has_something_to_note(self, archived: ArchivedDay, notes: Mapping[str, int]) -> bool:
        """Not when nothing was written and the next run would learn nothing: then there is no commit."""
        seen, known = self._seen, self._look.notes
        done = notes[known.name(marks.DONE, self._days)]
        newly = bool(done) and done != known.get(marks.DONE, self._days)
        written = any(one != Written(0, 0) for one in archived.written.values())
        noted_once = seen.large or not set(seen.files) - set(seen.digests)  # Else every run compares it.
        torn = any(self._tables.interrupted(day) for day in self._days)
        return newly or written or torn or bool(seen.anew) or (seen.compare and noted_once)

    def _notes(
        self,
        state: int,
        files: Mapping[str, Mapping[date, Files]],
        settled: Mapping[date, int],
        quarantined: Mapping[date, int],
    ) -> dict[str, int]:
        """The notes on every day that has traces, and on all days together; without a state they are not done."""
        name, days, seen = self._look.notes.name, list(files["traces"]), self._seen
        always = {marks.RULES: self._rules} | {MARK + mark: n for mark, n in seen.touched.marks.seen.items()}
        if seen.compare or not seen.files:
            always[marks.COMPARED] = seen.started_ms
        notes: dict[str, int] = {}
        for part, held in [*((day, [day]) for day in days), (self._days, days)]:
            rows = {table: _rows({day: files[table].get(day, Files()) for day in held}) for table in ARCHIVED}
            said = rows | {
                marks.DONE: marks.done_digest(state, self._rules, rows["traces"]),
                marks.SETTLED: sum(settled[day] for day in held),
                marks.QUARANTINED: sum(quarantined[day] for day in held),
            }
            notes |= {name(kind, part): number for kind, number in (always | said).items()}
        return notes


def _coming(traces: "pa.Table") -> dict[date, Files]:
    """Rows to come, by day, as the log will say."""
    import pyarrow as pa

    found: dict[date, Files] = {}
    started = traces.column("request_time").cast(pa.int64()).to_pylist()
    for day, at_us in zip(traces.column(PARTITION).to_pylist(), started, strict=True):
        found[day] = found.get(day, Files()) + Files(1, at_us // 1000)
    return found


def _rows(files: Mapping[date, Files]) -> int:
    return sum(one.rows for one in files.values())
