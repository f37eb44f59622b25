"""What only the real workspace knows, answered another way: the product does the same."""

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lifecycle_assets.spec_file import Agent
from resources.databricks.archive.rows_sql import append_row, create, replace_rows
from resources.databricks.labeling.labeling_desk import DatabricksLabelingDesk
from resources.databricks.scoring.backfill_steps import ask_backfill
from resources.databricks.scoring.scheduled_scorers import scheduled_scorers
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from tests.databricks.test_labeling import Opened, agent, opened, traces
from tests.databricks.test_scoring import BACKFILL, NAME, SAID, START_MS, Place
from tests.workspace.app import Workspace
from tests.workspace.monitoring_job import MonitoringJob
from tests.workspace.review_apps import ReviewApps
from tests.workspace.scorers import Scorers
from tests.workspace.traces import Traces
from tests.workspace.tracking import Tracking

__all__ = ["agent", "opened", "traces"]  # Fixtures.


def test_versions_may_come_as_text(workspace: Workspace, databricks: Platform, tmp_path: Path) -> None:
    workspace[Scorers].numbers_as_text = True
    place = Place(workspace, databricks, tmp_path, [SAID])
    assert scheduled_scorers(databricks, place.experiment)[NAME].version == 1
    assert [one.version for one in place.versions] == ["1"]


@pytest.mark.parametrize("location", ["experiment", "unity_catalog"])
@pytest.mark.parametrize(("numbered", "noted"), [(True, False), (False, True)])
def test_scores_that_name_no_known_version_are_not_bought_again(
    workspace: Workspace, databricks: Platform, tmp_path: Path, location: str, numbered: bool, noted: bool
) -> None:
    """A version may be missing from the scores, or be noted there and nowhere else: then the time of a score counts."""
    workspace[Scorers].versioned, workspace[MonitoringJob].says_version = numbered, noted
    place = Place(workspace, databricks, tmp_path, [SAID], location=location)
    workspace[Traces].traces.clear()
    for number in range(3):
        place.put(number, "fine" if number else "odd")
    workspace.tick()
    if location == "unity_catalog":
        place.stored()
    else:  # Archival is on and has no table yet: MLflow's search is what measures.
        tags = workspace[Tracking].experiments[place.experiment]["tags"]
        tags["lifecycle.archival"] = "main.agents.tiny_native_traces"
    scores = place.score()
    assert (scores.coverage[NAME]["scored"], scores.coverage[NAME]["errored"]) == (2, 1)
    assert not workspace.calls(BACKFILL)


def test_a_busy_workspace_is_asked_for_a_backfill_again_and_only_once(
    workspace: Workspace, databricks: Platform, tmp_path: Path
) -> None:
    place = Place(workspace, databricks, tmp_path, [SAID])
    request = {"experiment_id": place.experiment, "rates": {NAME: 1.0}, "start_ms": START_MS, "end_ms": START_MS + 1}
    workspace.fail(BACKFILL, status=503)
    assert ask_backfill(request) == {"lost": True}, "it may have been accepted"
    workspace.fail(BACKFILL, status=429, retry_after=0, times=2)
    workspace.log.clear()
    assert "job_id" in ask_backfill(request)
    assert [one.status for one in workspace.calls(BACKFILL)] == [429, 429, 200]


def test_a_busy_workspace_gets_one_session_and_each_item_once(
    workspace: Workspace, opened: Opened, traces: list[str]
) -> None:
    for route in ("GET .*/review-apps$", "PATCH .*/review-apps/", "POST .*/labeling-sessions$", "items:batchCreate"):
        workspace.fail(route, status=429, retry_after=0)
        workspace.fail(route, status=503, retry_after=0)
    opened("weekly", traces)
    assert [len(items) for items in workspace[ReviewApps].items.values()] == [3]


def test_an_answer_whose_answer_was_lost_is_written_once(
    workspace: Workspace, databricks: Platform, opened: Opened, traces: list[str], agent: Agent
) -> None:
    session = opened("weekly", traces)["session_id"]
    workspace.fail("POST .*/assessments", kind="lost")
    answers = {"correct": True}
    DatabricksLabelingDesk(databricks).review(agent, session, traces[0], answers, reviewer="ann@example.com")
    said = [one for trace in workspace[Traces].traces.values() for one in trace["info"]["assessments"]]
    assert [one["assessment_name"] for one in said] == ["correct"]


def test_an_experiment_another_process_made_first(workspace: Workspace, databricks: Platform) -> None:
    made = experiment_id(databricks, "/agents/tiny")
    from resources import mlflow_store

    mlflow_store._experiment.cache_clear()
    workspace.fail("get-by-name", status=404, error_code="RESOURCE_DOES_NOT_EXIST")
    workspace.fail("experiments/create", status=409, error_code="ALREADY_EXISTS")
    assert experiment_id(databricks, "/agents/tiny") == made


PROMOTION: dict[str, Any] = {"at": datetime(2026, 11, 20, 1, 2, 3, 456789, tzinfo=UTC), "alias": "champion"}


def test_rows_are_written_in_the_sql_both_engines_have() -> None:
    """With names, types and markers said as DuckDB says them, and nothing else, it runs there unchanged."""
    lake = duckdb.connect(config={"threads": 1})
    lake.execute("SET TimeZone = 'UTC'; CREATE SCHEMA agents")

    def run(sql: str, parameters: dict[str, str] | None = None) -> list[Any]:
        text = sql.replace("`main`.", "").replace("`", '"').partition(" USING DELTA")[0]
        text = re.sub(r"\bSTRING\b", "VARCHAR", re.sub(r"\bTIMESTAMP\b", "TIMESTAMPTZ", text))
        return lake.execute(re.sub(r"(?<!:):([a-z_]\w*)", r"$\1", text), parameters or {}).fetchall()

    run(create("main.agents.tiny_promotions", "promotions"))
    known, merge, parameters = append_row("main.agents.tiny_", "promotions", PROMOTION, ["alias", "at"])
    assert run(known, parameters) == [(0,)]
    run(merge, parameters)
    run(merge, parameters)
    assert run(known, parameters) == [(1,)]
    assert run('SELECT "at" FROM agents.tiny_promotions')[0][0] == PROMOTION["at"]
    run(create("main.agents.tiny_quality_metrics", "quality_metrics"))
    day, row = date(2026, 11, 20), {"version": "1", "metric": "said", "n": 3, "value": 0.5}
    for rows, counts in (([row], [("write", False, 1)]), ([row], []), ([], [("remove", True, 1)])):
        count, merge, parameters = replace_rows("main.agents.tiny_", "quality_metrics", day, rows)
        assert run(count, parameters) == counts
        run(merge, parameters)
