"""The worker's side of the model registry: steps that load an agent's code.

Lives here: logging an agent as a model with its smoke prediction, predicting with a model.
Add here: a step of the registry that runs the agent's code.
Not here: what the parent can do without that code (`model_registry.py`).
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import AgentSpec, Resource
from lifecycle_assets.spec_file import Agent
from resources import run_marks as marks
from resources.agent_faults import check_source, fault_of_model, refusal_of_prediction, refusal_when_logging
from resources.explain import explain
from resources.mlflow_store import open_client, open_mlflow
from resources.platform import Platform

if TYPE_CHECKING:
    from mlflow import MlflowClient

CONFIG_FILE = "agent_config.json"
"""Artifact of the logged model: the agent's configuration as declared."""


def rebuild_agent(request: Mapping[str, Any]) -> Agent:
    """The agent a request is about."""
    return Agent(AgentSpec.model_validate(request["spec"]), Path(request["folder"]))


def agent_request(agent: Agent) -> dict[str, Any]:
    """The part of a request from which a worker rebuilds the agent; the worker has a working folder of its own."""
    return {"folder": str(agent.folder.resolve()), "spec": agent.spec.model_dump(mode="json", exclude_unset=True)}


def log_model(request: Mapping[str, Any]) -> dict[str, Any]:
    """Log the agent, load it back, predict once, and only then mark the model complete.

    Returns `{"model_id": ...}`. Raises `Refused` when the agent has no `set_model`, does not import or fails the
    prediction; model and run of a failure are discarded. Safe to repeat: an incomplete model is never found again.
    """
    agent, platform = rebuild_agent(request), Platform.from_env()
    mlflow, client = open_mlflow(platform), open_client(platform)
    check_source(agent)
    mlflow.set_experiment(experiment_id=request["experiment_id"])
    run_id = marks.open_run(client, request["experiment_id"], f"{agent.name}: logged model", request["run_tags"])
    try:
        with mlflow.start_run(run_id=run_id):
            _report("logging the model")
            info = _logged(mlflow, client, agent, {**request["model_tags"], marks.LOGGED_BY: run_id})
            # Not before: log_model traces nothing by itself, and waits for ever once tracing is off (mlflow 3.17.2).
            mlflow.tracing.disable()
            _report("smoke prediction")
            facts = _smoke(mlflow, agent, info.model_id)
            client.set_logged_model_tags(info.model_id, facts)
            client.set_logged_model_tags(info.model_id, {marks.COMPLETE: "true"})
        # A client that gets no answer asks again, and the server makes a second model.
        _drop_incomplete(client, request["experiment_id"], run_id)
    except BaseException as error:
        discard_run(client, request["experiment_id"], run_id, "FAILED")
        refusal = error if isinstance(error, Refused) else refusal_when_logging(error, agent)
        if refusal is None:
            raise
        client.set_tag(run_id, marks.REFUSAL, marks.shortened(str(refusal), 1000))
        raise refusal from error
    return {"model_id": info.model_id}


def predict(request: Mapping[str, Any]) -> dict[str, Any]:
    """Load `model_uri`, predict `input` with tracing off, and return `{"answer": ..., "seconds": ...}`.

    Raises `Refused` (check `loads_back`) when loading or predicting raises. Writes nothing.
    """
    mlflow = open_mlflow(Platform.from_env())
    mlflow.tracing.disable()
    try:
        model = mlflow.pyfunc.load_model(request["model_uri"])
        started = time.perf_counter()
        answer = model.predict(request["input"])
        seconds = time.perf_counter() - started
    except Exception as error:  # The agent's code may raise anything.
        if explain(error, "MLflow"):
            raise
        fault = fault_of_model(error)
        raise Refused(
            f"{request['model_uri']} does not load and predict: {fault.said}"
            f"{' at ' + fault.place if fault.place else ''}; correct the agent and release it again.",
            check="loads_back",
        ) from error
    return {"answer": marks.preview(answer), "seconds": seconds}


def discard_run(client: "MlflowClient", experiment_id: str, run_id: str, status: str) -> None:
    """Close a run as `status` and delete the models it left incomplete; a complete one makes it FINISHED."""
    complete = _drop_incomplete(client, experiment_id, run_id)
    client.set_terminated(run_id, "FINISHED" if complete else status)


def _drop_incomplete(client: "MlflowClient", experiment_id: str, run_id: str) -> bool:
    """Delete the models a run left incomplete; whether it has a complete one."""
    found = client.search_logged_models([experiment_id], marks.where_filter({marks.LOGGED_BY: run_id}))
    complete = [model for model in found if model.tags.get(marks.COMPLETE) == "true"]
    for model in found:
        if model not in complete:
            client.delete_logged_model(model.model_id)
    return bool(complete)


def _logged(mlflow: Any, client: "MlflowClient", agent: Agent, tags: Mapping[str, str]) -> Any:
    """Log the agent's file as a model of the active run, and the configuration beside it."""
    code = agent.spec.agent
    sys.path.append(str(agent.folder))
    try:
        info = mlflow.pyfunc.log_model(
            name=agent.name,
            python_model=str(agent.path(code.path)),
            code_paths=[str(agent.path(path)) for path in code.code_paths] or None,
            model_config=code.config or None,
            resources=[_resource(resource) for resource in code.resources] or None,
            input_example=code.input_example,
            pip_requirements=code.pip_requirements,
            tags=dict(tags),
        )
    finally:
        # From here on the model must find its modules in its own artifacts.
        sys.path.remove(str(agent.folder))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(f"{agent.folder}/"):
                del sys.modules[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG_FILE
        file.write_text(json.dumps(code.config, indent=2, ensure_ascii=False), encoding="utf-8")
        client.log_model_artifact(info.model_id, str(file))
    return info


def _smoke(mlflow: Any, agent: Agent, model_id: str) -> dict[str, str]:
    """Load the model from where it was logged and predict the input example; what was seen, as tags."""
    uri = f"models:/{model_id}"
    files = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    stored = json.loads((files / CONFIG_FILE).read_text(encoding="utf-8"))
    if stored != json.loads(json.dumps(agent.spec.agent.config)):
        raise Refused(f"{uri}: {CONFIG_FILE} reads back other than it was written; check the artifact store.")
    try:
        model = mlflow.pyfunc.load_model(uri)
        started = time.perf_counter()
        answer = model.predict(agent.spec.agent.input_example)
        seconds = time.perf_counter() - started
    except Exception as error:  # The agent's code may raise anything.
        if explain(error, "MLflow"):
            raise
        raise refusal_of_prediction(error, agent) from error
    requirements = (files / "requirements.txt").read_text(encoding="utf-8")
    facts = {
        "has_signature": model.metadata.signature is not None,
        "requirements": [line.strip() for line in requirements.splitlines() if line.strip()],
        "resources": len(agent.spec.agent.resources),
    }
    return {
        marks.FACTS: json.dumps(facts),
        marks.SMOKE: json.dumps({"answer": marks.preview(answer), "seconds": round(seconds, 4)}, ensure_ascii=False),
    }


def _resource(resource: Resource) -> Any:
    """The MLflow resource of a declared one."""
    import mlflow.models.resources as kinds

    makers: dict[str, tuple[type, str]] = {
        "serving_endpoint": (kinds.DatabricksServingEndpoint, "endpoint_name"),
        "vector_search_index": (kinds.DatabricksVectorSearchIndex, "index_name"),
        "function": (kinds.DatabricksFunction, "function_name"),
        "table": (kinds.DatabricksTable, "table_name"),
        "genie_space": (kinds.DatabricksGenieSpace, "genie_space_id"),
        "uc_connection": (kinds.DatabricksUCConnection, "connection_name"),
        "app": (kinds.DatabricksApp, "app_name"),
        "lakebase": (kinds.DatabricksLakebase, "database_instance_name"),
    }
    kind, argument = makers[resource.type]
    return kind(**{argument: resource.name})


def _report(line: str) -> None:
    print(f"\nprogress: {line}", flush=True)
