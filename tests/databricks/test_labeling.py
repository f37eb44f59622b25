"""Labeling sessions of the review app: opened once, completed after a fault, told under the traces people asked for."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.review.labels import completions, dataset_records
from lifecycle_assets.spec_file import Agent
from resources.databricks import managed_evals
from resources.databricks.evaluation.evaluator import DatabricksEvaluator
from resources.databricks.labeling import labeling_desk, labeling_items
from resources.databricks.labeling.labeling_desk import DatabricksLabelingDesk
from resources.databricks.labeling.labeling_items import SOURCE_TAG
from resources.databricks.labeling.labeling_steps import open_labeling
from resources.labeling_desk import QUEUED_TAG
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from tests.building import make_agent
from tests.databricks.seeding import link, put_trace
from tests.workspace.app import Workspace
from tests.workspace.datasets import Datasets
from tests.workspace.review_apps import ReviewApps
from tests.workspace.runs import Runs
from tests.workspace.traces import Traces

SCHEMAS = [
    {
        "name": "correct",
        "type": "feedback",
        "input": "pass_fail",
        "instruction": "Is it correct?",
        "options": ["Right", "Wrong"],
        "judges": "shouted",
    },
    {"name": "tone", "type": "feedback", "input": "categorical", "instruction": "Which?", "options": ["dry", "warm"]},
    {"name": "grade", "type": "feedback", "input": "numeric", "instruction": "Which grade?"},
    {"name": "expected_response", "type": "expectation", "input": "text", "instruction": "What should it have said?"},
]
HOSTILE = 'weekly\'; -- \u202e/../?x=1&y=#frag "q" {0}'
MORNING = 1_700_000_000_000

Opened = Callable[..., dict[str, Any]]


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    labeling = {"reviewers": ["ann@example.com", "experts"], "schemas": SCHEMAS}
    return make_agent(tmp_path, attributes={"labeling": labeling})


@pytest.fixture(params=["experiment", "unity_catalog"])
def traces(request: pytest.FixtureRequest, workspace: Workspace, databricks: Platform, agent: Agent) -> list[str]:
    """Three production traces, kept by the experiment or in Unity Catalog."""
    made = experiment_id(databricks, agent.spec.experiment)
    if request.param == "unity_catalog":
        link(workspace, made)
    return [put_trace(workspace, made, number, MORNING + number) for number in range(3)]


@pytest.fixture
def opened(databricks: Platform, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """The worker's step in this process, whose global state is put back."""
    import mlflow
    from mlflow.tracking import fluent

    for variable in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "MLFLOW_TRACE_SAMPLING_RATIO"):
        monkeypatch.setenv(variable, "1")  # So that it is put back.
        monkeypatch.delenv(variable)

    def of(name: str, trace_ids: list[str], declared: Agent = agent) -> dict[str, Any]:
        return open_labeling(DatabricksLabelingDesk(databricks).request(declared, name, trace_ids))

    yield of
    mlflow.tracing.reset()
    fluent._active_experiment_id = None


def tags(workspace: Workspace, trace_ids: list[str]) -> list[str]:
    return [workspace[Traces].get(trace_id)["info"]["tags"].get(QUEUED_TAG, "") for trace_id in trace_ids]


def shown(workspace: Workspace) -> list[str]:
    return [item["source"]["trace_id"] for items in workspace[ReviewApps].items.values() for item in items]


def copies(workspace: Workspace) -> list[dict[str, Any]]:
    return [one["info"] for one in workspace[Traces].traces.values() if SOURCE_TAG in one["info"]["tags"]]


@pytest.mark.parametrize("traces", ["unity_catalog"], indirect=True)
def test_opened_by_a_worker_and_reviewed(
    workspace: Workspace, databricks: Platform, agent: Agent, traces: list[str]
) -> None:
    """From questions to merged records under the original ids, in small pages; this process stays as it was."""
    workspace.page_size = 2
    import mlflow

    before = mlflow.get_registry_uri()
    desk, app = DatabricksLabelingDesk(databricks), workspace[ReviewApps]
    session = desk.open(agent, HOSTILE, traces)
    assert (session.name, session.created, mlflow.get_registry_uri()) == (HOSTILE, True, before)
    (held,) = app.sessions.values()
    assert session.url.startswith(workspace.url)
    assert session.url.endswith(held["labeling_session_id"])
    assert held["assigned_users"] == ["ann@example.com", "experts"]
    assert workspace[Runs].run(held["mlflow_run_id"])["info"]["experiment_id"] == "1000"
    assert app.access["1000"] == {"ann@example.com": "CAN_EDIT", "experts": "CAN_EDIT"}
    asked = {one["name"]: one for one in app.app_of("1000")["labeling_schemas"]}
    assert asked["correct"]["categorical"]["options"] == ["Right", "Wrong"]
    assert (asked["correct"]["title"], asked["correct"]["instruction"]) == ("Correct", "Is it correct?")
    assert set(asked) == {"expected_facts", "guidelines", *(schema["name"] for schema in SCHEMAS)}
    assert [(item.trace_id, item.status) for item in desk.items(session.session_id)] == [(t, "pending") for t in traces]
    assert tags(workspace, traces) == [session.session_id] * 3
    made = copies(workspace)
    assert [info["tags"][SOURCE_TAG] for info in made] == traces
    assert all(QUEUED_TAG not in info["tags"] for info in made)
    assert all(info["trace_metadata"]["mlflow.sourceRun"] == held["mlflow_run_id"] for info in made)
    # A person answers.
    nothing = completions({session.session_id: desk.items(session.session_id)})
    answers = {"correct": False, "tone": "dry", "grade": 2, "expected_response": "42"}
    for _ in range(2):
        desk.review(agent, session.session_id, traces[1], answers, reviewer="Ann@example.com ")
    desk.review(agent, session.session_id, traces[0], {"correct": True}, reviewer="bob")
    items = desk.items(session.session_id)
    assert [(item.trace_id, item.status) for item in items] == list(
        zip(traces, ("complete", "complete", "pending"), strict=True)
    )
    assert completions({session.session_id: items}) != nothing == ""
    assert len(workspace.calls("PATCH .*/items/")) == 2
    labels = desk.labels(agent, traces)
    assert [(one.trace_id, one.schema, one.value, one.reviewer) for one in labels] == [
        (traces[0], "correct", True, "bob"),
        *((traces[1], name, answers[name], "ann@example.com") for name in sorted(answers)),
    ]
    records = dataset_records(labels, agent.spec.labeling.schemas, {traces[1]: '{"q": "hi"}'})
    evaluator = DatabricksEvaluator(databricks)
    merged = evaluator.merge_labels(agent, records)
    assert (merged.rows, evaluator.merge_labels(agent, records)) == (1, merged)
    (kept,) = workspace[Datasets].records.values()
    assert [one["source"]["trace"]["trace_id"] for one in kept] == [traces[1]]


def test_opened_again(
    workspace: Workspace, databricks: Platform, agent: Agent, traces: list[str], opened: Opened
) -> None:
    """The same session, once each: after lost answers, after a fault, and for a trace a person took out or deleted."""
    for path in ("review-apps$", "labeling-sessions$", "items:batchCreate"):
        workspace.fail(f"POST .*{path}", kind="lost")
    desk = DatabricksLabelingDesk(databricks)
    first = opened("weekly", traces[:2])
    assert first["created"]
    workspace.log.clear()
    again = opened("weekly", [*traces[:2], "tr-gone"])
    assert again == {**first, "created": False}
    assert [item.trace_id for item in desk.items(first["session_id"])] == traces[:2]
    assert not workspace.calls("^POST .*(review-apps|labeling-sessions|batchCreate|3.0/mlflow/traces)$")
    assert not workspace.calls("^PATCH .*review-apps")
    # The third is claimed, then the workspace refuses: it is added by the next try.
    workspace.fail("POST .*items:batchCreate", status=400, error_code="INVALID_PARAMETER_VALUE", message="too many")
    with pytest.raises(Refused, match=r"labeling session 'weekly': Databricks refuses it .*too many"):
        opened("weekly", traces)
    assert tags(workspace, traces) == [first["session_id"]] * 2 + [f"adding {first['session_id']}"]
    assert desk.interrupted(agent, tags(workspace, traces)[2:]) == "weekly"
    opened("weekly", traces)
    workspace[ReviewApps].remove(shown(workspace)[0])
    opened("weekly", traces)
    other = opened("other", traces)
    assert [item.trace_id for item in desk.items(first["session_id"])] == traces[1:]
    assert (desk.items(other["session_id"]), len(workspace[ReviewApps].sessions)) == ([], 2)
    del workspace[ReviewApps].sessions[first["session_id"].partition("/")[2]]
    assert desk.items(first["session_id"]) == []


def test_questions_change(workspace: Workspace, tmp_path: Path, opened: Opened) -> None:
    """Only what differs is written; another kind, an unknown reviewer and a broken app are refused with the place."""

    def changed(number: int, **field: Any) -> Agent:
        schemas = [{**schema, **(field if place == number else {})} for place, schema in enumerate(SCHEMAS)]
        return make_agent(tmp_path / str(field), attributes={"labeling": {"reviewers": [], "schemas": schemas}})

    opened("one", [])
    workspace.log.clear()
    opened("one", [])
    assert not workspace.calls("^(PATCH|POST) .*review-apps")
    opened("one", [], changed(1, options=["dry", "odd"]))
    held = workspace[ReviewApps].app_of("1000")["labeling_schemas"]
    assert [one["categorical"]["options"] for one in held if one["name"] == "tone"] == [["dry", "odd"]]
    with pytest.raises(Refused, match=r"tiny/defs.yaml: attributes.labeling.schemas 'grade': .* has it as feedback"):
        opened("one", [], changed(2, type="expectation"))
    labeling = {"reviewers": ["nobody@example.com"], "schemas": SCHEMAS}
    with pytest.raises(Refused, match=r"labeling session 'two': Databricks refuses it .*nobody@example.com"):
        opened("two", [], make_agent(tmp_path / "unknown", attributes={"labeling": labeling}))
    app = workspace[ReviewApps].app_of("1000")
    workspace[ReviewApps].apps["second"] = {**app, "review_app_id": "second"}
    with pytest.raises(Refused, match="Multiple review apps"):
        opened("one", [])


@pytest.mark.parametrize("traces", ["unity_catalog"], indirect=True)
def test_reading_ends_in_time(
    workspace: Workspace, databricks: Platform, traces: list[str], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workspace that hangs, is busy, or never comes to an end makes a sentence; what is unreadable is not empty."""
    session = opened("weekly", traces)["session_id"]
    monkeypatch.setattr(managed_evals, "SECONDS", 1.0)
    monkeypatch.setattr(labeling_items, "READ_SECONDS", 0.5)
    labeling_items._SOURCES.clear()
    desk = DatabricksLabelingDesk(databricks)
    for fault in ({"kind": "hang", "seconds": 3.0}, {"status": 429, "retry_after": 1}):
        workspace.fail("GET .*/items$", times=5, **fault)
        started = time.monotonic()
        with pytest.raises(Refused, match=r"does not answer|busy"):
            desk.items(session)
        assert time.monotonic() - started < 6
        workspace.faults.clear()
    workspace.fail("GET .*/items$", status=404, error_code="ENDPOINT_NOT_FOUND", message="No API found")
    with pytest.raises(Refused, match="does not offer this API"):
        desk.items(session)
    workspace.fail("GET .*/items$", status=500)
    with pytest.raises(Exception, match="injected"):
        desk.items(session)


def test_answers_are_checked(workspace: Workspace, databricks: Platform, agent: Agent, opened: Opened) -> None:
    """Answers that are none of their question are left out; nobody can answer what was not asked."""
    made = experiment_id(databricks, agent.spec.experiment)
    (trace_id,) = [put_trace(workspace, made, 1, MORNING)]
    session = opened("weekly", [trace_id])["session_id"]
    desk = DatabricksLabelingDesk(databricks)
    for name, value in (("correct", "Right"), ("tone", "sour"), ("grade", "five"), ("other", "x")):
        said = {"assessment_name": name, "source": {"source_type": "HUMAN", "source_id": "Ann"}}
        workspace[Traces].add_assessment(trace_id, {**said, "feedback": {"value": value}})
    assert [(one.schema, one.value, one.reviewer) for one in desk.labels(agent, [trace_id])] == [
        ("correct", True, "ann")
    ]
    for answers, said in (({"correct": "Right"}, "True or False"), ({"other": 1}, "no label schema 'other'")):
        with pytest.raises(Refused, match=said):
            desk.review(agent, session, trace_id, answers, reviewer="ann")
    with pytest.raises(Refused, match="is no item of session"):
        desk.review(agent, session, "tr-other", {"correct": True}, reviewer="ann")


def test_a_worker_that_hangs_is_stopped(
    workspace: Workspace, databricks: Platform, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library has no time limit: the worker has one, and the sentence says that it goes on."""
    monkeypatch.setattr(labeling_desk, "OPEN_SECONDS", 8.0)
    workspace.fail("GET .*/review-apps$", kind="hang", seconds=60, times=9)
    with pytest.raises(Refused, match="open_labeling: databricks gave no answer within 8 s"):
        DatabricksLabelingDesk(databricks).open(agent, "weekly", [])
