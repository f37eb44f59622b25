"""Commands on a state that was really built: released, served, asked, monitored, reviewed."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from lifecycle_assets.edges import RECORD_KEY
from lifecycle_assets.home import open_instance
from lifecycle_assets.records import ScoresRecord
from lifecycle_assets.refused import Refused
from resources.archive.delta_archive import DeltaArchive
from resources.mlflow_store import open_client, open_mlflow
from resources.platform import Platform
from resources.scoring.local_scoring import LocalScoring
from tests.cli.conftest import HOSTILE, ROOT, Built, Run

pytestmark = pytest.mark.timeout(900)


def told(run: Run, *arguments: str, code: int = 0) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def stages(run: Run, code: int = 0) -> dict[str, Any]:
    return told(run, "status", "tiny", code=code)["agents"][0]["stages"]


def files(folder: Path) -> dict[Path, int]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path: path.stat().st_size for path in found}


# serve


def test_serve_ends_with_its_server_and_leaves_nothing(state: Built) -> None:
    assert state.serve_exit == 0
    assert state.left_over == []


def test_serve_answers_and_says_what_it_serves(state: Built) -> None:
    assert [answer["code"] for answer in state.answers] == [200, 200, 200, 400]
    assert json.loads(state.answers[0]["body"])["output"][0]["content"][0]["text"] == "hello ONE"
    assert state.serve_line["version"] == "1"
    assert state.serve_line["url"].startswith("http://127.0.0.1:")


def test_every_trace_of_a_served_request_names_the_champion(state: Built) -> None:
    client = open_client(Platform.from_env())
    experiment = client.get_experiment_by_name("/agents/tiny")
    assert experiment is not None
    traces = client.search_traces(
        locations=[experiment.experiment_id], filter_string="metadata.mlflow.sourceRun IS NULL", include_spans=False
    )
    assert len(traces) == 4
    assert {trace.info.trace_metadata["mlflow.modelId"] for trace in traces} == {state.serve_line["model_id"]}


def test_serve_refuses_a_hand_off_that_is_behind(copied: Built, run: Run) -> None:
    open_client(Platform.from_env()).delete_registered_model_alias("main.agents.tiny", "champion")
    result = run("serve", "tiny", "--port", "0")
    assert result.exit_code == 1
    assert "champion is nobody; materialize tiny/deployment" in result.stderr


# status


def test_status_names_every_stage(state: Built, run: Run) -> None:
    found = stages(run)
    assert {name: stage["state"] for name, stage in found.items()} == dict.fromkeys(found, "ok")
    model = state.serve_line["model_id"]
    assert {found[name]["model_id"] for name in ("logged_model", "eval_results", "uc_model_version", "deployment")} == {
        model
    }
    assert (found["eval_results"]["verdict"], found["eval_results"]["dataset_digest"]) == (
        "passed",
        found["eval_dataset"]["digest"],
    )
    assert (found["champion_alias"]["champion"], found["champion_alias"]["ledger"]) == ("1", "1")
    assert {s["name"]: s["sample_rate"] for s in found["registered_scorers"]["scorers"]} == {
        "shouted": 1.0,
        "length": 0.5,
    }
    assert found["archived_traces"]["rows"]["traces"] == 4
    assert found["archived_traces"]["behind_seconds"] == 0
    assert found["archived_traces"]["last_ran"] >= found["archived_traces"]["newest_trace_archived"]
    assert (found["trace_scores"]["pending"], found["trace_scores"]["oldest_pending_minutes"]) == (0, None)
    assert found["archived_traces"]["newest_trace_model_id"] == model
    assert found["trace_scores"]["coverage"]["local_tiny_shouted"]["sampled"] == 4
    session = found["labeling_session"]["sessions"][0]
    assert (session["name"], session["items"], session["completed"]) == ("first look", 2, 1)
    assert found["checks"]["evaluated"] > 10


def test_status_reads_and_changes_nothing(state: Built, run: Run) -> None:
    before = files(state.home)
    text = run("status").stdout
    assert "champion 1" in text
    assert "shouted v1" in text
    assert "first look" in text
    assert files(state.home) == before


def test_scores_that_mlflow_does_not_show_yet_are_said_with_the_time_they_wait(copied: Built, run: Run) -> None:
    """By the last run of each day: the third is of a day whose scores were published since."""
    key = dg.AssetKey(["tiny", "trace_scores"])
    with open_instance(Platform.from_env()) as instance:
        for day, pending, minutes in (("01", 7, 30.0), ("02", 3, 90.0), ("03", 9, 500.0), ("03", 0, 0.0)):
            record = ScoresRecord(f"2025-02-{day}", "d", 9, {})
            metadata = {RECORD_KEY: dg.MetadataValue.json(record.to_json()), "pending": pending}
            metadata["oldest_pending_minutes"] = minutes
            instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=metadata, partition=record.day))
    found = stages(run)["trace_scores"]
    assert (found["pending"], 90 <= found["oldest_pending_minutes"] < 100) == (10, True)
    assert found["day"] > "2025-02-03"
    shown = run("status", "tiny").stdout
    assert "pending 10, oldest pending minutes 9" in shown
    assert "last ran 20" in shown
    assert "newest trace archived 20" in shown


def test_a_trace_dated_ahead_is_said_and_does_not_make_the_archive_late(copied: Built, run: Run) -> None:
    ahead = time.time_ns() + 2 * 86_400 * 10**9
    experiment = open_client(Platform.from_env()).get_experiment_by_name("/agents/tiny")
    assert experiment is not None
    span = open_mlflow(Platform.from_env()).start_span_no_context(
        "ask", inputs={"q": 1}, experiment_id=experiment.experiment_id, start_time_ns=ahead
    )
    span.end(end_time_ns=ahead + 10**9)
    found = stages(run)["archived_traces"]
    assert (found["behind_seconds"], found["dated_ahead"]) == (0, 1)
    assert found["newest_trace"] in copied.trace_ids
    said = run("status", "tiny").stdout
    assert [line for line in said.splitlines() if "dated ahead" in line] == [
        "  dated ahead: 1 traces say they started later than now; they are archived when that time has come: see the "
        "clock of the machine that wrote them"
    ]


def test_a_store_that_was_deleted_is_no_empty_store(
    copied: Built, run: Run, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone, then made anew without the experiment, then with one of the same number: the tables stay as they are."""
    platform, store = Platform.from_env(), copied.home / "mlflow.db"
    tables = files(copied.home / "warehouse")

    def refused() -> str:
        with pytest.raises(Refused) as one:
            DeltaArchive(platform).archive_day(
                copied.agent, datetime.now(UTC).date(), settled_before_ms=2**53, progress=print
            )
        with pytest.raises(Refused):
            LocalScoring(platform).score_day(
                copied.agent, datetime.now(UTC).date(), [], settled_before_ms=2**53, progress=print
            )
        archived = stages(run)["archived_traces"]
        assert (archived["state"], archived["why"]) == ("differs", str(one.value))
        found = {one["name"]: one for one in told(run, "doctor", code=1)["findings"]}["archive of tiny"]
        assert (found["state"], found["text"]) == ("fail", str(one.value))
        assert str(one.value).endswith("The tables stay as they are.")
        assert files(copied.home / "warehouse") == tables
        return str(one.value)

    for file in copied.home.glob("mlflow.db*"):
        file.unlink()
    assert f"sqlite:///{store} is gone, and main.agents.tiny_traces holds 4 traces archived from it: " in refused()
    assert not store.exists()
    shutil.copy(migrated_store, store)
    assert "has no experiment /agents/tiny, and main.agents.tiny_traces holds 4 traces" in refused()
    open_client(platform).create_experiment("/agents/tiny")
    monkeypatch.setattr("resources.archive.lost_store.CLOCKS_MS", 0)
    assert "is a new one: its experiment /agents/tiny is of 20" in refused()


def test_a_store_whose_traces_were_deleted_is_the_same_store(
    copied: Built, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.archive.lost_store.CLOCKS_MS", 0)
    client, day = open_client(Platform.from_env()), datetime.now(UTC).date()
    experiment = client.get_experiment_by_name("/agents/tiny")
    assert experiment is not None
    client.delete_traces(experiment.experiment_id, trace_ids=copied.trace_ids)
    archive = DeltaArchive(Platform.from_env())
    assert archive.archive_day(copied.agent, day, settled_before_ms=2**53, progress=print).settled == 0
    found = stages(run)["archived_traces"]
    assert (found["state"], found["rows"]["traces"]) == ("ok", 4)
    assert "archive of tiny" not in run("doctor").stdout


def test_a_champion_moved_by_hand_is_seen(copied: Built, run: Run) -> None:
    open_client(Platform.from_env()).delete_registered_model_alias("main.agents.tiny", "champion")
    champion = stages(run)["champion_alias"]
    assert champion["state"] == "differs"
    assert "champion is nobody, the last record says version 1, the ledger says version 1" in champion["why"]
    aliases = told(run, "plan", "tiny")["things"]["aliases"]["differences"][0]
    assert aliases["change"] == "drift"


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_locked_store_is_never_shown_as_empty(copied: Built, run: Run, journal: str) -> None:
    """Publishing scores leaves the store in WAL mode; there only an exclusive locking mode keeps readers out too."""
    other = sqlite3.connect(copied.home / "mlflow.db", isolation_level=None)
    assert other.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    try:
        found = stages(run, code=1)
        assert found["uc_model_version"]["state"] == "could not read"
        assert "locked by another process" in found["uc_model_version"]["why"]
        assert found["eval_results"]["state"] == "ok"
        held = {name: stage for name, stage in found.items() if stage["state"] != "ok"}
        assert {stage["state"] for stage in held.values()} == {"could not read"}, held
        doctor = run("doctor", "--json")
        assert doctor.exit_code == 1
        store = next(one for one in json.loads(doctor.stdout)["findings"] if one["name"] == "tracking store")
        assert store["state"] == "fail"
        assert told(run, "plan", "tiny", code=1)["things"]["aliases"]["state"] == "could not read"
        assert len(told(run, "history", "tiny")["moves"]) == 1
        lineage = run("lineage", "models:/main.agents.tiny@champion")
        assert (lineage.exit_code, lineage.stderr.count("\n")) == (1, 1)
    finally:
        other.close()


def test_a_store_another_process_writes_to_is_read_and_doctor_says_so(copied: Built, run: Run) -> None:
    """In WAL mode a writer keeps no reader out."""
    before = stages(run)
    other = sqlite3.connect(copied.home / "mlflow.db", isolation_level=None)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.execute("BEGIN EXCLUSIVE")
    try:
        found = stages(run)
        assert {name: stage["state"] for name, stage in found.items()} == dict.fromkeys(found, "ok")
        assert {name: stage.get("at") for name, stage in found.items()} == {n: s.get("at") for n, s in before.items()}
        doctor = run("doctor", "--json")
        store = next(one for one in json.loads(doctor.stdout)["findings"] if one["name"] == "tracking store")
        assert (store["state"], "read but not written now" in store["text"]) == ("warn", True)
        assert "locked by another process" in store["text"]
    finally:
        other.close()


# history and query


def test_history_tells_the_evidence(state: Built, run: Run) -> None:
    (move,) = told(run, "history", "tiny")["moves"]
    found = stages(run)
    assert (move["alias"], move["from"], move["to"], move["decision"], move["who"]) == (
        "champion",
        "",
        "1",
        "passed",
        "dagster",
    )
    assert move["evidence"]["run_id"] == found["eval_results"]["run_id"]
    assert move["evidence"]["dataset_digest"] == found["eval_dataset"]["digest"]
    assert move["evidence"]["metrics"]["shouted/mean"] == 1.0
    assert "shouted/mean 1" in run("history", "tiny").stdout


def test_a_narrow_terminal_loses_nothing(state: Built, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    run_id = stages(run)["eval_results"]["run_id"]
    assert run_id in run("history", "tiny").stdout
    assert run_id in run("lineage", "champion").stdout
    assert state.trace_ids[0] in run("query", "tiny", "FROM traces").stdout


def test_coverage_fits_on_a_page(state: Built, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.split() for line in run("status", "tiny").stdout.splitlines()]
    assert ["scorer", "rate", "sampled", "scored", "errored", "waiting"] in lines
    assert ["shouted", "v1", "1", "4", "4", "0", "0"] in lines


def test_query_answers_in_json_and_from_standard_input(state: Built, run: Run) -> None:
    rows = told(
        run, "query", "tiny", "SELECT trace_id, trace_date, request_time, 'nan'::DOUBLE AS odd, 1 AS odd FROM traces"
    )
    assert {row["trace_id"] for row in rows} == set(state.trace_ids)
    assert rows[0]["request_time"].endswith("+00:00")
    assert (rows[0]["odd"], rows[0]["odd_2"]) == (None, 1)
    said = run("query", "tiny", "-", "--json", "--limit", "1", input="FROM errors UNION ALL FROM errors")
    assert len(json.loads(said.stdout)) == 1
    assert "first 1 rows" in said.stderr


@pytest.mark.parametrize(
    "sql", ["DROP TABLE traces", "SELECT * FROM '/etc/passwd'", "SELEC 1", "SELECT 1; SELECT 2", "FROM nothing"]
)
def test_refused_sql_is_misuse_in_one_line(state: Built, run: Run, sql: str) -> None:
    result = run("query", "tiny", sql)
    assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (2, 1, "")


def test_hostile_text_is_shown_and_not_obeyed(state: Built, run: Run) -> None:
    shown = run(
        "query", "tiny", "SELECT session_id, value_text, rationale FROM traces JOIN assessments USING (trace_id)"
    ).stdout
    shown += run("lineage", state.trace_ids[0]).stdout + run("status").stdout
    assert "[bold red]boom[/bold red]" in shown
    assert not {"\x1b", "\u202e"} & set(shown)
    exact = told(run, "query", "tiny", "SELECT value_text FROM assessments WHERE name = 'odd'")
    assert exact == [{"value_text": HOSTILE}]


# lineage


def kinds(found: dict[str, Any]) -> set[str]:
    return {node["kind"] for node in found["nodes"]}


def test_lineage_of_a_trace_goes_back_to_the_source_and_on_to_the_label(state: Built, run: Run) -> None:
    found = told(run, "lineage", state.trace_ids[0])
    assert kinds(found) >= {
        "agent_source", "logged_model", "dataset", "evaluation_run", "model_version", "champion_move", "trace",
        "scorer", "assessment", "labeling_session", "label", "human_labels",
    }  # fmt: skip
    ids = {node["id"] for node in found["nodes"]}
    assert all({edge["from"], edge["to"]} <= ids for edge in found["edges"])
    assert all({"kind", "id", "url", "at"} <= set(node) for node in found["nodes"])
    assert all(set(edge) == {"from", "to", "kind"} for edge in found["edges"])
    assert found["nodes"][0]["kind"] == "agent_source"


def test_every_form_of_reference_finds_the_same_chain(state: Built, run: Run) -> None:
    now = stages(run)
    forms = [
        now["logged_model"]["model_id"],
        f"models:/{now['logged_model']['model_id']}",
        now["logged_model"]["run_id"],
        now["eval_results"]["run_id"],
        "models:/main.agents.tiny/1",
        "models:/main.agents.tiny@champion",
        "champion",
        now["labeling_session"]["sessions"][0]["session_id"],
        "first look",
    ]
    for ref in forms:
        found = told(run, "lineage", ref, "--agent", "tiny", "--newest", "2")
        assert {"agent_source", "model_version", "champion_move", "trace", "labeling_session"} <= kinds(found), ref


def test_lineage_of_a_version_counts_traces_and_shows_the_newest(state: Built, run: Run) -> None:
    found = told(run, "lineage", "models:/main.agents.tiny/1", "--newest", "1")
    (summary,) = [node for node in found["nodes"] if node["kind"] == "traces"]
    assert summary["count"] == 4
    assert len([node for node in found["nodes"] if node["kind"] == "trace"]) == 1


def test_lineage_of_an_evaluation_trace_names_its_run(state: Built, run: Run) -> None:
    mlflow = open_mlflow(Platform.from_env())
    experiment = mlflow.MlflowClient().get_experiment_by_name("/agents/tiny").experiment_id
    traces = mlflow.MlflowClient().search_traces(locations=[experiment], include_spans=False)
    asked = next(t.info for t in traces if "mlflow.sourceRun" in t.info.trace_metadata)
    found = told(run, "lineage", asked.trace_id)
    assert {"from": asked.trace_metadata["mlflow.sourceRun"], "to": asked.trace_id, "kind": "asked"} in found["edges"]
    assert "champion_move" not in kinds(found)


# plan


def test_plan_of_what_is_as_declared_changes_nothing(state: Built, run: Run) -> None:
    before = files(state.home)
    found = told(run, "plan", "tiny")
    assert found["changes"] == 0, found
    assert files(state.home) == before


def test_plan_tells_code_from_rate_and_new_from_stopped(copied: Built, run: Run) -> None:
    file = copied.defs / "tiny" / "defs.yaml"
    document = yaml.safe_load(file.read_text())
    declared = document["attributes"]
    declared["scorers"] = [
        {"name": "shouted", "source": "scorers.py:shouted", "sample_rate": 0.25},
        {"name": "fresh", "source": "scorers.py:length"},
    ]
    declared["agent"]["config"] = {"greeting": "good day"}
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    dataset = copied.defs / "tiny" / "eval_dataset.jsonl"
    dataset.write_text("\n".join(dataset.read_text().splitlines()[1:]) + "\n")
    things = told(run, "plan", "tiny")["things"]
    scorers = {one["what"]: one for one in things["scorers"]["differences"]}
    assert {name: one["change"] for name, one in scorers.items()} == {
        "shouted": "changed",
        "fresh": "new",
        "length": "stopped",
    }
    assert "rate would go from 1 to 0.25, the version stays" in scorers["shouted"]["text"]
    assert "code" not in scorers["shouted"]["text"]
    assert things["logged_model"]["differences"][0]["job"] == "tiny_release"
    assert things["logged_model"]["differences"][0]["change"] == "changed"
    assert things["eval_dataset"]["differences"][0]["text"].startswith("0 records would be added, 0 changed, 1 removed")
    scorers_py = copied.defs / "tiny" / "scorers.py"
    scorers_py.write_text(scorers_py.read_text().replace("return None", "return False", 1))
    scorers = {one["what"]: one for one in told(run, "plan", "tiny")["things"]["scorers"]["differences"]}
    assert "the code changed: a new version would be registered" in scorers["shouted"]["text"]


def test_commands_work_as_a_program(state: Built) -> None:
    command = [sys.executable, "-m", "lifecycle_assets.cli.main"]
    for arguments, word in (
        (["status", "tiny"], "champion 1"),
        (["history", "tiny"], "passed"),
        (["doctor"], "0 fail"),
    ):
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=True
        )
        assert word in done.stdout, done.stderr
        assert "\x1b" not in done.stdout
