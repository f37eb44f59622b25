"""One archiving of some days: what changed, what is new, whether all is there, and the notes on it.

Lives here: the order of steps, and which traces each step is about.
Add here: a step.
Not here: looking (`look.py`), rows (`append.py`, `upsert.py`), counting and notes (`ending.py`), trying again
(`delta_archive.py`).

The last commit to `traces` carries the notes: a run that is killed before it leaves the notes of the run before, so
the next one looks at the same again, and finds most of it held. What comes to the store while a day is read makes
its state another one than was noted, and so the next run looks.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from resources.archive import marks
from resources.archive.append import Appended, append_new
from resources.archive.append_files import append_files, folders
from resources.archive.archive import ArchivedDay
from resources.archive.ending import Ending
from resources.archive.look import Asked, Look, Seen
from resources.archive.quarantine import Quarantine
from resources.archive.snapshots import ArchiveTables
from resources.archive.upsert import Upsert
from resources.archive.utc_days import started_on
from resources.arrow_compute import compute
from resources.platform import Platform
from resources.reading.trace_reader import TraceReader
from resources.worker import Progress

if TYPE_CHECKING:
    import pyarrow as pa


class ArchiveRun:
    """One try. Raises `Overtaken` or `CommitFailedError` when another writer was faster: what is written stays right.

    Raises what the reader raises, after whole batches.
    """

    def __init__(self, platform: Platform, reader: TraceReader, asked: Asked, progress: Progress) -> None:
        self._reader, self._asked, self._progress = reader, asked, progress
        self._days, self._rules = asked.days, marks.rules_digest(asked.redact)
        self._tables = ArchiveTables(platform, asked.prefix, asked.experiment_id)
        self._look = Look(platform, reader, asked, self._tables, progress)
        self._quarantine = Quarantine(platform, asked.prefix, asked.experiment_id, asked.days)

    def run(self) -> ArchivedDay:
        """Bring the tables up to date. When nothing came to the store since the last run, nothing more is read."""
        state = self._reader.state()
        unchanged = None if self._asked.anew else self._look.unchanged(state, self._rules)
        if unchanged:
            return unchanged
        seen = self._look.seen(self._rules)
        self._upsert(seen)
        ending = Ending(self._tables, self._look, self._quarantine, self._days, state, self._rules, seen)
        archived = ending.archived(self._append(seen, self._new(seen), ending))
        self._tables.compact(self._days)
        return archived

    def _upsert(self, seen: Seen) -> None:
        """Traces the table holds: all of a day, or those that were touched, or their heads."""
        pc = compute()

        known = _among(seen.listing.traces, seen.held)
        missed = (seen.touched.heads | seen.touched.spans) - set(seen.listing.ids)
        if missed and seen.since_ms > self._days.since_ms:
            known = _with_rows(known, self._look.held_heads(sorted(missed)))
        if not known.num_rows:
            return
        ids = known.column("trace_id")
        whole = pc.or_(started_on(known, seen.anew), pc.is_in(ids, value_set=_texts(seen.touched.spans)))
        heads = pc.or_(pc.is_in(ids, value_set=_texts(seen.touched.heads)), seen.compare)
        self._bring(seen, known.filter(whole), whole=True)
        self._bring(seen, known.filter(pc.and_(pc.invert(whole), heads)), whole=False)

    def _bring(self, seen: Seen, listing: "pa.Table", *, whole: bool) -> None:
        """Compare these traces with the tables and write what differs."""
        if not listing.num_rows:
            return
        if listing.num_rows > self._reader.cheap_listing:
            self._progress(f"{self._days}: {listing.num_rows:,} traces are compared with the tables")
        upsert = Upsert(self._tables, self._days, listing.column("trace_id"), whole=whole)
        if whole:
            self._quarantine.tried(listing.column("trace_id").to_pylist())
            upsert.write(self._quarantine.noting(self._reader.batches(listing, redact=self._asked.redact)))
        else:
            upsert.write(self._reader.heads(listing, redact=self._asked.redact))
        for table, written in upsert.written.items():
            seen.written[table] += written

    def _new(self, seen: Seen) -> "pa.Table":
        """Listed traces that are neither held nor known to make no rows: those are tried again when touched."""
        listed, quarantine = seen.listing.traces, self._quarantine
        if seen.since_ms == self._days.since_ms:
            quarantine.tried(set(quarantine.held) - set(seen.listing.ids))  # Gone from MLflow.
        again = seen.wholly or bool(seen.anew)
        waits = set() if again else set(quarantine.held) - seen.touched.heads - seen.touched.spans
        new = _except(_except(listed, seen.held), _texts(waits))
        quarantine.tried(new.column("trace_id").to_pylist())
        return new

    def _append(self, seen: Seen, new: "pa.Table", ending: Ending) -> Appended:
        """Append what is new. Of a day with an interrupted batch, spans may be there."""
        if not new.num_rows:
            return Appended()
        orphans = self._orphans(seen, new)
        if orphans.num_rows:
            self._progress(f"{self._days}: {orphans.num_rows:,} traces of an interrupted batch are completed")
            self._bring(seen, orphans, whole=True)
            seen.held = self._tables.ids("traces", self._days, since_ms=seen.since_ms)
            new = _except(new, orphans.column("trace_id"))
        total, redact, last = new.num_rows, self._asked.redact, ending.with_traces

        def archived(so_far: int) -> None:
            self._progress(f"{self._days}: {so_far:,} of {total:,} new traces archived")

        into = {} if redact else folders(self._tables, self._reader, total)  # Rules meet each text as it was said.
        if into:
            return append_files(self._tables, self._reader, new, into, archived, last)
        return append_new(self._tables, self._reader, new, redact, archived, last)

    def _orphans(self, seen: Seen, new: "pa.Table") -> "pa.Table":
        """New traces whose spans are there already: a batch was interrupted, or rows were deleted by hand."""
        if not any(day in seen.anew or self._tables.interrupted(day) for day in self._days):
            return new.slice(0, 0)
        return _among(new, self._tables.ids("spans", self._days))


def _among(listing: "pa.Table", trace_ids: Any) -> "pa.Table":
    pc = compute()

    return listing.filter(pc.is_in(listing.column("trace_id"), value_set=trace_ids))


def _except(listing: "pa.Table", trace_ids: Any) -> "pa.Table":
    pc = compute()

    return listing.filter(pc.invert(pc.is_in(listing.column("trace_id"), value_set=trace_ids)))


def _texts(values: Iterable[str]) -> "pa.Array":
    import pyarrow as pa

    return pa.array(sorted(values), pa.string())


def _with_rows(listing: "pa.Table", rows: list[dict[str, Any]]) -> "pa.Table":
    """A listing with further traces the table holds."""
    import pyarrow as pa

    more = {
        "trace_id": [row["trace_id"] for row in rows],
        "request_ms": [marks.epoch_ms(row["request_time"]) for row in rows],
    }
    return pa.concat_tables([listing, pa.table(more, schema=listing.schema)])
