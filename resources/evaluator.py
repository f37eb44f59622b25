"""Evaluation datasets and evaluations.

Lives here: the gateway to evaluations: what it returns, what it promises, and MLflow's implementation.
Add here: a question about datasets or evaluations.
Not here: how records are merged (`eval_dataset.py`), what runs in the worker (`evaluation_steps.py`), the gate.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lifecycle_assets.gate import Evidence, failing_scorers
from lifecycle_assets.records import DatasetRecord, EvalRecord, digest
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent, dataset_rows
from lifecycle_assets.text import plain
from resources import eval_dataset
from resources import run_marks as marks
from resources.dataset_rows import rows_digest, rows_of
from resources.evaluation_rows import content_digest, evidence_of
from resources.evaluation_steps import EVALUATION_FILE
from resources.explain import explained
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.model_steps import agent_request
from resources.platform import Platform
from resources.scorer_source import declared_scorers
from resources.worker import Progress, run_worker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

VERDICT_CHARACTERS = 1000
"""Characters of one fact of a verdict that the run keeps as a tag."""


def decision_file(decision_digest: str) -> str:
    """Where an evaluation run keeps a decision."""
    return f"decisions/{decision_digest}.json"


@dataclass(frozen=True)
class Evaluated:
    """An evaluation run. `reused` when a finished run of the same model, dataset digest and scorers was found.

    `agent_errors` counts rows on which the agent itself failed; `at` is when the run started, UTC ISO 8601.
    """

    run_id: str
    evidence: Evidence
    agent_errors: int
    reused: bool
    at: str
    url: str = ""


@dataclass(frozen=True)
class HeldDataset:
    """A dataset as it is now: `mark` changes with every write of its records, `digest` reads them all."""

    mark: str
    digest: Callable[[], str]


class Evaluator(ABC):
    """Keeps the evaluation dataset and evaluates logged models on it."""

    @abstractmethod
    def ensure_dataset(self, agent: Agent) -> DatasetRecord:
        """Bring the MLflow dataset up to the declared file (records of reviewers stay) and describe it."""

    @abstractmethod
    def merge_labels(self, agent: Agent, records: Sequence[Mapping[str, Any]]) -> DatasetRecord:
        """Merge records `{inputs, expectations, source}` of reviewed traces; repeating changes nothing."""

    @abstractmethod
    def held(self, asked: DatasetRecord) -> HeldDataset | None:
        """The dataset of a record as MLflow has it now, None when it was deleted. Writes nothing, reads no record."""

    @abstractmethod
    def evaluate(
        self,
        agent: Agent,
        model_id: str,
        dataset: DatasetRecord,
        *,
        progress: Progress,
        dagster_run_id: str = "",
        any_age: bool = False,
    ) -> Evaluated:
        """Evaluate the logged model on exactly this dataset digest with the agent's active scorers.

        A finished evaluation of the same is reused when nobody has changed it since, its errors are within what the
        gate allows and, unless `any_age`, it is not older than `gate.max_age`.
        """

    @abstractmethod
    def keep_decision(self, record: EvalRecord) -> None:
        """Keep the whole decision on its evaluation run, and the run's tags that say it shortly.

        Written once a `decision_digest`: repeating changes nothing, and what was kept of earlier decisions stays.
        """

    @abstractmethod
    def decision(self, run_id: str, decision_digest: str) -> EvalRecord:
        """The decision kept on that run. Raises `Refused` when it is not there, or says something else by now."""

    @abstractmethod
    def reread(self, run_id: str) -> Evidence:
        """The rows of a complete evaluation as MLflow keeps them. Raises `Refused` when they are not there."""


class MlflowEvaluator(Evaluator):
    """Evaluations by `mlflow.genai.evaluate`, datasets in the tracking store."""

    def __init__(self, platform: Platform) -> None:
        """Opens nothing yet."""
        self._platform = platform

    def ensure_dataset(self, agent: Agent) -> DatasetRecord:
        """See `Evaluator.ensure_dataset`. Writes only what differs; repeating writes nothing."""
        declared = agent.spec.eval.dataset
        if not declared.endswith(".jsonl"):
            with explained(self._platform.tracking_uri):
                return eval_dataset.describe(self._named(declared))
        rows = dataset_rows(agent.path(declared))
        with explained(self._platform.tracking_uri):
            dataset = self._own(agent)
            eval_dataset.write_declared(dataset, rows)
            return eval_dataset.describe(dataset)

    def merge_labels(self, agent: Agent, records: Sequence[Mapping[str, Any]]) -> DatasetRecord:
        """See `Evaluator.merge_labels`."""
        declared = agent.spec.eval.dataset
        with explained(self._platform.tracking_uri):
            dataset = self._own(agent) if declared.endswith(".jsonl") else self._named(declared)
            eval_dataset.merge_labels(dataset, records)
            return eval_dataset.describe(dataset)

    def held(self, asked: DatasetRecord) -> HeldDataset | None:
        """See `Evaluator.held`."""
        with explained(self._platform.tracking_uri):
            found = eval_dataset.held_dataset(self._platform, asked)
            if found is None:
                return None
            return HeldDataset(eval_dataset.mark_of(found), lambda: rows_digest(rows_of(found)))

    def evaluate(
        self,
        agent: Agent,
        model_id: str,
        dataset: DatasetRecord,
        *,
        progress: Progress,
        dagster_run_id: str = "",
        any_age: bool = False,
    ) -> Evaluated:
        """See `Evaluator.evaluate`. Killed anywhere and repeated, one run is complete.

        A complete run of the same model, dataset digest and scorers is reused, unless it holds more errors than the
        gate allows: an outage of a judge must not decide for ever. One older than `gate.max_age` is not reused
        either, unless `any_age`: it lets nothing through, but still says how the champion answered. Nor is one whose
        file is not the one that was written: see `write_evaluation`.
        """
        gate = agent.spec.eval.gate
        chosen = set(agent.spec.eval.scorers)
        active = {
            one.name: one.digest
            for one in declared_scorers(agent, self._platform.environment)
            if (not chosen or one.name in chosen) and one.spec.level == "trace"
        }
        if not active:
            raise Refused(f"{agent.name}: no scorer is active; set the variables named by scorers.requires.")
        about = (model_id, dataset.digest, active)
        key = {
            marks.AGENT: agent.name,
            marks.STEP: "evaluation",
            marks.MODEL_ID: model_id,
            marks.DATASET_DIGEST: dataset.digest,
            marks.SCORERS_DIGEST: digest(active),
        }
        with explained(self._platform.tracking_uri):
            client, experiment = open_client(self._platform), experiment_id(self._platform, agent.spec.experiment)
            mine = {name: key[name] for name in (marks.AGENT, marks.STEP)}
            for run in marks.abandoned_runs(client, experiment, mine):
                complete = run.data.tags.get(marks.COMPLETE) == "true"
                client.set_terminated(run.info.run_id, "FINISHED" if complete else "KILLED")
            for run in client.search_runs(
                [experiment],
                filter_string=marks.where_filter({**key, marks.COMPLETE: "true"}),
                order_by=["attributes.start_time DESC"],
                max_results=5,
            ):
                age = datetime.now(UTC) - datetime.fromisoformat(marks.started_at(run))
                if age > gate.longest_age and not any_age:
                    continue
                evaluation = self._as_written(run)
                found = evidence_of(evaluation) if evaluation else None
                # The search goes by tags, which anybody may set: what was written decides.
                if found is None or (found.model_id, found.dataset_digest, found.scorers) != about:
                    progress(f"The run {run.info.run_id} is not the evaluation it was or says to be: it is not used")
                elif evaluation is not None and not failing_scorers(found, gate):
                    return self._evaluated(experiment, evaluation, reused=True)
        request = {
            **agent_request(agent),
            "model_id": model_id,
            "experiment_id": experiment,
            "dataset": dataset.to_json(),
            "scorers": active,
            "run_tags": {**key, marks.DAGSTER_RUN: dagster_run_id},
        }
        answer = run_worker("evaluate", request, platform=self._platform, progress=progress)
        with explained(self._platform.tracking_uri):
            evaluation = self._artifact(answer["run_id"], EVALUATION_FILE)
        if evaluation is None:
            raise Refused(
                f"MLflow run {answer['run_id']} does not give {EVALUATION_FILE} back; check the artifact store."
            )
        return self._evaluated(experiment, evaluation, reused=False)

    def keep_decision(self, record: EvalRecord) -> None:
        """See `Evaluator.keep_decision`.

        Why a rerun is safe: the file comes before the tags and is named by its content; one that a crash cut short
        does not have its digest and is written again.
        """
        with explained(self._platform.tracking_uri):
            client = open_client(self._platform)
            try:
                self.decision(record.run_id, record.decision_digest)
            except Refused:
                text = json.dumps(record.to_json(), sort_keys=True, indent=1)
                client.log_text(record.run_id, text, decision_file(record.decision_digest))
            said = {
                "verdict": record.verdict,
                "comparison": record.comparison,
                "evidence_digest": record.evidence_digest,
                "decision_digest": record.decision_digest,
                "reasons": " ".join(record.reasons),
            }
            present = client.get_run(record.run_id).data.tags
            for name, value in said.items():
                tag, text = f"lifecycle.{name}", marks.shortened(value, VERDICT_CHARACTERS)
                if present.get(tag) != text:
                    client.set_tag(record.run_id, tag, text)

    def decision(self, run_id: str, decision_digest: str) -> EvalRecord:
        """See `Evaluator.decision`."""
        file, remedy = decision_file(decision_digest), "materialize eval_results again."
        with explained(self._platform.tracking_uri):
            found = self._artifact(run_id, file)
        if found is None:
            raise Refused(f"MLflow run {plain(run_id)} does not hold {plain(file)}: {remedy}")
        try:
            record = EvalRecord.from_json(found)
        except (TypeError, ValueError):
            raise Refused(f"{plain(file)} of MLflow run {plain(run_id)} is not a decision: {remedy}") from None
        if (record.run_id, record.decision_digest) != (run_id, decision_digest):
            raise Refused(
                f"{plain(file)} of MLflow run {plain(run_id)} was changed: its digest is {record.decision_digest}; "
                f"{remedy}"
            )
        return record

    def reread(self, run_id: str) -> Evidence:
        """See `Evaluator.reread`."""
        with explained(self._platform.tracking_uri):
            found = self._artifact(run_id, EVALUATION_FILE)
            run = open_client(self._platform).get_run(run_id) if found is not None else None
        if found is None or run is None or run.data.tags.get(marks.COMPLETE) != "true":
            raise Refused(
                f"MLflow run {plain(run_id)} holds no complete evaluation: it was deleted, or never ended; "
                "materialize eval_results again."
            )
        try:
            evidence = evidence_of(found)
        except (KeyError, TypeError, AttributeError):
            evidence = None
        if evidence is None or found["run_id"] != run_id:
            raise Refused(
                f"{EVALUATION_FILE} of MLflow run {plain(run_id)} was changed and is not that run's evaluation any "
                "more; materialize eval_results again."
            )
        return evidence

    def _own(self, agent: Agent) -> Any:
        """The dataset kept for this agent, which is created when absent."""
        name, experiment = self._own_name(agent), experiment_id(self._platform, agent.spec.experiment)
        found = eval_dataset.find_dataset(self._platform, name, experiment)
        return found or eval_dataset.create_dataset(self._platform, name, experiment, agent.name)

    def _own_name(self, agent: Agent) -> str:
        return f"{agent.name}_eval"

    def _named(self, name: str) -> Any:
        found = eval_dataset.find_dataset(self._platform, name)
        if found is None:
            raise Refused(
                f"There is no MLflow dataset '{name}'; create it (mlflow.genai.datasets.create_dataset), "
                "or set eval.dataset in defs.yaml to a .jsonl file."
            )
        return found

    def _artifact(self, run_id: str, path: str) -> dict[str, Any] | None:
        """A JSON file of a run; None when the run has none of that name, or is not there any more.

        Raises `Refused` for a file that is no JSON object.
        """
        from mlflow.exceptions import MlflowException

        client: MlflowClient = open_client(self._platform)
        try:
            stage = client.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            # The last one is how MLflow answers to what cannot be the id of a run.
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"):
                raise
            return None
        folder = path.rpartition("/")[0]
        if stage != "active" or path not in {file.path for file in client.list_artifacts(run_id, folder or None)}:
            return None
        try:
            found = json.loads(open_mlflow(self._platform).artifacts.load_text(f"runs:/{run_id}/{path}"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Refused(f"{path} of MLflow run {run_id} cannot be read as JSON; materialize eval_results again.")
        return found

    def _as_written(self, run: "Run") -> dict[str, Any] | None:
        """The evaluation of a complete run; None when it is gone, or is not the one that was written."""
        try:
            found = self._artifact(run.info.run_id, EVALUATION_FILE)
        except Refused:  # Not JSON any more.
            return None
        is_ours = found is not None and content_digest(found) == run.data.params.get(marks.CONTENT)
        return found if is_ours else None

    def _evaluated(self, experiment: str, evaluation: Mapping[str, Any], *, reused: bool) -> Evaluated:
        return Evaluated(
            run_id=evaluation["run_id"],
            evidence=evidence_of(evaluation),
            agent_errors=sum(1 for row in evaluation["rows"] if row["agent_error"]),
            reused=reused,
            at=marks.started_at(open_client(self._platform).get_run(evaluation["run_id"])),
            url=marks.page(self._platform, f"experiments/{experiment}/runs/{evaluation['run_id']}"),
        )
