"""Fixtures for the tests of the sample agents: a private MLflow, and the agent logged and loaded.

Add a fixture here when two test modules of this folder need it. Fixtures of the platform (assets,
sensors, resources) belong to the folders that mirror them.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pytest
import yaml

AGENT_DIR = Path(__file__).parents[2] / "lifecycle_assets" / "defs" / "docs_agent"
ENVIRONMENT = {
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
    "LIFECYCLE_ENVIRONMENT": "test",
}


@dataclass(frozen=True)
class LoggedAgent:
    """The agent as MLflow loaded it, and the id of its LoggedModel."""

    model: Any
    model_id: str
    uri: str

    def ask(self, question: str, **context: str) -> tuple[str, mlflow.entities.Trace]:
        """The answer's text and the recorded trace of one question."""
        request: dict[str, Any] = {"input": [{"role": "user", "content": question}]}
        if context:
            request["context"] = context
        reply = self.model.predict(request)
        trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
        return reply["output"][0]["content"][0]["text"], trace


def load_module(name: str, path: Path) -> ModuleType:
    """A module executed from its file, under a name of the test's choice."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_lines(name: str) -> list[dict[str, Any]]:
    """The records of one of the agent's JSON-lines files."""
    return [json.loads(line) for line in (AGENT_DIR / name).read_text("utf-8").splitlines()]


@pytest.fixture(scope="session")
def declared() -> dict[str, Any]:
    """The `agent` section of the agent's `defs.yaml`."""
    return yaml.safe_load((AGENT_DIR / "defs.yaml").read_text("utf-8"))["attributes"]["agent"]


@pytest.fixture(scope="session")
def passages() -> list[Any]:
    """The passages the agent answers from."""
    corpus = load_module("docs_agent_corpus_under_test", AGENT_DIR / "docs_agent_corpus.py")
    cutter = load_module("docs_agent_passages_under_test", AGENT_DIR / "docs_agent_passages.py")
    return cutter.cut(corpus.load_texts())


@pytest.fixture(scope="session")
def scorers() -> ModuleType:
    """The agent's scorer catalogue."""
    return load_module("docs_agent_scorers_under_test", AGENT_DIR / "scorers.py")


@pytest.fixture(scope="module")
def private_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking store and an experiment of their own, named by the environment only."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("DOCS_AGENT_MODEL", raising=False)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        location = (folder / "artifacts").as_uri()
        experiment_id = mlflow.create_experiment("docs_agent", artifact_location=location)
        patch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
        # Another module of this process may have left an active experiment of another store.
        mlflow.set_experiment(experiment_id=experiment_id)
        yield experiment_id
        mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def log_agent(private_mlflow: str, declared: dict[str, Any]) -> Callable[..., LoggedAgent]:
    """Logs the agent as the platform does, from `folder` with `config` changed, and loads it."""

    def log(folder: Path = AGENT_DIR, **config: Any) -> LoggedAgent:
        info = mlflow.pyfunc.log_model(
            name="docs_agent",
            python_model=str(folder / declared["path"]),
            code_paths=[str(folder / name) for name in declared["code_paths"]],
            model_config={**declared["config"], **config},
            pip_requirements=declared["pip_requirements"],
            input_example=declared["input_example"],
        )
        model = mlflow.pyfunc.load_model(info.model_uri)
        return LoggedAgent(model, info.model_id, info.model_uri)

    return log


@pytest.fixture(scope="module")
def agent(log_agent: Callable[..., LoggedAgent]) -> LoggedAgent:
    """The agent, logged with the configuration of `defs.yaml` and loaded."""
    return log_agent()
