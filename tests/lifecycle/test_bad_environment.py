"""What a person reads when a server, a disk, a database or the agent itself is at fault: one sentence with a remedy."""

import os
import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

from lifecycle_assets.records import SessionRecord
from resources.platform import Platform
from tests.building import World, checks_of, day_of, refusal
from tests.lifecycle.test_release import made

RELEASE = ("eval_dataset", "logged_model", "eval_results", "uc_model_version", "champion_alias")
MONITOR = ("registered_scorers", "trace_scores", "archived_traces", "quality_metrics")


def step(world: World, asset: str) -> dg.ExecuteInProcessResult:
    """Materialize one asset by the job it belongs to."""
    job = "release" if asset in RELEASE else "monitor" if asset in MONITOR else "labeling"
    partition = day_of(1) if asset in MONITOR else None
    return world.run(job, asset_selection=[dg.AssetKey(["tiny", asset])], partition_key=partition)


def one_sentence(done: dg.ExecuteInProcessResult) -> str:
    """What the failed step said, which is one line and no stack."""
    assert not done.success
    said = refusal(done)
    assert "\n" not in said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("asset", [*RELEASE, *MONITOR, "human_labels"])
def test_a_server_that_does_not_answer_is_named_without_its_password(
    world: World, asset: str, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3cret@127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        before = world.materialized(asset)
        if asset == "human_labels":
            record = SessionRecord("s", "s", [], "", "", "").to_json()
            world.instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    dg.AssetKey(["tiny", "labeling_session"]),
                    metadata={"lifecycle/record": dg.MetadataValue.json(record)},
                )
            )
        said = one_sentence(step(world, asset))
    remedy = "the server does not answer; start it, or correct MLFLOW_TRACKING_URI, then run again."
    assert said == f"http://127.0.0.1:{port}: {remedy}"
    assert world.materialized(asset) == before


def test_a_home_that_cannot_be_made_is_named(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIFECYCLE_HOME", str(tmp_path / "file" / "home"))
    said = one_sentence(step(world, "eval_dataset"))
    assert said.startswith(f"LIFECYCLE_HOME {tmp_path}/file/home: cannot be written (Not a directory)")
    assert said.endswith("or set LIFECYCLE_HOME to a folder you can write.")


def test_a_full_disk_is_named_and_nothing_is_half_done(world: World):
    """`/dev/full` answers every write as a full disk does."""
    before = made(world)
    (world.platform.home / f".probe-{os.getpid()}-{threading.get_native_id()}").symlink_to("/dev/full")
    said = one_sentence(step(world, "eval_dataset"))
    assert said.startswith(f"LIFECYCLE_HOME {world.platform.home}: cannot be written (No space left on device)")
    assert "free space there" in said
    assert made(world) == before
    assert step(world, "eval_dataset").success


def test_threads_that_prove_the_same_home_at_once_do_not_disturb_each_other(platform: Platform):
    with ThreadPoolExecutor(8) as threads:
        proven = list(threads.map(lambda _: platform.prepare(), range(800)))
    assert len(proven) == 800
    assert not list(platform.home.glob(".probe-*"))


def test_a_table_that_cannot_be_written_is_named(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIFECYCLE_WAREHOUSE_URI", str(tmp_path / "file"))
    said = one_sentence(step(world, "archived_traces"))
    assert str(tmp_path / "file") in said


def test_a_database_another_process_holds_is_named_and_the_step_repeats_cleanly(world: World):
    before = made(world)
    world.edit("eval_dataset.jsonl", "question 0", "another question")  # There is something to write.
    file = world.platform.home / "mlflow.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        said = one_sentence(step(world, "eval_dataset"))
        other.execute("ROLLBACK")
    remedy = "stop that process or wait for it, then run again."
    assert said == f"sqlite:///{file}: the SQLite file is locked by another process; {remedy}"
    assert step(world, "eval_dataset").success
    assert made(world) == before


UNSET = ("mlflow.models.set_model(TinyAgent())", "TinyAgent()", "set_model_present", "set_model")
RAISES = ("question = request.input[-1].content", "question = request.put", "smoke_prediction", "predict raised")


@pytest.mark.parametrize(("old", "new", "check", "says"), [UNSET, RAISES], ids=["no set_model", "predict raises"])
def test_an_agent_that_cannot_work_reddens_its_check_and_becomes_no_model(
    world: World, old: str, new: str, check: str, says: str
):
    before, materialized = made(world), world.materialized("logged_model")
    world.edit("agent.py", old, new)
    done = world.run("release")
    said = one_sentence(done)
    assert says in said
    assert str(world.agent.path("agent.py")) in said
    found = checks_of(done)[f"logged_model:{check}"]
    assert (found.passed, found.description) == (False, said)
    assert {name: value for name, value in made(world).items() if name != "runs"} == {
        name: value for name, value in before.items() if name != "runs"
    }
    assert world.materialized("logged_model") == materialized
    assert world.aliases() == {"champion": "1"}
