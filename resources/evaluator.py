"""Evaluation datasets and evaluations.

Lives here: the gateway to evaluations: what it returns, what it promises, and MLflow's implementation.
Add here: a question about datasets or evaluations.
Not here: how records are merged (`eval_dataset.py`), what runs in the worker (`evaluation_steps.py`), the gate.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lifecycle_assets.gate import Evidence
from lifecycle_assets.records import DatasetRecord, digest
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent, dataset_rows
from resources import eval_dataset
from resources import run_marks as marks
from resources.evaluation_rows import evidence_of, has_errors
from resources.evaluation_steps import EVALUATION_FILE
from resources.explain import explained
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.model_steps import agent_request
from resources.platform import Platform
from resources.scorer_source import declared_scorers
from resources.worker import Progress, run_worker

if TYPE_CHECKING:
    from mlflow import MlflowClient

VERDICT_CHARACTERS = 1000
"""Characters of one fact of a verdict that the run keeps."""


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


class Evaluator(ABC):
    """Keeps the evaluation dataset and evaluates logged models on it."""

    @abstractmethod
    def ensure_dataset(self, agent: Agent) -> DatasetRecord:
        """Bring the MLflow dataset up to the declared file (records of reviewers stay) and describe it."""

    @abstractmethod
    def merge_labels(self, agent: Agent, records: Sequence[Mapping[str, Any]]) -> DatasetRecord:
        """Merge records `{inputs, expectations, source}` of reviewed traces; repeating changes nothing."""

    @abstractmethod
    def evaluate(
        self,
        agent: Agent,
        model_id: str,
        dataset: DatasetRecord,
        *,
        progress: Progress,
        dagster_run_id: str = "",
    ) -> Evaluated:
        """Evaluate the logged model on exactly this dataset digest with the agent's active scorers."""

    @abstractmethod
    def attach_verdict(self, run_id: str, verdict: Mapping[str, str]) -> None:
        """Write the verdict on the evaluation run as tags; repeating changes nothing."""


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

    def evaluate(
        self,
        agent: Agent,
        model_id: str,
        dataset: DatasetRecord,
        *,
        progress: Progress,
        dagster_run_id: str = "",
    ) -> Evaluated:
        """See `Evaluator.evaluate`. Killed anywhere and repeated, one run is complete.

        A complete run of the same model, dataset digest and scorers is reused, unless it holds errors: an outage of
        a judge must not decide for ever. One older than `gate.max_age` is not reused either: it lets nothing through.
        """
        chosen = set(agent.spec.eval.scorers)
        active = {
            one.name: one.digest
            for one in declared_scorers(agent, self._platform.environment)
            if (not chosen or one.name in chosen) and one.spec.level == "trace"
        }
        if not active:
            raise Refused(f"{agent.name}: no scorer is active; set the variables named by scorers.requires.")
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
                if datetime.now(UTC) - datetime.fromisoformat(marks.started_at(run)) > agent.spec.eval.gate.longest_age:
                    continue
                evaluation = self._evaluation(run.info.run_id)
                if evaluation is not None and not has_errors(evaluation):
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
            evaluation = self._evaluation(answer["run_id"])
        if evaluation is None:
            raise Refused(
                f"MLflow run {answer['run_id']} does not give {EVALUATION_FILE} back; check the artifact store."
            )
        return self._evaluated(experiment, evaluation, reused=False)

    def attach_verdict(self, run_id: str, verdict: Mapping[str, str]) -> None:
        """See `Evaluator.attach_verdict`. Each name becomes the tag `lifecycle.<name>`."""
        with explained(self._platform.tracking_uri):
            client = open_client(self._platform)
            present = client.get_run(run_id).data.tags
            for name, value in verdict.items():
                tag, text = f"lifecycle.{name}", marks.shortened(str(value), VERDICT_CHARACTERS)
                if present.get(tag) != text:
                    client.set_tag(run_id, tag, text)

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

    def _evaluation(self, run_id: str) -> dict[str, Any] | None:
        """The `evaluation.json` of a run, None when it has none."""
        client: MlflowClient = open_client(self._platform)
        if EVALUATION_FILE not in {file.path for file in client.list_artifacts(run_id)}:
            return None
        mlflow = open_mlflow(self._platform)
        return mlflow.artifacts.load_dict(f"runs:/{run_id}/{EVALUATION_FILE}")

    def _evaluated(self, experiment: str, evaluation: Mapping[str, Any], *, reused: bool) -> Evaluated:
        return Evaluated(
            run_id=evaluation["run_id"],
            evidence=evidence_of(evaluation),
            agent_errors=sum(1 for row in evaluation["rows"] if row["agent_error"]),
            reused=reused,
            at=marks.started_at(open_client(self._platform).get_run(evaluation["run_id"])),
            url=marks.page(self._platform, f"experiments/{experiment}/runs/{evaluation['run_id']}"),
        )
