"""The worker's side of the evaluator: one evaluation of one logged model.

Lives here: running `mlflow.genai.evaluate` so that no failure is hidden, and writing what it found on its run.
Add here: a step of an evaluation that runs the agent's or the scorers' code.
Not here: reading rows (`evaluation_rows.py`), keeping the dataset (`eval_dataset.py`).

`evaluate` leaves failed scorers and failed predictions out of its means. Every row and scorer is therefore read back
from the assessments it stored, and the agent's failures are noted where they happen.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lifecycle_assets.records import DatasetRecord
from lifecycle_assets.refused import Refused
from resources import run_marks as marks
from resources.dataset_rows import Row, canonical, rows_of
from resources.eval_dataset import dataset_to_evaluate, require_unchanged
from resources.evaluation_rows import content_digest, evidence_of, further_metrics, readable_table, score_of
from resources.mlflow_store import open_client, open_mlflow
from resources.model_steps import rebuild_agent
from resources.platform import Platform
from resources.scorer_source import declared_scorers, load_declared

if TYPE_CHECKING:
    from mlflow import MlflowClient

EVALUATION_FILE = "evaluation.json"
ROWS_FILE = "evaluation_rows.json"

LATE_SECONDS = (0, 2, 5, 10)
"""Before each further look for what was written to Unity Catalog and cannot be read yet."""

SETTINGS = {
    "MLFLOW_GENAI_EVAL_PREDICT_RATE_LIMIT": "0",  # A large limit sizes the pool beyond SQLite's and loses traces.
    "MLFLOW_GENAI_EVAL_MAX_WORKERS": "4",
    "MLFLOW_GENAI_EVAL_MAX_SCORER_WORKERS": "1",
    "MLFLOW_GENAI_EVAL_SKIP_TRACE_VALIDATION": "true",  # It would be one more call of the agent.
    "MLFLOW_TRACE_SAMPLING_RATIO": "1",
    "TQDM_DISABLE": "1",
}
"""Environment of a process that evaluates; what was set before does not count."""


def evaluate(request: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate the model on the dataset and return `{"run_id": ...}`; `evaluation.json` of that run is the evidence.

    Raises `Refused` when the dataset or the scorers are no longer those asked for, the dataset also when it changes
    meanwhile: then nothing is written and the run is not marked. Killed anywhere and repeated, one
    run is complete: the mark comes last.
    """
    os.environ.update(SETTINGS)
    agent, platform = rebuild_agent(request), Platform.from_env()
    mlflow, client = open_mlflow(platform), open_client(platform)
    asked = DatasetRecord.from_json(request["dataset"])
    dataset = dataset_to_evaluate(platform, asked)
    declared = [one for one in declared_scorers(agent, platform.environment) if one.name in request["scorers"]]
    if {one.name: one.digest for one in declared} != dict(request["scorers"]):
        raise Refused(f"{agent.name}: the scorers changed while the evaluation started; run it again.")
    mlflow.set_experiment(experiment_id=request["experiment_id"])
    scorers = [load_declared(agent, one) for one in declared]
    model = mlflow.pyfunc.load_model(f"models:/{request['model_id']}")
    with evaluation_run(mlflow, client, platform, request, f"{agent.name}: evaluation") as run_id:
        rows, logged = evaluated_rows(mlflow, model, request, run_id, dataset, rows_of(dataset), scorers)
        evaluation = {
            "model_id": request["model_id"],
            "run_id": run_id,
            "dataset": asked.to_json(),
            "scorers": dict(request["scorers"]),
            "rows": rows,
        }
        require_unchanged(platform, asked)
        write_evaluation(mlflow, client, run_id, evaluation, logged, dataset)
    return {"run_id": run_id}


@contextmanager
def evaluation_run(
    mlflow: Any, client: "MlflowClient", platform: Platform, request: Mapping[str, Any], name: str
) -> Generator[str]:
    """A run of its own as the active one; marked complete when the block ends well, FAILED when it does not.

    Every trace made inside names the run as its source, so that it never counts as production.
    """
    run_id = marks.open_run(client, request["experiment_id"], name, request["run_tags"])
    try:
        marking = [_marking(run_id)] if platform.is_databricks else []
        with mlflow.start_run(run_id=run_id), mlflow.tracing.configure(span_processors=marking):
            yield run_id
        client.set_tag(run_id, marks.COMPLETE, "true")
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise


def evaluated_rows(
    mlflow: Any,
    model: Any,
    request: Mapping[str, Any],
    run_id: str,
    data: Any,
    records: Sequence[Row],
    scorers: Sequence[Any],
) -> tuple[list[dict[str, Any]], Mapping[str, float]]:
    """Answer and score `records` (each with inputs of its own), which `data` holds as `mlflow.genai.evaluate` takes it.

    Returns a row a record, in their order, and the metrics MLflow logged. Nothing that failed is left out.
    """
    calls, names = _Predictions(mlflow, model, len(records)), [scorer.name for scorer in scorers]
    with _LostWrites() as lost:
        result = mlflow.genai.evaluate(data=data, predict_fn=calls, scorers=list(scorers), model_id=request["model_id"])
        rows = _rows(mlflow, request["experiment_id"], run_id, records, names, calls)
        lost.raise_if_any()
    return rows, result.metrics


def _marking(run_id: str) -> Callable[[Any], None]:
    """Has each span say that it is an evaluation's.

    To Unity Catalog spans are sent as they end, before what is said of the trace: killed in between, only spans would
    be there, and they would look like a user's.
    """

    def mark(span: Any) -> None:
        span.set_attribute(marks.EVALUATION, run_id)

    return mark


class _Predictions:
    """The agent as `predict_fn`: notes which trace answered which inputs and where the agent failed."""

    def __init__(self, mlflow: Any, model: Any, rows: int) -> None:
        self._mlflow, self._model, self._rows, self._done = mlflow, model, rows, 0
        self._lock = threading.Lock()
        task = str((model.metadata.metadata or {}).get("task") or "")
        self._traces_itself = task == "agent/v1/responses"  # MLflow traces predict of a ResponsesAgent.
        self.traces: dict[str, str] = {}
        self.failures: dict[str, str] = {}

    def __call__(self, /, **inputs: Any) -> Any:
        key, before = canonical(inputs), self._last_trace()
        try:
            if self._traces_itself:
                return self._model.predict(inputs)
            with self._mlflow.start_span("predict", span_type="AGENT") as span:
                span.set_inputs(inputs)
                answer = self._model.predict(inputs)
                span.set_outputs(answer)
                return answer
        except Exception as error:  # The agent's code may raise anything; MLflow notes it on the row.
            self.failures[key] = marks.shortened(f"the agent failed: {type(error).__name__}: {error}", 500)
            if self._last_trace() == before:
                with self._mlflow.start_span("predict", span_type="AGENT") as span:
                    span.set_inputs(inputs)
                    raise
            raise
        finally:
            if self._last_trace() != before:
                self.traces[key] = self._last_trace() or ""
            self._count()

    def _last_trace(self) -> str | None:
        return self._mlflow.get_last_active_trace_id(thread_local=True)

    def _count(self) -> None:
        with self._lock:
            self._done += 1
            if self._done == self._rows or self._done % max(1, self._rows // 20) == 0:
                print(f"\nprogress: evaluated {self._done} of {self._rows} rows", flush=True)


class _LostWrites(logging.Handler):
    """Hears MLflow warn that it could not store an assessment: to the rows that would look like 'not applicable'."""

    _HARNESS = "mlflow.genai.evaluation.harness"

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(("Failed to log trace and assessments", "Failed to refresh trace")):
            self._heard.append(record.getMessage())

    def __enter__(self) -> "_LostWrites":
        logger = logging.getLogger(self._HARNESS)
        logger.setLevel(min(logger.getEffectiveLevel(), logging.WARNING))
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(self._HARNESS).removeHandler(self)

    def raise_if_any(self) -> None:
        if self._heard:
            raise RuntimeError(f"MLflow stored {len(self._heard)} rows incompletely: {self._heard[0]}")


def _rows(
    mlflow: Any,
    experiment_id: str,
    run_id: str,
    records: Sequence[Row],
    names: Sequence[str],
    calls: _Predictions,
) -> list[dict[str, Any]]:
    """Every record with its trace and what each scorer said of it, in the records' order."""
    wanted = {trace: [] if key in calls.failures else names for key, trace in calls.traces.items() if trace}
    traces = stored_traces(mlflow, experiment_id, run_id, wanted)
    rows = []
    for record in records:
        info = traces.get(calls.traces.get(record.key, ""))
        failure = calls.failures.get(record.key, "")
        if info is None:
            raise RuntimeError(f"the evaluation left no trace of a row: {record.key[:200]}")
        said = [one.to_dictionary() for one in _of_run(info, run_id)]
        scores = {
            name: {"value": None, "error": failure, "rationale": ""}
            if failure
            else score_of([item for item in said if item["assessment_name"] == name and "feedback" in item])
            for name in names
        }
        rows.append(
            {
                "inputs": dict(record.inputs),
                "expectations": dict(record.expectations),
                "trace_id": info.trace_id,
                "state": str(getattr(info.state, "value", info.state)),
                "agent_error": failure,
                "scores": scores,
            }
        )
    return rows


def stored_traces(mlflow: Any, experiment_id: str, run_id: str, wanted: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Trace infos of the run by id. `wanted`: every trace of it, and the scorers that may have said something of it.

    What is written to Unity Catalog can be read some seconds later, and a search by experiment may leave it out. So
    a trace there that lacks a scorer is asked for again, by its id: else it would look like 'not applicable'.
    """
    found = mlflow.search_traces(locations=[experiment_id], run_id=run_id, include_spans=False, return_type="list")
    infos = {trace.info.trace_id: trace.info for trace in found}
    client = mlflow.MlflowClient()
    for seconds in LATE_SECONDS:
        late = [trace_id for trace_id, names in wanted.items() if _lacks(trace_id, infos.get(trace_id), run_id, names)]
        if not late:
            break
        time.sleep(seconds)
        for trace_id in late:
            infos[trace_id] = client.get_trace(trace_id).info
    return infos


def _lacks(trace_id: str, info: Any, run_id: str, scorers: Sequence[str]) -> bool:
    if info is None or not trace_id.startswith("trace:/"):
        return info is None
    return bool(set(scorers) - {one.name for one in _of_run(info, run_id)})


def _of_run(info: Any, run_id: str) -> list[Any]:
    """Assessments this run made of a trace."""
    return [one for one in info.assessments if (one.metadata or {}).get("mlflow.assessment.sourceRunId") == run_id]


def write_evaluation(
    mlflow: Any,
    client: "MlflowClient",
    run_id: str,
    evaluation: dict[str, Any],
    logged: Mapping[str, float],
    dataset: Any = None,
) -> None:
    """Write `evaluation.json`, the readable table and the metrics MLflow did not log (`dataset` is MLflow's, if any).

    A file can be changed by whoever may write to the run; the digest of this one is a parameter, which nobody can
    write twice. Raises `KeyError` when `evaluation` is not one.
    """
    metrics = further_metrics(evaluation, logged)
    mlflow.log_metrics(metrics, run_id=run_id, model_id=evaluation["model_id"], dataset=dataset)
    mlflow.log_table(readable_table(evaluation), ROWS_FILE, run_id=run_id)
    kept = json.loads(json.dumps(evaluation, default=str))
    client.log_param(run_id, marks.CONTENT, content_digest(kept))
    client.log_dict(run_id, kept, EVALUATION_FILE)
    evidence_of(evaluation)
