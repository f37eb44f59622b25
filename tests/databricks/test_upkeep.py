"""Upkeep in a workspace: statements on the warehouse, and only rows that are too old go."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

from lifecycle_assets.monitoring.upkeep import first_days
from lifecycle_assets.spec_file import Agent
from resources.databricks.archive.archive import WarehouseArchive
from resources.databricks.archive.upkeep import WarehouseUpkeep
from resources.databricks.sql.sql_engine import WarehouseSqlEngine
from resources.platform import Platform
from tests.building import make_agent
from tests.workspace.app import Workspace
from tests.workspace.lake import Lake

NOW = date(2026, 11, 20)


def agent_with(folder: Path, **archive: Any) -> Agent:
    return make_agent(folder, attributes={"archive": {"settle_minutes": 0, **archive}})


def filled(workspace: Workspace, platform: Platform, agent: Agent) -> None:
    """A trace on each of four days, and the numbers of each."""
    workspace[Lake].create_schema("main.agents")
    archive, prefix = WarehouseArchive(platform), agent.spec.table_prefix
    for days in range(4):
        day = NOW - timedelta(days=days)
        archive.replace_day(prefix, "traces", day, [{"trace_id": f"tr-{days}"}])
        archive.replace_day(
            prefix, "quality_metrics", day, [{"model_id": "m", "version": "1", "metric": "traces", "value": 1.0}]
        )


def statements(workspace: Workspace) -> list[str]:
    return [entry.json["statement"] for entry in workspace.calls(r"POST /api/2.0/sql/statements") if entry.json]


def test_tables_that_are_there_are_tended(workspace: Workspace, databricks: Platform, tmp_path: Path) -> None:
    agent = agent_with(tmp_path, upkeep={"vacuum_hours": 48})
    filled(workspace, databricks, agent)
    before = len(statements(workspace))

    done = WarehouseUpkeep(databricks).tend(agent, NOW, print)

    assert [one.table for one in done] == ["traces", "quality_metrics"]
    said = [one for one in statements(workspace)[before:] if "tiny_traces" in one and "DESCRIBE" not in one]
    assert said == [
        "OPTIMIZE `main`.`agents`.`tiny_traces` WHERE trace_date >= DATE'2026-11-05' AND trace_date < DATE'2026-11-13' "
        "ZORDER BY (trace_id)",
        "OPTIMIZE `main`.`agents`.`tiny_traces`",
        "ALTER TABLE `main`.`agents`.`tiny_traces` SET TBLPROPERTIES "
        "('delta.deletedFileRetentionDuration' = 'interval 48 hours')",
        "VACUUM `main`.`agents`.`tiny_traces` RETAIN 48 HOURS",
    ]


def test_old_days_go_and_the_numbers_stay(workspace: Workspace, databricks: Platform, tmp_path: Path) -> None:
    agent = agent_with(tmp_path, retention_days=2, late_days=1)
    filled(workspace, databricks, agent)
    upkeep = WarehouseUpkeep(databricks)

    assert upkeep.expire(agent, NOW, print) == {"traces": 1}
    assert upkeep.expire(agent, NOW, print) == {"traces": 0}
    oldest = first_days(WarehouseSqlEngine(databricks), agent.spec.table_prefix)
    assert {name: day for name, day in oldest.items() if day} == {"traces": NOW - timedelta(days=2)}
    held = {row["trace_date"] for row in workspace[Lake].rows("main.agents.tiny_traces")}
    assert held == {NOW - timedelta(days=days) for days in range(3)}
    assert len(workspace[Lake].rows("main.agents.tiny_quality_metrics")) == 4
    assert upkeep.restore(agent, print) == []


def test_a_retention_of_mlflows_store_is_refused_with_the_reason(databricks: Platform, tmp_path: Path) -> None:
    agent = agent_with(tmp_path, store_retention={"after_days": 30, "how": "delete"})

    [one] = WarehouseUpkeep(databricks).release(agent, NOW, print)
    assert one.traces == 0
    assert "archive.store_retention is for an MLflow store of your own" in one.why
    assert WarehouseUpkeep(databricks).release(agent_with(tmp_path / "other"), NOW, print) == []
