"""Commands where nothing has happened, and commands called wrongly."""

import json
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import click
import pytest

from lifecycle_assets.cli.main import COMMANDS, main
from lifecycle_assets.home import open_instance, prepare_home
from resources.platform import Platform
from tests.building import make_agent, write_agent
from tests.cli.conftest import HOSTILE, ROOT, Run


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status"], 0),
        (["status", "tiny"], 0),
        (["history", "tiny"], 0),
        (["plan", "tiny"], 0),
        (["doctor"], 0),
        (["query", "tiny", "SELECT count(*) AS n FROM traces"], 0),
        (["lineage", "tr-" + "0" * 32], 2),
        (["serve", "tiny", "--port", "0"], 1),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_before_anything_exists_commands_answer_and_create_nothing(
    fresh: Path, run: Run, arguments: list[str], code: int, as_json: bool
) -> None:
    before = files(fresh)
    result = run(*arguments, *(["--json"] if as_json else []))
    assert result.exit_code == code, result.output
    assert files(fresh) == before
    if as_json:
        json.loads(result.stdout)


def test_status_of_a_fresh_folder_says_nothing_yet(fresh: Path, run: Run) -> None:
    assert "tiny: nothing yet; run make demo" in run("status").stdout
    stages = json.loads(run("status", "tiny", "--json").stdout)["agents"][0]["stages"]
    assert stages["agent_source"]["state"] == "ok"
    assert {name for name, stage in stages.items() if stage["state"] != "not yet"} == {"agent_source"}


@pytest.mark.parametrize("command", [["status"], ["history"], ["plan"], ["serve"], ["query", "--limit", "1"]])
def test_an_unknown_agent_is_misuse_and_names_the_known(fresh: Path, run: Run, command: list[str]) -> None:
    rest = ["SELECT 1"] if command[0] == "query" else []
    result = run(*command, "nobody", *rest, "--json")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "known: other, tiny" in result.stderr
    assert json.loads(result.stdout) == {"error": result.stderr.strip()}


@pytest.mark.parametrize(
    "ref", ["", "tr-", "nonsense", "models:/a/b/c/9", "m-1", "../../etc/passwd", "' OR 1=1 --", HOSTILE]
)
def test_a_malformed_reference_is_told_the_forms(fresh: Path, run: Run, ref: str) -> None:
    result = run("lineage", ref)
    assert result.exit_code == 2
    assert "A reference is a trace id" in result.stderr
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [["stauts"], ["status", "a", "b"], ["query", "tiny"], ["serve", "tiny", "--port", "70000"], ["query", "tiny", " "]],
)
def test_wrong_usage_is_one_line(fresh: Path, run: Run, arguments: list[str]) -> None:
    result = run(*arguments, "--json")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "error" in json.loads(result.stdout)


def test_a_broken_agent_does_not_stop_commands_about_another(fresh: Path, run: Run) -> None:
    write_agent(fresh / "defs", "broken", attributes={"scorrers": []})
    result = run("status", "tiny", "--json")
    assert result.exit_code == 0
    assert "scorrers" in result.stderr
    assert json.loads(result.stdout)["agents"][0]["agent"] == "tiny"
    everyone = run("status", "--json")
    assert everyone.exit_code == 1
    assert len(json.loads(everyone.stdout)["broken"]) == 1
    assert run("doctor").exit_code == 1
    assert run("status", "broken").exit_code == 2


def test_two_agents_of_one_name_and_a_missing_folder(fresh: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make_agent(fresh / "defs" / "more")
    assert "is taken by" in run("status", "tiny").stderr
    monkeypatch.setenv("LIFECYCLE_DEFS", str(fresh / "absent"))
    result = run("status")
    assert (result.exit_code, "LIFECYCLE_DEFS" in result.stderr) == (2, True)


def test_doctor_names_each_fault_with_a_remedy(fresh: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "file").write_text("")
    monkeypatch.setenv("LIFECYCLE_HOME", str(fresh / "file" / "home"))
    monkeypatch.setenv("LIFECYCLE_WAREHOUSE_URI", str(fresh / "file" / "tables"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS", "false")
    result = run("doctor", "--json")
    failed = {one["name"]: one for one in json.loads(result.stdout)["findings"] if one["state"] == "fail"}
    assert result.exit_code == 1
    assert set(failed) == {"home", "tables", "tracking store", "custom scorers"}
    assert "LIFECYCLE_WAREHOUSE_URI" in failed["tables"]["remedy"]
    assert all(one["remedy"] for one in failed.values())
    assert "s3cret" not in result.output + run("doctor").output + run("status", "tiny").output
    monkeypatch.setenv("LIFECYCLE_PLATFORM", "moon")
    assert "LIFECYCLE_PLATFORM" in run("doctor").stdout
    assert run("status").exit_code == 2


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="/sys is a folder nobody can write, on Linux")
def test_doctor_sees_a_home_that_cannot_be_written(fresh: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_HOME", "/sys/lifecycle")
    result = run("doctor", "--json")
    failed = {one["name"]: one["text"] for one in json.loads(result.stdout)["findings"] if one["state"] == "fail"}
    assert result.exit_code == 1
    assert "/sys cannot be written" in failed["home"]
    assert run("status").exit_code == 0
    assert "Traceback" not in run("serve", "tiny").output


def test_a_port_in_use_is_found_before_anything_starts(fresh: Path, run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("serve", "tiny", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "address already in use; give --port" in result.stderr


def test_help_is_fast_and_every_command_says_the_same_of_itself() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "lifecycle_assets.cli.main", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - started < 2
    assert all(name in done.stdout for name in COMMANDS)
    context = click.Context(main)
    for name, help_text in COMMANDS.items():
        command = main.get_command(context, name)
        assert command is not None
        assert (command.help or "").splitlines()[0] == help_text


def test_commands_do_not_import_heavy_libraries() -> None:
    code = (
        "import sys, lifecycle_assets.cli.status, lifecycle_assets.cli.lineage, lifecycle_assets.cli.serve, "
        "lifecycle_assets.cli.plan, lifecycle_assets.cli.doctor, lifecycle_assets.cli.query, "
        "lifecycle_assets.cli.history;"
        "print([m for m in ('mlflow', 'pandas', 'duckdb', 'deltalake', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_error_nobody_thought_of_keeps_its_trace(fresh: Path, run: Run) -> None:
    """A database of Dagster's that lost a table is none of the faults that have a sentence."""
    platform = Platform.from_env()
    prepare_home(platform)
    with open_instance(platform) as instance:
        assert instance.get_runs() == []
    with closing(sqlite3.connect(platform.dagster_home / "history" / "runs" / "index.db")) as database:
        database.execute("DROP TABLE event_logs")
    result = run("status", "tiny")
    assert result.exc_info is not None
    assert "no such table: event_logs" in str(result.exception)
    assert not isinstance(result.exception, SystemExit | None), result.output
    assert result.exc_info[2].tb_next is not None, "where it happened is told"
