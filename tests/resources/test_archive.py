"""Rows are written once, killed or raced or repeated."""

import copy
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from lifecycle_assets.refused import Refused
from resources.archive.delta_archive import DeltaArchive
from resources.archive.few_rows import few_changes
from resources.archive.row_changes import Written, changes, digests
from resources.delta.write import merge_rows
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from resources.tables import KEYS, TABLES, arrow_table
from resources.trace_rows import TraceRows
from tests.resources.archived import upsert_day

PREFIX = "main.agents.tiny_"
DAY = date(2026, 11, 20)
CHILDREN = ("spans", "assessments", "traces")


def make_rows(i: int, day: date = DAY) -> TraceRows:
    """Trace number `i`: two spans, a scorer's number, and what a person thought of it."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(seconds=i)
    key = {"trace_id": f"tr-{i}", "trace_date": day}
    trace = key | {
        "experiment_id": "1",
        "request_time": start,
        "state": "ERROR" if i % 10 == 9 else "OK",
        "execution_ms": 100,
        "model_id": "m-1",
        "session_id": f"s-{i // 5}",
        "user_id": "",
        "environment": "prod",
        "request": f'{{"q": "question {i}"}}',
        "response": "x" * 200,
        "tags": {"environment": "prod"},
        "metadata": {"b": "2", "a": "1"},
        "input_tokens": 1,
        "output_tokens": None,
        "cost_usd": 0.5,
    }
    span = key | {"name": "s", "type": "AGENT", "start_time": start, "end_time": start, "status": "OK"}
    said = key | {"kind": "feedback", "valid": True, "created_at": start, "updated_at": start, "value_number": None}
    return TraceRows(
        trace,
        [span | {"span_id": f"{i:x}-{k}", "parent_span_id": None, "attributes": "{}"} for k in range(2)],
        [
            said
            | {
                "assessment_id": f"a-{i}",
                "name": "prod_tiny_length",
                "source_type": "CODE",
                "value_number": float(i),
                "scorer_version": "1",
            },
            said
            | {
                "assessment_id": f"h-{i}",
                "name": "good",
                "source_type": "HUMAN",
                "value_text": "yes" if i % 2 else "no",
            },
        ],
    )


@pytest.fixture
def home(tmp_path: Path) -> Platform:
    return Platform.from_env({"LIFECYCLE_HOME": str(tmp_path / "home")})


@pytest.fixture
def archive(home: Platform) -> DeltaArchive:
    return DeltaArchive(home)


def versions(archive: DeltaArchive) -> list[int]:
    return [archive.version(PREFIX, table) for table in CHILDREN]


def held(home: Platform, table: str) -> list[dict[str, Any]]:
    keys = ", ".join(KEYS[table])
    return DuckDbEngine(home).query(PREFIX, f"FROM {table} ORDER BY {keys}", limit=1_000_000).dicts()


def test_nothing_is_there_before_the_first_write(archive: DeltaArchive, home: Platform) -> None:
    assert archive.trace_ids(PREFIX, DAY) == set()
    assert versions(archive) == [-1, -1, -1]
    assert archive.replace_day(PREFIX, "quality_metrics", DAY, []) == Written(0, 0)
    assert not home.home.exists()


def test_a_second_write_of_the_same_rows_makes_no_commit(archive: DeltaArchive, home: Platform) -> None:
    rows = [make_rows(i) for i in range(30)]

    assert upsert_day(home, DAY, rows) == {
        "spans": Written(60, 0),
        "assessments": Written(60, 0),
        "traces": Written(30, 0),
    }
    before = versions(archive)
    assert upsert_day(home, DAY, list(reversed(rows))) == dict.fromkeys(CHILDREN, Written(0, 0))
    assert upsert_day(home, DAY, rows[:3]) == dict.fromkeys(CHILDREN, Written(0, 0))
    assert versions(archive) == before
    assert archive.trace_ids(PREFIX, DAY) == {f"tr-{i}" for i in range(30)}
    assert archive.trace_ids(PREFIX, DAY + timedelta(days=1)) == set()


def test_rows_come_back_as_they_went_in(archive: DeltaArchive, home: Platform) -> None:
    rows = make_rows(3)
    before = datetime.now(UTC)
    upsert_day(home, DAY, [rows])

    found = held(home, "traces")[0]
    assert before <= found.pop("archived_at") <= datetime.now(UTC)
    assert found == rows.trace
    assert list(held(home, "spans")[0]) == list(TABLES["spans"])


def test_what_changed_late_is_written_and_nothing_else(archive: DeltaArchive, home: Platform) -> None:
    """A person's label a week later, a corrected value, a tag: one row each."""
    rows = [make_rows(i) for i in range(10)]
    upsert_day(home, DAY, rows)
    archived_at = held(home, "traces")[1]["archived_at"]

    rows[4].assessments[0]["value_number"] = 40.0
    rows[5].assessments.append({**rows[5].assessments[1], "assessment_id": "h-late"})
    rows[0].trace["tags"] = {"environment": "prod", "seen": "1"}

    spans_before = archive.version(PREFIX, "spans")
    assert upsert_day(home, DAY, rows) == {
        "spans": Written(0, 0),
        "assessments": Written(1, 1),
        "traces": Written(0, 1),
    }
    assert archive.version(PREFIX, "spans") == spans_before
    assert held(home, "traces")[1]["archived_at"] == archived_at
    assert held(home, "traces")[0]["tags"] == {"environment": "prod", "seen": "1"}
    assert len(held(home, "assessments")) == 21


@pytest.mark.parametrize("few", [True, False])
def test_what_people_say_is_as_mlflow_has_it_and_only_a_newer_score_of_ours_stays(few: bool) -> None:
    """MLflow stamps a change with its own server's clock, and gives all its ids the same beginning."""
    rows = make_rows(1)
    person, score = ({**one, "assessment_id": f"a-{n}"} for n, one in enumerate(rows.assessments))
    person, score = {**person, "scorer_version": None, "source_type": "HUMAN"}, {**score, "scorer_version": "1"}
    earlier = {"value_number": 0.5, "updated_at": rows.assessments[0]["updated_at"] - timedelta(seconds=3)}
    held, names = arrow_table("assessments", [person, score]), list(TABLES["assessments"])
    source = arrow_table("assessments", [{**person, **earlier}, {**score, **earlier}])
    found = (
        few_changes(source, held, "assessments", names)
        if few
        else changes(source, digests(held, "assessments", names), "assessments", names)
    )
    assert (found.new.num_rows, found.changed.column("assessment_id").to_pylist()) == (0, ["a-0"])


def test_an_assessment_mlflow_no_longer_has_becomes_invalid(archive: DeltaArchive, home: Platform) -> None:
    rows = [make_rows(i) for i in range(3)]
    upsert_day(home, DAY, rows)
    without = copy.deepcopy(rows[1])
    removed = without.assessments.pop()

    assert upsert_day(home, DAY, [without])["assessments"] == Written(0, 1)
    assert upsert_day(home, DAY, [without])["assessments"] == Written(0, 0)

    valid = {row["assessment_id"]: row["valid"] for row in held(home, "assessments")}
    assert valid[removed["assessment_id"]] is False
    assert sum(valid.values()) == 5
    assert upsert_day(home, DAY, [rows[1]])["assessments"] == Written(0, 1)
    assert all(row["valid"] for row in held(home, "assessments"))


def test_a_trace_without_spans_and_assessments_is_kept(archive: DeltaArchive, home: Platform) -> None:
    rows = make_rows(1)
    assert upsert_day(home, DAY, [TraceRows(rows.trace, [], [])])["traces"] == Written(1, 0)
    assert DuckDbEngine(home).tables(PREFIX)["traces"] == 1


def test_a_trace_given_twice_counts_once(archive: DeltaArchive, home: Platform) -> None:
    first, last = make_rows(1), make_rows(1)
    last.trace["state"] = "ERROR"

    upsert_day(home, DAY, [first, last])

    assert [row["state"] for row in held(home, "traces")] == ["ERROR"]
    assert len(held(home, "spans")) == 2


def test_hostile_text_is_kept(archive: DeltaArchive, home: Platform) -> None:
    rows = make_rows(1)
    rows.trace["request"] = "nul \x00, quote ' \" \\, \u202e, 🙂, " + "long " * 400_000
    rows.trace["tags"] = {"": "", "a'b\"c": "\x00", "trace_date": "2020-01-01"}
    rows.spans[0]["name"] = "'; DROP TABLE spans; --"

    upsert_day(home, DAY, [rows])

    assert held(home, "traces")[0]["request"] == rows.trace["request"]
    assert held(home, "traces")[0]["tags"] == rows.trace["tags"]
    assert upsert_day(home, DAY, [rows])["traces"] == Written(0, 0)
    log = sum(f.stat().st_size for f in (Path(home.table_uri(PREFIX + "traces")) / "_delta_log").iterdir())
    assert log < 20_000, "payloads have no place in the log's statistics"


def test_a_row_or_a_table_that_is_none_of_ours_is_a_mistake_of_the_caller(archive: DeltaArchive) -> None:
    with pytest.raises(ValueError, match="no column colour"):
        archive.replace_day(PREFIX, "quality_metrics", DAY, [{"colour": 1}])
    with pytest.raises(ValueError, match="no table"):
        archive.version(PREFIX, "nothing")


def test_a_day_is_replaced_as_a_whole_or_not_at_all(archive: DeltaArchive, home: Platform) -> None:
    rows = [{"model_id": "m", "version": "1", "metric": f"x/{i}", "value": float(i), "n": 3} for i in range(3)]

    def write(new: list[dict[str, Any]], day: date = DAY) -> Written:
        return archive.replace_day(PREFIX, "quality_metrics", day, new)

    assert write(rows) == Written(3, 0)
    assert write(rows, DAY - timedelta(days=1)) == Written(3, 0)
    version = archive.version(PREFIX, "quality_metrics")
    assert write(list(reversed(rows))) == Written(0, 0)
    assert archive.version(PREFIX, "quality_metrics") == version
    assert write([rows[0] | {"value": 9.0}, rows[1], rows[2] | {"metric": "y"}]) == Written(1, 1, 1)
    assert write([]) == Written(0, 0, 3)
    assert DuckDbEngine(home).tables(PREFIX)["quality_metrics"] == 3


def test_a_promotion_is_appended_once(archive: DeltaArchive, home: Platform) -> None:
    row = {
        "at": "2026-11-20T10:00:00+00:00",
        "alias": "champion",
        "from_version": None,
        "to_version": "1",
        "evidence": {"run": "r"},
    }
    key = ["alias", "from_version", "to_version", "at"]

    assert archive.append_once(PREFIX, "promotions", row, key=key)
    assert not archive.append_once(PREFIX, "promotions", row, key=key)
    assert archive.append_once(PREFIX, "promotions", row | {"from_version": "1", "to_version": "2"}, key=key)
    assert archive.version(PREFIX, "promotions") == 2
    found = DuckDbEngine(home).query(PREFIX, 'SELECT "at", evidence FROM promotions WHERE to_version = ?', ["1"])
    assert found.rows == ((datetime(2026, 11, 20, 10, tzinfo=UTC), '{"run": "r"}'),)


def test_a_table_that_cannot_be_read_is_not_an_empty_table(archive: DeltaArchive, home: Platform) -> None:
    upsert_day(home, DAY, [make_rows(1)])
    for file in (Path(home.table_uri(PREFIX + "traces")) / "_delta_log").iterdir():
        file.write_text("not json")

    with pytest.raises(Exception, match=r"(?i)json|parse|log"):
        archive.trace_ids(PREFIX, DAY)


WRITER = """
import sys, time
from pathlib import Path
from resources.archive.delta_archive import DeltaArchive
from resources.platform import Platform
from tests.resources.archived import upsert_day
from tests.resources.test_archive import DAY, PREFIX, make_rows
platform = Platform.from_env()
archive = DeltaArchive(platform)
rows = [make_rows(i) for i in range(int(sys.argv[1]), int(sys.argv[2]))]
import deltalake, duckdb, pyarrow  # So that a kill falls into the writing, not into imports.
Path(sys.argv[3]).write_text("ready")
while not Path(sys.argv[4]).exists():
    time.sleep(0.001)
step = int(sys.argv[5])
for start in range(0, len(rows), step):
    upsert_day(platform, DAY, rows[start : start + step])
    archive.append_once(PREFIX, "promotions", {"alias": "champion", "to_version": str(start)}, key=["to_version"])
"""


def start_writer(home: Platform, first: int, last: int, step: int, name: str, go: Path) -> subprocess.Popen:
    ready = home.home.parent / name
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"LIFECYCLE_HOME": str(home.home), "PYTHONPATH": str(root)}
    env.pop("LIFECYCLE_WAREHOUSE_URI", None)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(first), str(last), str(ready), str(go), str(step)], env=env, cwd=root
    )
    until = time.monotonic() + 60
    while not ready.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    assert ready.exists()
    return process


def assert_each_once(home: Platform, traces: int) -> None:
    engine = DuckDbEngine(home)
    rows = {"traces": traces, "spans": 2 * traces, "assessments": 2 * traces}
    assert engine.tables(PREFIX) | {"promotions": 0} == dict.fromkeys(TABLES, 0) | rows
    for table in CHILDREN:
        keys = ", ".join(KEYS[table])
        distinct = engine.query(PREFIX, f"SELECT count(*) FROM (SELECT DISTINCT {keys} FROM {table})").rows[0][0]
        assert distinct == (traces if table == "traces" else 2 * traces)


@pytest.mark.timeout(600)
def test_killed_anywhere_and_run_again_each_row_is_there_once(home: Platform, archive: DeltaArchive) -> None:
    """Four kills at random instants; after each, what `traces` has is complete; after a last run, all is."""
    seed = random.SystemRandom().randrange(10**6)
    dice, go = random.Random(seed), home.home.parent / "go"
    go.touch()
    landed = 0
    for attempt in range(4):
        process = start_writer(home, 0, 300, 20, f"ready-{attempt}", go)
        time.sleep(dice.uniform(0.02, 0.6))
        process.send_signal(signal.SIGKILL)
        landed += process.wait() == -signal.SIGKILL
        orphans = DuckDbEngine(home).query(
            PREFIX,
            "SELECT count(*) FROM traces t WHERE (SELECT count(*) FROM spans s WHERE s.trace_id = t.trace_id) <> 2"
            " OR (SELECT count(*) FROM assessments a WHERE a.trace_id = t.trace_id) <> 2",
        )
        assert orphans.rows == ((0,),), f"seed {seed}"

    assert landed >= 3, f"the kills came too late to prove anything, seed {seed}"
    assert start_writer(home, 0, 300, 20, "ready-last", go).wait(timeout=120) == 0
    assert_each_once(home, 300)
    assert DuckDbEngine(home).query(PREFIX, "SELECT count(*), count(DISTINCT to_version) FROM promotions").rows == (
        (15, 15),
    )
    before = versions(archive)
    upsert_day(home, DAY, [make_rows(i) for i in range(300)])
    assert versions(archive) == before


@pytest.mark.timeout(600)
@pytest.mark.parametrize("overlap", [True, False])
def test_two_writers_at_once_write_each_row_once(home: Platform, overlap: bool) -> None:
    """One writer is foreseen; two must not spoil the table: the loser of a commit reads again."""
    go = home.home.parent / "go"
    ranges = [(0, 60), (0, 60)] if overlap else [(0, 30), (30, 60)]
    writers = [start_writer(home, *ends, 30, f"ready-{i}", go) for i, ends in enumerate(ranges)]
    go.touch()

    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert_each_once(home, 60)
    promotions = DuckDbEngine(home).query(PREFIX, "SELECT count(*), count(DISTINCT to_version) FROM promotions").rows
    assert promotions == (((2, 2),) if overlap else ((1, 1),))


def test_a_writer_that_always_loses_says_so(
    archive: DeltaArchive, home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writer really commits, each time between our reading and our commit."""
    upsert_day(home, DAY, [make_rows(1)])
    turn = iter(range(1000))

    def after_the_rival(target: DeltaTable, source: Any, predicate: str, transactions: Any = None) -> Any:
        row = {**make_rows(1).spans[0], "name": f"rival {next(turn)}"}
        same = f"t.trace_date = '{DAY}' AND t.span_id = s.span_id"
        changed = DeltaTable(home.table_uri(PREFIX + "spans"))
        merge_rows(changed, arrow_table("spans", [row]), same).when_matched_update_all().execute()
        return merge_rows(target, source, predicate, transactions)

    monkeypatch.setattr("resources.archive.snapshots.merge_rows", after_the_rival)
    rows = make_rows(1)
    rows.spans[0]["name"] = "ours"
    with pytest.raises(Refused, match="one writer a table"):
        upsert_day(home, DAY, [rows])


def test_a_file_in_the_way_of_the_tables_is_explained(home: Platform, archive: DeltaArchive) -> None:
    home.home.mkdir(parents=True)
    (home.home / "warehouse").write_text("a file where the folder should be")

    with pytest.raises(Refused, match="move it away"):
        upsert_day(home, DAY, [make_rows(1)])


def test_a_folder_delta_cannot_keep_is_refused(tmp_path: Path) -> None:
    home = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path / "per%20cent")})
    with pytest.raises(Refused, match="another folder"):
        upsert_day(home, DAY, [make_rows(1)])


def test_a_warehouse_may_be_a_uri(tmp_path: Path) -> None:
    warehouse = (tmp_path / "ware house").as_uri()
    home = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path), "LIFECYCLE_WAREHOUSE_URI": warehouse})
    archive = DeltaArchive(home)

    assert upsert_day(home, DAY, [make_rows(1)])["traces"] == Written(1, 0)
    assert upsert_day(home, DAY, [make_rows(1)])["traces"] == Written(0, 0)
    assert archive.trace_ids(PREFIX, DAY) == {"tr-1"}
    assert DuckDbEngine(home).tables(PREFIX)["spans"] == 2
