"""Glances: what changed is seen, whatever changed it; what did not change is not asked about again."""

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from mlflow.exceptions import MlflowException

from resources import store_glance as glance
from resources.file_facts import TICK_NS, file_state, newest_commit
from resources.mlflow_store import open_client, open_mlflow
from resources.platform import Platform
from resources.store_glance import StoreGlance
from tests.resources.mlflow_server import mlflow_server
from tests.sensors.counting import requests_during

MODEL = "main.agents.tiny"
TICK_SECONDS = TICK_NS / 1e9 * 1.5


def at_rest(file: Path) -> str:
    """The state once the file system's clock has ticked since the last write."""
    time.sleep(TICK_SECONDS)
    return file_state(file)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[tuple[Path, sqlite3.Connection]]:
    file = tmp_path / "store.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as con:
        con.execute("CREATE TABLE t (x)")
        con.execute("INSERT INTO t VALUES (0)")
        yield file, con


class TestState:
    @pytest.mark.parametrize("mode", ["delete", "wal", "truncate"])
    def test_every_commit_makes_another_state_and_reading_makes_none(
        self, database: tuple[Path, sqlite3.Connection], mode: str
    ):
        file, con = database
        con.execute(f"PRAGMA journal_mode = {mode}")
        states = [at_rest(file)]
        for statement in (
            "UPDATE t SET x = x + 1",
            "UPDATE t SET x = x - 1",
            "INSERT INTO t VALUES (2)",
            "DELETE FROM t WHERE x = 2",
        ):
            con.execute(statement)
            states.append(at_rest(file))
            with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as reader:
                assert reader.execute("SELECT * FROM t").fetchall()
            assert file_state(file) == states[-1]
        assert all(states)
        assert len(set(states)) == len(states)

    def test_vacuum_checkpoint_and_a_restored_older_file_are_seen(self, database: tuple[Path, sqlite3.Connection]):
        file, con = database
        con.execute("PRAGMA journal_mode = wal")
        con.execute("INSERT INTO t VALUES (1)")
        kept = file.with_name("kept.db")
        seen = [at_rest(file)]
        for act in ("PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
            con.execute(act).fetchall()
            seen.append(at_rest(file))
        con.execute("PRAGMA journal_mode = delete")
        shutil.copy2(file, kept)
        seen.append(at_rest(file))
        con.execute("UPDATE t SET x = 9")
        seen.append(at_rest(file))
        con.close()
        shutil.copy2(kept, file)  # With its old times.
        seen.append(at_rest(file))
        assert all(seen)
        assert len(set(seen)) == len(seen)

    def test_a_write_that_may_have_the_same_time_as_the_next_cannot_be_told(
        self, database: tuple[Path, sqlite3.Connection]
    ):
        """Otherwise a commit a moment after the look, stamped by the same tick of the clock, would never be seen."""
        file, con = database
        seen = set()
        for number in range(50):
            con.execute("UPDATE t SET x = ?", (number,))
            state = file_state(file)
            assert not state or state not in seen
            seen.add(state)

    def test_what_is_not_a_database_at_rest_cannot_be_told(self, database: tuple[Path, sqlite3.Connection]):
        file, con = database
        assert file_state(file.with_name("none.db")) == ""
        con.execute("BEGIN IMMEDIATE")
        con.execute("UPDATE t SET x = 5")
        assert at_rest(file) == ""
        con.execute("ROLLBACK")
        assert at_rest(file) != ""

    def test_a_look_takes_no_lock_away_from_this_process(self, platform: Platform):
        """To open the file and close it again would: POSIX locks belong to the process."""
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0.1).execute('BEGIN IMMEDIATE')"
        file = platform.home / "mlflow.db"
        look = StoreGlance(platform)
        with closing(sqlite3.connect(file, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            look.state()
            assert look.rows([glance.aliases(MODEL)])
            other = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
        assert "database is locked" in other.stderr


@pytest.fixture
def store(platform: Platform) -> dict[str, Any]:
    """A registered model with a version, an alias and a ledger run; scorers' tags; a queue; a dataset."""
    client, mlflow = open_client(platform), open_mlflow(platform)
    from mlflow.genai import datasets, label_schemas, review_queues

    experiment = client.create_experiment("/agents/tiny")
    run = client.create_run(experiment).info.run_id
    client.set_tag(run, "move.a", "text")
    client.log_param(run, "move.000001", "a")
    client.create_registered_model(MODEL)
    client.set_registered_model_tag(MODEL, "lifecycle.ledger", run)
    for _ in range(2):
        client.create_model_version(MODEL, source="file:/m", tags={"lifecycle.verdict": "passed", "other": "x"})
    client.set_registered_model_alias(MODEL, "champion", "1")
    client.set_experiment_tag(experiment, "lifecycle.scorer.one", "{}")
    spans = [mlflow.start_span_no_context("predict", experiment_id=experiment) for _ in range(2)]
    for span in spans:
        span.end()
    schema = label_schemas.create_label_schema(
        "correct", type="feedback", input=label_schemas.InputText(), experiment_id=experiment
    )
    queue = review_queues.create_review_queue(
        "q", queue_type="custom", users=["ann"], schema_ids=[schema.schema_id], experiment_id=experiment
    ).queue_id
    review_queues.add_items_to_review_queue(queue, item_ids=[span.trace_id for span in spans])
    dataset = datasets.create_dataset(name="tiny_eval", experiment_id=[experiment])
    dataset.merge_records([{"inputs": {"q": n}, "expectations": {}} for n in range(3)])
    return {
        "client": client,
        "experiment": experiment,
        "run": run,
        "queue": queue,
        "traces": [span.trace_id for span in spans],
        "dataset": dataset,
        "queues": review_queues,
    }


WATCHED = {
    "aliases": lambda s: glance.aliases(MODEL),
    "versions": lambda s: glance.versions(MODEL, ["lifecycle.verdict"]),
    "champion": lambda s: glance.version_at(MODEL, "champion"),
    "ledger": lambda s: glance.run_named_by(MODEL, "/agents/main.agents.tiny.ledger", "lifecycle.ledger"),
    "scorers": lambda s: glance.experiment_tags("/agents/tiny", "lifecycle.scorer."),
    "queue": lambda s: glance.completed_items(s["queue"]),
    "dataset": lambda s: glance.evaluation_dataset("tiny_eval", s["dataset"].dataset_id),
}


def decide(store: dict[str, Any]) -> None:
    store["client"].create_experiment("/agents/main.agents.tiny.ledger")


Change = tuple[str, Callable[[dict[str, Any]], Any]]
CHANGES: list[Change] = [
    ("aliases", lambda s: s["client"].set_registered_model_alias(MODEL, "challenger", "2")),
    ("aliases champion", lambda s: s["client"].set_registered_model_alias(MODEL, "champion", "2")),
    ("aliases champion", lambda s: s["client"].delete_registered_model_alias(MODEL, "champion")),
    ("versions", lambda s: s["client"].create_model_version(MODEL, source="file:/m")),
    ("versions", lambda s: s["client"].delete_model_version(MODEL, "2")),
    ("versions champion", lambda s: s["client"].set_model_version_tag(MODEL, "1", "lifecycle.verdict", "failed")),
    ("champion", lambda s: s["client"].set_model_version_tag(MODEL, "1", "other", "y")),
    ("versions champion", lambda s: s["client"].delete_model_version_tag(MODEL, "1", "lifecycle.verdict")),
    ("aliases versions champion ledger", lambda s: s["client"].rename_registered_model(MODEL, MODEL + "2")),
    ("ledger", lambda s: s["client"].set_tag(s["run"], "move.a", "tex_")),
    ("ledger", lambda s: s["client"].log_param(s["run"], "move.000002", "b")),
    ("ledger", lambda s: s["client"].delete_run(s["run"])),
    ("ledger", lambda s: s["client"].set_registered_model_tag(MODEL, "lifecycle.ledger", "0" * 32)),
    ("ledger", decide),
    ("scorers", lambda s: s["client"].set_experiment_tag(s["experiment"], "lifecycle.scorer.one", "[]")),
    ("scorers", lambda s: s["client"].delete_experiment_tag(s["experiment"], "lifecycle.scorer.one")),
    ("scorers ledger", lambda s: s["client"].delete_experiment(s["experiment"])),
    ("queue", lambda s: complete(s, 0)),
    ("dataset", lambda s: s["dataset"].merge_records([{"inputs": {"q": 1}, "expectations": {"a": 1}}])),
    ("dataset", lambda s: s["dataset"].delete_records([s["dataset"].to_df()["dataset_record_id"][0]])),
    ("", lambda s: open_trace(s)),
    ("", lambda s: s["client"].set_trace_tag(s["traces"][0], "a", "b")),
    ("", lambda s: s["client"].set_experiment_tag(s["experiment"], "mlflow.note.content", "hello")),
]
"""What somebody does with MLflow's own client, and whose rows differ by that."""


def complete(store: dict[str, Any], number: int) -> None:
    item = store["traces"][number]
    store["queues"].set_review_queue_item_status(store["queue"], item_id=item, status="complete", completed_by="ann")


def open_trace(store: dict[str, Any]) -> None:
    import mlflow

    mlflow.start_span_no_context("predict", experiment_id=store["experiment"]).end()


def test_what_changed_is_seen_and_nothing_else(platform: Platform, store: dict[str, Any]):
    """One change after the other, each to a copy of the store as it was."""
    look, file = StoreGlance(platform), platform.home / "mlflow.db"
    before = {name: look.rows([watched(store)]) for name, watched in WATCHED.items()}
    assert all(before.values())
    assert len(set(before.values())) == len(before)
    kept = file.read_bytes()
    for index, (names, change) in enumerate(CHANGES):
        state = at_rest(file)
        change(store)
        differ = {name for name, watched in WATCHED.items() if look.rows([watched(store)]) != before[name]}
        assert differ == set(names.split()), (index, names)
        assert at_rest(file) != state
        with closing(sqlite3.connect(file)) as con, closing(sqlite3.connect(":memory:")) as old:
            old.deserialize(kept)
            old.backup(con)
        assert {name: look.rows([watched(store)]) for name, watched in WATCHED.items()} == before


def test_a_server_tells_the_same_differences_by_one_request_each(
    platform: Platform, store: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What somebody does to the store behind a server; each change makes the same things differ."""
    file = platform.home / "mlflow.db"
    with mlflow_server(file, tmp_path / "server") as server:
        look = StoreGlance(server)

        def told() -> dict[str, str]:
            open_mlflow(server)
            found = {name: look.rows([watched(store)]) for name, watched in WATCHED.items()}
            open_mlflow(platform)
            return found

        before, kept = told(), file.read_bytes()
        assert all(before.values())
        assert len(set(before.values())) == len(before)
        for name, watched in WATCHED.items():
            asked = requests_during(lambda watched=watched: look.rows([watched(store)]))
            assert len(asked) == (2 if name == "ledger" else 1), asked
        every = [watched(store) for watched in WATCHED.values()]
        assert len(requests_during(lambda: look.rows(every))) == len(WATCHED), "the registered model is asked for once"
        assert look.state() == ""
        assert look.rows([glance.aliases("no.such.model")]) != look.rows([glance.aliases(MODEL)])
        assert look.rows([glance.aliases(MODEL), glance.evaluation_dataset("tiny_eval", "")]) == ""
        assert look.rows([glance.versions("o'clock", [])]) == "", "refused: nothing is told"
        for names, change in CHANGES:
            change(store)
            after = told()
            # Who reads the ledger asks for the deciding experiment only when the model names no run.
            expected = set() if change is decide else set(names.split())
            assert {name for name in WATCHED if after[name] != before[name]} == expected, names
            with closing(sqlite3.connect(file)) as con, closing(sqlite3.connect(":memory:")) as old:
                old.deserialize(kept)
                old.backup(con)
        assert told() == before
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MlflowException, match="registered-models/get"):
        look.rows([glance.aliases(MODEL)])


def test_one_query_each_of_one_moment(platform: Platform):
    from tests.sensors.counting import asked_during

    look = StoreGlance(platform)
    watched = [glance.aliases(MODEL), glance.experiment_tags("/agents/tiny", "lifecycle.scorer.")]
    asked = asked_during(lambda: look.rows(watched))
    assert [one.file for one in asked] == ["mlflow.db"] * len(watched)
    assert asked_during(look.state) == []


def test_what_we_never_tested_or_cannot_read_is_left_to_the_client(platform: Platform, tmp_path: Path):
    look, file = StoreGlance(platform), platform.home / "mlflow.db"
    assert look.rows([glance.aliases(MODEL)])
    with closing(sqlite3.connect(file)) as con, con:
        con.execute("UPDATE alembic_version SET version_num = 'next'")
    assert look.rows([glance.aliases(MODEL)]) == ""
    file.write_bytes(b"no database at all" * 100)
    assert look.rows([glance.aliases(MODEL)]) == ""
    file.unlink()
    assert look.rows([glance.aliases(MODEL)]) == ""
    assert look.state() == ""
    assert not file.exists(), "a look makes nothing"
    for uri in ("postgresql://u@h/d", "sqlite:///x.db?mode=rwc", "mysql://h/d"):
        other = StoreGlance(Platform.from_env({"LIFECYCLE_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": uri}))
        assert (other.state(), other.rows([glance.aliases(MODEL)])) == ("", "")


class TestDeltaTable:
    def test_every_commit_is_seen_and_only_the_first_look_lists_the_log(self, tmp_path: Path):
        table, log = tmp_path / "t", tmp_path / "t" / "_delta_log"
        rows = pa.table({"x": [1]})
        assert newest_commit(log) == "none"
        seen = []
        for _ in range(5):
            write_deltalake(table, rows, mode="append")
            seen.append(newest_commit(log))
        assert [int(one.partition(".")[0]) for one in seen] == list(range(5))
        listed: list[str] = []
        sys.addaudithook(lambda event, args: listed.append(event) if event == "os.listdir" and args[0] == log else None)
        assert newest_commit(log) == seen[-1]
        write_deltalake(table, rows, mode="append")
        assert newest_commit(log) not in seen
        assert listed == []
        DeltaTable(table).optimize.compact()
        assert newest_commit(log).startswith("6.")

    def test_a_table_made_anew_or_restored_is_another(self, tmp_path: Path):
        table, log = tmp_path / "t", tmp_path / "t" / "_delta_log"
        for _ in range(3):
            write_deltalake(table, pa.table({"x": [1]}), mode="append")
        before = newest_commit(log)
        shutil.copytree(table, tmp_path / "kept")
        shutil.rmtree(table)
        assert newest_commit(log) == "none"
        write_deltalake(table, pa.table({"x": [2]}))
        assert newest_commit(log).startswith("0.")
        shutil.rmtree(table)
        shutil.copytree(tmp_path / "kept", table)
        assert newest_commit(log).startswith("2.")
        assert newest_commit(log) != before

    def test_after_checkpoint_and_clean_up_the_newest_commit_still_is_found(self, tmp_path: Path):
        table, log = tmp_path / "t", tmp_path / "t" / "_delta_log"
        for _ in range(3):
            write_deltalake(table, pa.table({"x": [1]}), mode="append")
        held = DeltaTable(table)
        held.create_checkpoint()
        held.cleanup_metadata()
        assert newest_commit(log).startswith("2.")

    def test_object_stores_and_what_is_no_log_cannot_be_told(self, tmp_path: Path):
        for warehouse in ("s3://bucket/x", (tmp_path / "w").as_uri()):
            env = {"LIFECYCLE_HOME": str(tmp_path), "LIFECYCLE_WAREHOUSE_URI": warehouse}
            assert StoreGlance(Platform.from_env(env)).table("a.b.traces") == ""
        (tmp_path / "_delta_log").mkdir()
        (tmp_path / "_delta_log" / "notes.txt").touch()
        assert newest_commit(tmp_path / "_delta_log") == ""
