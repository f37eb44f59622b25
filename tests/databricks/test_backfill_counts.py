"""The planner's one query on the warehouse: the same numbers as DuckDB gives."""

from pathlib import Path
from typing import Any

from lifecycle_assets.monitoring.backfill_counts import Counts, counts
from resources.databricks.sql.dialect import TYPES
from resources.databricks.sql.sql_engine import WarehouseSqlEngine
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine, SqlEngine
from resources.tables import TABLES
from tests.test_backfill_counts import DAYS, PREFIX, SCORERS, make_assessments, make_traces, write
from tests.workspace.app import Workspace
from tests.workspace.lake import Lake


def counted(engine: SqlEngine) -> Counts:
    def query(sql: str, parameters: Any) -> list[dict[str, Any]]:
        return engine.query(PREFIX, sql, parameters, limit=100_000).dicts()

    return counts(query, SCORERS, DAYS[0], DAYS[-1], by_hash=True)


def test_the_warehouse_counts_what_duckdb_counts(workspace: Workspace, databricks: Platform, tmp_path: Path):
    local = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path)})
    traces = make_traces(3)[:30]
    write(local, "traces", traces)
    write(local, "assessments", make_assessments(4, traces))
    here = DuckDbEngine(local)
    for table in TABLES:
        workspace[Lake].create_table(PREFIX + table, {name: TYPES[kind] for name, kind in TABLES[table].items()})
        workspace[Lake].insert(PREFIX + table, here.query(PREFIX, f"FROM {table}", limit=100_000).dicts())

    there = counted(WarehouseSqlEngine(databricks))
    assert there == counted(here)
    assert sum(there.to_score.values()) > 0
