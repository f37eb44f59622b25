"""A real state for the commands: the small agent released, served, asked, monitored and reviewed, once.

Lives here: building that state, giving it to tests by environment, running commands.
Add here: a step of the life a command shows.
Not here: assertions.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result

from lifecycle_assets.cli.main import main
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.home import open_instance, prepare_home
from lifecycle_assets.spec_file import Agent
from resources.labeling_desk import MlflowLabelingDesk
from resources.mlflow_store import open_mlflow
from resources.platform import Platform
from tests.building import ATTRIBUTES, make_agent

ROOT = Path(__file__).parents[2]
HOSTILE = "\x1b[2J[bold red]boom[/bold red] \u202edesrever"
"""Text that clears a terminal, colours it and turns it around, where it is obeyed."""

Run = Callable[..., Result]


@dataclass(frozen=True)
class Built:
    """The state: where it is, and what happened while it was made."""

    home: Path
    defs: Path
    agent: Agent
    serve_line: dict[str, Any]
    serve_exit: int
    answers: list[dict[str, Any]]
    left_over: list[str]
    trace_ids: list[str]


def _clear(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("LIFECYCLE_", "DAGSTER_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def built(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The small agent's whole life, by its own jobs and `lifecycle serve`."""
    folder = tmp_path_factory.mktemp("cli")
    home = folder / "home"
    home.mkdir()
    shutil.copy(migrated_store, home / "mlflow.db")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        _clear(patch)
        patch.setenv("LIFECYCLE_HOME", str(home))
        patch.setenv("LIFECYCLE_DEFS", str(folder / "defs"))
        patch.setenv("DAGSTER_HOME", str(home / "dagster"))
        labeling = {"reviewers": ["ann"]}
        agent = make_agent(folder / "defs", attributes={"labeling": {**ATTRIBUTES["labeling"], **labeling}})
        platform = Platform.from_env()
        prepare_home(platform)
        _job(agent, "release")
        line, code, answers, left_over = _serve_and_ask()
        traces = (
            open_mlflow(platform)
            .MlflowClient()
            .search_traces(
                locations=[_experiment(platform, agent)],
                filter_string="metadata.mlflow.sourceRun IS NULL",
                include_spans=False,
            )
        )
        ids = [trace.info.trace_id for trace in traces]
        mlflow = open_mlflow(platform)
        mlflow.log_feedback(trace_id=ids[0], name="odd", value=HOSTILE, rationale=HOSTILE)
        _job(agent, "monitor", partition_key=f"{datetime.now(UTC):%Y-%m-%d}")
        _job(agent, "upkeep")
        op = "tiny__labeling_session"
        _job(agent, "labeling", run_config={"ops": {op: {"config": {"trace_ids": ids[:2], "name": "first look"}}}})
        desk = MlflowLabelingDesk(platform)
        session = mlflow.genai.review_queues.get_review_queue(
            name="first look", experiment_id=_experiment(platform, agent)
        )
        desk.review(agent, session.queue_id, ids[0], {"correct": True}, reviewer="ann")
        _job(agent, "labeling", run_config={"ops": {op: {"config": {"name": "first look", "trace_ids": ids[:2]}}}})
        yield Built(home, folder / "defs", agent, line, code, answers, left_over, ids)


def _experiment(platform: Platform, agent: Agent) -> str:
    found = open_mlflow(platform).MlflowClient().get_experiment_by_name(agent.spec.experiment)
    assert found is not None
    return found.experiment_id


def _job(agent: Agent, name: str, **options: Any) -> None:
    instance = open_instance(Platform.from_env())
    job = agent_definitions(agent).resolve_job_def(f"{agent.name}_{name}")
    assert job.execute_in_process(instance=instance, **options).success


def _serve_and_ask() -> tuple[dict[str, Any], int, list[dict[str, Any]], list[str]]:
    """Serve the champion, ask it, end it as a process manager does; returns what is left of it too."""
    command = [sys.executable, "-m", "lifecycle_assets.cli.main", "serve", "tiny", "--port", "0", "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        line = json.loads(process.stdout.readline())
        answers = []
        for question in ("one", HOSTILE, "three", "please explode"):
            body = {
                "input": [{"role": "user", "content": question}],
                "context": {"conversation_id": HOSTILE, "user_id": "me"},
            }
            answer = requests.post(f"{line['url']}/invocations", json=body, timeout=60)
            answers.append({"code": answer.status_code, "body": answer.text})
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        process.stdout.close()
    return line, code, answers, _processes_naming(line["url"].rpartition(":")[2])


def _processes_naming(port: str) -> list[str]:
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if "uvicorn" in line and f"--port {port} " in line]


@pytest.fixture
def state(built: Built, monkeypatch: pytest.MonkeyPatch) -> Iterator[Built]:
    """The built state, named by the environment; tests only read it."""
    yield from _named(built, built.home, monkeypatch)


@pytest.fixture
def copied(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Built]:
    """A copy of the built state, which a test may change."""
    home = tmp_path / "home"
    shutil.copytree(built.home, home)
    shutil.copytree(built.defs, tmp_path / "defs")
    found = Built(**{**built.__dict__, "home": home, "defs": tmp_path / "defs"})
    yield from _named(found, home, monkeypatch)


def _named(found: Built, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Built]:
    _clear(monkeypatch)
    monkeypatch.setenv("LIFECYCLE_HOME", str(home))
    monkeypatch.setenv("LIFECYCLE_DEFS", str(found.defs))
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    yield found


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which nothing has happened, with two small agents declared beside it."""
    _clear(monkeypatch)
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("LIFECYCLE_HOME", str(tmp_path / "nothing" / "here"))
    monkeypatch.setenv("LIFECYCLE_DEFS", str(tmp_path / "defs"))
    make_agent(tmp_path / "defs")
    make_agent(tmp_path / "defs", "other")
    return tmp_path


@pytest.fixture
def run() -> Run:
    """Run `lifecycle` in this process."""

    def call(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(main, arguments, **options)

    return call
