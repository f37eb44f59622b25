"""The step of `archived_traces`: a day's rows, counted.

Lives here: what the asset does with one day, without Dagster's context.
Add here: something its materialization should say. Not here: reading and writing (`resources/archive.py`).
"""

from datetime import date

from lifecycle_assets.monitoring.day_step import DayStep
from lifecycle_assets.monitoring.settled import settled_before_ms
from lifecycle_assets.outcome import Check, Outcome
from lifecycle_assets.records import ArchiveRecord, digest
from lifecycle_assets.text import table
from resources.archive import Archive
from resources.sql_engine import SqlEngine

COUNTS_SQL = """
SELECT 'traces' AS name, count(*) AS n, count(DISTINCT trace_id) AS keys FROM traces WHERE trace_date = ?
UNION ALL
SELECT 'spans', count(*), count(DISTINCT (trace_id, span_id)) FROM spans WHERE trace_date = ?
UNION ALL
SELECT 'assessments', count(*), count(DISTINCT (trace_id, assessment_id)) FROM assessments WHERE trace_date = ?
"""


def archived_traces(step: DayStep) -> Outcome:
    """Bring the day's rows of `traces`, `spans` and `assessments` up to date, and count them."""
    archive: Archive = step.gateways["archive"]
    prefix = step.agent.spec.table_prefix
    archived = archive.archive_day(
        step.agent, step.day, settled_before_ms=settled_before_ms(step.agent), progress=step.progress
    )
    counts, doubled = count_rows(step.gateways["sql"], prefix, step.day)
    record = ArchiveRecord(
        day=step.day.isoformat(),
        traces=counts["traces"],
        spans=counts["spans"],
        assessments=counts["assessments"],
        watermark_ms=archived.newest_ms,
    )
    absent = f"; missing {', '.join(archived.absent[:5])}: run the day again." if archived.absent else "."
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
        },
        checks=[
            Check(
                "complete",
                not archived.absent,
                f"{archived.settled} in MLflow, {record.traces} in the table{absent}",
            ),
            Check(
                "no_duplicates",
                not doubled,
                f"More rows than keys in {', '.join(doubled)}." if doubled else "One row a key.",
            ),
        ],
        record=record.to_json(),
    )


def count_rows(sql: SqlEngine, prefix: str, day: date) -> tuple[dict[str, int], list[str]]:
    """Rows of a day in each table, and the tables in which a key stands twice."""
    rows = sql.query(prefix, COUNTS_SQL, [day, day, day]).dicts()
    return {row["name"]: row["n"] for row in rows}, [row["name"] for row in rows if row["n"] != row["keys"]]
