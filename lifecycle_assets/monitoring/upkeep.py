"""The asset of `monitoring` that looks after the tables.

Lives here: `archive_upkeep`, and what its run says.
Add here: a further kind of upkeep, its check, a fact worth showing.
Not here: doing it (`resources/upkeep/upkeep.py`), the policy (`lifecycle_assets/spec_monitoring.py`).
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg

from lifecycle_assets.edges import lifecycle_asset, result
from lifecycle_assets.spec_file import Agent
from resources.needs import SqlEngine, Upkeep

if TYPE_CHECKING:
    from resources.upkeep.upkeep import Released, Restored, Tended

COMPACTED, RETENTION, STORE = "compacted", "retention_kept", "store_retention_proven"


def archive_upkeep(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/archive_upkeep`."""

    @lifecycle_asset(
        agent.name,
        group="monitoring",
        deps=["archived_traces"],
        kinds={"deltalake"},
        checks={
            COMPACTED: "Every table's files are whole, and days of many small files are rewritten as few.",
            RETENTION: "The tables hold no day older than archive.retention_days.",
            STORE: "Every day that was due has left MLflow's own store, proven to be in the tables before.",
        },
        pool=f"{agent.name}_upkeep",
    )
    def archive_upkeep(
        context: dg.AssetExecutionContext, upkeep: dg.ResourceParam[Upkeep], sql: dg.ResourceParam[SqlEngine]
    ) -> dg.MaterializeResult:
        """The tables kept quick and small: small files rewritten as few, closed days sorted by trace, old days removed.

        Files that nobody needs are deleted after archive.upkeep.vacuum_hours. With archive.store_retention, traces
        leave MLflow's own store once the tables are proven to hold them. Safe beside archiving and queries, and safe
        to run again.
        """
        from lifecycle_assets.records import UpkeepRecord, digest
        from lifecycle_assets.retention import oldest_kept, today
        from lifecycle_assets.text import table

        now, say = today(), context.log.info
        oldest = oldest_kept(agent.spec.archive, now)
        removed = upkeep.expire(agent, now, say)
        restored = upkeep.restore(agent, say)
        tended = upkeep.tend(agent, now, say)
        released = upkeep.release(agent, now, say)
        record = UpkeepRecord(
            files=sum(one.files for one in tended),
            rewritten_days=sum(one.days for one in tended),
            deleted_files=sum(one.vacuumed for one in tended),
            removed_rows=sum(removed.values()),
            released_traces=sum(one.traces for one in released),
            waiting_days=sum(1 for one in released if one.why),
        )
        return result(
            record,
            data_version=digest(record.to_json()),
            metadata={
                "tables": table(
                    ["table", "files before", "files now", "days rewritten", "files deleted", "rows removed"],
                    [
                        (one.table, one.files_before, one.files, one.days, one.vacuumed, removed.get(one.table, 0))
                        for one in tended
                    ],
                ),
                "released_traces": record.released_traces,
                "oldest_day_kept": str(oldest) if agent.spec.archive.retention_days else "all",
            },
            checks=[
                _compacted(tended, restored),
                _retention(agent, removed, first_days(sql, agent.spec.table_prefix), oldest),
                _released(agent, released),
            ],
        )

    return archive_upkeep


def first_days(sql: SqlEngine, prefix: str) -> dict[str, Any]:
    """The oldest day of each table that expires; None of an empty one."""
    from resources.upkeep.upkeep import EXPIRING

    query = " UNION ALL ".join(f"SELECT '{name}' AS name, min(trace_date) AS oldest FROM {name}" for name in EXPIRING)  # noqa: S608
    return {row["name"]: row["oldest"] for row in sql.query(prefix, query).dicts()}


def _compacted(tended: "Sequence[Tended]", restored: "Sequence[Restored]") -> dg.AssetCheckResult:
    said = [one.said for one in restored] + [one.left for one in tended if one.left]
    lost = any(one.is_lost for one in restored)
    return dg.AssetCheckResult(
        check_name=COMPACTED,
        passed=not said,
        severity=dg.AssetCheckSeverity.ERROR if lost else dg.AssetCheckSeverity.WARN,
        description=_some(said) or f"{sum(one.files for one in tended)} files in {len(tended)} tables.",
    )


def _retention(agent: Agent, removed: Mapping[str, int], found: Mapping[str, Any], oldest: date) -> dg.AssetCheckResult:
    days = agent.spec.archive.retention_days
    older = {name: first for name, first in found.items() if first is not None and first < oldest}
    said = f"{removed.get('traces', 0)} traces older than {days} days removed." if days else "Every day is kept."
    kept = ", ".join(f"{name} ({first})" for name, first in sorted(older.items()))
    return dg.AssetCheckResult(
        check_name=RETENTION,
        passed=not older,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Days before {oldest} are still in {kept}; run the upkeep again." if older else said,
    )


def _released(agent: Agent, released: "Sequence[Released]") -> dg.AssetCheckResult:
    waiting = [one.why for one in released if one.why]
    if agent.spec.archive.store_retention is None:
        said = "Traces stay in MLflow."
    else:
        said = f"{sum(one.traces for one in released)} traces of {len(released)} days left MLflow's store."
    return dg.AssetCheckResult(
        check_name=STORE,
        passed=not waiting,
        severity=dg.AssetCheckSeverity.WARN,
        description=_some(waiting) or said,
    )


def _some(sentences: Sequence[str]) -> str:
    """The first of some sentences, and how many more there are."""
    return " ".join(sentences[:3]) + (f" And {len(sentences) - 3} more." if len(sentences) > 3 else "")
