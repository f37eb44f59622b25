"""Fixtures every test may use: a platform of its own in a temporary folder.

Lives here: fixtures without which real MLflow would cost two seconds a test.
Add here: a fixture that three test modules need.
Not here: builders (`building.py`).
"""

import os
import shutil
from pathlib import Path

import pytest

from resources.mlflow_store import open_client
from resources.platform import Platform


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite tracking store with its schema in place: migrating takes 2 s, copying takes milliseconds."""
    home = tmp_path_factory.mktemp("store")
    platform = Platform.from_env({"LIFECYCLE_HOME": str(home)})
    open_client(platform).search_experiments()
    return home / "mlflow.db"


@pytest.fixture
def platform(migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A local platform of its own; the environment variables name it too, so that child processes use it."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated_store, home / "mlflow.db")
    for variable in [name for name in os.environ if name.startswith(("LIFECYCLE_", "DAGSTER_HOME"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("LIFECYCLE_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    return Platform.from_env()
