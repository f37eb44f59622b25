"""Many new traces: their rows are files that processes write, and that one commit a batch and table adds."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lifecycle_assets.refused import Refused
from resources.archive.row_changes import Written
from resources.delta.compaction import rewritten
from resources.delta.data_files import DayWriter
from resources.delta.table import open_table
from resources.delta.write import append_rows, table_to_write
from resources.reading.sqlite_files import processes
from resources.tables import arrow_table
from tests.resources.archiving import ARCHIVED, DAY, TRACES, Production, copied, production

BATCHES = 4


@pytest.fixture
def made(migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Production:
    """A day nobody archived, with traces enough for some batches."""
    monkeypatch.setattr("resources.reading.database_reader._FEW", 0)
    monkeypatch.setattr("resources.reading.database_reader._PAGE", 3)
    monkeypatch.setattr("resources.archive.append_files.BATCH_TRACES", 8)
    return production(migrated_store, tmp_path / "home")


def rows(made: Production) -> dict[str, Any]:
    tables = {table: made.rows(table) for table in ARCHIVED}
    for row in tables["traces"]:
        assert row.pop("archived_at")
    return tables


def test_rows_in_files_are_those_that_are_streamed_and_the_log_knows_them(made: Production, tmp_path: Path) -> None:
    """One trace is out of the ordinary, and one makes no rows."""
    odd, broken = (one for (one,) in made.sql("SELECT request_id FROM trace_info ORDER BY 1 LIMIT 2"))
    content = "json_set(content, '$.attributes.\"mlflow.spanInputs\"', 'not json')"
    made.sql(f"UPDATE spans SET content = {content} WHERE trace_id = ?", odd)
    made.sql("UPDATE trace_info SET status = 'NONE_OF_ANY' WHERE request_id = ?", broken)
    other = copied(made, tmp_path / "other")
    table_to_write(str(other.folder("spans")), "spans").alter.add_columns([field("beside")])
    assert other.counted()[1].read("filed") == 0, "a table with more columns is written by delta-rs"

    archived, asked = made.counted()

    assert (asked.read("filed"), asked.read("batches")) == (TRACES, 0)
    assert (archived.written["traces"], archived.quarantined) == (Written(TRACES - 1, 0), 1)
    versions = made.versions()  # Of which 0 is the empty table.
    assert (versions["spans"], versions["traces"]) == (BATCHES, BATCHES)
    streamed = rows(other)
    assert rows(made) == streamed
    for table in ARCHIVED:
        assert facts(made.folder(table)) == facts(other.folder(table))
    for table in ARCHIVED:
        target = open_table(str(made.folder(table)))
        assert target is not None
        assert rewritten(target, DAY, by_id=table == "spans")
    assert rows(made) == streamed
    made.add_traces(3, TRACES)
    assert made.archive().written["traces"].inserted == 3


def test_what_the_log_keeps_of_a_file_is_what_delta_rs_keeps(tmp_path: Path) -> None:
    """Nulls among the values, nothing but nulls, a moment, and a text that is too long for the log."""
    given = [
        {"trace_id": f"tr-{n}", "trace_date": DAY, "request_time": f"{DAY}T0{n}:00:00.123Z", "model_id": model}
        for n, model in enumerate(["m-\u00e9'\"", None, "m-2"])
    ]
    source = arrow_table("traces", given)
    target = table_to_write(str(tmp_path / "traces"), "traces")
    append_rows(target, source)
    writer = DayWriter(tmp_path / "files", "traces")
    writer.write(source.slice(0, 1))
    writer.write(source.slice(1))
    (file,) = writer.close()
    (held,) = pa.table(target.get_add_actions(flatten=False)).to_pylist()

    for ours, theirs in ((file.least, held["min"]), (file.greatest, held["max"])):
        known = {name: value for name, value in theirs.items() if value is not None}
        assert ours.keys() == known.keys()
        assert {name: str(value)[:10] for name, value in known.items()} == {name: ours[name][:10] for name in known}
    assert (file.rows, dict(file.nulls)) == (held["num_records"], held["null_count"])

    writer = DayWriter(tmp_path / "files", "spans")
    writer.write(arrow_table("spans", [{"trace_id": "t" * 10_000, "trace_date": DAY}]))
    (file,) = writer.close()
    assert (file.least, len(file.statistics) < 200) == ({}, True)
    writer.discard()
    assert not (tmp_path / "files" / file.path).exists()


def test_a_score_that_landed_before_its_trace_is_there_once(made: Production) -> None:
    (trace_id, assessment_id), *_ = made.sql("SELECT trace_id, assessment_id FROM assessments")
    row = {"trace_id": trace_id, "trace_date": DAY, "assessment_id": assessment_id, "valid": True, "name": "landed"}
    append_rows(table_to_write(str(made.folder("assessments")), "assessments"), arrow_table("assessments", [row]))

    made.archive()

    assert [one["name"] for one in made.rows("assessments", f"assessment_id = '{assessment_id}'")] == ["landed"]
    made.assert_whole(TRACES)


def test_a_process_that_ends_is_one_sentence_and_a_rerun_heals(
    made: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("resources.reading.sqlite_process._CHILD", "resources.reading.no_such_module")
        with pytest.raises(Refused, match=r"mlflow\.db: the process that read it ended in the middle .*; run again"):
            made.archive()
    assert made.rows("traces") == []
    assert made.archive().settled == TRACES
    made.assert_whole(TRACES)


def test_a_folder_with_modules_of_the_same_names_is_no_hindrance(
    made: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("resources/__init__.py", "queue.py"):
        file = tmp_path / "called" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path / "called")

    assert made.archive().written["traces"] == Written(TRACES, 0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not say which cores are there")
def test_on_one_core_one_process_writes() -> None:
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert (processes(9), processes(1)) == (1, 1)
    finally:
        os.sched_setaffinity(0, cores)
    assert processes(9) == min(len(cores), 2)


def field(name: str) -> Any:
    from deltalake import Schema

    return Schema.from_arrow(pa.schema([pa.field(name, pa.string())])).fields[0]


def facts(folder: Path) -> dict[str, Any]:
    """What a table's log says of its files together."""
    target = open_table(str(folder))
    assert target is not None
    log = pa.table(target.get_add_actions(flatten=True)).to_pylist()
    ends = {name: end for name in log[0] for end in (min, max) if name.startswith(f"{end.__name__}.")}
    said = {name: end(row[name] for row in log) for name, end in ends.items()}
    counted = {name: sum(row[name] for row in log) for name in log[0] if name.startswith(("num_", "null_"))}
    return said | counted | {"days": {row["partition.trace_date"] for row in log}}
