"""Fixtures of the tests against the emulated workspace.

Lives here: a workspace a test, and the environment in which the clients talk to it.
Add here: a fixture two of these modules need. Not here: the workspace (`tests/workspace/`).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.spec_file import Agent
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from tests.workspace.app import Workspace
from tests.workspace.server import client_environment, served_workspace


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace of its own. A request it does not know fails the test."""
    with served_workspace() as served:
        point_clients(monkeypatch, served, tmp_path / "home")
        yield served
        forget_clients()
        assert not served.unknown, f"requests no part knows: {served.unknown}"


@pytest.fixture
def databricks(workspace: Workspace) -> Platform:
    """The platform of the workspace."""
    return Platform.from_env()


@pytest.fixture
def as_before(workspace: Workspace) -> Iterator[None]:
    """MLflow's global state is put back after steps a worker would do in a process of its own."""
    yield
    import mlflow
    from mlflow.tracking import fluent

    mlflow.tracing.reset()
    fluent._active_experiment_id = None
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACING_DESTINATION"):
        os.environ.pop(name, None)


def settle(platform: Platform, agent: Agent) -> dict[str, Any]:
    """What the worker does to give traces their place, in this process; a test of its own starts the worker."""
    from resources.databricks.tracing.tracing import settling_request
    from resources.databricks.tracing.tracing_steps import settle_traces

    return settle_traces(settling_request(platform, agent, experiment_id(platform, agent.spec.experiment)))


def point_clients(patch: pytest.MonkeyPatch, workspace: Workspace, home: Path) -> None:
    """Have clients of this process talk to this workspace, whatever other tests left in the environment."""
    for name in [name for name in os.environ if name.startswith(("LIFECYCLE_", "DATABRICKS_", "MLFLOW_"))]:
        patch.delenv(name)
    for name, value in client_environment(workspace).items():
        patch.setenv(name, value)
    patch.setenv("LIFECYCLE_HOME", str(home))
    patch.delenv("DAGSTER_HOME", raising=False)
    forget_clients()


def forget_clients() -> None:
    """Clients and ids that are cached a process: a test process meets many workspaces, a real one meets one."""
    from mlflow.utils import rest_utils

    from resources import mlflow_store
    from resources.databricks.workspace import open_workspace

    open_workspace.cache_clear()
    mlflow_store._experiment.cache_clear()
    for name in vars(rest_utils).values():
        if hasattr(name, "cache_clear"):
            name.cache_clear()
