"""A day is archived completely, once, and at the cost of what is new; what comes late is written, and nothing else."""

import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Schema, write_deltalake

from lifecycle_assets.refused import Refused
from resources.archive.delta_archive import DeltaArchive
from resources.archive.row_changes import Written
from resources.delta import table as delta_table
from resources.delta.write import table_to_write
from resources.feedback import send_feedback
from resources.platform import Platform
from resources.reading.reading import open_reader
from resources.reading.trace_reader import Batch, TraceReader
from resources.redaction import Redaction
from resources.scoring.publishing import open_writer
from resources.scoring.score_table import ScoreTable
from resources.scoring.trace_scores import feedback_of, id_of
from resources.tables import PARTITION, arrow_table
from tests.resources.archiving import (
    ARCHIVED,
    DAY,
    LATER_MS,
    PREFIX,
    TRACES,
    Counting,
    Production,
    agent_at,
    copied,
    production,
)

NOTHING = dict.fromkeys(ARCHIVED, Written(0, 0))


@pytest.fixture(scope="module")
def archived_once(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Production:
    """The day after its first archiving."""
    made = production(migrated_store, tmp_path_factory.mktemp("production") / "home")
    made.archive()
    return made


@pytest.fixture
def made(archived_once: Production, tmp_path: Path) -> Production:
    return copied(archived_once, tmp_path / "home")


def score_row(trace_id: str) -> dict[str, Any]:
    """A score of ours, as it lands in the table before MLflow has it."""
    name, version, at = "local_tiny_shouted", "1", datetime(DAY.year, DAY.month, DAY.day, 12, tzinfo=UTC)
    return {
        "trace_id": trace_id,
        PARTITION: DAY,
        "assessment_id": id_of(trace_id, name, version),
        "name": name,
        "kind": "feedback",
        "source_type": "CODE",
        "source_id": name,
        "value_number": 1.0,
        "scorer_version": version,
        "valid": True,
        "created_at": at,
        "updated_at": at,
    }


def first_trace(made: Production) -> str:
    return made.rows("traces")[0]["trace_id"]


def test_a_day_is_complete_and_a_repeat_reads_one_number_and_one_table(
    made: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.archive()  # The store is a copy, which is another store.
    made.assert_whole(TRACES)
    before = made.versions()
    opened: list[str] = []
    real = delta_table.open_table
    monkeypatch.setattr("resources.archive.snapshots.open_table", lambda uri: opened.append(uri) or real(uri))

    archived, reader = made.counted()

    assert (archived.settled, archived.absent, archived.written) == (TRACES, (), NOTHING)
    assert archived.unchanged
    assert reader.asked == [("state", 1)]
    assert [uri.rpartition("_")[2] for uri in opened] == ["traces"]
    assert made.versions() == before


def test_batches_of_several_pages_come_from_one_stream(
    migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.reading.database_reader._PAGE", 4)
    monkeypatch.setattr("resources.reading.database_reader.DatabaseReader.page_size", 4)
    monkeypatch.setattr("resources.archive.append.BATCH_TRACES", 12)
    monkeypatch.setattr("resources.reading.database_reader._FEW", 0)
    made = production(migrated_store, tmp_path / "home")
    table_to_write(str(made.folder("spans")), "spans").alter.add_columns(
        Schema.from_arrow(pa.schema([("beside", pa.string())])).fields
    )

    archived, asked = made.counted()

    assert archived.written["traces"] == Written(TRACES, 0)
    assert [number for name, number in asked.asked if name == "batches"] == [TRACES]
    assert made.versions()["spans"] == 4  # 12, 12 and 6 traces; the empty table, and a column of somebody's.
    made.assert_whole(TRACES)


def test_new_traces_are_read_and_no_other(made: Production) -> None:
    """Of a day that is not small only the last half hour is listed: the cost follows what is new."""
    made.add_traces(5, TRACES)
    made.archive()
    made.add_traces(5, TRACES + 5)
    before = made.versions()

    archived, reader = made.counted(cheap_listing=0)

    assert archived.written["traces"] == Written(5, 0)
    assert reader.read("batches") == 5
    assert reader.read("heads") <= 1, "one something came to in the millisecond of the last mark"
    assert reader.read("list") < TRACES // 2
    assert {table: version - before[table] for table, version in made.versions().items()} == dict.fromkeys(ARCHIVED, 1)
    assert archived.settled == TRACES + 10
    made.assert_whole(TRACES + 10)


def test_a_trace_that_started_early_and_ended_late_is_found(made: Production) -> None:
    """It is older than all that is listed, and no row of it is held."""
    started = made.sql("SELECT min(timestamp_ms) FROM trace_info")[0][0]
    made.add_traces(1, TRACES)
    made.sql(
        "UPDATE trace_info SET timestamp_ms = ? WHERE timestamp_ms = (SELECT max(timestamp_ms) FROM trace_info)",
        started,
    )

    archived, _ = made.counted(cheap_listing=0)

    assert archived.written["traces"] == Written(1, 0)
    made.assert_whole(TRACES + 1)


def test_a_thumb_a_week_later_costs_one_row(made: Production) -> None:
    """The other traces are not read, their rows not written, and no payload is touched."""
    before, rows = made.versions(), made.rows("traces")
    trace_id = first_trace(made)
    send_feedback(made.platform, trace_id, up=False, user="ann")
    archived, reader = made.counted(cheap_listing=0)

    assert archived.written == NOTHING | {"assessments": Written(1, 0)}
    assert reader.read("heads") <= 2, "its trace, and one something came to in the millisecond of the last mark"
    assert reader.read("batches") == 0
    after = made.versions()
    assert (after["spans"], after["assessments"], after["traces"]) == (
        before["spans"],
        before["assessments"] + 1,
        before["traces"] + 1,
    )
    assert made.rows("traces") == rows
    assert len(made.rows("assessments", f"trace_id = '{trace_id}' AND name = 'user_feedback'")) >= 1


def test_a_client_whose_clock_is_ahead_hides_no_other_thumb(made: Production) -> None:
    made.sql("UPDATE assessments SET last_updated_timestamp = 4102444800000 WHERE rowid = 1")
    made.archive()
    send_feedback(made.platform, first_trace(made), up=False, user="ann")

    archived, _ = made.counted(cheap_listing=0)

    assert archived.written["assessments"] == Written(1, 0)


def test_an_archiver_whose_clock_was_ahead_does_not_put_off_the_next_comparison(
    made: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as ahead:
        ahead.setattr("resources.archive.look.time", SimpleNamespace(time=lambda: 4102444800.0))
        made.archive(anew=True)
        made.client.set_trace_tag(first_trace(made), "environment", "moved")
        made.counted(cheap_listing=0)
    made.client.set_trace_tag(first_trace(made), "environment", "elsewhere")

    archived, _ = made.counted(cheap_listing=0)

    assert archived.written["traces"] == Written(0, 1)


def test_a_late_span_is_written_and_its_trace_stays(made: Production) -> None:
    trace_id = first_trace(made)
    columns = [row[1] for row in made.sql("PRAGMA table_xinfo(spans)") if row[6] == 0]
    taken = ", ".join("'00000000000000aa'" if name == "span_id" else name for name in columns)
    made.sql(
        f"INSERT INTO spans ({', '.join(columns)}) SELECT {taken} FROM spans WHERE trace_id = ? "
        "AND parent_span_id IS NOT NULL LIMIT 1",
        trace_id,
    )
    made.sql(
        "UPDATE spans SET content = json_set(content, '$.span_id', 'AAAAAAAAAKo=') WHERE span_id = '00000000000000aa'"
    )
    archived, reader = made.counted(cheap_listing=0)

    assert archived.written == NOTHING | {"spans": Written(1, 0)}
    assert reader.read("batches") == 1
    made.assert_whole(TRACES)


def test_a_changed_tag_is_seen_by_comparing_heads(made: Production) -> None:
    """A tag set to another value leaves no trace in the store: a small day's heads are compared each time."""
    trace_id = first_trace(made)
    payload = made.rows("traces")[0]["request"]
    made.client.set_trace_tag(trace_id, "environment", "elsewhere")
    before = made.versions()

    archived, reader = made.counted()

    assert archived.written == NOTHING | {"traces": Written(0, 1)}
    assert reader.read("batches") == 0
    (row,) = made.rows("traces", f"trace_id = '{trace_id}'")
    assert row["environment"] == "elsewhere"
    assert row["request"] == payload, "a head says nothing of the payload, which stays"
    assert made.versions()["spans"] == before["spans"]
    assert made.versions()["assessments"] == before["assessments"]


def test_a_small_day_is_compared_by_digests_and_by_heads_only_where_one_differs(
    made: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.add_traces(2, TRACES)
    archived, reader = made.counted()
    assert archived.written["traces"] == Written(2, 0)
    assert reader.read("digests") == TRACES + 2
    assert reader.read("heads") <= 1, "one something came to in the millisecond of the last mark"

    for trace_id in (first_trace(made), made.last_added):
        made.client.set_trace_tag(trace_id, "environment", "elsewhere")
    archived, reader = made.counted()
    assert archived.written == NOTHING | {"traces": Written(0, 2)}
    assert reader.read("heads") == TRACES + 2

    made.client.create_experiment("/agents/another")
    archived, reader = made.counted()
    assert (archived.unchanged, archived.written) == (False, NOTHING)
    assert reader.read("heads") <= 1

    made.client.create_experiment("/agents/one more")
    later = time.time() + 3_601
    monkeypatch.setattr("resources.archive.look.time", SimpleNamespace(time=lambda: later))
    archived, reader = made.counted()
    assert archived.written == NOTHING
    assert reader.read("heads") == TRACES + 2, "once an hour whatever the digests say"
    assert made.counted()[0].unchanged


def test_a_digest_differs_when_anything_of_its_trace_does_but_for_spans(made: Production) -> None:
    trace_id = made.sql("SELECT trace_id FROM assessments LIMIT 1")[0][0]
    (experiment,) = made.sql("SELECT max(experiment_id) FROM trace_info")
    reader = open_reader(made.platform, str(*experiment), print)

    def digests() -> dict[str, int]:
        listing = reader.list(0, LATER_MS, settled_before_ms=LATER_MS)
        found = reader.digests(listing.traces)
        assert found is not None
        return dict(zip(listing.ids, found, strict=True))

    known = digests()
    assert len(set(known.values())) == TRACES
    assert digests() == known
    for statement in (
        "UPDATE trace_info SET status = 'ERROR' WHERE request_id = ?",
        "UPDATE trace_info SET session_id = 'another' WHERE request_id = ?",
        "UPDATE trace_info SET total_cost = 0.1 WHERE request_id = ?",
        "UPDATE trace_info SET total_cost = 0.1 + 1e-17 WHERE request_id = ?",
        "UPDATE trace_tags SET value = 'x' WHERE key = 'environment' AND request_id = ?",
        "UPDATE trace_tags SET value = 'x' || char(0) WHERE key = 'environment' AND request_id = ?",
        "UPDATE trace_tags SET value = 'x' || char(0) || 'y' WHERE key = 'environment' AND request_id = ?",
        "UPDATE trace_tags SET value = NULL WHERE key = 'environment' AND request_id = ?",
        "DELETE FROM trace_tags WHERE key = 'environment' AND request_id = ?",
        "UPDATE trace_request_metadata SET value = 'm-other' WHERE key = 'mlflow.modelId' AND request_id = ?",
        "UPDATE assessments SET rationale = 'because' WHERE trace_id = ?",
        "UPDATE assessments SET valid = 0 WHERE trace_id = ?",
        "DELETE FROM assessments WHERE trace_id = ?",
    ):
        made.sql(statement, trace_id)
        now = digests()
        assert {one for one in now if now[one] != known[one]} == {trace_id}, statement
        known = now
    made.sql("UPDATE trace_tags SET value = x'ff00' WHERE request_id = ?", trace_id)
    assert digests()[trace_id] != known[trace_id], "bytes that are no text, which MLflow writes none of, stop nobody"


def test_a_removed_assessment_becomes_invalid_and_one_of_ours_only_when_it_was_published(made: Production) -> None:
    trace_id = first_trace(made)
    ours = score_row(trace_id)
    DeltaArchive(made.platform).append_once(PREFIX, "assessments", ours, key=["trace_id", "assessment_id"])
    (gone,) = made.sql("SELECT assessment_id, trace_id FROM assessments LIMIT 1")
    made.sql("DELETE FROM assessments WHERE assessment_id = ?", gone[0])
    made.archive(anew=True)

    valid = {row["assessment_id"]: row["valid"] for row in made.rows("assessments")}
    assert not valid[gone[0]]
    assert valid[ours["assessment_id"]], "it is not in MLflow yet"
    assert sum(not one for one in valid.values()) == 1

    published = {"trace_id": trace_id, PARTITION: DAY, "assessment_id": ours["assessment_id"], "digest": "d"}
    DeltaArchive(made.platform).append_once(PREFIX, "publications", published, key=["trace_id", "assessment_id"])
    made.archive(anew=True)
    valid = {row["assessment_id"]: row["valid"] for row in made.rows("assessments")}
    assert not valid[ours["assessment_id"]], "it was in MLflow, and somebody removed it"


def test_rows_another_program_doubled_stop_nobody_and_are_kept_once(made: Production) -> None:
    before = {table: made.rows(table) for table in ARCHIVED}
    for table in ARCHIVED:
        write_deltalake(made.folder(table), DeltaTable(made.folder(table)).to_pyarrow_table(), mode="append")
    made.sql("UPDATE assessments SET rationale = 'again', last_updated_timestamp = last_updated_timestamp + 1000")
    assert made.archive(anew=True).written["assessments"].updated > 0

    archive = DeltaArchive(made.platform)
    removed = {table: archive.undouble_day(PREFIX, table, DAY) for table in ARCHIVED}

    assert removed == {table: len(rows) for table, rows in before.items()}
    made.assert_whole(TRACES)
    assert {row["rationale"] for row in made.rows("assessments")} == {"again"}
    assert [made.rows(table) for table in ("spans", "traces")] == [before["spans"], before["traces"]]
    versions = made.versions()
    assert archive.undouble_day(PREFIX, "spans", DAY) == 0
    assert made.versions() == versions
    assert made.archive().absent == ()
    made.assert_whole(TRACES)


class Interrupted(Counting):
    """A reader between whose first pages something happens."""

    def __init__(self, real: TraceReader, meanwhile: Callable[[], None]) -> None:
        super().__init__(real)
        self._meanwhile = meanwhile

    def heads(self, listing: pa.Table, *, redact: Redaction = ()) -> Iterator[Batch]:
        for number, batch in enumerate(super().heads(listing, redact=redact)):
            yield batch
            if number == 0:
                self._meanwhile()


@pytest.mark.parametrize("few", [1_000, 5], ids=["few", "many"])
def test_a_score_that_lands_and_is_published_between_two_pages_is_there_once(
    made: Production, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr("resources.archive.upsert._TRACES_AT_ONCE", 10)
    monkeypatch.setattr("resources.archive.upsert.FEW", few)
    monkeypatch.setattr("resources.reading.database_reader._HEADS_PAGE", 10)
    (newest,) = made.sql("SELECT request_id FROM trace_info ORDER BY timestamp_ms DESC, request_id DESC LIMIT 1")
    row = score_row(newest[0]) | dict.fromkeys(("error", "rationale", "value_text"))
    made.client.set_trace_tag(first_trace(made), "environment", "elsewhere")  # So that heads are compared.

    def score() -> None:
        ScoreTable(made.platform, PREFIX).land(DAY, arrow_table("assessments", [row]))
        writer = open_writer(made.platform)
        writer.write([feedback_of(row)], [])
        writer.close()

    def read(platform: Platform, experiment_id: str, progress: Any) -> TraceReader:
        return Interrupted(open_reader(platform, experiment_id, progress), score)

    DeltaArchive(made.platform, read=read).archive_day(
        made.agent, DAY, settled_before_ms=LATER_MS, progress=made.said.append
    )
    assert len(made.rows("assessments", f"assessment_id = '{row['assessment_id']}'")) == 1


def test_a_trace_in_progress_is_taken_when_it_has_ended(made: Production) -> None:
    made.add_traces(1, TRACES)
    newest = made.last_added
    made.sql("UPDATE trace_info SET status = 'IN_PROGRESS' WHERE request_id = ?", newest)
    assert made.archive().written == NOTHING
    made.sql("UPDATE trace_info SET status = 'OK' WHERE request_id = ?", newest)

    assert made.archive().written["traces"] == Written(1, 0)
    made.assert_whole(TRACES + 1)


def test_a_trace_that_ended_a_moment_ago_waits_and_nothing_is_noted_as_done(made: Production) -> None:
    """The store does not change when a trace settles by the passing of time."""
    made.add_traces(1, TRACES)
    (started,) = made.sql("SELECT max(timestamp_ms) FROM trace_info")
    waits = made.archive(settled_before_ms=started[0])
    assert (waits.settled, waits.written) == (TRACES, NOTHING)

    assert made.archive().written["traces"] == Written(1, 0)


def test_a_trace_that_makes_no_rows_is_quarantined_and_leaves_when_it_does(made: Production) -> None:
    made.add_traces(3, TRACES)
    bad = made.last_added
    (content,) = made.sql("SELECT content FROM spans WHERE trace_id = ? LIMIT 1", bad)
    made.sql("UPDATE spans SET content = '{broken' WHERE trace_id = ? AND content = ?", bad, content[0])

    archived = made.archive()
    assert (archived.settled, archived.absent, archived.quarantined) == (TRACES + 3, (), 1)
    assert archived.written["traces"] == Written(2, 0)
    (row,) = made.rows("quarantine")
    assert (row["trace_id"], row["experiment_id"]) == (
        bad,
        str(made.sql("SELECT max(experiment_id) FROM trace_info")[0][0]),
    )
    assert row["reason"]
    version = DeltaArchive(made.platform).version(PREFIX, "quarantine")
    again = made.archive()
    assert (again.quarantined, again.unchanged) == (1, True)
    assert DeltaArchive(made.platform).version(PREFIX, "quarantine") == version

    made.sql("UPDATE spans SET content = ? WHERE content = '{broken'", content[0])
    healed = made.archive()
    assert (healed.quarantined, healed.written["traces"]) == (0, Written(1, 0))
    assert made.rows("quarantine") == []


def test_new_rules_of_redaction_reach_what_is_archived(made: Production) -> None:
    word = made.rows("traces")[0]["request"].split()[1].strip('",.')
    assert word.isalpha()
    made.agent = agent_at(made.platform.home, redact=[{"pattern": word, "replacement": "[word]"}])

    archived = made.archive()

    assert archived.written["traces"].updated > 0
    assert word not in str([made.rows(table) for table in ARCHIVED])
    assert made.archive().unchanged


def test_two_experiments_do_not_share_tables(made: Production) -> None:
    made.client.create_experiment("/agents/other")
    made.agent = agent_at(made.platform.home)
    made.agent.spec.__dict__["experiment"] = "/agents/other"
    before = made.versions()

    with pytest.raises(Refused, match=r"traces of experiment 1\b.* /agents/other .*table_prefix"):
        made.archive()
    assert made.versions() == before


def test_nothing_is_written_of_a_day_without_traces(migrated_store: Path, tmp_path: Path) -> None:
    """An experiment nobody used, and a day that has not come."""
    made = production(migrated_store, tmp_path / "home", traces=0)
    for day in (DAY, DAY + timedelta(days=1000)):
        archived = made.archive(day)
        assert (archived.settled, archived.absent, archived.newest_ms, archived.written) == (0, (), 0, NOTHING)
    assert set(made.versions().values()) == {-1}


def delete_traces(made: Production) -> None:
    DeltaTable(made.folder("traces")).delete(f"{PARTITION} = '{DAY}'")


def delete_some_traces(made: Production) -> None:
    DeltaTable(made.folder("traces")).delete(f"trace_id = '{first_trace(made)}'")


def delete_everything(made: Production) -> None:
    for table in ARCHIVED:
        DeltaTable(made.folder(table)).delete(f"{PARTITION} = '{DAY}'")


def remove_folder(made: Production) -> None:
    shutil.rmtree(made.folder("traces") / f"{PARTITION}={DAY}")


def remove_spans_folder(made: Production) -> None:
    shutil.rmtree(made.folder("spans") / f"{PARTITION}={DAY}")


@pytest.mark.parametrize(
    "damage", [delete_traces, delete_some_traces, delete_everything, remove_folder, remove_spans_folder]
)
def test_rows_deleted_by_hand_are_there_again_after_the_next_run(made: Production, damage: Any) -> None:
    damage(made)

    archived = made.archive()

    assert (archived.absent, archived.unchanged) == ((), False)
    made.assert_whole(TRACES)
    assert made.archive().unchanged


def test_many_days_are_one_stream(migrated_store: Path, tmp_path: Path) -> None:
    """And then each of them is known to be archived, and all of them together."""
    made = production(migrated_store, tmp_path / "home", traces=6)
    made.sql("UPDATE trace_info SET timestamp_ms = timestamp_ms - 86400000 * (rowid % 3)")
    archive, first = DeltaArchive(made.platform), DAY - timedelta(days=2)

    def days() -> Any:
        return archive.archive_days(made.agent, first, DAY, settled_before_ms=LATER_MS, progress=made.said.append)

    assert days().written["traces"] == Written(6, 0)
    assert {table: version for table, version in made.versions().items() if table == "spans"} == {"spans": 1}
    assert days().unchanged
    assert made.archive(first).unchanged
    assert made.archive().unchanged
    made.assert_whole(6)
