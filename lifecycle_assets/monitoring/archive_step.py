"""The step of `archived_traces`: a day's rows, counted.

Lives here: what the asset does with one day, without Dagster's context.
Add here: something its materialization should say. Not here: reading and writing (`resources/archive/archive.py`).
"""

import time
from collections.abc import Mapping, Sequence
from datetime import date

from lifecycle_assets.monitoring.day_step import DayStep
from lifecycle_assets.monitoring.settled import settled_before_ms
from lifecycle_assets.outcome import Check, Outcome
from lifecycle_assets.records import ArchiveRecord, digest
from lifecycle_assets.retention import is_expired, today
from lifecycle_assets.text import table
from resources.archive.archive import ArchivedDay
from resources.needs import Archive, SqlEngine

COUNTS_SQL = """
SELECT 'traces' AS name, count(*) AS n, count(DISTINCT trace_id) AS keys FROM traces WHERE trace_date = ?
UNION ALL
SELECT 'spans', count(*), count(DISTINCT (trace_id, span_id)) FROM spans WHERE trace_date = ?
UNION ALL
SELECT 'assessments', count(*), count(DISTINCT (trace_id, assessment_id)) FROM assessments WHERE trace_date = ?
"""
"""Rows and keys of a day: no column of payload is read."""


def archived_traces(step: DayStep) -> Outcome:
    """Bring the day's rows of `traces`, `spans` and `assessments` up to date, and count them.

    A day of which rows are missing that were written is compared as a whole at once, and so restored. Of rows that are
    there twice, as another program may leave them, one is kept.
    """
    prefix, sql = step.agent.spec.table_prefix, step.gateways["sql"]
    archived = _archive(step)
    counts, doubled = count_rows(sql, prefix, step.day)
    lost = [name for name, rows in archived.rows.items() if counts[name] < rows]
    if lost:
        step.progress(f"{step.day}: rows of {', '.join(lost)} are gone from the table; the day is compared as a whole")
        archived = _archive(step, anew=True)
        counts, doubled = count_rows(sql, prefix, step.day)
    archive: Archive = step.gateways["archive"]
    removed = {name: archive.undouble_day(prefix, name, step.day) for name in doubled}
    if any(removed.values()):
        counts, doubled = count_rows(sql, prefix, step.day)
    record = ArchiveRecord(
        day=step.day.isoformat(),
        traces=counts["traces"],
        spans=counts["spans"],
        assessments=counts["assessments"],
        watermark_ms=archived.newest_ms,
    )
    return Outcome(
        data_version=digest(record.to_json()),
        metadata={
            "dagster/row_count": record.traces,
            "dagster/partition_row_count": record.traces,
            "dagster/table_name": f"{prefix}traces",
            "written": table(
                ["table", "inserted", "updated"],
                [(name, w.inserted, w.updated) for name, w in archived.written.items()],
            ),
            "rows": table(["table", "rows"], sorted(counts.items())),
            "quarantined": archived.quarantined,
            "unchanged": archived.unchanged,
            **_lag(archived),
        },
        checks=[
            _expired_check(step) or complete_check(archived, counts["traces"]),
            Check("no_duplicates", not doubled, _said_of_doubles(doubled, removed)),
        ],
        record=record.to_json(),
    )


def _said_of_doubles(doubled: Sequence[str], removed: Mapping[str, int]) -> str:
    """What the check says: rows that are there twice, or were until now."""
    if doubled:
        return f"More rows than keys in {', '.join(doubled)}: see which program writes there, then run the day again."
    went = ", ".join(f"{rows} of {name}" for name, rows in sorted(removed.items()) if rows)
    return f"One row a key, after rows that were there twice were removed: {went}." if went else "One row a key."


def _archive(step: DayStep, *, anew: bool = False) -> ArchivedDay:
    archive: Archive = step.gateways["archive"]
    if is_expired(step.agent.spec.archive, step.day, today()):
        return ArchivedDay(settled=0, absent=(), written={}, newest_ms=0, unchanged=True)
    settled = settled_before_ms(step.agent)
    return archive.archive_day(step.agent, step.day, settled_before_ms=settled, progress=step.progress, anew=anew)


def _expired_check(step: DayStep) -> Check | None:
    """What to say of a day that `archive_upkeep` removed, or is about to: archiving it again would bring it back."""
    policy = step.agent.spec.archive
    if not is_expired(policy, step.day, today()):
        return None
    return Check("complete", True, f"Older than archive.retention_days ({policy.retention_days}): not archived.")


def complete_check(archived: ArchivedDay, rows: int) -> Check:
    """By id and by count; a trace in quarantine is a warning."""
    lacking = max(len(archived.absent), archived.settled - archived.quarantined - rows)
    said = [f"{archived.settled} in MLflow, {rows} in the table"]
    if archived.absent:
        said.append(f"missing {', '.join(archived.absent[:5])}: run the day again")
    elif lacking > 0:
        said.append(f"{lacking} are missing: run the day again")
    if archived.quarantined:
        said.append(f"{archived.quarantined} in quarantine: see the reasons in the table quarantine")
    return Check("complete", lacking <= 0 and not archived.quarantined, "; ".join(said) + ".", is_error=lacking > 0)


def _lag(archived: ArchivedDay) -> Mapping[str, float]:
    """Minutes from the start of the newest archived trace until now; nothing without a trace."""
    if not archived.newest_ms:
        return {}
    return {"lag_minutes": round((time.time() * 1000 - archived.newest_ms) / 60_000, 1)}


def count_rows(sql: SqlEngine, prefix: str, day: date) -> tuple[dict[str, int], list[str]]:
    """Rows of a day in each table, and the tables in which a key stands twice."""
    rows = sql.query(prefix, COUNTS_SQL, [day, day, day]).dicts()
    return {row["name"]: row["n"] for row in rows}, [row["name"] for row in rows if row["n"] != row["keys"]]
