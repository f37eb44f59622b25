"""Upkeep of tables of Unity Catalog, by SQL on the warehouse.

Lives here: `WarehouseUpkeep`: which statements are run for which table.
Add here: a further statement that maintains a table.
Not here: writing rows (`archive.py`), what upkeep answers (`resources/upkeep/upkeep.py`).

OPTIMIZE and VACUUM may run twice: the second finds nothing to do. Databricks keeps them apart from readers and writers.
Files of a managed table cannot be deleted by hand, so there is nothing to restore.
"""

from datetime import date, timedelta
from typing import Any

from lifecycle_assets.retention import leaves_store_before, oldest_kept, oldest_open
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_monitoring import Upkeep as Policy
from resources.databricks.archive.trace_source import is_absent
from resources.databricks.sql.statements import StatementFailed, run_statement, ticked
from resources.platform import Platform
from resources.tables import PARTITION, TABLES
from resources.upkeep.upkeep import EXPIRING, SORTED, Released, Restored, Tended, Upkeep
from resources.worker import Progress

_SECONDS = 3600.0
_CLOSING_DAYS = 8
"""Days before the first open one that are sorted at each upkeep: each day several times, should some upkeeps fail.

ZORDER BY is incremental: it leaves alone what is sorted.
"""


class WarehouseUpkeep(Upkeep):
    """Tables of Unity Catalog. Needs MODIFY on them."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def restore(self, agent: Agent, progress: Progress) -> list[Restored]:
        """See `Upkeep.restore`; nothing, see the module's docstring."""
        return []

    def tend(self, agent: Agent, now: date, progress: Progress) -> list[Tended]:
        """See `Upkeep.tend`. The log is shortened by Databricks itself."""
        closed, policy, done = oldest_open(agent.spec.archive, now), agent.spec.archive.upkeep, []
        for table in TABLES:
            name = agent.spec.table_prefix + table
            before = self._files(name)
            if before is None:
                continue
            for statement in _statements(name, table, policy, closed):
                self._run(statement)
            done.append(Tended(table, before, self._files(name) or 0))
            progress(f"{table}: {before} files before, {done[-1].files} now")
        return done

    def expire(self, agent: Agent, now: date, progress: Progress) -> dict[str, int]:
        """See `Upkeep.expire`. The condition names whole partitions, so no file is rewritten."""
        oldest, removed = oldest_kept(agent.spec.archive, now), {}
        for table in EXPIRING if oldest > date.min else ():
            name = agent.spec.table_prefix + table
            try:
                rows = self._run(f"DELETE FROM {ticked(name)} WHERE {PARTITION} < DATE'{oldest}'")  # noqa: S608
            except StatementFailed as failed:
                if not is_absent(self._platform, failed, name):
                    raise
                continue
            removed[table] = int(rows[0].get("num_affected_rows") or 0) if rows else 0
            if removed[table]:
                progress(f"{table}: {removed[table]} rows before {oldest} removed")
        return removed

    def release(self, agent: Agent, now: date, progress: Progress) -> list[Released]:
        """See `Upkeep.release`; refused with the reason: the traces are tables of Unity Catalog themselves."""
        if agent.spec.archive.store_retention is None:
            return []
        return [
            Released(
                leaves_store_before(agent.spec.archive, now) - timedelta(days=1),
                0,
                "archive.store_retention is for an MLflow store of your own: on Databricks traces are tables of Unity "
                "Catalog, or Databricks keeps them; remove the field, and set a retention on those tables.",
            )
        ]

    def _files(self, name: str) -> int | None:
        """Files of a table, 0 where the warehouse does not say; None when it was never written."""
        try:
            found = self._run(f"DESCRIBE DETAIL {ticked(name)}")
        except StatementFailed as failed:
            if not is_absent(self._platform, failed, name):
                raise
            return None
        return int(found[0].get("numFiles") or 0) if found else 0

    def _run(self, sql: str) -> list[dict[str, Any]]:
        return run_statement(self._platform, sql, timeout_seconds=_SECONDS).dicts()


def _statements(name: str, table: str, policy: Policy, closed: date) -> list[str]:
    """The statements that maintain one table, in order."""
    done = [f"OPTIMIZE {ticked(name)}"]
    if table in SORTED and policy.zorder:
        days = f"{PARTITION} >= DATE'{closed - timedelta(days=_CLOSING_DAYS)}' AND {PARTITION} < DATE'{closed}'"
        done.insert(0, f"OPTIMIZE {ticked(name)} WHERE {days} ZORDER BY (trace_id)")
    # VACUUM checks its hours against this property.
    kept = f"'delta.deletedFileRetentionDuration' = 'interval {policy.vacuum_hours} hours'"
    return [
        *done,
        f"ALTER TABLE {ticked(name)} SET TBLPROPERTIES ({kept})",
        f"VACUUM {ticked(name)} RETAIN {policy.vacuum_hours} HOURS",
    ]
