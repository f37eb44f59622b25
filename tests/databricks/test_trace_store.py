"""Production traces of a workspace are found, read and tagged wherever the experiment keeps them."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from resources import census
from resources.databricks.tracing import trace_store
from resources.databricks.tracing.trace_store import DatabricksTraceStore
from resources.feedback import FEEDBACK_NAME, send_feedback
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from tests.building import make_agent
from tests.databricks.seeding import link, put_trace
from tests.workspace.app import Workspace
from tests.workspace.trace_search import TraceSearch
from tests.workspace.traces import Traces
from tests.workspace.unity import Unity

EXPERIMENT = "/agents/tiny"
DAY = date(2026, 11, 20)
MORNING = int(datetime(2026, 11, 20, 9, tzinfo=UTC).timestamp() * 1000)
EVALUATED = {"mlflow.sourceRun": "run-1"}
HOSTILE = "</script><img onerror=x> '); DROP TABLE traces; -- \u202e\x00 🚨 {{ trace }}"


@pytest.fixture(params=["experiment", "unity_catalog"])
def experiment(request: pytest.FixtureRequest, databricks: Platform, workspace: Workspace) -> str:
    """The agent's experiment, which keeps its traces itself or in Unity Catalog."""
    made = experiment_id(databricks, EXPERIMENT)
    if request.param == "unity_catalog":
        link(workspace, made)
    return made


def test_the_newest_users_trace(databricks: Platform, workspace: Workspace, experiment: str) -> None:
    """It is found in one search, and in small pages below newer evaluations; nothing undocumented is asked."""
    store = DatabricksTraceStore(databricks)
    assert store.newest(EXPERIMENT) is None
    wanted = put_trace(workspace, experiment, 1, MORNING + 1, metadata={"mlflow.trace.session": "s-1"})
    put_trace(workspace, experiment, 0, MORNING, metadata={"mlflow.modelId": "m-2"})
    workspace.log.clear()
    found = store.newest(EXPERIMENT)
    assert found is not None
    assert (found.trace_id, found.request_ms, found.ended_ms) == (wanted, MORNING + 1, MORNING + 501)
    assert (found.state, found.model_id, found.session_id) == ("OK", "m-1", "s-1")
    assert len(workspace.log) <= 3, [f"{one.method} {one.path}" for one in workspace.log]
    for number in range(60):
        put_trace(workspace, experiment, 10 + number, MORNING + 100 + number, metadata=EVALUATED)
    workspace.page_size = 7
    for model, number in (("", 1), ("m-2", 0)):
        below = store.newest(EXPERIMENT, model_id=model)
        assert below is not None
        assert int(below.trace_id[-8:], 16) == number
    by_otlp = put_trace(
        workspace, experiment, 2, MORNING + 2, metadata={"mlflow.modelId": ""}, tags={"mlflow.modelId": "m-3"}
    )
    assert getattr(store.newest(EXPERIMENT, model_id="m-3"), "trace_id", None) == by_otlp
    assert not [one for one in workspace.log if "NULL" in str((one.json or {}).get("filter"))]


def test_only_evaluations_are_not_said_to_be_nothing(
    databricks: Platform, workspace: Workspace, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_store, "_LOOKED_AT", 30)
    monkeypatch.setattr(trace_store, "_PAGE", 10)
    for number in range(30):
        put_trace(workspace, experiment, number, MORNING + number, metadata=EVALUATED)
    assert DatabricksTraceStore(databricks).newest(EXPERIMENT) is None, "all were seen: there is none"
    put_trace(workspace, experiment, 99, MORNING - 1)
    with pytest.raises(Refused, match="newest 30 traces of experiment /agents/tiny all come from evaluations"):
        DatabricksTraceStore(databricks).newest(EXPERIMENT)


def test_the_days_traces(databricks: Platform, workspace: Workspace, experiment: str) -> None:
    """Those of the day that settled and are no evaluation's, oldest first, over small pages and slow searches."""
    hours = {number: MORNING + number * 3_600_000 for number in range(16)}
    for number in reversed(hours):
        put_trace(workspace, experiment, number, hours[number], metadata=EVALUATED if number == 2 else {})
    workspace.page_size, workspace.slow_states = 9, 1
    infos = DatabricksTraceStore(databricks).infos(EXPERIMENT, DAY, settled_before_ms=hours[13])
    assert [info.request_ms for info in infos] == [hours[n] for n in range(13) if n != 2]
    with pytest.raises(Refused, match=r"trace filter 'tags\.a IS NULL' is not understood"):
        DatabricksTraceStore(databricks).infos(EXPERIMENT, DAY, settled_before_ms=0, filter_string="tags.a IS NULL")


@pytest.mark.parametrize("knows", ["uc_only", "none"])
def test_a_server_that_searches_experiments_the_older_way(
    databricks: Platform, workspace: Workspace, knows: str
) -> None:
    workspace[TraceSearch].long_running = knows
    put_trace(workspace, experiment_id(databricks, EXPERIMENT), 1, MORNING)
    assert DatabricksTraceStore(databricks).newest(EXPERIMENT) is not None


def test_whole_traces(databricks: Platform, workspace: Workspace, experiment: str) -> None:
    """In the order asked for, hostile text untouched, without spans where there are none; a missing one is refused."""
    ids = [put_trace(workspace, experiment, n, MORNING + n, answer=HOSTILE, bare=n == 3) for n in range(12)]
    store = DatabricksTraceStore(databricks)
    traces = list(store.read(ids[::-1]))
    assert [trace.info.trace_id for trace in traces] == ids[::-1]
    assert [len(trace.data.spans) for trace in traces] == [0 if n == 3 else 1 for n in range(11, -1, -1)]
    row = store.rows(traces[0]).trace
    assert (row["trace_id"], row["trace_date"], row["model_id"]) == (ids[11], DAY, "m-1")
    assert json.loads(row["response"]) == HOSTILE
    gone = ids[0][:-1] + "f"
    with pytest.raises(Refused, match=f"Trace {gone} is gone from MLflow"):
        list(store.read([gone]))


def test_tags_and_thumbs(databricks: Platform, workspace: Workspace, experiment: str) -> None:
    """A tag is written once; a thumb becomes an assessment of a person."""
    trace_id = put_trace(workspace, experiment, 1, MORNING)
    store, info = DatabricksTraceStore(databricks), workspace[Traces].get(trace_id)["info"]
    for _ in range(2):
        store.tag(trace_id, "lifecycle.label", HOSTILE[:20])
    assert info["tags"]["lifecycle.label"] == HOSTILE[:20]
    assert len(workspace.calls("PATCH .*/tags")) == 1
    send_feedback(databricks, trace_id, up=False, user="ann@example.com", comment=HOSTILE)
    (said,) = info["assessments"]
    assert (said["assessment_name"], said["feedback"]["value"], said["rationale"]) == (FEEDBACK_NAME, False, HOSTILE)
    assert said["source"] == {"source_type": "HUMAN", "source_id": "ann@example.com"}


def test_a_stopped_warehouse(databricks: Platform, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started once and awaited; without one the sentence names the variable."""
    made = experiment_id(databricks, EXPERIMENT)
    link(workspace, made)
    put_trace(workspace, made, 1, MORNING)
    workspace[Unity].warehouses["wh-1"]["state"] = "STOPPED"
    assert DatabricksTraceStore(databricks).newest(EXPERIMENT) is not None
    assert len(workspace.calls("POST .*/warehouses/wh-1/start")) == 1
    monkeypatch.delenv("DATABRICKS_WAREHOUSE_ID")
    with pytest.raises(Refused, match="DATABRICKS_WAREHOUSE_ID is not set"):
        DatabricksTraceStore(Platform.from_env()).newest(EXPERIMENT)


def test_the_census(databricks: Platform, workspace: Workspace, experiment: str, tmp_path: Path) -> None:
    for number in range(5):
        put_trace(workspace, experiment, number, MORNING + number, metadata=EVALUATED if number < 2 else {})
    workspace.page_size = 2
    found: Any = census.count(databricks, make_agent(tmp_path))
    assert (found.traces, found.production_by_model, found.days) == (5, {"m-1": 3}, (DAY,))
