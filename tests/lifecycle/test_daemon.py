"""The whole in its own processes: `dagster dev` with its daemon on a workspace of two code locations.

One location holds the small agent, the other one a wrong `defs.yaml`. Runs go through GraphQL, the run queue, the code
server and the run launcher, as they do for a person who clicks.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from tests.building import World, day_of, write_agent

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
LOCATION = """
from pathlib import Path

import dagster as dg

from lifecycle_assets.load_error import one_sentence


@dg.definitions
def defs() -> dg.Definitions:
    with one_sentence():
        return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
PYPROJECT = '[tool.dg]\ndirectory_type = "project"\n\n[tool.dg.project]\nroot_module = "{name}"\n'
SENTENCE = "attributes.archive.settle_minute is not a known field; did you mean 'settle_minutes'?"


def wait_for(ask: Callable[[], T | None], what: str, seconds: float = 90) -> T:
    """The first answer that is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = ask()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds} s")


class Dagster:
    """A running `dagster dev`, asked over GraphQL."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url, self.process, self.log = url, process, log

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found["errors"]
        return found["data"]

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return bool(self.ask("{ version }"))
        except OSError:
            return False

    def launch(self, job: str, **tags: str) -> str:
        """Launch a job as the launchpad does; returns the run id."""
        mutation = """mutation Go($params: ExecutionParams!) { launchRun(executionParams: $params) {
            __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
        where = {"repositoryLocationName": "good", "repositoryName": "__repository__", "jobName": job}
        params = {
            "selector": where,
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        launched = self.ask(mutation, params=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return launched["run"]["runId"]

    def runs(self, job: str) -> list[dict[str, Any]]:
        query = """query Runs($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs { results {
            runId status tags { key value } } } } }"""
        found = self.ask(query, filter={"pipelineName": job})["runsOrError"]["results"]
        return [{**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]

    def succeeds(self, job: str, run_id: str) -> bool:
        (status,) = [run["status"] for run in self.runs(job) if run["runId"] == run_id]
        assert status not in ("FAILURE", "CANCELED"), self.log.read_text()[-5000:]
        return status == "SUCCESS"


def processes_on(home: Path) -> list[int]:
    """Living processes that were started for this world: `dagster dev`, its servers, its runs and their workers."""
    mark, found = f"LIFECYCLE_HOME={home}\0".encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environ.read_bytes() + b"\0":
                found.append(int(environ.parent.name))
    return [pid for pid in found if pid != os.getpid()]


@contextmanager
def dagster_dev(workspace: Path, home: Path) -> Iterator[Dagster]:
    """`dagster dev` on a free port; afterwards none of its processes is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(workspace), "-h", "127.0.0.1", "-p", str(port)]
    log = workspace.parent / "dagster.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=workspace.parent,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{workspace.parent}"},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    dagster = Dagster(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_for(dagster.is_up, "dagster dev answers")
        yield dagster
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        left = processes_on(home)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not processes_on(home), "every process of dagster dev has ended", 10)


def write_location(folder: Path, name: str) -> dict[str, Any]:
    """A Dagster project with an empty code location, and its entry of the workspace."""
    package = folder / name / name
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "definitions.py").write_text(LOCATION)
    (folder / name / "pyproject.toml").write_text(PYPROJECT.format(name=name))
    module = {"module_name": f"{name}.definitions", "working_directory": str(folder / name), "location_name": name}
    return {"python_module": module}


@pytest.fixture
def workspace(world: World, tmp_path: Path) -> Path:
    """The workspace: `good` holds the agent of the released world, `wrong` one whose declaration has a typing error."""
    entries = [write_location(tmp_path, name) for name in ("good", "wrong")]
    (tmp_path / "good" / "good" / "defs").mkdir()
    (tmp_path / "good" / "good" / "defs" / "tiny").symlink_to(world.agent.folder)
    write_agent(tmp_path / "wrong" / "wrong" / "defs", "typo", attributes={"archive": {"settle_minute": 1}})
    file = tmp_path / "workspace.yaml"
    file.write_text(yaml.safe_dump({"load_from": entries}))
    return file


WORKSPACE = """{ workspaceOrError { __typename ... on Workspace { locationEntries { name locationOrLoadError {
    __typename
    ... on RepositoryLocation { repositories { jobs { name }
        sensors { name sensorState { status } } schedules { name scheduleState { status } } } }
    ... on PythonError { message stack } } } } } }"""


@pytest.mark.timeout(420)
def test_from_a_click_to_a_run_the_daemon_starts_by_itself(world: World, workspace: Path):
    before = len(world.rows("SELECT * FROM promotions"))
    with dagster_dev(workspace, world.platform.home) as dagster:
        entries = dagster.ask(WORKSPACE)["workspaceOrError"]["locationEntries"]
        loaded = {entry["name"]: entry["locationOrLoadError"] for entry in entries}
        (repository,) = loaded["good"]["repositories"]
        sensors = {sensor["name"]: sensor["sensorState"]["status"] for sensor in repository["sensors"]}
        assert sensors == {
            f"tiny_{name}": "RUNNING"
            for name in (
                "alert_sensor",
                "approval_sensor",
                "champion_drift_sensor",
                "label_sync_sensor",
                "labeling_session_sensor",
                "labels_landed_sensor",
                "scorer_backfill_sensor",
            )
        } | {"tiny_rollback_sensor": "STOPPED"}
        schedules = {schedule["name"]: schedule["scheduleState"]["status"] for schedule in repository["schedules"]}
        assert schedules == {
            f"tiny_{name}": "RUNNING" for name in ("monitor_hourly", "labeling_weekly", "upkeep_daily")
        }

        wrong = loaded["wrong"]
        assert wrong["__typename"] == "PythonError"
        assert SENTENCE in wrong["message"]
        assert "Traceback" not in wrong["message"]
        assert len(wrong["message"].strip().splitlines()) == 1
        assert wrong["stack"] == []

        release = dagster.launch("tiny_release")
        monitor = dagster.launch("tiny_monitor", **{"dagster/partition": day_of(1)})
        wait_for(lambda: dagster.succeeds("tiny_release", release), "the release succeeds")
        wait_for(lambda: dagster.succeeds("tiny_monitor", monitor), "the day is monitored")
        assert len(world.rows("SELECT * FROM promotions")) == before, "an unchanged agent moves nothing"
        assert dagster.runs("tiny_scorer_backfill") == []

        world.edit("scorers.py", "== spans[0].outputs.lower()", "!= spans[0].outputs.upper()")
        done = wait_for(
            lambda: finished(dagster), "the daemon's sensor has both days scored again, the newest first", 300
        )
        assert {run["tags"]["dagster/partition"] for run in done} == {day_of(1), day_of(2)}
        assert {run["tags"]["dagster/sensor_name"] for run in done} == {"tiny_scorer_backfill_sensor"}
        (state,) = [
            state
            for state in world.instance.all_instigator_state()
            if state.name == "tiny_scorer_backfill_sensor" and state.instigator_data
        ]
        again = world.tick("scorer_backfill_sensor", state.instigator_data.cursor)
        assert not again.run_requests, "from the daemon's own cursor nothing is asked for again"
        assert len(dagster.runs("tiny_scorer_backfill")) == 2
    versions = world.rows("SELECT DISTINCT scorer_version AS v FROM assessments WHERE name = 'local_tiny_shouted'")
    assert {row["v"] for row in versions} == {"1", "2"}


def finished(dagster: Dagster) -> list[dict[str, Any]] | None:
    """The backfill's runs when both have succeeded."""
    runs = dagster.runs("tiny_scorer_backfill")
    assert all(run["status"] not in ("FAILURE", "CANCELED") for run in runs), dagster.log.read_text()[-5000:]
    return runs if [run["status"] for run in runs] == ["SUCCESS", "SUCCESS"] else None
