"""One archiving of some days: what is new, what changed, and whether all is there.

Lives here: the order of steps, and which traces each step is about.
Add here: a step, or a reason to look closer at a day.
Not here: rows (`archive_append.py`, `archive_upsert.py`), notes (`archive_marks.py`), trying again
(`delta_archive.py`).

The last commit to `traces` carries the notes: a run that is killed before it leaves the notes of the run before, so
the next one looks at the same again, and finds most of it held. What comes to the store while a day is read makes
its state another one than was noted, and so the next run looks.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from lifecycle_assets.refused import Refused
from resources import archive_marks as marks
from resources.archive import ArchivedDay
from resources.archive_append import append_new
from resources.archive_marks import Days, Files
from resources.archive_tables import ARCHIVED, CHILDREN, ArchiveTables
from resources.archive_upsert import Upsert
from resources.platform import Platform
from resources.quarantine import Quarantine
from resources.redaction import Redaction
from resources.row_changes import Written
from resources.tables import PARTITION, arrow_schema
from resources.trace_reader import Listing, Marks, Touched, TraceReader
from resources.worker import Progress

if TYPE_CHECKING:
    import pyarrow as pa

COMPARE_EVERY_MS = 3_600_000
"""A large day is listed and compared as a whole this often, because a changed tag leaves no trace of its own."""

LOOKBACK_MS = 1_800_000
"""In between, traces are listed that started at most this long before the newest one held."""

_MARK = "seen."


@dataclass(frozen=True)
class Asked:
    """What an archiving is asked for. `anew`: compare every row, whatever the notes say."""

    prefix: str
    experiment: str
    experiment_id: str
    days: Days
    settled_before_ms: int
    redact: Redaction
    anew: bool = False


class LostFiles(Exception):  # noqa: N818 a signal: the days are mended, and then archived again
    """Files that the log lists are gone from the tables' folders."""

    def __init__(self, days: Days, lost: Mapping[str, list[str]]) -> None:
        super().__init__(f"{days}: {lost}")
        self.days = days


@dataclass
class _Seen:
    """What was found of the days before anything is written."""

    files: dict[date, Files]
    anew: set[date]
    compare: bool
    large: bool
    touched: Touched
    listing: Listing
    since_ms: int
    held: "pa.ChunkedArray"
    written: dict[str, Written] = field(default_factory=lambda: dict.fromkeys(ARCHIVED, Written(0, 0)))


class ArchiveRun:
    """One try; raises `Overtaken` or `CommitFailedError` when another writer was faster: then nothing is half-done."""

    def __init__(self, platform: Platform, reader: TraceReader, asked: Asked, progress: Progress) -> None:
        self._platform, self._reader, self._asked, self._progress = platform, reader, asked, progress
        self._days, self._rules = asked.days, marks.rules_digest(asked.redact)
        self._tables = ArchiveTables(platform, asked.prefix, asked.experiment_id)
        self._started_ms = int(time.time() * 1000)

    def run(self) -> ArchivedDay:
        """Bring the tables up to date. Without anything new to the store since the last run, nothing is read of it."""
        state = self._reader.state()
        unchanged = None if self._asked.anew else self._unchanged(state)
        if unchanged:
            return unchanged
        self._refuse_strangers()
        self._refuse_lost_files()
        seen = self._look()
        quarantine = Quarantine(self._platform, self._asked.prefix, self._asked.experiment_id, self._days)
        self._upsert(seen, quarantine)
        new = self._new(seen, quarantine)
        appended = self._append(seen, new, quarantine)
        return self._close(state, seen, quarantine, self._absent(seen, new, appended, quarantine))

    # ------------------------------------------------------------------ what is known

    def _unchanged(self, state: int) -> ArchivedDay | None:
        """The days as noted, when store, rules and table are what they were when all was there."""
        notes = self._tables.notes("traces")
        noted = notes.get(marks.DONE, self._days)
        if not noted or not state:
            return None
        files = self._tables.files("traces", self._days)
        rows = sum(one.rows for one in files.values())
        if noted != marks.done_digest(state, self._rules, rows):
            return None
        counts = {"traces": rows} | {table: notes.get(table, self._days) for table in CHILDREN}
        single = self._days.first == self._days.last  # Of more days the log of `traces` does not say which have spans.
        if any(self._folder_is_gone(table, files) for table, n in counts.items() if n and (single or table == "traces")):
            return None
        return ArchivedDay(
            settled=notes.get(marks.SETTLED, self._days),
            absent=(),
            written=dict.fromkeys(ARCHIVED, Written(0, 0)),
            newest_ms=max((one.newest_ms for one in files.values()), default=0),
            quarantined=notes.get(marks.QUARANTINED, self._days),
            unchanged=True,
            rows=counts,
        )

    def _folder_is_gone(self, table: str, days: Iterable[date]) -> bool:
        """Whether somebody removed a day's folder; known only of tables in folders."""
        where = Path(self._platform.table_uri(self._asked.prefix + table).removeprefix("file://"))
        return where.is_absolute() and any(not (where / f"{PARTITION}={day}").is_dir() for day in days)

    def _refuse_strangers(self) -> None:
        others = marks.strangers(self._tables.held("traces"), self._asked.experiment_id)
        if others:
            raise Refused(
                f"{self._asked.prefix}traces holds traces of experiment {', '.join(others)[:80]}, and this agent's "
                f"experiment {self._asked.experiment[:80]} is {self._asked.experiment_id}: two experiments must not "
                "share tables. Set archive.table_prefix in defs.yaml to a prefix no other agent has."
            )

    def _refuse_lost_files(self) -> None:
        lost = {table: paths for table in ARCHIVED if (paths := self._tables.lost(table, self._days))}
        if lost:
            raise LostFiles(self._days, lost)

    # ------------------------------------------------------------------ looking

    def _look(self) -> _Seen:
        """Marks before the listing, the listing before any row: what comes later is seen next time."""
        tables, days, notes = self._tables, self._days, self._tables.notes("traces")
        by_table = {table: tables.files(table, days) for table in ("traces", *CHILDREN)}
        files = by_table["traces"]
        held_days = set().union(*by_table.values())
        anew = {day for day in held_days if self._asked.anew or self._needs_all(day, by_table)}
        rows = sum(one.rows for one in files.values())
        compared = min((notes.get(marks.COMPARED, day) for day in files), default=0)
        fresh = self._started_ms - compared < COMPARE_EVERY_MS
        large = rows > self._reader.cheap_listing
        touched = self._touched(set(files) - anew)
        newest = max((one.newest_ms for one in files.values()), default=0)
        partly = large and fresh and not anew and days.first == days.last and newest
        since_ms = max(days.since_ms, newest - LOOKBACK_MS) if partly else days.since_ms
        listing, held = self._list(since_ms), tables.ids("traces", days, since_ms=since_ms if partly else 0)
        if partly and self._unknown(touched, held, listing):
            since_ms = days.since_ms
            listing, held = self._list(since_ms), tables.ids("traces", days)
        compare = bool(files) and not (large and fresh)
        return _Seen(files, anew, compare, large, touched, listing, since_ms, held)

    def _list(self, since_ms: int) -> Listing:
        return self._reader.list(since_ms, self._days.until_ms, settled_before_ms=self._asked.settled_before_ms)

    def _needs_all(self, day: date, files: Mapping[str, Mapping[date, Files]]) -> bool:
        """Whether a day's rows were written by other rules, or are fewer than were noted."""
        notes = self._tables.notes("traces")
        if notes.get(marks.RULES, day) != self._rules:
            return True
        lost = [table for table in ARCHIVED if files[table].get(day, Files()).rows < notes.get(table, day)]
        if lost:
            self._progress(f"{day}: rows of {', '.join(lost)} are gone from the table; the day is compared as a whole")
        return bool(lost)

    def _touched(self, known: set[date]) -> Touched:
        """What changed since the oldest marks of the days."""
        since, until = self._days.since_ms, self._days.until_ms
        first = self._reader.touched(since, until, Marks())
        if not known or not first.marks.seen:
            return first
        notes = self._tables.notes("traces")
        seen = {name: min(notes.get(_MARK + name, day) for day in known) for name in first.marks.seen}
        return self._reader.touched(since, until, Marks(seen))

    def _unknown(self, touched: Touched, held: "pa.ChunkedArray", listing: Listing) -> set[str]:
        """Touched traces that are neither held nor listed, such as one that took longer than the lookback."""
        listed = {*listing.ids, *held.to_pylist()}
        asked = sorted((touched.heads | touched.spans) - listed)
        if not asked:
            return set()
        return set(asked) - {row["trace_id"] for row in self._held_heads(asked)}

    def _held_heads(self, trace_ids: list[str]) -> list[dict]:
        """Id and start of those of these traces that the table holds."""
        quoted = ", ".join("'" + one.replace("'", "''") + "'" for one in trace_ids)
        names = ["trace_id", "request_time"]
        query = f"SELECT {', '.join(names)} FROM t WHERE {self._days.condition} AND trace_id IN ({quoted})"  # noqa: S608
        return self._tables.select("traces", query, names).to_pylist()

    # ------------------------------------------------------------------ what changed

    def _upsert(self, seen: _Seen, quarantine: Quarantine) -> None:
        import pyarrow.compute as pc

        listed = seen.listing.traces
        known = listed.filter(pc.is_in(listed.column("trace_id"), value_set=seen.held))
        missed = sorted((seen.touched.heads | seen.touched.spans) - set(known.column("trace_id").to_pylist()))
        known = _with_rows(known, self._held_heads(missed) if missed and seen.since_ms > self._days.since_ms else [])
        if not known.num_rows:
            return
        day = pc.cast(pc.divide(known.column("request_ms"), 86_400_000), "int64")
        anew = pc.is_in(day, value_set=_numbers(seen.anew))
        whole = pc.or_(anew, pc.is_in(known.column("trace_id"), value_set=_texts(seen.touched.spans)))
        heads = pc.is_in(known.column("trace_id"), value_set=_texts(seen.touched.heads))
        heads = pc.and_(pc.invert(whole), pc.or_(heads, seen.compare))
        self._bring(seen, known.filter(whole), quarantine, whole=True)
        self._bring(seen, known.filter(heads), quarantine, whole=False)

    def _bring(self, seen: _Seen, listing: "pa.Table", quarantine: Quarantine, *, whole: bool) -> None:
        """Compare these traces with the tables and write what differs."""
        if not listing.num_rows:
            return
        if listing.num_rows > self._reader.cheap_listing:
            self._progress(f"{self._days}: {listing.num_rows:,} traces are compared with the tables")
        upsert = Upsert(self._tables, self._days, listing.column("trace_id"), whole=whole)
        if whole:
            quarantine.tried(listing.column("trace_id").to_pylist())
            upsert.write(quarantine.noting(self._reader.batches(listing, redact=self._asked.redact)))
        else:
            upsert.write(self._reader.heads(listing, redact=self._asked.redact))
        for table, written in upsert.written.items():
            seen.written[table] += written

    # ------------------------------------------------------------------ what is new

    def _new(self, seen: _Seen, quarantine: Quarantine) -> "pa.Table":
        """Listed traces that are neither held nor known to make no rows: those are tried again when touched."""
        import pyarrow.compute as pc

        listed = seen.listing.traces
        again = {one for one in quarantine.held if one not in seen.touched.heads | seen.touched.spans}
        left_out = set() if seen.compare or seen.anew else again
        if seen.since_ms == self._days.since_ms:
            quarantine.tried(set(quarantine.held) - set(seen.listing.ids))  # Gone from MLflow.
        new = listed.filter(pc.invert(pc.is_in(listed.column("trace_id"), value_set=seen.held)))
        new = new.filter(pc.invert(pc.is_in(new.column("trace_id"), value_set=_texts(left_out))))
        quarantine.tried(new.column("trace_id").to_pylist())
        return new

    def _append(self, seen: _Seen, new: "pa.Table", quarantine: Quarantine) -> "pa.ChunkedArray | None":
        """Append what is new; returns the ids written. Of days with an interrupted batch some spans may be there."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not new.num_rows:
            return None
        orphans = self._orphans(seen, new)
        if orphans.num_rows:
            self._progress(f"{self._days}: {orphans.num_rows:,} traces of an interrupted batch are completed")
            self._bring(seen, orphans, quarantine, whole=True)
            new = new.filter(pc.invert(pc.is_in(new.column("trace_id"), value_set=orphans.column("trace_id"))))
        total = new.num_rows
        done = append_new(
            self._tables,
            self._reader,
            new,
            self._asked.redact,
            lambda so_far: self._progress(f"{self._days}: {so_far:,} of {total:,} new traces archived"),
        )
        quarantine.note(done.quarantined)
        for table, rows in done.rows.items():
            seen.written[table] += Written(rows, 0)
        ids = [*done.trace_ids, orphans.column("trace_id")]
        return pa.chunked_array([chunk for one in ids for chunk in one.chunks], pa.string())

    def _orphans(self, seen: _Seen, new: "pa.Table") -> "pa.Table":
        """New traces whose spans may be in the table already: a batch was interrupted, or rows were deleted by hand."""
        import pyarrow.compute as pc

        torn = [day for day in self._days if day in seen.anew or self._tables.interrupted(day)]
        if not torn:
            return new.slice(0, 0)
        held = self._tables.ids("spans", self._days)
        return new.filter(pc.is_in(new.column("trace_id"), value_set=held))

    # ------------------------------------------------------------------ closing

    def _absent(
        self, seen: _Seen, new: "pa.Table", appended: "pa.ChunkedArray | None", quarantine: Quarantine
    ) -> tuple[str, ...]:
        """Listed traces the table lacks, but for those in quarantine and those deleted from MLflow meanwhile."""
        import pyarrow.compute as pc

        listed = seen.listing.traces.column("trace_id")
        if appended is None:
            held = seen.held
        else:
            self._tables.newest("traces")
            held = self._tables.ids("traces", self._days, since_ms=seen.since_ms)
        lacking = set(listed.filter(pc.invert(pc.is_in(listed, value_set=held))).to_pylist()) - set(quarantine.now)
        if lacking:
            lacking &= set(self._list(seen.since_ms).ids)
        return tuple(sorted(lacking))

    def _close(self, state: int, seen: _Seen, quarantine: Quarantine, absent: tuple[str, ...]) -> ArchivedDay:
        quarantine.write()
        tables, days = self._tables, self._days
        files = {table: tables.files(table, days) for table in ARCHIVED}
        rows = {table: sum(one.rows for one in found.values()) for table, found in files.items()}
        listed, partly = seen.listing.traces, seen.since_ms > days.since_ms
        settled = rows["traces"] + len(quarantine.now) + len(absent) if partly else listed.num_rows
        newest = max((one.newest_ms for one in files["traces"].values()), default=0)
        done = 0 if absent or seen.listing.unsettled else marks.done_digest(state, self._rules, rows["traces"])
        if files["traces"] and self._has_something_to_note(done, seen):
            notes = {marks.DONE: done, marks.SETTLED: settled, marks.QUARANTINED: len(quarantine.now)}
            self._note(notes | {table: rows[table] for table in CHILDREN}, seen, files)
        return ArchivedDay(
            settled=settled,
            absent=absent,
            written=seen.written,
            newest_ms=newest,
            quarantined=len(quarantine.now),
            rows=rows,
        )

    def _has_something_to_note(self, done: int, seen: _Seen) -> bool:
        """Not when nothing was written and the next run would learn nothing: then there is no commit."""
        written = any(one != Written(0, 0) for one in seen.written.values())
        torn = any(self._tables.interrupted(day) for day in self._days)
        newly = bool(done) and done != self._tables.notes("traces").get(marks.DONE, self._days)
        return written or torn or newly or bool(seen.anew) or (seen.compare and seen.large)

    def _note(self, of_all: Mapping[str, int], seen: _Seen, files: Mapping[str, Mapping[date, Files]]) -> None:
        """The commit that ends a run: numbers of the batches, and the notes on every day that has rows."""
        name, held = self._tables.notes("traces").name, list(files["traces"])
        notes = {name(kind, self._days): number for kind, number in of_all.items()}
        of_each = {marks.RULES: self._rules} | {_MARK + mark: n for mark, n in seen.touched.marks.seen.items()}
        if seen.compare or not seen.files:
            of_each[marks.COMPARED] = self._started_ms
        for day in held:
            notes |= {name(kind, day): number for kind, number in of_each.items()}
            notes |= {name(table, day): files[table].get(day, Files()).rows for table in ARCHIVED}
        self._tables.append("traces", arrow_schema("traces").empty_table(), self._tables.next_batch(held), notes)


def _numbers(days: set[date]) -> "pa.Array":
    import pyarrow as pa

    return pa.array([(day - date(1970, 1, 1)).days for day in days], pa.int64())


def _texts(values: "set[str] | frozenset[str]") -> "pa.Array":
    import pyarrow as pa

    return pa.array(sorted(values), pa.string())


def _with_rows(listing: "pa.Table", rows: list[dict]) -> "pa.Table":
    """A listing with further traces the table holds."""
    import pyarrow as pa

    if not rows:
        return listing
    starts = [marks.epoch_ms(row["request_time"]) for row in rows]
    more = {"trace_id": [row["trace_id"] for row in rows], "request_ms": starts}
    return pa.concat_tables([listing, pa.table(more, schema=listing.schema)])
