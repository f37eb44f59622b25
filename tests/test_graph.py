"""The graph as a table: a change of a key, an edge, a group, a partition or a check has to be made here too."""

import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import pytest

from lifecycle_assets.component import agent_definitions
from lifecycle_assets.jobs import LATE_HOUR, monitor_runs
from lifecycle_assets.records import ScorerVersion
from resources.platform import Platform
from resources.scoring.run import Run, within
from resources.scoring.score_table import ScoreTable
from resources.scoring.scoring import ScoreLimits
from resources.scoring.units import Owing
from tests.building import make_agent

ASSETS = {
    # asset: (group, depends on, kinds, partitioned by day)
    "agent_source": ("candidate", [], {"python"}, False),
    "eval_dataset": ("candidate", [], {"mlflow"}, False),
    "logged_model": ("candidate", ["agent_source"], {"mlflow"}, False),
    "eval_results": ("candidate", ["eval_dataset", "logged_model"], {"mlflow"}, False),
    "uc_model_version": ("release", ["eval_results", "logged_model"], {"mlflow"}, False),
    "champion_alias": ("release", ["eval_results", "uc_model_version"], {"deltalake", "mlflow"}, False),
    "deployment": ("release", ["champion_alias"], {"mlflow"}, False),
    "registered_scorers": ("monitoring", ["champion_alias"], {"mlflow"}, False),
    "production_traces": ("monitoring", [], {"mlflow"}, False),
    "trace_scores": ("monitoring", ["production_traces", "registered_scorers"], {"mlflow"}, True),
    "archived_traces": ("monitoring", ["production_traces", "trace_scores"], {"deltalake"}, True),
    "quality_metrics": ("monitoring", ["archived_traces"], {"deltalake", "duckdb"}, True),
    "archive_upkeep": ("monitoring", ["archived_traces"], {"deltalake"}, False),
    "labeling_session": ("review", ["archived_traces"], {"mlflow"}, False),
    "human_labels": ("review", ["labeling_session"], {"mlflow"}, False),
    "judge_agreement": ("review", ["human_labels", "trace_scores"], {"duckdb"}, False),
}
CHECKS = {
    # asset: check names, blocking ones marked by "!"
    "logged_model": {
        "set_model_present!",
        "smoke_prediction!",
        "resources_declared",
        "requirements_pinned",
        "signature_present",
    },
    "eval_results": {"gate!", "scorers_ran!"},
    "uc_model_version": {"loads_back!", "linked_to_logged_model!", "shadow"},
    "champion_alias": {"points_at_gated_version"},
    "deployment": {"running_version_matches_champion"},
    "registered_scorers": {"self_contained!", "within_limits!", "as_declared"},
    "trace_scores": {"coverage"},
    "archived_traces": {"complete", "no_duplicates"},
    "quality_metrics": {
        "grounded_stays_high",
        "volume_anomaly",
        "error_rate_anomaly",
        "latency_anomaly",
        "score_anomaly",
    },
    "archive_upkeep": {"compacted", "retention_kept", "store_retention_proven"},
    "human_labels": {"reviewer_agreement"},
    "judge_agreement": {"judges_agree_with_people"},
}
JOBS = {"release", "monitor", "scorer_backfill", "labeling", "rollback", "shadow", "upkeep"}
SENSORS = {
    "scorer_backfill_sensor",
    "labeling_session_sensor",
    "label_sync_sensor",
    "labels_landed_sensor",
    "approval_sensor",
    "champion_drift_sensor",
    "rollback_sensor",
    "alert_sensor",
}
SCHEDULES = {"monitor_hourly", "labeling_weekly", "upkeep_daily"}


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    alerts = {"rules": [{"name": "grounded_stays_high", "metric": "shouted/mean", "at_least": 0.5}]}
    return agent_definitions(make_agent(tmp_path_factory.mktemp("agents"), attributes={"alerts": alerts}))


def test_assets_edges_groups_kinds_and_partitions(definitions: dg.Definitions):
    graph = definitions.resolve_asset_graph()
    found = {}
    for key in graph.get_all_asset_keys():
        agent, name = key.path
        assert agent == "tiny"
        node = graph.get(key)
        parents = sorted(parent.path[1] for parent in node.parent_keys)
        found[name] = (node.group_name, parents, set(node.kinds), node.partitions_def is not None)
    assert found == ASSETS


def test_checks_and_which_of_them_block(definitions: dg.Definitions):
    graph = definitions.resolve_asset_graph()
    found: dict[str, set[str]] = {}
    for key in graph.asset_check_keys:
        blocking = graph.get_check_spec(key).blocking
        found.setdefault(key.asset_key.path[1], set()).add(key.name + ("!" if blocking else ""))
    assert found == CHECKS


def test_jobs_sensors_and_schedules_carry_the_agents_name(definitions: dg.Definitions):
    repository = definitions.get_repository_def()
    jobs = {name for name in repository.job_names if not name.startswith("__")}
    assert jobs == {f"tiny_{name}" for name in JOBS}
    assert {sensor.name for sensor in repository.sensor_defs} == {f"tiny_{name}" for name in SENSORS}
    assert {schedule.name for schedule in repository.schedule_defs} == {f"tiny_{name}" for name in SCHEDULES}


def test_jobs_run_in_process(definitions: dg.Definitions):
    for name in JOBS:
        assert definitions.resolve_job_def(f"tiny_{name}").executor_def.name == "in_process"


def test_every_asset_tells_the_person_clicking_what_it_is(definitions: dg.Definitions):
    graph = definitions.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        assert len(graph.get(key).description or "") > 60, key


def test_the_schedule_pays_for_no_late_day(tmp_path: Path):
    """A scorer that is new owes all late days: that is a backfill, and has a budget."""
    runs = monitor_runs(make_agent(tmp_path), datetime(2026, 11, 21, LATE_HOUR, 5, tzinfo=UTC))
    asked = {one.partition_key: one.run_config for one in runs}
    today = asked.pop("2026-11-21")
    assert (today, len(asked)) == ({}, 7)
    limits = ScoreLimits(**asked["2026-11-20"]["ops"]["tiny__trace_scores"]["config"])
    scorers = [
        ScorerVersion(name, name, "1", "d", 1.0, "", "trace", usd) for name, usd in (("free", 0.0), ("judge", 1e-6))
    ]
    owed = [Owing("tr-1", "tr-1", 1, 0, True, None, False, None, None)]
    table = ScoreTable(Platform.from_env({"LIFECYCLE_HOME": str(tmp_path)}), "main.agents.tiny_")
    run = Run(date(2026, 11, 20), scorers, table, print)
    assert [one.calls for one in within(run, [owed, owed], {}, limits)] == [frozenset({0})]
    assert run.left == {"judge": 1}


def test_two_agents_share_no_key_job_sensor_table_or_scorer_name(tmp_path: Path):
    one, two = make_agent(tmp_path, "one"), make_agent(tmp_path, "two")
    merged = dg.Definitions.merge(agent_definitions(one), agent_definitions(two))
    graph = merged.resolve_asset_graph()
    by_agent = {name: {key for key in graph.get_all_asset_keys() if key.path[0] == name} for name in ("one", "two")}
    assert {len(keys) for keys in by_agent.values()} == {len(ASSETS)}
    for name, keys in by_agent.items():
        assert {parent.path[0] for key in keys for parent in graph.get(key).parent_keys} == {name}
    assert one.spec.table_prefix != two.spec.table_prefix


def test_loading_the_code_location_imports_no_heavy_library():
    heavy = (
        "mlflow",
        "databricks",
        "resources.databricks",
        "dagster_databricks",
        "sqlglot",
        "deltalake",
        "pandas",
        "pyarrow",
    )
    heavy += ("duckdb", "matplotlib", "sklearn", "scipy")
    code = (
        "import sys, lifecycle_assets.definitions as d; d.defs().get_repository_def(); "
        f"print(sorted(m for m in {heavy!r} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
