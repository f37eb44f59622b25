"""Upkeep of Delta tables by delta-rs, in a folder or an object store.

Lives here: `DeltaUpkeep`: which days are rewritten, what a vacuum may delete, and removing what is too old.
Add here: a further kind of upkeep of a table.
Not here: what files there are (`delta/files.py`), mending damage (`delta/repair.py`), MLflow's store
(`store_retention.py`).

Why it is safe beside others: rewriting a day (`delta/compaction.py`) never touches what is appended meanwhile, and of a
rewrite and a merge into the same day Delta refuses the second, which reads again. Two rewrites at once would double
every row: whoever rewrites claims the table before (`delta/alone.py`). Files that were replaced stay for
`vacuum_hours`, for queries that have their list. Why it is safe to repeat: every part looks at what is there; killed
between two commits, the next run does what is left.
"""

from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING

from lifecycle_assets.retention import oldest_kept, oldest_open
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_monitoring import Upkeep as Policy
from resources.delta.compaction import rewritten
from resources.delta.files import DayFiles, active_days, files_in_folder, is_foreign
from resources.delta.repair import restore
from resources.delta.table import open_table, storage
from resources.delta.write import LOG_RETENTION, append_rows, retried
from resources.platform import Platform
from resources.sql.kept import folder_of, forget
from resources.tables import PARTITION, TABLES, arrow_schema, is_partitioned
from resources.upkeep.store_retention import release
from resources.upkeep.upkeep import EXPIRING, SORTED, Released, Restored, Tended, Upkeep
from resources.worker import Progress

if TYPE_CHECKING:
    from deltalake import DeltaTable

SORTED_UNTIL, SORTED_AT = "upkeep:sorted_until", "upkeep:sorted_at"
"""Application transactions: the newest closed day that is sorted (`date.toordinal`), and when (epoch milliseconds)."""


class DeltaUpkeep(Upkeep):
    """Delta tables in a folder or an object store (`s3://…`; credentials are the environment's)."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def restore(self, agent: Agent, progress: Progress) -> list[Restored]:
        """See `Upkeep.restore`."""
        return restore(self._platform, agent, progress)

    def tend(self, agent: Agent, now: date, progress: Progress) -> list[Tended]:
        """See `Upkeep.tend`. Tables one after the other, days one after the other: memory holds one day."""
        closed_before = oldest_open(agent.spec.archive, now)
        policy, done = agent.spec.archive.upkeep, []
        for table in TABLES:
            where = self._platform.table_uri(agent.spec.table_prefix + table)
            with storage(where):
                target = open_table(where)
                if target is not None:
                    done.append(_tend(target, table, policy, closed_before))
                    progress(f"{table}: {done[-1].files_before} files before, {done[-1].files} now")
        forget(folder_of(self._platform, agent.spec.table_prefix))  # They tell of rows that a vacuum deletes.
        return done

    def expire(self, agent: Agent, now: date, progress: Progress) -> dict[str, int]:
        """See `Upkeep.expire`. Whole files leave the log, none is read; a vacuum deletes them `vacuum_hours` later."""
        oldest, removed = oldest_kept(agent.spec.archive, now), {}
        if oldest == date.min:
            return {}
        for table in EXPIRING:
            removed[table] = self._expire(agent.spec.table_prefix + table, oldest)
            if removed[table]:
                progress(f"{table}: {removed[table]} rows before {oldest} removed")
        return removed

    def release(self, agent: Agent, now: date, progress: Progress) -> list[Released]:
        """See `Upkeep.release`."""
        return release(self._platform, agent, now, progress)

    def _expire(self, name: str, oldest: date) -> int:
        where = self._platform.table_uri(name)

        def attempt() -> int:
            target = open_table(where)
            if target is None or not any(day.day and day.day < oldest for day in active_days(target)):
                return 0
            return int(target.delete(f"{PARTITION} < DATE '{oldest}'")["num_deleted_rows"])

        return retried(where, attempt)


def _tend(target: "DeltaTable", table: str, policy: Policy, closed_before: date) -> Tended:
    target = _configured(target, policy)
    before = sum(day.files for day in active_days(target))
    days, left = _rewrite_days(target, table, policy, closed_before)
    target = _reopened(target)
    vacuumed, strangers = _vacuum(target, policy.vacuum_hours, is_partitioned(table))
    target = _reopened(target)
    _shorten_log(target)
    return Tended(table, before, sum(day.files for day in active_days(target)), days, vacuumed, left or strangers)


def _configured(target: "DeltaTable", policy: Policy) -> "DeltaTable":
    """The table with the properties that delta-rs' own checks go by. One commit, and only when they differ."""
    wanted = {"delta.logRetentionDuration": LOG_RETENTION, "delta.checkpointInterval": "20"}
    held = target.metadata().configuration
    if policy.vacuum_hours != 168 or "delta.deletedFileRetentionDuration" in held:  # 168 hours is Delta's default.
        wanted["delta.deletedFileRetentionDuration"] = f"interval {policy.vacuum_hours} hours"
    differing = {name: value for name, value in wanted.items() if held.get(name) != value}
    if differing:
        retried(target.table_uri, lambda: _reopened(target).alter.set_table_properties(differing))
    return _reopened(target)


def _rewrite_days(target: "DeltaTable", table: str, policy: Policy, closed_before: date) -> tuple[int, str]:
    """Rewrite the days that need it, each in a commit of its own; how many, and what had to be left."""
    days = active_days(target)
    to_sort = _unsorted(target, days, closed_before) if table in SORTED and policy.zorder else []
    to_compact = [day for day in days if day.small >= policy.compact_from and day not in to_sort]
    left = [day for day in to_sort if not rewritten(target, day.day, by_id=True)]
    left += [day for day in to_compact if not rewritten(target, day.day)]
    if to_sort and not left:
        _note_sorted(target, table, closed_before)
    said = f"{table}: {_named(left)} not rewritten, others wrote there meanwhile; the next run does it." if left else ""
    return len(to_sort) + len(to_compact) - len(left), said


def _note_sorted(target: "DeltaTable", table: str, closed_before: date) -> None:
    """Note that every closed day is sorted as it is now."""

    def attempt() -> None:
        fresh = _reopened(target)
        closed = [day for day in active_days(fresh) if day.day and day.day < closed_before]
        if closed:
            newest = max(day.day.toordinal() for day in closed if day.day)
            notes = {SORTED_UNTIL: newest, SORTED_AT: max(day.newest_ms for day in closed)}
            append_rows(fresh, arrow_schema(table).empty_table(), notes)

    retried(target.table_uri, attempt)


def _unsorted(target: "DeltaTable", days: list[DayFiles], closed_before: date) -> list[DayFiles]:
    """Closed days of more than one small file, or with a file that was never sorted."""
    until, at = (target.transaction_version(name) or 0 for name in (SORTED_UNTIL, SORTED_AT))
    return [
        day
        for day in days
        if day.day and day.day < closed_before and (day.small > 1 or day.newest_ms > at or day.day.toordinal() > until)
    ]


def _vacuum(target: "DeltaTable", hours: int, by_day: bool) -> tuple[int, str]:
    """Delete files that no version of the last `hours` has; how many, and why not when a stranger is among them.

    delta-rs would delete every old file in the folder, so with one that is none of ours nothing is deleted.
    """
    there = files_in_folder(target)
    old = [path for path in target.vacuum(hours, dry_run=True, full=True) if path in there]
    active = {path for day in active_days(target) for path in day.paths}
    strangers = sorted(path for path in there if path not in active and is_foreign(path, by_day))
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        return 0, (
            f"{target.table_uri.removeprefix('file://').rstrip('/')}: {strangers[0][:120]}{more} is no file of the "
            "table; move it away: until then no old file is deleted, so that it is not deleted with them."
        )
    if old:
        target.vacuum(hours, dry_run=False, full=True)
    return len(old), ""


def _shorten_log(target: "DeltaTable") -> None:
    """A checkpoint of now, and no single commits it has held for `LOG_RETENTION`."""
    target.create_checkpoint()
    target.cleanup_metadata()


def _reopened(target: "DeltaTable") -> "DeltaTable":
    from deltalake import DeltaTable

    return DeltaTable(target.table_uri)


def _named(days: Iterable[DayFiles]) -> str:
    names = [str(day.day or "the table") for day in days]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more days" if len(names) > 3 else "")
