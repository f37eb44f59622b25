"""The evaluator against real MLflow on SQLite.

Lives here: the evaluation dataset, evaluations, what becomes of failures.
Add here: a promise of `resources/evaluator.py`.
Not here: the gate (`tests/test_gate.py`), logging models (`test_model_registry.py`).
"""

import dataclasses
import json
import shutil
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.gate import Outcome, rows_digest
from lifecycle_assets.records import DatasetRecord, SourceRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources import eval_dataset
from resources.evaluation_rows import as_number, score_of
from resources.evaluator import MlflowEvaluator
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.model_registry import LoggedModel, MlflowModelRegistry
from resources.platform import Platform
from tests.building import AGENT_PY, SCORERS_PY, evaluation_of, make_agent
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
        [
            (True, 1.0),
            (False, 0.0),
            ("yes", 1.0),
            ("No", 0.0),
            (3, 3.0),
            (float("nan"), None),
            (10**400, None),
            ("blue", None),
        ],
    )
    def test_values_become_numbers(self, value: object, number: float | None) -> None:
        assert as_number(value) == number

    def test_no_assessment_is_not_applicable_and_text_is_an_error(self) -> None:
        assert score_of([]) == {"value": None, "error": "", "rationale": ""}
        assert "'blue'" in score_of([{"feedback": {"value": "blue"}}])["error"]

    def test_several_assessments_are_averaged_and_one_error_is_enough(self) -> None:
        yes, no = {"feedback": {"value": "yes"}, "rationale": "r"}, {"feedback": {"value": False}}
        assert score_of([yes, no]) == {"value": 0.5, "error": "", "rationale": "r"}
        assert score_of([{"feedback": {"error": {"error_code": "half \ud800"}}}])["error"] == "half ?"
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
    allowing = [{"metric": f"{one}/mean", "at_least": 0, "max_error_rate": 0.7} for one in evidence.scorers]
    gate = agent.spec.eval.gate.model_validate({"thresholds": allowing})
    lenient = agent.spec.model_copy(update={"eval": agent.spec.eval.model_copy(update={"gate": gate})})
    again = evaluator.evaluate(Agent(lenient, agent.folder), model.model_id, dataset, progress=quiet)
    assert (again.reused, again.run_id) == (True, done.run_id), "its errors are within what this gate allows"
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
    old = evaluator.evaluate(well, model.model_id, dataset, progress=quiet, any_age=True)
    assert (old.reused, old.run_id) == (True, first.run_id), "a champion's answers do not age"
    renewed = evaluator.evaluate(well, model.model_id, dataset, progress=quiet)
    assert (renewed.reused, renewed.run_id != first.run_id) == (False, True), "too old to let anything through"
    kept = artifact(shared, renewed.run_id, "evaluation.json")
    genuine = kept.read_text()
    of_first = artifact(shared, first.run_id, "evaluation.json").read_text()
    for forged in (genuine.replace('"value": 1.0', '"value": 0.5', 1), of_first, genuine[:50]):
        kept.write_text(forged)
        found = evaluator.evaluate(well, model.model_id, dataset, progress=quiet, any_age=True)
        assert found.run_id == first.run_id, "not what was written, so not used again"
    kept.write_text(genuine)
    edited = agent.path("scorers.py").read_text()
    agent.path("scorers.py").write_text(edited.replace("return float(len(", "return 1 + float(len("))
    anew = evaluator.evaluate(well, model.model_id, dataset, progress=quiet, any_age=True)
    agent.path("scorers.py").write_text(edited)
    assert (anew.reused, anew.run_id != renewed.run_id) == (False, True), "another version of a scorer"
    tags = client.get_run(renewed.run_id).data.tags
    client.set_tag(anew.run_id, "lifecycle.scorers_digest", tags["lifecycle.scorers_digest"])
    assert evaluator.evaluate(well, model.model_id, dataset, progress=quiet, any_age=True).run_id == renewed.run_id


def test_a_dataset_that_changes_while_it_is_evaluated_is_refused(
    shared: Platform, agent: Agent, model: LoggedModel, flag: Path
) -> None:
    """The evaluation does not count, and one asked for a digest of the past does not begin."""
    evaluator, client = MlflowEvaluator(shared), open_client(shared)
    dataset = evaluator.ensure_dataset(agent)
    where = f"tags.`lifecycle.dataset_digest` = '{dataset.digest}'"
    before = {run.info.run_id for run in client.search_runs([model.experiment_id], where)}
    flag.touch()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(evaluator.evaluate, agent, model.model_id, dataset, progress=quiet)
        new: list[Any] = []
        while not new and not asked.done():
            time.sleep(0.2)
            new = [r for r in client.search_runs([model.experiment_id], where) if r.info.run_id not in before]
        eval_dataset.held_dataset(shared, dataset).merge_records([question("slipped in")])
        flag.unlink()
        with pytest.raises(Refused, match=f"changed while it was evaluated.*was {dataset.digest}.*does not count"):
            asked.result()
    run = client.get_run(new[0].info.run_id)
    assert (run.info.status, run.data.tags.get("lifecycle.complete")) == ("FAILED", None)
    with pytest.raises(Refused, match="holds no complete evaluation"):
        evaluator.reread(run.info.run_id)
    with pytest.raises(Refused, match=f"digest is .*{dataset.digest}.*materialize eval_dataset"):
        eval_dataset.dataset_to_evaluate(shared, dataset)


def written(platform: Platform) -> str:
    """A run as an evaluation leaves it: two records, one scorer that failed on the second; returns its id."""
    client = open_client(platform)
    run_id = client.create_run(experiment_id(platform, "/agents/tiny")).info.run_id
    said = [{"value": 1.0, "error": "", "rationale": ""}, {"value": None, "error": "judge is down", "rationale": ""}]
    evaluation = {
        "model_id": "m-1",
        "run_id": run_id,
        "dataset": DatasetRecord("d-1", "tiny_eval", "x", 2).to_json(),
        "scorers": {"shouted": "s1"},
        "rows": [{**question(f"question {n}"), "scores": {"shouted": one}} for n, one in enumerate(said)],
    }
    client.log_dict(run_id, evaluation, "evaluation.json")
    client.set_tag(run_id, "lifecycle.complete", "true")
    return run_id


def artifact(platform: Platform, run_id: str, path: str) -> Path:
    """The file MLflow keeps as that artifact."""
    return Path(open_client(platform).get_run(run_id).info.artifact_uri.removeprefix("file://")) / path


def test_decisions_are_kept_once_and_rows_read_again_as_they_are(platform: Platform) -> None:
    """A decision that was changed is refused; rows that were changed have another digest."""
    evaluator, client, run_id = MlflowEvaluator(platform), open_client(platform), written(platform)
    evidence = evaluator.reread(run_id)
    assert evidence.outcomes == {"shouted": [Outcome(1.0), Outcome(error="judge is down")]}
    digest, reason = rows_digest(evidence), "hostile \u202e " + "x" * 2000
    record = evaluation_of(run_id=run_id, rows_digest=digest, reasons=[reason], metrics={"a/mean": 0.1})
    for actor in ("first", "second"):
        evaluator.keep_decision(dataclasses.replace(record, actor=actor))
    assert evaluator.decision(run_id, record.decision_digest).actor == "first"
    tags = client.get_run(run_id).data.tags
    assert (tags["lifecycle.verdict"], tags["lifecycle.decision_digest"]) == ("passed", record.decision_digest)
    assert len(tags["lifecycle.reasons"]) == 1000
    other = dataclasses.replace(record, verdict="failed")
    evaluator.keep_decision(other)
    assert evaluator.decision(run_id, other.decision_digest) == other
    assert evaluator.decision(run_id, record.decision_digest).verdict == "passed"

    kept = artifact(platform, run_id, f"decisions/{record.decision_digest}.json")
    text = kept.read_text()
    for broken, words in (
        (text.replace('"passed"', '"dry_run"'), "was changed: its digest is"),
        (text.replace('"rows_digest"', '"rows_digest_"'), "is not a decision"),
        (text[:100], "cannot be read as JSON"),
    ):
        kept.write_text(broken)
        with pytest.raises(Refused, match=words):
            evaluator.decision(run_id, record.decision_digest)
    evaluator.keep_decision(record)
    assert evaluator.decision(run_id, record.decision_digest) == record, "cut short by a crash, written again"
    for missing in ("0" * 32, "no such run"):
        with pytest.raises(Refused, match="does not hold"):
            evaluator.decision(missing, record.decision_digest)

    rows = artifact(platform, run_id, "evaluation.json")
    text = rows.read_text()
    try:
        rows.write_text(text.replace('"value": 1.0', '"value": 0.0', 1))
        assert rows_digest(evaluator.reread(run_id)) != digest
        for broken in (text.replace(run_id, "another"), text.replace('"rows"', '"lines"')):
            rows.write_text(broken)
            with pytest.raises(Refused, match="is not that run's evaluation any more"):
                evaluator.reread(run_id)
    finally:
        rows.write_text(text)
    assert evaluator.reread(run_id) == evidence
    client.delete_run(run_id)
    with pytest.raises(Refused, match="holds no complete evaluation"):
        evaluator.reread(run_id)
