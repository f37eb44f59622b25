"""A damaged table says what is wrong, where, and what to do; nothing is misread, and nothing is written to it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field, write_deltalake
from deltalake.schema import PrimitiveType

from lifecycle_assets.refused import Refused
from resources.delta.faults import explain_table, table_at
from resources.delta.files import active_days, files_in_folder
from resources.delta.repair import broken_days
from resources.delta.table import open_table
from resources.delta.write import append_rows, retried, table_to_write
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from resources.tables import PARTITION, arrow_schema, arrow_table
from tests.resources.archived import DAY, PREFIX, append_traces, filled_tables, trace_rows

TABLES_OF_TRACES = ("spans", "assessments", "traces")
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with traces of two days in `traces`: three files of the first, one of the next."""
    home = tmp_path_factory.mktemp("whole")
    filled_tables(Platform.from_env({"LIFECYCLE_HOME": str(home)}))
    return home


@pytest.fixture
def platform(whole: Path, tmp_path: Path) -> Platform:
    shutil.copytree(whole, tmp_path / "home")
    return Platform.from_env({"LIFECYCLE_HOME": str(tmp_path / "home")})


@pytest.fixture
def folder(platform: Platform) -> Path:
    return Path(platform.table_uri(PREFIX + "traces"))


def rewritten(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    target = DeltaTable(folder)
    write_deltalake(target, change(target.to_pyarrow_table()), mode="overwrite", schema_mode="overwrite")


def drop_column(folder: Path) -> None:
    rewritten(folder, lambda rows: rows.drop_columns(["request"]))


def change_type(folder: Path) -> None:
    def as_text(rows: pa.Table) -> pa.Table:
        place = rows.schema.get_field_index("execution_ms")
        return rows.set_column(place, "execution_ms", pa.array(["long"] * rows.num_rows))

    rewritten(folder, as_text)


def write_anew(folder: Path) -> None:
    rows = DeltaTable(folder).to_pyarrow_table()
    shutil.rmtree(folder)
    write_deltalake(folder, rows, partition_by=["state"])


def delete_partition(folder: Path) -> None:
    shutil.rmtree(folder / f"{PARTITION}={DAY}")


def truncate_file(folder: Path) -> None:
    a_file(folder).write_bytes(a_file(folder).read_bytes()[:100])


def spoil_file(folder: Path) -> None:
    spoiled = bytearray(a_file(folder).read_bytes())
    spoiled[4:600] = bytes(596)
    a_file(folder).write_bytes(bytes(spoiled))


def truncate_log(folder: Path) -> None:
    last = sorted((folder / "_delta_log").glob("*.json"))[-1]
    last.write_bytes(last.read_bytes()[:100])


def tear_log(folder: Path) -> None:
    sorted((folder / "_delta_log").glob("*.json"))[1].unlink()


def lose_log(folder: Path) -> None:
    shutil.rmtree(folder / "_delta_log")


def empty_log(folder: Path) -> None:
    for file in (folder / "_delta_log").glob("*.json"):
        file.unlink()


def spoil_checkpoint(folder: Path) -> None:
    DeltaTable(folder).create_checkpoint()
    checkpoint = next((folder / "_delta_log").glob("*.checkpoint.parquet"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])


def commit(folder: Path, *actions: dict) -> None:
    """A commit as another program writes it."""
    version = len(list((folder / "_delta_log").glob("*.json")))
    lines = "".join(json.dumps(action) + "\n" for action in actions)
    (folder / "_delta_log" / f"{version:020}.json").write_text(lines)


def give_feature(*features: str) -> Damage:
    listed = {"readerFeatures": list(features), "writerFeatures": list(features)}
    return lambda folder: commit(folder, {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **listed}})


def give_version(folder: Path) -> None:
    commit(folder, {"protocol": {"minReaderVersion": 9, "minWriterVersion": 9}})


def map_columns(folder: Path) -> None:
    first = (folder / "_delta_log" / f"{0:020}.json").read_text().splitlines()
    meta = next(action for action in map(json.loads, first) if "metaData" in action)
    schema = json.loads(meta["metaData"]["schemaString"])
    for number, field in enumerate(schema["fields"]):
        field["metadata"] = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": f"c{number}"}
    meta["metaData"]["schemaString"] = json.dumps(schema)
    meta["metaData"]["configuration"]["delta.columnMapping.mode"] = "name"
    commit(folder, {"protocol": {"minReaderVersion": 2, "minWriterVersion": 5}}, meta)


def a_file(folder: Path) -> Path:
    """A file of the first day."""
    target = DeltaTable(folder)
    return folder / next(path for day in active_days(target) if day.day == DAY for path in sorted(day.paths))


DAMAGED: dict[str, tuple[Damage, str]] = {
    "a column was dropped": (drop_column, "somebody dropped the column request"),
    "a type was changed": (change_type, "changed the column execution_ms of the table from long to string"),
    "it was written anew": (write_anew, "with files by state instead of trace_date"),
    "a partition was deleted": (delete_partition, "and the file is gone"),
    "a file was cut": (truncate_file, "is damaged and cannot be read"),
    "a commit was cut": (truncate_log, "the table's log is damaged"),
    "a commit is missing": (tear_log, "the table's log is damaged"),
    "a checkpoint was cut": (spoil_checkpoint, "the table's log is damaged"),
    "the log is gone": (lose_log, "the log that lists them is gone or empty"),
    "the log is empty": (empty_log, "the log that lists them is gone or empty"),
    "rows are deleted by vectors": (give_feature("deletionVectors"), "would show rows that are deleted"),
    "columns are mapped": (map_columns, "column mapping"),
    "types are widened": (give_feature("typeWidening"), "typeWidening"),
    "a feature nobody knows": (give_feature("fancyNew"), "feature fancyNew"),
    "a reader of the future": (give_version, "reader version 9"),
}
READS_OTHER_FILES = {"a partition was deleted", "a file was cut"}


@pytest.mark.parametrize("damage", DAMAGED)
def test_queries_and_writes_refuse_with_one_sentence(platform: Platform, folder: Path, damage: str) -> None:
    spoil, said = DAMAGED[damage]
    spoil(folder)
    before = contents(folder)

    with pytest.raises(Refused) as query:
        DuckDbEngine(platform).query(PREFIX, "SELECT sum(execution_ms), count(DISTINCT request) FROM traces")
    assert_one_sentence(str(query.value), said, folder)
    if damage not in READS_OTHER_FILES:
        with pytest.raises(Refused) as write:
            table_to_write(str(folder), "traces")
        assert_one_sentence(str(write.value), said, folder)
    assert contents(folder) == before, "the damaged table was written to"


def test_a_file_whose_pages_were_overwritten_is_damaged(platform: Platform, folder: Path) -> None:
    """DuckDB does not say which file it was."""
    spoil_file(folder)
    with pytest.raises(Refused) as refused:
        DuckDbEngine(platform).query(PREFIX, "SELECT * FROM traces")
    assert "a file is damaged and cannot be read; put it back from a backup" in str(refused.value)


@pytest.mark.parametrize("damage", ["a partition was deleted", "a file was cut"])
def test_a_merge_into_a_day_whose_file_is_unreadable_refuses_and_commits_nothing(
    platform: Platform, folder: Path, damage: str
) -> None:
    DAMAGED[damage][0](folder)
    version = DeltaTable(folder).version()

    def merge() -> None:
        from resources.delta.write import merge_rows

        rows = arrow_table("traces", [trace_rows(number)[0] | {"state": "ERROR"} for number in range(15)])
        merge_rows(
            table_to_write(str(folder), "traces"), rows, f"t.{PARTITION} = '{DAY}' AND t.trace_id = s.trace_id"
        ).when_matched_update_all().execute()

    with pytest.raises(Refused) as refused:
        retried(str(folder), merge)
    assert "put it back from a backup, or" in str(refused.value)
    assert DeltaTable(folder).version() == version


def test_a_column_added_by_hand_is_harmless(platform: Platform, folder: Path) -> None:
    target = DeltaTable(folder)
    target.alter.add_columns([Field("note", PrimitiveType("string")), Field("price", PrimitiveType("double"))])

    append_rows(table_to_write(str(folder), "traces"), arrow_table("traces", [trace_rows(500)[0]]))

    spans = table_to_write(str(folder.with_name("tiny_spans")), "spans")
    spans.alter.add_columns([Field("note", PrimitiveType("string"))])
    streamed = arrow_table("spans", trace_rows(500)[1])
    append_rows(spans, pa.RecordBatchReader.from_batches(streamed.schema, streamed.to_batches()))
    assert DuckDbEngine(platform).query(PREFIX, "SELECT count(*) FROM spans").rows == ((38,),)

    found = DuckDbEngine(platform).query(PREFIX, "SELECT count(*) AS n, count(request) AS filled FROM traces").dicts()
    assert found == [{"n": 19, "filled": 19}]
    assert {"note", "price"} <= {field.name for field in DeltaTable(folder).schema().fields}


def test_a_table_of_an_older_release_is_read_and_gets_its_new_columns_when_written(
    platform: Platform, folder: Path
) -> None:
    rewritten(folder, lambda rows: rows.drop_columns(["archived_at"]))

    assert DuckDbEngine(platform).query(PREFIX, "SELECT count(*), count(archived_at) FROM traces").rows == ((18, 0),)
    append_rows(table_to_write(str(folder), "traces"), arrow_table("traces", [trace_rows(500)[0]]))
    assert [field.name for field in DeltaTable(folder).schema().fields] == arrow_schema("traces").names
    assert DuckDbEngine(platform).query(PREFIX, "SELECT count(*) FROM traces").rows == ((19,),)


def test_foreign_files_are_not_read(platform: Platform, folder: Path) -> None:
    (folder / "stray.parquet").write_text("no parquet")
    (folder / f"{PARTITION}={DAY}" / "notes.csv").write_text("a,b")
    (folder / "_delta_log" / "notes.parquet").write_text("no parquet")
    shutil.copy(a_file(folder), folder / f"{PARTITION}={DAY}" / "copy of a file.parquet")

    assert DuckDbEngine(platform).query(PREFIX, "SELECT count(*) FROM traces").rows == ((18,),)
    append_rows(table_to_write(str(folder), "traces"), arrow_table("traces", [trace_rows(500)[0]]))
    assert DuckDbEngine(platform).query(PREFIX, "SELECT count(*) FROM traces").rows == ((19,),)


def test_files_that_are_gone_or_have_another_size_are_found_by_one_listing(folder: Path) -> None:
    target = DeltaTable(folder)
    assert broken_days(target) == {}
    first, second, *_ = sorted(path for day in active_days(target) if day.day == DAY for path in day.paths)
    (folder / first).unlink()
    (folder / second).write_bytes(b"PAR1")

    assert broken_days(target) == {DAY: {first, second}}
    assert first not in files_in_folder(target)


def test_a_disk_that_takes_no_more_stops_with_a_sentence_and_a_rerun_heals(platform: Platform, folder: Path) -> None:
    """A limit on the size of files fails the write of a Parquet file half-way, as a full disk does."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from resources.platform import Platform;"
        "from tests.resources.archived import append_traces;"
        "from resources.delta.write import retried; from lifecycle_assets.refused import Refused\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "platform = Platform.from_env()\n"
        "try: retried(sys.argv[1], lambda: append_traces(platform, range(500, 700)))\n"
        "except Refused as refused: print(refused)\n"
    )
    before = {table: DeltaTable(folder.with_name(f"tiny_{table}")).version() for table in TABLES_OF_TRACES}
    env = {**os.environ, "LIFECYCLE_HOME": str(platform.home), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=env, capture_output=True, text=True, check=True
    )

    assert "then run again" in done.stdout, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 1
    assert {table: DeltaTable(folder.with_name(f"tiny_{table}")).version() for table in TABLES_OF_TRACES} == before
    append_traces(platform, range(500, 700))
    assert DuckDbEngine(platform).query(PREFIX, "SELECT count(*) FROM traces").rows == ((218,),)
    assert DuckDbEngine(platform).query(PREFIX, "SELECT count(*) FROM spans").rows == ((436,),)


def test_an_error_that_only_names_a_file_does_not_call_it_damaged() -> None:
    """Who is told so may delete it."""
    name = "part-00000-b85a06e8-6b69-4033-9003-e21c755de524-c000.zstd.parquet"
    file = f"/w/main/agents/tiny_traces/{PARTITION}={DAY}/{name}"
    assert (
        explain_table(OSError(f"MERGE matched a target row with multiple source rows (file: file://{file})"), "/w")
        is None
    )
    assert explain_table(OSError(f"timed out reading file://{file}"), "/w") is None
    assert "is damaged" in (explain_table(OSError(f"Invalid Parquet file {file}: No magic bytes"), "/w") or "")


def test_a_place_names_its_table() -> None:
    assert table_at("/x/main/agents/tiny_quality_metrics/") == "quality_metrics"
    assert table_at("s3://bucket/main/agents/traces") == "traces"
    assert table_at("/x/main/agents/subtraces") == ""


def test_a_folder_without_files_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "tiny_traces" / "_delta_log").mkdir(parents=True)
    assert open_table(str(tmp_path / "tiny_traces")) is None
    assert open_table(str(tmp_path / "nothing_here")) is None


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_one_sentence(text: str, said: str, folder: Path) -> None:
    """What, where, what to do; no frames, no list of our tables."""
    assert said in text
    assert folder.name in text
    assert "\n" not in text
    assert "Traceback" not in text
    assert "<unknown>" not in text
    assert len(text) < 500, text
    assert any(word in text for word in ("put ", "move ", "drop that", "Drop the", "change it back")), text
