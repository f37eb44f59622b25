"""The upkeep as a job of a world that was released and monitored."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
from click.testing import CliRunner

from lifecycle_assets.cli.main import main
from tests.building import World, checks_of, day_of


def test_upkeep_says_what_it_did_and_a_removed_day_does_not_come_back(world: World) -> None:
    world = world.declared(archive={"settle_minutes": 0, "late_days": 0})
    result = world.run("upkeep")

    assert result.success
    assert {name: check.passed for name, check in checks_of(result).items()} == {
        "archive_upkeep:compacted": True,
        "archive_upkeep:retention_kept": True,
        "archive_upkeep:store_retention_proven": True,
    }
    assert checks_of(result)["archive_upkeep:retention_kept"].description == "Every day is kept."
    assert world.metadata("archive_upkeep")["lifecycle/record"]["removed_rows"] == 0
    env = {"LIFECYCLE_DEFS": str(world.agent.folder.parent)}
    said = CliRunner().invoke(main, ["status", world.agent.name], catch_exceptions=False, env=env).output
    assert "files " in next(line for line in said.splitlines() if "archive_upkeep" in line)

    numbers = world.rows("SELECT count(*) AS n FROM quality_metrics")
    world = world.declared(archive={"settle_minutes": 0, "late_days": 0, "retention_days": 1})
    result = world.run("upkeep")
    assert checks_of(result)["archive_upkeep:retention_kept"].description == "6 traces older than 1 days removed."
    days = "SELECT DISTINCT CAST(trace_date AS VARCHAR) AS day FROM {} ORDER BY 1"
    for table in ("traces", "spans", "assessments"):
        assert world.rows(days.format(table)) == [{"day": day_of(1)}]
    result = world.run("monitor", partition_key=day_of(2))
    assert checks_of(result)["archived_traces:complete"].description == (
        "Older than archive.retention_days (1): not archived."
    )
    assert world.rows(days.format("traces")) == [{"day": day_of(1)}]
    assert world.rows("SELECT count(*) AS n FROM quality_metrics") == numbers


def test_the_upkeep_is_due_once_a_day_after_the_first_archive(world: World, tmp_path: Path) -> None:
    schedule = world.definitions.resolve_schedule_def("tiny_upkeep_daily")
    at = datetime(2026, 11, 20, 4, 20, tzinfo=UTC)
    with dg.build_schedule_context(instance=world.instance, scheduled_execution_time=at) as context:
        ticked = schedule.evaluate_tick(context)
    assert [request.run_key for request in ticked.run_requests or []] == ["upkeep:2026-11-20"]
    with (
        dg.DagsterInstance.local_temp(str(tmp_path)) as empty,
        dg.build_schedule_context(instance=empty, scheduled_execution_time=at) as context,
    ):
        ticked = schedule.evaluate_tick(context)
    assert ticked.run_requests == []
    assert "run tiny_monitor first" in (ticked.skip_message or "")
