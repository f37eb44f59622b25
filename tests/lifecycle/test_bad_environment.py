"""Faults of the environment and of an agent's code: one sentence with a remedy, and nothing half-done."""

import os
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from lifecycle_assets.component import agent_definitions
from lifecycle_assets.spec_file import Agent
from resources.census import count
from resources.model_registry import MlflowModelRegistry
from resources.platform import Platform
from tests.building import AGENT_PY, make_agent


def refusal(agent: Agent, *assets: str) -> tuple[str, str, set[str]]:
    """Run a release (or some of its assets) that must fail: the step, its sentence, and the checks that failed."""
    outcome = (
        agent_definitions(agent)
        .resolve_job_def(f"{agent.name}_release")
        .execute_in_process(
            instance=dg.DagsterInstance.ephemeral(),
            asset_selection=[dg.AssetKey([agent.name, name]) for name in assets] or None,
            raise_on_error=False,
        )
    )
    assert not outcome.success
    red = {e.check_name for e in outcome.get_asset_check_evaluations() if not e.passed}
    for event in outcome.all_events:
        if event.is_step_failure and event.step_failure_data.user_failure_data:
            return str(event.step_key), str(event.step_failure_data.user_failure_data.description), red
    raise AssertionError(f"no step refused: {[e.message for e in outcome.all_events if e.is_step_failure]}")


@pytest.mark.parametrize(
    ("source", "check", "words"),
    [
        (AGENT_PY.replace("mlflow.models.set_model(TinyAgent())", ""), "set_model_present", "set_model"),
        (AGENT_PY.replace("def answer(self", "def answer(self,,"), None, "agent.py"),
        (
            AGENT_PY.replace('if "explode" in question', "if True"),
            "smoke_prediction",
            "the agent exploded",
        ),
    ],
    ids=["no set_model", "syntax error", "predict raises"],
)
def test_a_broken_agent_is_one_sentence_and_leaves_no_model(
    platform: Platform, tmp_path: Path, source: str, check: str | None, words: str
):
    agent = make_agent(tmp_path, agent_py=source)
    step, sentence, red = refusal(agent, "logged_model")
    assert step == "tiny__logged_model"
    assert words in sentence
    assert "\n" not in sentence
    assert (check is None) or (check in red)
    assert count(platform, agent).logged_models == 0
    assert MlflowModelRegistry(platform).versions(agent.spec.model_name) == []


def test_an_empty_dataset_names_the_file(platform: Platform, tmp_path: Path):
    step, sentence, _ = refusal(make_agent(tmp_path, dataset=""), "eval_dataset")
    assert step == "tiny__eval_dataset"
    assert "eval_dataset.jsonl: holds no record" in sentence


def test_an_unreachable_tracking_server_is_named(platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    _, sentence, _ = refusal(make_agent(tmp_path))
    assert f"http://127.0.0.1:{port}: the server does not answer; start it" in sentence
    assert "secret" not in sentence


def test_a_home_that_cannot_be_written_is_named(platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LIFECYCLE_HOME", str(tmp_path / "file" / "home"))
    _, sentence, _ = refusal(make_agent(tmp_path))
    assert "LIFECYCLE_HOME" in sentence
    assert "cannot be written" in sentence


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of 1 MB, mounted with the given options."""
    if os.geteuid():
        pytest.skip("mounting a file system needs root")
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
        return place

    yield mount
    subprocess.run(["umount", str(place)], check=False)


@pytest.mark.parametrize("options", ["size=1m", "size=1m,ro"], ids=["full", "read-only"])
def test_a_full_or_read_only_disk_is_named(
    platform: Platform,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_disk: Callable[[str], Path],
    options: str,
):
    disk = tiny_disk(options)
    if not options.endswith("ro"):
        (disk / "filler").write_bytes(b"x" * (1024 * 1024 - 8192))
    monkeypatch.setenv("LIFECYCLE_HOME", str(disk / "home"))
    _, sentence, _ = refusal(make_agent(tmp_path))
    assert "cannot be written" in sentence
    assert "free space" in sentence


def test_a_locked_database_is_named(platform: Platform, tmp_path: Path):
    agent = make_agent(tmp_path)
    lock = sqlite3.connect(platform.home / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        _, sentence, _ = refusal(agent)
    finally:
        lock.close()
    assert "mlflow.db: the SQLite file is locked by another process" in sentence
    assert count(platform, agent).logged_models == 0
