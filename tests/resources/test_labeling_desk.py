"""Labeling sessions on real MLflow: opened once, completed after a kill, and never two for a trace."""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.labeling_desk import QUEUED_TAG, MlflowLabelingDesk
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.platform import Platform
from tests.building import make_agent
from tests.resources.mlflow_server import mlflow_server

SCHEMAS = [
    {"name": "correct", "type": "feedback", "input": "pass_fail", "instruction": "Is it correct?", "judges": "shouted"},
    {
        "name": "tone",
        "type": "feedback",
        "input": "categorical",
        "instruction": "Which tone?",
        "options": ["dry", "warm"],
    },
    {"name": "grade", "type": "feedback", "input": "numeric", "instruction": "Which grade?"},
    {"name": "expected", "type": "expectation", "input": "text", "instruction": "What should it have said?"},
]

_NUMBERS = itertools.count()


def labeling(*reviewers: str, schemas: list[dict[str, Any]] = SCHEMAS) -> dict[str, Any]:
    return {"reviewers": list(reviewers), "schemas": schemas}


@pytest.fixture(scope="module")
def server(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("served")
    shutil.copy(migrated_store, home / "server.db")
    with mlflow_server(home / "server.db", home) as platform:
        yield platform


@pytest.fixture(params=["sqlite", "http"])
def store(request: pytest.FixtureRequest, platform: Platform) -> Platform:
    """SQLite in this process, and a real server."""
    return platform if request.param == "sqlite" else request.getfixturevalue("server")


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    """The small agent in an experiment of its own, because the server outlives a test."""
    experiment = f"/agents/labels-{os.getpid()}-{next(_NUMBERS)}"
    return make_agent(tmp_path, attributes={"experiment": experiment, "labeling": labeling("Ann", "bob")})


def write_traces(platform: Platform, agent: Agent, count: int) -> list[str]:
    mlflow = open_mlflow(platform)
    mlflow.set_experiment(experiment_id=experiment_id(platform, agent.spec.experiment))
    ids = []
    for number in range(count):
        with mlflow.start_span("predict") as span:
            span.set_inputs({"question": number})
            span.set_outputs({"answer": number})
        ids.append(span.trace_id)
    return ids


def tag_of(platform: Platform, trace_id: str) -> str:
    return open_client(platform).get_trace(trace_id).info.tags.get(QUEUED_TAG, "")


def item_ids(desk: MlflowLabelingDesk, session_id: str) -> set[str]:
    return {item.trace_id for item in desk.items(session_id)}


class TestOpen:
    def test_a_session_holds_the_traces_and_asks_the_declared_questions(self, store: Platform, agent: Agent):
        desk, traces = MlflowLabelingDesk(store), write_traces(store, agent, 3)
        session = desk.open(agent, "weekly", traces)
        assert (session.created, session.name) == (True, "weekly")
        assert [(i.status, i.completed_by) for i in desk.items(session.session_id)] == [("pending", "")] * 3
        assert item_ids(desk, session.session_id) == set(traces)
        assert {tag_of(store, trace_id) for trace_id in traces} == {session.session_id}
        mlflow = open_mlflow(store)
        queue = mlflow.genai.review_queues.get_review_queue(session.session_id)
        assert queue.users == ["ann", "bob"]
        asked = [mlflow.genai.label_schemas.get_label_schema(schema_id=id_) for id_ in queue.schema_ids]
        assert {(s.name, str(s.type)) for s in asked} == {(s["name"], s["type"]) for s in SCHEMAS}
        if store.tracking_uri.startswith("http"):
            assert session.url == f"{store.tracking_uri}/#/experiments/{queue.experiment_id}/review-queue"

    def test_opening_again_changes_nothing(self, store: Platform, agent: Agent):
        desk, traces = MlflowLabelingDesk(store), write_traces(store, agent, 2)
        first = desk.open(agent, "weekly", traces)
        items = desk.items(first.session_id)
        again = MlflowLabelingDesk(store).open(agent, "weekly", traces)
        assert (again.session_id, again.created) == (first.session_id, False)
        assert desk.items(first.session_id) == items

    def test_a_trace_is_never_in_two_sessions(self, store: Platform, agent: Agent):
        desk, traces = MlflowLabelingDesk(store), write_traces(store, agent, 3)
        first = desk.open(agent, "first", traces[:2])
        second = desk.open(agent, "second", traces)
        assert item_ids(desk, first.session_id) == set(traces[:2])
        assert item_ids(desk, second.session_id) == {traces[2]}

    def test_an_item_that_a_reviewer_removed_does_not_return(self, store: Platform, agent: Agent):
        desk, traces = MlflowLabelingDesk(store), write_traces(store, agent, 2)
        session = desk.open(agent, "weekly", traces)
        open_mlflow(store).genai.review_queues.remove_items_from_review_queue(session.session_id, item_ids=traces[:1])
        desk.open(agent, "weekly", traces)
        other = desk.open(agent, "later", traces)
        assert item_ids(desk, session.session_id) == {traces[1]}
        assert item_ids(desk, other.session_id) == set()

    def test_killed_after_claiming_the_rerun_adds_and_no_other_session_does(self, store: Platform, agent: Agent):
        desk, traces = MlflowLabelingDesk(store), write_traces(store, agent, 2)
        session = desk.open(agent, "weekly", [])
        open_client(store).set_trace_tag(traces[0], QUEUED_TAG, f"adding {session.session_id}")
        other = desk.open(agent, "other", traces)
        assert item_ids(desk, other.session_id) == {traces[1]}
        desk.open(agent, "weekly", traces)
        assert item_ids(desk, session.session_id) == {traces[0]}
        assert tag_of(store, traces[0]) == session.session_id

    def test_killed_after_adding_the_rerun_settles_the_tag_and_keeps_the_status(self, platform: Platform, agent: Agent):
        desk, traces = MlflowLabelingDesk(platform), write_traces(platform, agent, 1)
        session = desk.open(agent, "weekly", traces)
        desk.review(agent, session.session_id, traces[0], {"correct": True}, reviewer="ann")
        open_client(platform).set_trace_tag(traces[0], QUEUED_TAG, f"adding {session.session_id}")
        desk.open(agent, "weekly", traces)
        assert tag_of(platform, traces[0]) == session.session_id
        assert [item.status for item in desk.items(session.session_id)] == ["complete"]

    def test_a_trace_that_is_gone_is_left_out(self, store: Platform, agent: Agent):
        desk, traces = MlflowLabelingDesk(store), write_traces(store, agent, 1)
        session = desk.open(agent, "weekly", [*traces, "tr-" + "0" * 32])
        assert item_ids(desk, session.session_id) == set(traces)

    def test_more_traces_than_a_page(self, platform: Platform, agent: Agent):
        """Traces are looked up a hundred at a time; these straddle the first page and the second."""
        desk, traces = MlflowLabelingDesk(platform), write_traces(platform, agent, 4)
        absent = [f"tr-{number:032x}" for number in range(98)]
        session = desk.open(agent, "weekly", [*absent, *traces])
        assert item_ids(desk, session.session_id) == set(traces)

    def test_changed_words_reach_the_question(self, platform: Platform, agent: Agent, tmp_path: Path):
        desk = MlflowLabelingDesk(platform)
        desk.open(agent, "weekly", [])
        changed = [{**SCHEMAS[0], "instruction": "Really?", "options": ["Right", "Wrong"]}]
        attributes = {"experiment": agent.spec.experiment, "labeling": labeling(schemas=changed)}
        desk.open(make_agent(tmp_path / "b", attributes=attributes), "later", [])
        found = open_mlflow(platform).genai.label_schemas.get_label_schema(
            "correct", experiment_id=experiment_id(platform, agent.spec.experiment)
        )
        assert (found.instruction, found.input.positive_label) == ("Really?", "Right")

    @pytest.mark.parametrize(
        ("schema", "sentence"),
        [
            (
                {**SCHEMAS[0], "name": "feedback"},
                "attributes.labeling.schemas 'feedback': MLflow refuses it .*reserved",
            ),
            ({**SCHEMAS[1], "options": []}, "attributes.labeling.schemas 'tone': MLflow refuses it"),
            ({**SCHEMAS[3], "type": "feedback"}, "'expected': the experiment has it as expectation; give the feedback"),
            ({**SCHEMAS[0], "input": "text"}, "attributes.labeling.schemas 'correct': MLflow refuses it"),
        ],
    )
    def test_a_question_mlflow_does_not_take_is_a_sentence(
        self, platform: Platform, agent: Agent, tmp_path: Path, schema: dict[str, Any], sentence: str
    ):
        if schema["name"] != "tone":
            MlflowLabelingDesk(platform).open(agent, "weekly", [])
        attributes = {"experiment": agent.spec.experiment, "labeling": labeling(schemas=[schema])}
        with pytest.raises(Refused, match=sentence):
            MlflowLabelingDesk(platform).open(make_agent(tmp_path / "b", attributes=attributes), "other", [])


class TestItems:
    def test_a_deleted_session_has_no_items(self, store: Platform, agent: Agent):
        desk = MlflowLabelingDesk(store)
        session = desk.open(agent, "weekly", write_traces(store, agent, 1))
        open_mlflow(store).genai.review_queues.delete_review_queue(session.session_id)
        assert desk.items(session.session_id) == []


class TestReview:
    def test_answers_become_labels_and_the_item_is_complete(self, store: Platform, agent: Agent):
        desk, traces = MlflowLabelingDesk(store), write_traces(store, agent, 2)
        session = desk.open(agent, "weekly", traces)
        answers = {"correct": False, "tone": "dry", "grade": 2, "expected": "42"}
        desk.review(agent, session.session_id, traces[0], answers, reviewer="Ann")
        labels = desk.labels(agent, traces)
        assert {label.schema: label.value for label in labels} == answers
        assert {(label.trace_id, label.reviewer) for label in labels} == {(traces[0], "ann")}
        statuses = {item.trace_id: (item.status, item.completed_by) for item in desk.items(session.session_id)}
        assert statuses == {traces[0]: ("complete", "ann"), traces[1]: ("pending", "")}

    def test_repeating_writes_no_second_assessment_and_another_answer_replaces(self, store: Platform, agent: Agent):
        desk, traces = MlflowLabelingDesk(store), write_traces(store, agent, 1)
        session = desk.open(agent, "weekly", traces)
        for value in (True, True, False):
            desk.review(agent, session.session_id, traces[0], {"correct": value}, reviewer="ann")
        assert len(open_client(store).get_trace(traces[0]).info.assessments) == 1
        assert [label.value for label in desk.labels(agent, traces)] == [False]

    def test_two_reviewers_answer_side_by_side(self, platform: Platform, agent: Agent):
        desk, traces = MlflowLabelingDesk(platform), write_traces(platform, agent, 1)
        session = desk.open(agent, "weekly", traces)
        desk.review(agent, session.session_id, traces[0], {"correct": True}, reviewer="ann")
        desk.review(agent, session.session_id, traces[0], {"correct": False}, reviewer="bob")
        assert [(label.reviewer, label.value) for label in desk.labels(agent, traces)] == [
            ("ann", True),
            ("bob", False),
        ]
        assert [item.completed_by for item in desk.items(session.session_id)] == ["ann"]

    @pytest.mark.parametrize(
        ("answers", "sentence"),
        [
            ({"nonsense": True}, "no label schema 'nonsense' is declared; declared are correct, tone"),
            ({"correct": "maybe"}, "'maybe' is no answer to 'correct'; answer with True or False"),
            ({"tone": "loud"}, "'loud' is no answer to 'tone'; answer with one of dry, warm"),
            ({"grade": True}, "True is no answer to 'grade'; answer with a number"),
        ],
    )
    def test_a_wrong_answer_writes_nothing(
        self, platform: Platform, agent: Agent, answers: dict[str, Any], sentence: str
    ):
        desk, traces = MlflowLabelingDesk(platform), write_traces(platform, agent, 1)
        session = desk.open(agent, "weekly", traces)
        with pytest.raises(Refused, match=sentence):
            desk.review(agent, session.session_id, traces[0], {"expected": "x", **answers}, reviewer="ann")
        assert desk.labels(agent, traces) == []
        assert [item.status for item in desk.items(session.session_id)] == ["pending"]

    def test_a_trace_that_is_no_item_is_refused(self, platform: Platform, agent: Agent):
        desk, traces = MlflowLabelingDesk(platform), write_traces(platform, agent, 2)
        session = desk.open(agent, "weekly", traces[:1])
        with pytest.raises(Refused, match="is no item of session"):
            desk.review(agent, session.session_id, traces[1], {"correct": True}, reviewer="ann")
        assert desk.labels(agent, traces) == []


class TestLabels:
    def test_only_valid_answers_of_people_to_declared_questions_count(self, store: Platform, agent: Agent):
        mlflow, (trace_id,) = open_mlflow(store), write_traces(store, agent, 1)
        from mlflow.entities import AssessmentSource

        ann, bob = AssessmentSource("HUMAN", "Ann"), AssessmentSource("HUMAN", "bob")
        judge = AssessmentSource("LLM_JUDGE", "gpt")
        mlflow.log_feedback(trace_id=trace_id, name="correct", value=True, source=judge)
        mlflow.log_feedback(trace_id=trace_id, name="something_else", value=True, source=ann)
        mlflow.log_feedback(trace_id=trace_id, name="tone", value="loud", source=ann)
        mlflow.log_expectation(trace_id=trace_id, name="correct", value=True, source=bob)
        old = mlflow.log_feedback(trace_id=trace_id, name="correct", value=True, source=ann)
        mlflow.override_feedback(trace_id=trace_id, assessment_id=old.assessment_id, value=False, source=ann)
        labels = MlflowLabelingDesk(store).labels(agent, [trace_id])
        assert [(label.schema, label.value, label.reviewer) for label in labels] == [("correct", False, "ann")]

    def test_no_traces_no_labels(self, platform: Platform, agent: Agent):
        assert MlflowLabelingDesk(platform).labels(agent, []) == []
