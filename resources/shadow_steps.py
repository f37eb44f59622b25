"""The worker's side of a replay: a version answers recorded requests, and the scorers look at both answers.

Lives here: running the replay, and scoring what the champion answered then where nobody had.
Add here: a step of a replay that runs the agent's or the scorers' code.
Not here: how an evaluation runs (`evaluation_steps.py`), which requests (`lifecycle_assets/release/sample.py`).

Neither side is given expectations: the version's answer has none, so the champion's is scored without them too.
Recorded text is only data here: it becomes the inputs of the agent, as it was when users sent it.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lifecycle_assets.records import DatasetRecord
from lifecycle_assets.refused import Refused
from resources.dataset_rows import Row
from resources.evaluation_steps import SETTINGS, evaluated_rows, evaluation_run, write_evaluation
from resources.mlflow_store import open_client, open_mlflow
from resources.model_steps import rebuild_agent
from resources.platform import Platform
from resources.scorer_outcome import score
from resources.scorer_source import declared_scorers, load_declared

if TYPE_CHECKING:
    from mlflow import MlflowClient

_GONE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


def shadow(request: Mapping[str, Any]) -> dict[str, Any]:
    """Replay the requests and return `{"run_id": ..., "calls": {scorer: number}}`; `evaluation.json` holds the rest.

    Raises `Refused` when the scorers are no longer those asked for, or when no recorded trace is left to compare
    with. Killed anywhere and repeated, one run is complete: the mark comes last.
    """
    os.environ.update(SETTINGS)
    agent, platform = rebuild_agent(request), Platform.from_env()
    mlflow, client = open_mlflow(platform), open_client(platform)
    declared = [one for one in declared_scorers(agent, platform.environment) if one.name in request["scorers"]]
    if {one.name: one.digest for one in declared} != dict(request["scorers"]):
        raise Refused(f"{agent.name}: the scorers changed while the replay started; run it again.")
    mlflow.set_experiment(experiment_id=request["experiment_id"])
    scorers = [load_declared(agent, one) for one in declared]
    model = mlflow.pyfunc.load_model(f"models:/{request['model_id']}")
    with evaluation_run(mlflow, client, platform, request, f"{agent.name}: shadow") as run_id:
        champion, calls = _champions_side(client, request["requests"], scorers)
        kept = [one for one in request["requests"] if one["trace_id"] in champion]
        if not kept:
            raise Refused(
                f"{agent.name}: MLflow has none of the {len(request['requests'])} recorded traces any more, and "
                "nobody had scored them: wait for new requests, or score traces before they are deleted."
            )
        records = [Row(one["inputs"], {}, trace_id=one["trace_id"]) for one in kept]
        data = [{"inputs": one["inputs"]} for one in kept]
        rows, logged = evaluated_rows(mlflow, model, request, run_id, data, records, scorers)
        about = DatasetRecord("", f"{agent.name}: recorded requests", request["sample"], len(kept))
        evaluation = {
            "model_id": request["model_id"],
            "run_id": run_id,
            "dataset": about.to_json(),
            "scorers": dict(request["scorers"]),
            "rows": [
                {
                    **row,
                    "recorded_trace_id": one["trace_id"],
                    "champion_failed": one["failed"],
                    "champion": champion[one["trace_id"]],
                }
                for row, one in zip(rows, kept, strict=True)
            ],
            "gone": [one["trace_id"] for one in request["requests"] if one["trace_id"] not in champion],
        }
        write_evaluation(mlflow, client, run_id, evaluation, logged)
    return {"run_id": run_id, "calls": {scorer.name: calls[scorer.name] + len(kept) for scorer in scorers}}


def _champions_side(
    client: "MlflowClient", requests: Sequence[Mapping[str, Any]], scorers: Sequence[Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """What each scorer says of each recorded trace, by trace and scorer, and how often each had to be called.

    A trace that is gone from MLflow and was not scored by every scorer is left out.
    """
    said: dict[str, dict[str, Any]] = {}
    calls = dict.fromkeys((scorer.name for scorer in scorers), 0)
    for done, one in enumerate(requests, start=1):
        known = {name: {"value": value, "error": ""} for name, value in one["scores"].items()}
        missing = [scorer for scorer in scorers if scorer.name not in known]
        trace = _recorded(client, one["trace_id"]) if missing else None
        if missing and trace is None:
            continue
        for scorer in missing:
            outcome = score(scorer, trace, with_expectations=False)
            known[scorer.name] = {"value": outcome.value, "error": outcome.error}
            calls[scorer.name] += 1
        said[one["trace_id"]] = known
        if done % 100 == 0 or done == len(requests):
            print(f"\nprogress: read {done} of {len(requests)} recorded answers", flush=True)
    return said, calls


def _recorded(client: "MlflowClient", trace_id: str) -> Any:
    """The recorded trace with its spans; None when it is gone from MLflow."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_trace(trace_id)
    except MlflowException as error:
        if error.error_code not in _GONE:
            raise
        return None
