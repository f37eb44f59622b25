"""The evaluator against real MLflow on SQLite.

Lives here: the evaluation dataset, evaluations, what becomes of failures.
Add here: a promise of `resources/evaluator.py`.
Not here: the gate (`tests/test_gate.py`), logging models (`test_model_registry.py`).
"""

import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.gate import Outcome
from lifecycle_assets.records import SourceRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources import eval_dataset
from resources.evaluation_rows import as_number, score_of
from resources.evaluator import MlflowEvaluator
from resources.mlflow_store import open_client, open_mlflow
from resources.model_registry import LoggedModel, MlflowModelRegistry
from resources.platform import Platform
from tests.building import AGENT_PY, SCORERS_PY, make_agent
from tests.resources.killing import kill_when, worker_is_gone

FLAKY = """

@scorer
def flaky(inputs, outputs):
    if "question 1" in str(inputs):
        raise ValueError("cannot read question 1")
    return "yes"


@scorer
def picky(inputs):
    return 0.5 if "question 1" in str(inputs) else None
"""


def quiet(_: str) -> None:
    """Takes progress and shows none."""


def question(text: str, **expectations: Any) -> dict[str, Any]:
    """A record that asks `text`."""
    return {"inputs": {"input": [{"role": "user", "content": text}]}, "expectations": expectations}


def write_rows(agent: Agent, *rows: dict[str, Any]) -> None:
    """Replace the agent's dataset file."""
    agent.path("eval_dataset.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stored(platform: Platform, name: str = "tiny_eval") -> list[tuple[str, dict[str, Any]]]:
    """Question and expectations of every record MLflow holds."""
    rows = eval_dataset.rows_of(eval_dataset.find_dataset(platform, name))
    return [(row.inputs["input"][0]["content"], dict(row.expectations)) for row in rows]


class TestDataset:
    """The MLflow dataset follows the file, and reviewers' work stays."""

    def test_repeating_writes_nothing(self, platform: Platform, tmp_path: Path) -> None:
        agent, evaluator = make_agent(tmp_path), MlflowEvaluator(platform)
        first = evaluator.ensure_dataset(agent)
        assert (first.name, first.rows) == ("tiny_eval", 3)
        written = eval_dataset.find_dataset(platform, "tiny_eval").last_update_time
        assert evaluator.ensure_dataset(agent) == first
        assert eval_dataset.find_dataset(platform, "tiny_eval").last_update_time == written

    def test_the_digest_does_not_depend_on_the_order_of_rows(self, platform: Platform, tmp_path: Path) -> None:
        agent, evaluator = make_agent(tmp_path), MlflowEvaluator(platform)
        rows = [question("a", k=1), question("b", k=2)]
        write_rows(agent, *rows)
        first = evaluator.ensure_dataset(agent)
        eval_dataset.find_dataset(platform, "tiny_eval").delete_records(
            [row.record_id for row in eval_dataset.rows_of(eval_dataset.find_dataset(platform, "tiny_eval"))]
        )
        write_rows(agent, *reversed(rows))
        assert evaluator.ensure_dataset(agent).digest == first.digest

    def test_changed_new_and_removed_rows_follow_the_file(self, platform: Platform, tmp_path: Path) -> None:
        agent, evaluator = make_agent(tmp_path), MlflowEvaluator(platform)
        write_rows(agent, question("a", answer="1", tone="kind"), question("b"))
        first = evaluator.ensure_dataset(agent)
        write_rows(agent, question("a", answer="2"), question("c"))
        second = evaluator.ensure_dataset(agent)
        assert stored(platform) == [("a", {"answer": "2"}), ("c", {})]
        assert second.digest != first.digest

    def test_reviewers_expectations_survive_every_change_of_the_file(self, platform: Platform, tmp_path: Path) -> None:
        agent, evaluator = make_agent(tmp_path), MlflowEvaluator(platform)
        write_rows(agent, question("a", answer="1"), question("b", answer="1"))
        evaluator.ensure_dataset(agent)
        source = {"source_type": "TRACE", "source_data": {"trace_id": "tr-1"}}
        labels = [{**question("a", said="right"), "source": source}, {**question("new", said="new"), "source": source}]
        merged = evaluator.merge_labels(agent, labels)
        assert merged.rows == 3
        assert stored(platform)[0] == ("a", {"answer": "1", "said": "right"})
        assert evaluator.merge_labels(agent, labels) == merged
        assert evaluator.ensure_dataset(agent) == merged
        write_rows(agent, question("a", tone="kind"), question("b", answer="1"))
        evaluator.ensure_dataset(agent)
        assert stored(platform)[0] == ("a", {"tone": "kind", "said": "right"})
        write_rows(agent, question("b", answer="1"))
        evaluator.ensure_dataset(agent)
        assert stored(platform) == [("a", {"said": "right"}), ("b", {"answer": "1"}), ("new", {"said": "new"})]

    def test_a_crash_between_deleting_and_writing_loses_no_label(self, platform: Platform, tmp_path: Path) -> None:
        agent, evaluator = make_agent(tmp_path), MlflowEvaluator(platform)
        write_rows(agent, question("a", answer="1"))
        evaluator.ensure_dataset(agent)
        evaluator.merge_labels(agent, [question("a", said="right")])
        open_mlflow(platform)
        from mlflow.genai import datasets

        dataset = eval_dataset.find_dataset(platform, "tiny_eval")
        [row] = eval_dataset.rows_of(dataset)
        note = json.dumps(dataclasses.replace(row, declared={}, expectations=row.labels).as_record())
        datasets.set_dataset_tags(dataset_id=dataset.dataset_id, tags={"lifecycle.rewriting": note})
        dataset.delete_records([row.record_id])
        evaluator.ensure_dataset(agent)
        assert stored(platform) == [("a", {"answer": "1", "said": "right"})]
        assert not eval_dataset.find_dataset(platform, "tiny_eval").tags.get("lifecycle.rewriting")

    def test_a_dataset_by_name_must_be_there_and_have_rows(self, platform: Platform, tmp_path: Path) -> None:
        gate = {"thresholds": [{"metric": "shouted/mean", "at_least": 0.5}]}
        agent = make_agent(tmp_path, attributes={"eval": {"dataset": "golden", "gate": gate}})
        evaluator = MlflowEvaluator(platform)
        with pytest.raises(Refused, match=r"no MLflow dataset 'golden'.*create"):
            evaluator.ensure_dataset(agent)
        eval_dataset.create_dataset(platform, "golden", "0", "someone")
        with pytest.raises(Refused, match="'golden' has no records"):
            evaluator.ensure_dataset(agent)
        eval_dataset.find_dataset(platform, "golden").merge_records([question("a")])
        assert evaluator.ensure_dataset(agent).rows == 1


class TestRows:
    """Values and errors of one scorer on one row."""

    @pytest.mark.parametrize(
        ("value", "number"),
        [(True, 1.0), (False, 0.0), ("yes", 1.0), ("No", 0.0), (3, 3.0), (float("nan"), None), ("blue", None)],
    )
    def test_values_become_numbers(self, value: object, number: float | None) -> None:
        assert as_number(value) == number

    def test_no_assessment_is_not_applicable_and_text_is_an_error(self) -> None:
        assert score_of([]) == {"value": None, "error": "", "rationale": ""}
        assert "'blue'" in score_of([{"feedback": {"value": "blue"}}])["error"]

    def test_several_assessments_are_averaged_and_one_error_is_enough(self) -> None:
        yes, no = {"feedback": {"value": "yes"}, "rationale": "r"}, {"feedback": {"value": False}}
        assert score_of([yes, no]) == {"value": 0.5, "error": "", "rationale": "r"}
        failed = score_of([yes, {"feedback": {"error": {"error_code": "E", "error_message": "judge is down"}}}])
        assert (failed["value"], failed["error"]) == (None, "judge is down")


@pytest.fixture(scope="module")
def home(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store the evaluations of this module share."""
    home = tmp_path_factory.mktemp("evaluator")
    shutil.copy(migrated_store, home / "mlflow.db")
    return home


@pytest.fixture(scope="module")
def shared(home: Path) -> Platform:
    """The platform of that store."""
    return Platform.from_env({"LIFECYCLE_HOME": str(home)})


@pytest.fixture(scope="module")
def flag(home: Path) -> Path:
    """While this file is there, the agent of `agent` does not answer."""
    return home / "slow"


@pytest.fixture(scope="module")
def agent(home: Path, flag: Path) -> Agent:
    """An agent with scorers that fail, that do not apply, and that are left out."""
    names = ["shouted", "length", "flaky", "picky"]
    scorers: list[dict[str, Any]] = [{"name": name, "source": f"scorers.py:{name}"} for name in names]
    scorers.append(
        {"name": "judged", "source": {"judge": "Is {{ outputs }} polite? Yes or no."}, "requires": "NO_JUDGE"}
    )
    waits = f"while pathlib.Path({str(flag)!r}).exists():\n            time.sleep(0.1)\n        question ="
    code = AGENT_PY.replace("import mlflow\n", "import pathlib, time\nimport mlflow\n", 1)
    return make_agent(
        home / "agents",
        agent_py=code.replace("question =", waits, 1),
        scorers_py=SCORERS_PY + FLAKY,
        attributes={"scorers": scorers},
        dataset="\n".join(json.dumps(question(text)) for text in ["question 0", "question 1", "please explode"]),
    )


@pytest.fixture(scope="module")
def model(shared: Platform, agent: Agent) -> LoggedModel:
    """That agent, logged once."""
    return MlflowModelRegistry(shared).log(agent, SourceRecord("digest-1", ""), progress=quiet)


def traces_of(platform: Platform, model: LoggedModel) -> Sequence[Any]:
    """Every trace of the model's experiment."""
    return open_client(platform).search_traces(locations=[model.experiment_id])


def test_every_failure_is_an_outcome_of_its_row(shared: Platform, agent: Agent, model: LoggedModel) -> None:
    evaluator, lines = MlflowEvaluator(shared), []
    dataset = evaluator.ensure_dataset(agent)
    done = evaluator.evaluate(agent, model.model_id, dataset, progress=lines.append, dagster_run_id="dagster-1")
    assert not done.reused
    assert lines == [f"evaluated {n} of 3 rows" for n in (1, 2, 3)]
    evidence = done.evidence
    assert (evidence.model_id, evidence.dataset_digest, evidence.rows) == (model.model_id, dataset.digest, 3)
    assert sorted(evidence.scorers) == ["flaky", "length", "picky", "shouted"]
    # Rows come by inputs: "please explode", "question 0", "question 1".
    exploded = Outcome(error="the agent failed: RuntimeError: the agent exploded")
    assert evidence.outcomes["shouted"] == [exploded, Outcome(1.0), Outcome(1.0)]
    assert evidence.outcomes["flaky"] == [exploded, Outcome(1.0), Outcome(error="cannot read question 1")]
    assert evidence.outcomes["picky"] == [exploded, Outcome(), Outcome(0.5)]
    assert done.agent_errors == 1
    run = open_client(shared).get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["lifecycle.dagster_run_id"] == "dagster-1"
    traces = [trace.info for trace in traces_of(shared, model)]
    assert {info.trace_metadata["mlflow.sourceRun"] for info in traces} == {done.run_id}
    assert {info.trace_metadata["mlflow.modelId"] for info in traces} == {model.model_id}
    metrics = {metric.key: metric for metric in open_client(shared).get_logged_model(model.model_id).metrics}
    assert {"shouted/mean", "length/p95", "flaky/error_rate"} <= set(metrics)
    assert metrics["flaky/error_rate"].value == pytest.approx(2 / 3)
    assert {metric.dataset_name for metric in metrics.values()} == {"tiny_eval"}
    assert all(metric.dataset_digest for metric in metrics.values())


def test_a_finished_evaluation_is_used_again(shared: Platform, agent: Agent, model: LoggedModel, flag: Path) -> None:
    """Killed once on the way: the run that was left is closed, and exactly one is complete."""
    evaluator = MlflowEvaluator(shared)
    write_rows(agent, question("question 0"), question("question 2"))
    chosen = agent.spec.eval.model_copy(update={"scorers": ["shouted", "length"]})
    well = Agent(agent.spec.model_copy(update={"eval": chosen}), agent.folder)
    declared = agent.folder / "defs.yaml"
    text = declared.read_text()
    declared.write_text(
        text.replace(
            "dataset: eval_dataset.jsonl", "\n".join(["dataset: eval_dataset.jsonl", "    scorers: [shouted, length]"])
        )
    )
    dataset = evaluator.ensure_dataset(well)
    flag.touch()
    worker = kill_when("evaluate", well, shared, step="evaluation", model_id=model.model_id, dataset=dataset.to_json())
    assert worker_is_gone(worker)
    flag.unlink()
    first = evaluator.evaluate(well, model.model_id, dataset, progress=quiet)
    client = open_client(shared)
    runs = client.search_runs(
        [model.experiment_id],
        f"tags.`lifecycle.step` = 'evaluation' AND tags.`lifecycle.dataset_digest` = '{dataset.digest}'",
    )
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]
    assert [run.info.run_id for run in runs if run.data.tags.get("lifecycle.complete")] == [first.run_id]
    before = len(traces_of(shared, model))
    again = evaluator.evaluate(well, model.model_id, dataset, progress=quiet)
    assert again == dataclasses.replace(first, reused=True)
    assert len(traces_of(shared, model)) == before
    with sqlite3.connect(shared.home / "mlflow.db") as store:
        forty_days = 40 * 24 * 3600 * 1000
        store.execute("UPDATE runs SET start_time = start_time - ? WHERE run_uuid = ?", [forty_days, first.run_id])
    renewed = evaluator.evaluate(well, model.model_id, dataset, progress=quiet)
    assert (renewed.reused, renewed.run_id != first.run_id) == (False, True), "too old to let anything through"
    evaluator.attach_verdict(first.run_id, {"verdict": "passed", "reasons": "x" * 2000})
    evaluator.attach_verdict(first.run_id, {"verdict": "passed", "reasons": "x" * 2000})
    tags = client.get_run(first.run_id).data.tags
    assert tags["lifecycle.verdict"] == "passed"
    assert len(tags["lifecycle.reasons"]) == 1000


def test_another_dataset_than_asked_for_is_refused(shared: Platform, agent: Agent, model: LoggedModel) -> None:
    evaluator = MlflowEvaluator(shared)
    dataset = evaluator.ensure_dataset(agent)
    eval_dataset.find_dataset(shared, "tiny_eval").merge_records([question("slipped in")])
    with pytest.raises(Refused, match=f"digest is .*{dataset.digest}.*materialize eval_dataset"):
        evaluator.evaluate(agent, model.model_id, dataset, progress=quiet)
