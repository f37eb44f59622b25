"""Fixtures every test may use: a platform of its own in a temporary folder.

Lives here: fixtures without which real MLflow would cost two seconds a test.
Add here: a fixture that three test modules need; a module that takes a minute.
Not here: builders (`building.py`).
"""

import fcntl
import os
import shutil
from pathlib import Path

import dagster as dg  # noqa: F401 Before pytest-xdist starts its processes: the first import compiles it, for all.
import pytest

from resources.mlflow_store import open_client
from resources.platform import Platform

LONGEST_FIRST = (
    "tests/cli/test_state.py",
    "tests/databricks/test_parity.py",
    "tests/test_moves.py",
    "tests/databricks/test_ticks.py",
    "tests/lifecycle/",
    "tests/sensors/test_ticks.py",
    "tests/ui/",
    "tests/test_benchmarks.py",
    "tests/cli/",
    "tests/agents/",
    "tests/sensors/",
    "tests/resources/",
    "tests/databricks/",
)
"""Modules, and folders of modules, that take longest or wait longest. What follows takes a few seconds each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A module goes to one process of pytest-xdist as a whole: those begun first must not be the short ones."""

    def place(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(LONGEST_FIRST) if item.nodeid.startswith(name)), len(LONGEST_FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite tracking store with its schema in place: migrating takes 2 s, copying takes milliseconds.

    Made once for all processes of pytest-xdist: the others wait for the first, and find MLflow compiled.
    """
    home = tmp_path_factory.mktemp("store")
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with (shared / "migrated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = shared / "migrated.db"
        if not made.exists():
            open_client(Platform.from_env({"LIFECYCLE_HOME": str(home)})).search_experiments()
            shutil.copy(home / "mlflow.db", made)
    shutil.copy(made, home / "mlflow.db")
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
