"""Both readers give the same rows of any trace, and say so when they cannot read."""

import re
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lifecycle_assets.refused import Refused
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.platform import Platform
from resources.reading.database_reader import DatabaseReader
from resources.reading.page_columns import page_columns, read_stored
from resources.reading.public_reader import PublicReader
from resources.reading.reading import open_reader
from resources.reading.server_traces import duration_ms, moment_ms
from resources.reading.span_columns import SpanColumns
from resources.reading.sqlite_database import SqliteDatabase
from resources.reading.trace_reader import Batch, Marks, TraceReader
from tests.resources.readers import FOREVER, START_MS, in_database, rows, tables, trace, write
from tests.resources.test_trace_store import EXPERIMENT, MIDNIGHT_MS, assess, make_bare_trace, make_trace

RULES = ((re.compile("a|1"), "[x]"), (re.compile(r'"plain": '), '"plain":'))


@pytest.fixture(scope="module")
def world(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """One store for all examples of a property."""
    home = tmp_path_factory.mktemp("readers")
    shutil.copy(migrated_store, home / "mlflow.db")
    return Platform.from_env({"LIFECYCLE_HOME": str(home)})


def readers(platform: Platform, experiment: str = EXPERIMENT) -> tuple[TraceReader, PublicReader]:
    known = experiment_id(platform, experiment)
    reader = open_reader(platform, known, pytest.fail)
    assert isinstance(reader, DatabaseReader)
    return reader, PublicReader(platform, known)


@settings(
    max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], database=None
)
@given(made=st.lists(trace, min_size=2, max_size=3))
def test_both_readers_give_the_same_rows_of_any_trace(world: Platform, made: list[dict[str, Any]]) -> None:
    experiment = f"/any/{len(open_client(world).search_experiments())}"
    for one in made:
        write(world, experiment_id(world, experiment), one)
    database, public = readers(world, experiment)

    found = rows(public)
    with sqlite3.connect(world.home / "mlflow.db") as con:
        of = f"SELECT request_id FROM trace_info WHERE experiment_id = {experiment_id(world, experiment)}"
        counts = f"SELECT count(*) FROM ({of})", f"SELECT count(*) FROM spans WHERE trace_id IN ({of})"
        kept = [con.execute(count).fetchone()[0] for count in counts]
    con.close()
    assert len(found["traces"]) + len(found["quarantined"]) == kept[0]
    assert len(found["spans"]) >= kept[1]  # What its database refuses MLflow keeps as a file.
    assert rows(database) == found
    assert rows(database, RULES) == rows(public, RULES)
    assert rows(database, spans=False) == rows(public, spans=False)


def test_what_mlflows_client_would_not_write_is_read_alike_or_quarantined_alike(world: Platform) -> None:
    """A store is written by other clients too, and files break."""
    experiment = "/odd"
    file = world.home / "mlflow.db"
    texts = [
        "nan",
        "[1,]",
        '{"a": nAn}',
        "not json",
        '"half \\ud83d"',
        '{"a": 1e999}',
        "9" * 5000,
        "[" * 3000 + "]" * 3000,
    ]
    known, kept = experiment_id(world, experiment), {}
    for raw in texts:
        made = mlflow_trace(world, known)
        in_database(file, f"UPDATE spans SET content = json_set(content, '{_INPUTS}', ?) WHERE trace_id = ?", raw, made)
        kept[made] = raw
    broken = {mlflow_trace(world, known): content for content in ("{", "[]", "null", '{"span_id": 5}', "{}")}
    for made, content in broken.items():
        in_database(file, "UPDATE spans SET content = ? WHERE trace_id = ? AND parent_span_id IS NULL", content, made)
    value, state, tag = (mlflow_trace(world, known) for _ in range(3))
    assess(world, value, name="good", value=True)
    in_database(file, "UPDATE assessments SET value = '{' WHERE trace_id = ?", value)
    in_database(file, "UPDATE trace_info SET status = 'ODD' WHERE request_id = ?", state)
    in_database(file, "UPDATE trace_tags SET value = NULL WHERE request_id = ? AND key = 'environment'", tag)
    database, public = readers(world, experiment)

    listing = database.list(0, FOREVER, settled_before_ms=FOREVER)
    found = rows(database)

    assert {one for one, _ in found["quarantined"]} == {*broken, value, state}
    by_id = {row["trace_id"]: row for row in found["traces"]}
    assert set(by_id) == {*kept, tag}
    assert by_id[tag]["tags"][0] == ("environment", "None")
    strict = {made: row["request"] for made, row in by_id.items() if made in kept}
    assert [strict[made] for made, raw in kept.items() if raw == "nan"] == ['"nan"']
    for trace_id in listing.ids:
        if trace_id not in {value, state}:  # MLflow's own listing fails for these.
            assert_alike(database, public, listing.traces, trace_id)


def test_many_traces_are_read_by_a_process_of_its_own(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [make_trace(platform, MIDNIGHT_MS + i, outputs={"n": i}, error=i == 3) for i in range(7)]
    assess(platform, made[0], name="good", value=0.5)
    raw = "not json"
    in_database(
        platform.home / "mlflow.db",
        f"UPDATE spans SET content = json_set(content, '{_INPUTS}', ?) WHERE trace_id = ?",
        raw,
        made[2],
    )
    database, public = readers(platform)
    few = rows(database), rows(database, spans=False)
    monkeypatch.setattr("resources.reading.database_reader._FEW", 0)
    monkeypatch.setattr("resources.reading.database_reader._PAGE", 3)

    assert rows(database) == few[0] == rows(public)
    assert rows(database, spans=False) == few[1]
    listing = database.list(0, FOREVER, settled_before_ms=FOREVER).traces
    pages = database.batches(listing)
    assert next(pages).traces.column("trace_id").to_pylist() == made[:3]
    pages.close()
    order = [one for page in database.batches(listing) for one in page.traces.column("trace_id").to_pylist()]
    assert order == listing.column("trace_id").to_pylist()
    monkeypatch.setattr("resources.reading.sqlite_process._CHILD", "resources.reading.no_such_module")
    with pytest.raises(Refused, match=r"mlflow\.db: the process that read it ended in the middle .*; run again"):
        rows(database)


@pytest.mark.parametrize("few", [0, 1_000])
def test_reading_leaves_mlflows_locks_alone(platform: Platform, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """Closing a file drops all locks that other copies of SQLite hold on it in the same process."""
    made = make_trace(platform, MIDNIGHT_MS)
    database, _ = readers(platform)
    monkeypatch.setattr("resources.reading.database_reader._FEW", few)
    file = platform.home / "mlflow.db"
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert {row["trace_id"] for row in rows(database)["traces"]} == {made}
    assert database.touched(0, FOREVER, Marks()).marks.seen
    database.state()
    del database

    other = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0.1, isolation_level=None).execute(sys.argv[2])"
    tried = subprocess.run([sys.executable, "-c", other, file, "BEGIN IMMEDIATE"], capture_output=True, text=True)
    writer.close()

    assert "database is locked" in tried.stderr
    assert "adbc_driver_sqlite" not in sys.modules


@given(ms=st.integers(0, 253_402_300_799_999), took_ms=st.integers(-(10**9), 10**12))
def test_times_of_a_server_are_read_as_protobuf_writes_them(ms: int, took_ms: int) -> None:
    started, took = Timestamp(), Duration()
    started.FromMilliseconds(ms)
    took.FromMilliseconds(took_ms)

    assert moment_ms(started.ToJsonString()) == ms
    assert duration_ms(took.ToJsonString()) == took_ms
    assert duration_ms(None) is None


def assert_alike(database: TraceReader, public: TraceReader, listing: Any, trace_id: str) -> None:
    import pyarrow.compute as pc

    one = listing.filter(pc.equal(listing.column("trace_id"), trace_id))
    assert tables(database.batches(one)) == tables(public.batches(one))


_INPUTS = '$.attributes."mlflow.spanInputs"'


def mlflow_trace(platform: Platform, experiment: str) -> str:
    mlflow = open_mlflow(platform)
    root = mlflow.start_span_no_context(
        "root", inputs=1, experiment_id=experiment, start_time_ns=START_MS * 10**6, tags={"environment": "prod"}
    )
    mlflow.start_span_no_context("call", parent_span=root, start_time_ns=START_MS * 10**6).end()
    root.end(end_time_ns=(START_MS + 5) * 10**6)
    return root.trace_id


def test_rows_make_the_same_columns_in_whatever_order_they_come(platform: Platform) -> None:
    """PostgreSQL gives them in any. Of several roots the first says request and response, by start, then by id."""
    made = [make_trace(platform, MIDNIGHT_MS + i, outputs={"n": i}, tags={"b": "1", "a": "2"}) for i in range(4)]
    for nth, value in enumerate((True, 0.5, "good", None)):
        said = {"name": f"said {nth}", "value": value, "metadata": {"lifecycle.outcome": "not applicable"}}
        assess(platform, made[nth % 2], **said)
    rootless = "UPDATE spans SET parent_span_id = NULL, content = json_set(content, '$.parent_span_id', NULL)"
    in_database(platform.home / "mlflow.db", f"{rootless} WHERE trace_id = ?", made[2])
    database, public = readers(platform)
    assert rows(database) == rows(public)
    known = experiment_id(platform, EXPERIMENT)
    stored = read_stored(SqliteDatabase(platform.home / "mlflow.db"), known, made, with_spans=True)
    names = ("heads", "tags", "metadata", "assessments", "spans")
    turned = {name: (table := getattr(stored, name)).take([*range(table.num_rows)][::-1]) for name in names}

    page, other = (page_columns(one, known, SpanColumns()) for one in (stored, replace(stored, **turned)))
    deleted = page_columns(replace(stored, heads=stored.heads.slice(1)), known, SpanColumns())

    assert (page.odd, len(page.traces)) == ([], 4)
    assert tables([Batch(other.traces, other.assessments, other.spans)]) == rows(database)
    assert other.traces.equals(page.traces)
    assert deleted.traces.equals(page.traces.slice(1))
    for left, whole in ((deleted.assessments, page.assessments), (deleted.spans, page.spans)):
        assert left.to_pylist() == [row for row in whole.to_pylist() if row["trace_id"] != made[0]]


def test_spans_kept_elsewhere_are_fetched_there(platform: Platform) -> None:
    kept = [make_trace(platform, MIDNIGHT_MS + i, outputs={"n": i}) for i in range(3)]
    bare = make_bare_trace(platform, "tr-" + "a" * 32, MIDNIGHT_MS + 9)
    database, public = readers(platform)
    before = rows(database)
    store = open_client(platform)._tracing_client.store
    location = (platform.home / "elsewhere").as_uri()

    store.archive_traces(resolved_trace_archival_location=location, broader_retention="1m")
    with sqlite3.connect(platform.home / "mlflow.db") as con:
        moved = con.execute("SELECT count(*) FROM spans WHERE content = ''").fetchone()[0]
    con.close()
    assert moved == 6
    after = rows(database)

    assert [row["request"] for row in after["traces"]] == [row["request"] for row in before["traces"]]
    assert {row["trace_id"] for row in after["spans"]} == set(kept)
    assert bare in {row["trace_id"] for row in after["traces"]}
    assert after == rows(public)
    shutil.rmtree(platform.home / "elsewhere")
    gone = rows(database)
    assert [one for one, _ in gone["quarantined"]] == sorted(kept)
    assert gone == rows(public)


def test_scorers_are_given_the_same_traces(platform: Platform) -> None:
    made = [make_trace(platform, MIDNIGHT_MS + i, error=i == 1, tags={"a": "b"}) for i in range(3)]
    assess(platform, made[0], name="good", value=0.5, metadata={"k": "v"})
    made.append(make_bare_trace(platform, "tr-" + "b" * 32, MIDNIGHT_MS))
    asked = [made[2], "tr-gone", made[0], made[3], made[1]]
    database, public = readers(platform)

    given_ = list(database.traces(asked))

    assert [one.info.trace_id for one in given_] == [one for one in asked if one != "tr-gone"]
    assert [one.to_dict() for one in given_] == [one.to_dict() for one in public.traces(asked)]
    assert given_[1].search_spans(name="call")[0].attributes["mlflow.chat.tokenUsage"]["total_tokens"] == 7


def test_a_listing_says_what_has_not_ended_and_leaves_evaluations_out(platform: Platform) -> None:
    ended = make_trace(platform, MIDNIGHT_MS, took_ms=1000)
    make_trace(platform, MIDNIGHT_MS, took_ms=5000)
    make_trace(platform, MIDNIGHT_MS, metadata={"mlflow.sourceRun": "r-1"})
    make_bare_trace(platform, "tr-" + "c" * 32, MIDNIGHT_MS, "IN_PROGRESS")
    after = make_trace(platform, MIDNIGHT_MS + 10)

    for reader in readers(platform):
        listing = reader.list(MIDNIGHT_MS, MIDNIGHT_MS + 10, settled_before_ms=MIDNIGHT_MS + 1001)
        assert (listing.ids, listing.unsettled) == ([ended], 1)
        assert reader.list(MIDNIGHT_MS + 10, FOREVER, settled_before_ms=FOREVER).ids == [after]
        assert reader.list(MIDNIGHT_MS + 11, FOREVER, settled_before_ms=FOREVER).ids == []
        assert reader.list(FOREVER, FOREVER + 1, settled_before_ms=FOREVER).ids == []


def test_pages_of_one_instant_are_listed_once(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resources.reading.public_reader._SEARCH_PAGE", 3)
    monkeypatch.setattr("resources.reading.trace_fetch._PART", 4)
    monkeypatch.setattr("resources.reading.database_reader._PAGE", 4)
    times = [0, 1, 1, 2, 5, 5, 5, 5, 5, 5, 5, 6, 7, 7, 7]
    made = [make_bare_trace(platform, f"tr-{99 - i:032x}", MIDNIGHT_MS + ms) for i, ms in enumerate(times)]
    database, public = readers(platform)

    listing = database.list(0, FOREVER, settled_before_ms=FOREVER).traces

    assert sorted(listing.column("trace_id").to_pylist()) == sorted(made)
    assert public.list(0, FOREVER, settled_before_ms=FOREVER).traces.equals(listing)
    for reader in (database, public):
        order = [one for batch in reader.batches(listing) for one in batch.traces.column("trace_id").to_pylist()]
        assert order == listing.column("trace_id").to_pylist()


def test_a_trace_deleted_after_it_was_listed_is_left_out(platform: Platform) -> None:
    made = [make_trace(platform, MIDNIGHT_MS + i) for i in range(3)]
    database, public = readers(platform)
    listing = database.list(0, FOREVER, settled_before_ms=FOREVER).traces
    client, known = open_client(platform), experiment_id(platform, EXPERIMENT)

    client.delete_traces(known, trace_ids=[made[1]])

    for reader in (database, public):
        for batches in (reader.batches(listing), reader.heads(listing)):
            assert [one for batch in batches for one in batch.traces.column("trace_id").to_pylist()] == [
                made[0],
                made[2],
            ]
    client.delete_experiment(known)
    assert database.list(0, FOREVER, settled_before_ms=FOREVER).ids == [made[0], made[2]]


def test_an_experiment_without_traces_gives_none(platform: Platform) -> None:
    for reader in readers(platform):
        listing = reader.list(0, FOREVER, settled_before_ms=FOREVER)
        assert (listing.ids, listing.unsettled) == ([], 0)
        assert list(reader.batches(listing.traces)) == []
        assert list(reader.traces([])) == []


def test_another_schema_is_read_by_mlflow_and_said_once(platform: Platform) -> None:
    made = make_trace(platform, MIDNIGHT_MS)
    known = experiment_id(platform, EXPERIMENT)
    database, public = readers(platform)
    listing = public.list(0, FOREVER, settled_before_ms=FOREVER).traces
    in_database(platform.home / "mlflow.db", "UPDATE alembic_version SET version_num = 'of tomorrow'")
    said: list[str] = []

    reader = open_reader(platform, known, said.append)

    assert isinstance(reader, PublicReader)
    assert isinstance(open_reader(platform, known, said.append), PublicReader)
    assert len(said) == 1
    assert "of tomorrow is not one we tested" in said[0]
    with pytest.raises(Refused, match=r"schema changed from \w+ to of tomorrow"):
        list(database.batches(listing))
    assert made in listing.column("trace_id").to_pylist()
    with pytest.raises(Refused, match="none of MLflow's"):
        open_reader(platform, "1; DROP TABLE spans", said.append)


def test_a_file_that_is_no_database_is_named(platform: Platform) -> None:
    (platform.home / "mlflow.db").write_bytes(b"x" * 5000)

    with pytest.raises(Refused, match=r"mlflow\.db: the file is not a usable SQLite database"):
        open_reader(platform, "1", pytest.fail)


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_the_state_changes_with_every_write_and_with_nothing_else(platform: Platform, journal: str) -> None:
    make_trace(platform, MIDNIGHT_MS)
    with sqlite3.connect(platform.home / "mlflow.db") as con:
        con.execute(f"PRAGMA journal_mode = {journal}")
    con.close()
    database, public = readers(platform)
    seen = {database.state()}

    for nth in range(20):
        in_database(platform.home / "mlflow.db", "UPDATE trace_info SET execution_time_ms = ?", nth)
        database.list(0, FOREVER, settled_before_ms=FOREVER)
        assert database.state() == database.state() == public.state()
        seen.add(database.state())

    assert len(seen) == 21
    assert all(0 < one < 2**63 for one in seen)


def test_what_came_since_the_marks_is_touched(platform: Platform) -> None:
    made = [make_trace(platform, MIDNIGHT_MS + i) for i in range(5)]
    database, public = readers(platform)
    client, known = open_client(platform), experiment_id(platform, EXPERIMENT)
    marks = database.touched(0, FOREVER, Marks()).marks
    assert database.touched(0, FOREVER, marks).heads == frozenset()

    assess(platform, made[0], name="good", value=1)
    client.set_trace_tag(made[1], "new", "1")
    now = database.touched(0, FOREVER, marks)
    assert (now.heads, now.spans) == ({made[0], made[1]}, frozenset())
    assert database.touched(MIDNIGHT_MS + 2, FOREVER, marks).heads == frozenset()

    file = platform.home / "mlflow.db"
    copied = "trace_id, experiment_id, 'feedfeedfeedfeed', span_id, name, type, status, start_time_unix_nano, content"
    names = copied.replace("'feedfeedfeedfeed', span_id", "span_id, parent_span_id")
    late = f"INSERT INTO spans ({names}) SELECT {copied} FROM spans WHERE trace_id = ? AND parent_span_id IS NULL"
    in_database(file, late, made[2])
    now = database.touched(0, FOREVER, now.marks)
    assert (now.heads & {made[2]}, now.spans) == ({made[2]}, {made[2]})

    client.delete_traces(known, trace_ids=[made[4]])
    assert set(made[:4]) <= database.touched(0, FOREVER, now.marks).heads
    assert public.touched(0, FOREVER, marks).heads == frozenset()
