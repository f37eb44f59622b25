"""Upkeep of the tables: rows and notes stay, files go, and nobody beside it is disturbed."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from lifecycle_assets.spec_file import Agent
from resources.delta.alone import _claim
from resources.delta.compaction import compact_busy_days, rewritten
from resources.delta.files import active_days, files_in_folder
from resources.delta.write import LOG_RETENTION, append_rows, table_to_write
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from resources.sql.kept import folder_of
from resources.tables import PARTITION, arrow_table
from resources.upkeep.delta_upkeep import DeltaUpkeep
from tests.building import make_agent
from tests.resources.archived import DAY, PREFIX, append_traces, trace_rows

NOW = DAY + timedelta(days=3)
TABLES = ("traces", "spans", "assessments")
NOTE = f"archive:1:{DAY}"


def agent_with(folder: Path, **archive: Any) -> Agent:
    archive = {"late_days": 7, "upkeep": {"compact_from": 8}, **archive}
    return make_agent(folder / "agents", attributes={"archive": {"settle_minutes": 0, **archive}})


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with 12 commits a table to `DAY`, each with its note, and one commit to the next day."""
    home = tmp_path_factory.mktemp("busy")
    platform = Platform.from_env({"LIFECYCLE_HOME": str(home)})
    order = random.Random(7).sample(range(120), 120)
    for commit in range(12):
        append_traces(platform, order[commit * 10 : commit * 10 + 10], notes={NOTE: commit + 1})
    append_traces(platform, [900], DAY + timedelta(days=1))
    return home


@pytest.fixture
def platform(busy: Path, tmp_path: Path) -> Platform:
    shutil.copytree(busy, tmp_path / "home")
    return Platform.from_env({"LIFECYCLE_HOME": str(tmp_path / "home")})


def opened(platform: Platform, table: str = "traces") -> DeltaTable:
    return DeltaTable(platform.table_uri(PREFIX + table))


def rows(platform: Platform) -> list[Any]:
    query = "SELECT * FROM traces JOIN spans USING (trace_id) JOIN assessments USING (trace_id) ORDER BY ALL"
    return list(DuckDbEngine(platform).query(PREFIX, query, limit=100_000).rows)


def age(platform: Platform, hours: float) -> None:
    """Have everything be written some hours ago, as far as file times and the log say."""
    then = time.time() - hours * 3600
    for file in Path(platform.warehouse).rglob("*"):
        os.utime(file, (then, then))


def test_days_of_many_small_files_become_few_and_every_row_and_note_stays(platform: Platform, tmp_path: Path) -> None:
    before, agent = rows(platform), agent_with(tmp_path)

    done = {one.table: one for one in DeltaUpkeep(platform).tend(agent, NOW, print)}

    assert {table: (done[table].files_before, done[table].files) for table in TABLES} == dict.fromkeys(TABLES, (13, 2))
    assert all(one.left == "" for one in done.values())
    assert rows(platform) == before
    assert {opened(platform, table).transaction_version(NOTE) for table in TABLES} == {12}


def test_a_second_upkeep_rewrites_nothing(platform: Platform, tmp_path: Path) -> None:
    agent = agent_with(tmp_path, late_days=1)
    first = DeltaUpkeep(platform).tend(agent, NOW, print)
    versions = [opened(platform, table).version() for table in TABLES]

    again = DeltaUpkeep(platform).tend(agent, NOW, print)

    assert [one.days for one in first] == [2, 2, 2]
    assert [one.days for one in again] == [0, 0, 0]
    assert [opened(platform, table).version() for table in TABLES] == versions


def test_kept_answers_of_views_go_with_the_rows_they_tell_of(platform: Platform, tmp_path: Path) -> None:
    answers = folder_of(platform, PREFIX) / "of-these-files"
    answers.mkdir(parents=True)
    (answers / "sessions").write_text("ids of sessions")
    DeltaUpkeep(platform).tend(agent_with(tmp_path), NOW, print)
    assert not answers.exists()


def test_closed_days_are_sorted_once_and_again_when_rows_came(platform: Platform, tmp_path: Path) -> None:
    agent, upkeep = agent_with(tmp_path, late_days=1), DeltaUpkeep(platform)
    upkeep.tend(agent, NOW, print)

    assert ids_in_file_order(platform) == sorted(ids_in_file_order(platform))
    append_traces(platform, [500], DAY)
    assert [one.days for one in upkeep.tend(agent, NOW, print)] == [1, 1, 1]
    assert ids_in_file_order(platform) == sorted(ids_in_file_order(platform))
    # A day that closes is sorted although its one file is older than the last upkeep.
    append_traces(platform, [30, 10, 20], DAY + timedelta(days=2))
    assert [one.days for one in upkeep.tend(agent, NOW, print)] == [0, 0, 0]
    assert [one.days for one in upkeep.tend(agent, NOW + timedelta(days=1), print)] == [1, 1, 1]


def ids_in_file_order(platform: Platform) -> list[str]:
    import pyarrow.parquet as pq

    target = opened(platform)
    [path] = next(day.paths for day in active_days(target) if day.day == DAY)
    found = pq.ParquetFile(Path(platform.table_uri(PREFIX + "traces")) / path).read(["trace_id"])
    return found.column("trace_id").to_pylist()


def test_sorting_can_be_declared_away(platform: Platform, tmp_path: Path) -> None:
    agent = agent_with(tmp_path, late_days=1, upkeep={"zorder": False, "compact_from": 50})
    assert [one.days for one in DeltaUpkeep(platform).tend(agent, NOW, print)] == [0, 0, 0]


def test_replaced_files_stay_for_readers_and_go_after_the_declared_hours(platform: Platform, tmp_path: Path) -> None:
    agent, upkeep = agent_with(tmp_path, upkeep={"vacuum_hours": 1, "compact_from": 8}), DeltaUpkeep(platform)
    held_open = [uri.removeprefix("file://") for uri in opened(platform).file_uris()]

    assert [one.vacuumed for one in upkeep.tend(agent, NOW, print)] == [0, 0, 0]
    assert all(Path(file).exists() for file in held_open), "a query with this list would fail"
    assert opened(platform).metadata().configuration["delta.deletedFileRetentionDuration"] == "interval 1 hours"
    backdate_removals(platform, hours=2)
    before = rows(platform)
    assert [one.vacuumed for one in upkeep.tend(agent, NOW, print)] == [12, 12, 12]
    assert not any(Path(file).exists() for file in held_open if str(DAY) in file)
    assert rows(platform) == before
    assert opened(platform).transaction_version(NOTE) == 12


def backdate_removals(platform: Platform, hours: int) -> None:
    """Have the files that were replaced be replaced some hours ago: the log says when, in every commit."""
    for log in Path(platform.warehouse).rglob("_delta_log"):
        for file in log.glob("*.json"):
            lines = [backdated(line, hours) for line in file.read_text().splitlines()]
            file.write_text("\n".join(lines) + "\n")
        for file in [*log.glob("*.checkpoint.parquet"), *log.glob("_last_checkpoint")]:
            file.unlink()


def backdated(line: str, hours: int) -> str:
    import json

    action = json.loads(line)
    if "remove" in action:
        action["remove"]["deletionTimestamp"] -= hours * 3_600_000
    return json.dumps(action)


def test_delta_rs_own_check_of_the_hours_stays_on(platform: Platform) -> None:
    from deltalake.exceptions import DeltaError

    with pytest.raises(DeltaError, match="minimum retention"):
        opened(platform).vacuum(1, dry_run=True, full=True)


def test_a_killed_writers_file_goes_and_a_strangers_file_stays(platform: Platform, tmp_path: Path) -> None:
    agent, upkeep = agent_with(tmp_path, upkeep={"vacuum_hours": 1, "compact_from": 8}), DeltaUpkeep(platform)
    folder = Path(platform.table_uri(PREFIX + "traces"))
    orphan = folder / f"{PARTITION}={DAY}" / "part-00000-4fba1d3e-3e20-4de1-933d-a8e13ac59f53-c000.zstd.parquet"
    stray = folder / f"{PARTITION}={DAY}" / "export.csv"
    for file in (orphan, stray):
        file.write_text("x")
        os.utime(file, (time.time() - 7200, time.time() - 7200))

    said = {one.table: one for one in upkeep.tend(agent, NOW, print)}["traces"]
    assert stray.exists()
    assert orphan.exists()
    assert "export.csv is no file of the table; move it away" in said.left
    stray.unlink()
    said = {one.table: one for one in upkeep.tend(agent, NOW, print)}["traces"]
    assert (said.left, said.vacuumed) == ("", 1)
    assert not orphan.exists()


def test_old_commits_leave_the_log_and_the_notes_stay(platform: Platform, tmp_path: Path) -> None:
    agent, log = agent_with(tmp_path), Path(platform.table_uri(PREFIX + "traces")) / "_delta_log"
    DeltaUpkeep(platform).tend(agent, NOW, print)
    age(platform, hours=24 * 3)

    DeltaUpkeep(platform).tend(agent, NOW, print)

    assert opened(platform).metadata().configuration["delta.logRetentionDuration"] == LOG_RETENTION
    assert len(list(log.glob("*.json"))) < 5
    assert opened(platform).transaction_version(NOTE) == 12
    append_traces(platform, [999])
    assert DuckDbEngine(platform).query(PREFIX, "SELECT count(*) FROM traces").rows == ((122,),)


def test_days_that_are_too_old_go_from_every_table_but_the_numbers(platform: Platform, tmp_path: Path) -> None:
    numbers = {"trace_date": DAY, "model_id": "m", "version": "1", "metric": "traces", "value": 1.0, "n": 1}
    append_rows(
        table_to_write(platform.table_uri(PREFIX + "quality_metrics"), "quality_metrics"),
        arrow_table("quality_metrics", [numbers]),
    )
    agent, upkeep = agent_with(tmp_path, retention_days=3), DeltaUpkeep(platform)

    assert upkeep.expire(agent, NOW, print) == {
        "traces": 0,
        "spans": 0,
        "assessments": 0,
        "publications": 0,
        "quarantine": 0,
    }
    removed = upkeep.expire(agent, NOW + timedelta(days=1), print)
    assert removed == {"traces": 120, "spans": 240, "assessments": 120, "publications": 0, "quarantine": 0}
    versions = [opened(platform, table).version() for table in TABLES]
    assert upkeep.expire(agent, NOW + timedelta(days=1), print)["traces"] == 0
    assert [opened(platform, table).version() for table in TABLES] == versions
    left = DuckDbEngine(platform).tables(PREFIX)
    assert (left["traces"], left["spans"], left["quality_metrics"]) == (1, 2, 1)
    assert upkeep.expire(agent_with(tmp_path), NOW + timedelta(days=900), print) == {}


def test_expiring_goes_on_where_it_was_killed(platform: Platform, tmp_path: Path) -> None:
    """`traces` first: a trace that is there has its spans, at any instant."""
    agent = agent_with(tmp_path, retention_days=3)
    opened(platform).delete(f"{PARTITION} < DATE '{NOW}'")  # As far as a run came that was killed then.

    removed = DeltaUpkeep(platform).expire(agent, NOW + timedelta(days=1), print)
    assert (removed["traces"], removed["spans"], removed["assessments"]) == (0, 240, 120)


WRITER = """
import sys, time
from pathlib import Path
from resources.platform import Platform
from resources.delta.write import append_rows, merge_rows, retried, table_to_write
from resources.tables import arrow_table
from tests.resources.archived import DAY, PREFIX, trace_rows
where, stop = Platform.from_env().table_uri(PREFIX + "traces"), Path(sys.argv[1])
number = 1000
def append():
    append_rows(table_to_write(where, "traces"), arrow_table("traces", [trace_rows(number)[0]]), {"writer": number})
def update():
    changed = arrow_table("traces", [trace_rows(number % 120)[0] | {"state": f"seen {number}"}])
    same = f"t.trace_date = '{DAY}' AND t.trace_id = s.trace_id"
    merge_rows(table_to_write(where, "traces"), changed, same).when_matched_update_all().execute()
while not stop.exists():
    retried(where, append)
    if number % 3 == 0:
        retried(where, update)
    number += 1
    print(number, flush=True)
"""


@pytest.fixture
def writer(platform: Platform, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that appends to and updates the busy day until it is told to stop."""
    env = {**os.environ, "LIFECYCLE_HOME": str(platform.home), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "stop")]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # It is writing.
        yield process
    finally:
        process.kill()
        process.communicate()


def test_upkeep_beside_a_writer_and_a_query_loses_nothing(
    platform: Platform, tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    agent = agent_with(tmp_path, late_days=1, upkeep={"compact_from": 2, "vacuum_hours": 1})
    files = [uri.removeprefix("file://") for uri in opened(platform).file_uris()]
    for _ in range(4):
        DeltaUpkeep(platform).tend(agent, NOW, print)
    assert all(Path(file).exists() for file in files), "a query that had this list would fail"
    (tmp_path / "stop").touch()
    out, errors = writer.communicate(timeout=60)
    assert writer.returncode == 0, errors[-2000:]

    last = int(out.split()[-1])
    wanted = {f"tr-{n:06}" for n in [*range(120), 900, *range(1000, last)]}
    found = DuckDbEngine(platform).query(PREFIX, "SELECT trace_id, state FROM traces", limit=100_000).rows
    assert len(found) == len(wanted)
    assert {trace_id for trace_id, _ in found} == wanted
    seen = {n % 120: n for n in range(1000, last) if n % 3 == 0}
    assert {trace_id: state for trace_id, state in found if state != "OK"} == {
        f"tr-{number:06}": f"seen {n}" for number, n in seen.items()
    }
    assert opened(platform).transaction_version("writer") == last - 1


def test_a_writer_rewrites_a_day_of_many_files_in_passing(platform: Platform) -> None:
    before = rows(platform)
    assert compact_busy_days(opened(platform), [DAY, DAY + timedelta(days=1)], at_least=13) == 0
    assert compact_busy_days(opened(platform), [DAY, DAY + timedelta(days=1)], at_least=12) == 1
    assert len(opened(platform).file_uris()) == 2
    assert rows(platform) == before


def test_of_several_rewrites_at_once_one_is_done_and_no_row_is_doubled(platform: Platform) -> None:
    """delta-rs commits all of them, and each adds all rows."""
    before, target = rows(platform), opened(platform)
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda by_id: rewritten(target, DAY, by_id=by_id), (False, True, False)))
    assert done.count(True) >= 1
    assert rows(platform) == before
    assert len(opened(platform).file_uris()) == 2


def test_a_rewrite_waits_for_another_process_and_not_for_one_that_is_gone(platform: Platform) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda: other.pid)
            assert _claim(opened(platform).table_uri)
        version = opened(platform).version()
        assert not rewritten(opened(platform), DAY)
        assert opened(platform).version() == version
    finally:
        other.kill()
        other.wait()
    assert rewritten(opened(platform), DAY)
    assert len(opened(platform).file_uris()) == 2


def test_in_passing_each_row_is_rewritten_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are no longer small stay as they are: what a rewrite costs does not grow with the day."""
    monkeypatch.setattr("resources.delta.compaction.PIECE_BYTES", 150 * 1024)
    where, made = str(tmp_path / "tiny_traces"), []
    for number in range(12):
        row = trace_rows(number)[0] | {"request": random.Random(number).randbytes(40_000).hex()}  # 40 KB compressed.
        append_rows(table_to_write(where, "traces"), arrow_table("traces", [row]))
        if compact_busy_days(DeltaTable(where), [DAY], at_least=6):
            made.append(set(DeltaTable(where).file_uris()))

    assert [len(files) for files in made] == [2, 4]
    assert made[0] < made[1]


def test_old_entries_of_the_log_go_when_a_day_is_rewritten_and_no_commit_looks_for_them(platform: Platform) -> None:
    log = Path(platform.table_uri(PREFIX + "traces")) / "_delta_log"
    opened(platform).create_checkpoint()
    age(platform, hours=24 * 3)
    entries = len(list(log.glob("*.json")))
    append_traces(platform, [999], notes={NOTE: 13})
    assert len(list(log.glob("*.json"))) == entries + 1

    assert compact_busy_days(opened(platform), [DAY], at_least=13) == 1
    assert len(list(log.glob("*.json"))) < entries // 2
    assert opened(platform).transaction_version(NOTE) == 13


def test_what_a_commit_reads_does_not_grow_with_commits(tmp_path: Path) -> None:
    """Log entries since the checkpoint, and files of the day, after each of 60 commits with the upkeep between them."""
    platform = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path / "home")})
    agent, where = agent_with(tmp_path, upkeep={"compact_from": 20}), platform.table_uri(PREFIX + "traces")
    entries, files = [], []
    for commit in range(60):
        append_rows(table_to_write(where, "traces"), arrow_table("traces", [trace_rows(commit)[0]]))
        if commit % 30 == 29:
            DeltaUpkeep(platform).tend(agent, NOW, print)
        log = Path(where) / "_delta_log"
        checkpoint = max((int(one.name[:20]) for one in log.glob("*.checkpoint.parquet")), default=-1)
        entries.append(sum(int(one.stem) > checkpoint for one in log.glob("*.json")))
        files.append(len(opened(platform).file_uris()))
    assert max(entries) <= 21
    assert max(files) <= 30
    assert files[-1] == 1


def test_one_listing_and_no_file_is_opened_to_see_what_is_due(platform: Platform, tmp_path: Path) -> None:
    """Whole files of nonsense of the right size: nobody reads them before a day is due."""
    agent = agent_with(tmp_path)
    folder = Path(platform.table_uri(PREFIX + "traces"))
    DeltaUpkeep(platform).tend(agent, NOW, print)
    for path in active_days(opened(platform))[0].paths:
        (folder / path).write_bytes(b"x" * (folder / path).stat().st_size)

    assert [one.left for one in DeltaUpkeep(platform).tend(agent, NOW, print)] == ["", "", ""]
    assert len(files_in_folder(opened(platform))) > 12
