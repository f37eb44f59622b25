"""Looking, before anything is written: what the log, the notes and the store say of some days.

Lives here: whether there is anything to do, and which traces to look at closely.
Add here: a reason to look closer at a day.
Not here: writing (`run.py`), the notes' meaning (`marks.py`).

Marks are taken before the listing, and the listing before any row, so that what comes meanwhile is seen next time.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from resources.archive import day_digests, marks
from resources.archive.archive import ArchivedDay
from resources.archive.lost_store import made_anew
from resources.archive.marks import Days, Files, Notes
from resources.archive.row_changes import Written
from resources.archive.snapshots import ARCHIVED, CHILDREN, ArchiveTables
from resources.mlflow_store import experiment_made_ms
from resources.platform import Platform
from resources.reading.trace_reader import Listing, Marks, Touched, TraceReader
from resources.redaction import Redaction
from resources.tables import PARTITION
from resources.worker import Progress

if TYPE_CHECKING:
    import pyarrow as pa

COMPARE_EVERY_MS = 3_600_000
"""A day is compared as a whole this often, because a changed tag leaves no trace of its own."""

ALWAYS_COMPARED = 500
"""Traces of a day up to which it is listed as a whole at every run, if the reader does that cheaply, and compared: by
digests where the reader has them, else by heads."""

LOOKBACK_MS = 1_800_000
"""In between, traces are listed that started at most this long before the newest one held."""

_DIGESTED = 2 * ALWAYS_COMPARED  # Traces: those of a day that is not large, and as many new ones.

MARK = "seen."
"""Begins the kinds of notes that are marks of the reader."""


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
        super().__init__(f"{days}: {', '.join(path for paths in lost.values() for path in paths)[:300]}")
        self.days = days


@dataclass
class Seen:
    """What was found before anything is written.

    `files`: days the table has traces of; `anew`: days of which every row is compared; `wholly`: whether all held
    traces are looked at, and `compare`: whether by their heads; `digests`: of the listed traces by day and id, for
    some days; `large`: whether a comparison costs; `listing` begins at `since_ms`, `held` are the ids in
    the table from there on; `written` is filled later.
    """

    files: dict[date, Files]
    anew: set[date]
    wholly: bool
    compare: bool
    digests: day_digests.Digests
    large: bool
    touched: Touched
    listing: Listing
    since_ms: int
    held: "pa.ChunkedArray"
    started_ms: int
    written: dict[str, Written] = field(default_factory=lambda: dict.fromkeys(ARCHIVED, Written(0, 0)))


class Look:
    """Looks at the days asked for, through the snapshots of `tables`."""

    def __init__(
        self, platform: Platform, reader: TraceReader, asked: Asked, tables: ArchiveTables, progress: Progress
    ) -> None:
        self._platform, self._reader, self._asked, self._progress = platform, reader, asked, progress
        self._tables, self._days = tables, asked.days

    @property
    def notes(self) -> Notes:
        """The notes in `traces`."""
        return self._tables.notes("traces")

    def unchanged(self, state: int, rules: int) -> ArchivedDay | None:
        """The days as noted, when store, rules and table are what they were when all was there; else None.

        Opens one table. That rows of the others were deleted by hand shows when they are counted: `rows` of the answer.
        """
        notes, days = self.notes, self._days
        noted = notes.get(marks.DONE, days)
        if not noted or not state:
            return None
        files = self._tables.files("traces", days)
        counts = {"traces": sum(one.rows for one in files.values())}
        if noted != marks.done_digest(state, rules, counts["traces"]):
            return None
        counts |= {table: notes.get(table, days) for table in CHILDREN}
        # Of more days than one the log of `traces` does not say which have spans.
        looked_at = [table for table, n in counts.items() if n and (table == "traces" or days.first == days.last)]
        if any(self._folder_is_gone(table, files) for table in looked_at):
            return None
        return ArchivedDay(
            settled=notes.get(marks.SETTLED, days),
            absent=(),
            written=dict.fromkeys(ARCHIVED, Written(0, 0)),
            newest_ms=max((one.newest_ms for one in files.values()), default=0),
            quarantined=notes.get(marks.QUARANTINED, days),
            unchanged=True,
            rows=counts,
        )

    def seen(self, rules: int) -> Seen:
        """What there is to do. Raises `Refused` for tables of another experiment, `LostFiles` for damaged ones."""
        tables, days, started_ms = self._tables, self._days, int(time.time() * 1000)
        self._refuse_strangers()
        lost = {table: paths for table in ("traces", *CHILDREN) if (paths := tables.lost(table, days))}
        if lost:
            raise LostFiles(days, lost)
        by_table = {table: tables.files(table, days) for table in ("traces", *CHILDREN)}
        files, held_days = by_table["traces"], set().union(*by_table.values())
        anew = {day for day in held_days if self._asked.anew or self._needs_all(day, by_table, rules)}
        compared = min((self.notes.get(marks.COMPARED, day) for day in files), default=0)
        fresh = 0 <= started_ms - compared < COMPARE_EVERY_MS  # Below 0 a clock was wrong.
        large = sum(one.rows for one in files.values()) > min(self._reader.cheap_listing, ALWAYS_COMPARED)
        newest = max((one.newest_ms for one in files.values()), default=0)
        touched = self._touched(set(files) - anew)
        partly = large and fresh and not anew and days.first == days.last and newest - LOOKBACK_MS > days.since_ms
        since_ms = newest - LOOKBACK_MS if partly else days.since_ms
        listing, held = self.listing(since_ms), tables.ids("traces", days, since_ms=since_ms if partly else 0)
        if partly and self._has_unknown(touched, held, listing):
            since_ms = days.since_ms
            listing, held = self.listing(since_ms), tables.ids("traces", days)
        digests = {} if large else day_digests.digests_of(self._reader, listing.traces, days, most=_DIGESTED)
        wholly = bool(files) and not (large and fresh)
        compare = wholly and not (fresh and day_digests.is_the_same(self.notes, digests, held, files))
        tables.pin(days)
        return Seen(files, anew, wholly, compare, digests, large, touched, listing, since_ms, held, started_ms)

    def listing(self, since_ms: int) -> Listing:
        """The settled traces from `since_ms` to the end of the days."""
        return self._reader.list(since_ms, self._days.until_ms, settled_before_ms=self._asked.settled_before_ms)

    def held_heads(self, trace_ids: Iterable[str]) -> list[dict[str, Any]]:
        """Id and start of those of these traces that the table holds."""
        quoted = ", ".join("'" + one.replace("'", "''") + "'" for one in trace_ids)
        if not quoted:
            return []
        names = ["trace_id", "request_time"]
        query = f"SELECT {', '.join(names)} FROM t WHERE {self._days.condition} AND trace_id IN ({quoted})"  # noqa: S608
        return self._tables.select("traces", query, names).to_pylist()

    def _refuse_strangers(self) -> None:
        asked, log = self._asked, self._tables.log("traces")
        others = marks.strangers(log, asked.experiment_id)
        if others:
            raise Refused(
                f"{self._asked.prefix}traces holds traces of experiment {', '.join(others)[:80]}, and this agent's "
                f"experiment {self._asked.experiment[:80]} is {self._asked.experiment_id}: two experiments must not "
                "share tables. Set archive.table_prefix in defs.yaml to a prefix no other agent has."
            )
        target = self._tables.held("traces")
        if target is None:
            return
        made_ms = experiment_made_ms(self._platform, asked.experiment)
        if why := made_anew(self._platform, asked.prefix, asked.experiment, made_ms, target, log):
            raise Refused(why)

    def _folder_is_gone(self, table: str, days: Iterable[date]) -> bool:
        """Whether somebody removed a day's folder; known only of tables in folders."""
        where = Path(self._platform.table_uri(self._asked.prefix + table).removeprefix("file://"))
        return where.is_absolute() and any(not (where / f"{PARTITION}={day}").is_dir() for day in days)

    def _needs_all(self, day: date, files: Mapping[str, Mapping[date, Files]], rules: int) -> bool:
        """Whether a day's rows were written by other rules, or are fewer than were noted."""
        notes = self.notes
        lost = [table for table in ARCHIVED if files[table].get(day, Files()).rows < notes.get(table, day)]
        if lost:
            self._progress(f"{day}: rows of {', '.join(lost)} are gone from the table; the day is compared as a whole")
        return bool(lost) or notes.get(marks.RULES, day) != rules

    def _touched(self, known: set[date]) -> Touched:
        """What changed since the oldest marks of the days."""
        since, until, notes = self._days.since_ms, self._days.until_ms, self.notes
        first = self._reader.touched(since, until, Marks())
        if not known or not first.marks.seen:
            return first
        seen = {name: min(notes.get(MARK + name, day) for day in known) for name in first.marks.seen}
        return self._reader.touched(since, until, Marks(seen))

    def _has_unknown(self, touched: Touched, held: "pa.ChunkedArray", listing: Listing) -> bool:
        """Whether a touched trace is neither held nor listed, such as one that took longer than the lookback."""
        asked = sorted((touched.heads | touched.spans) - {*listing.ids, *held.to_pylist()})
        return bool(asked) and len(self.held_heads(asked)) < len(asked)
