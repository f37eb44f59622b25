"""Archivers that die at any instant, meet each other, run out of disk, or see their store upgraded under them."""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from resources.archive.marks import BATCH, Notes
from resources.delta.files import is_foreign
from resources.delta.table import open_table
from tests.resources.archiving import DAY, TRACES, Production, copied, production

_SCRIPT = """
import json, os, resource, signal, sys
from datetime import date
from pathlib import Path
import deltalake, duckdb, pyarrow, pyarrow.compute, mlflow, adbc_driver_sqlite
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import read_agent
from resources.archive import append as archive_append, append_files
from resources.archive.delta_archive import DeltaArchive
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from resources.reading import database_reader
from tests.deadly import deadly
from tests.resources.archiving import DAY, LATER_MS

archive_append.BATCH_TRACES = 15  # Two batches, so that there are boundaries to die at.


def archive(asked):
    if asked.get("function"):
        deadly(asked["function"], asked["event"], asked["times"])
    if asked.get("bytes"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["bytes"], asked["bytes"]))
    if asked.get("files"):
        database_reader._FEW, append_files.BATCH_TRACES = 0, 10
    agent = read_agent(Path(asked["agent"]))
    platform = Platform.from_env({"LIFECYCLE_HOME": asked["home"]})
    try:
        DeltaArchive(platform).archive_day(agent, DAY, settled_before_ms=LATER_MS, progress=lambda line: None)
    except Refused as refused:
        Path(asked["home"], "refused").write_text(str(refused))
        os._exit(3)
    os._exit(0)


for line in sys.stdin:
    pids = []
    for asked in json.loads(line):
        # Found once: every child knows it then, without opening MLflow's store.
        experiment_id(Platform.from_env({"LIFECYCLE_HOME": asked["home"]}), "/agents/tiny")
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)
            try:
                archive(asked)
            except BaseException as fault:
                print(repr(fault), file=sys.stderr, flush=True)
            finally:
                os._exit(1)
        pids.append(pid)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
"""


class Archivers:
    """Processes that archive: each is forked from one that has imported everything."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, made: Production, *asked: dict[str, Any]) -> list[int]:
        """Run that many archivers at once; returns their exit codes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        where = {"home": str(made.platform.home), "agent": str(made.agent.folder / "defs.yaml")}
        self._process.stdin.write(json.dumps([where | one for one in asked]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def archivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archivers]:
    errors = (tmp_path_factory.mktemp("archivers") / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    try:
        yield Archivers(process)
    finally:
        process.kill()
        process.communicate()
        errors.close()


@pytest.fixture(scope="module")
def fresh(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Production:
    """A day of production nobody archived."""
    return production(migrated_store, tmp_path_factory.mktemp("fresh") / "home")


@pytest.fixture
def made(fresh: Production, tmp_path: Path) -> Production:
    return copied(fresh, tmp_path / "home")


def assert_complete_where_it_says_so(made: Production) -> None:
    """A trace that is in `traces` has its spans, whenever the archiver died."""
    held = {row["trace_id"]: 0 for row in made.rows("traces")}
    for row in made.rows("spans"):
        if row["trace_id"] in held:
            held[row["trace_id"]] += 1
    for trace_id, spans in held.items():
        assert made.sql("SELECT count(*) FROM spans WHERE trace_id = ?", trace_id) == [(spans,)]


def test_killed_after_every_commit_each_row_is_there_once(made: Production, archivers: Archivers) -> None:
    """Two batches of spans, assessments and traces, the last of which notes: after every other of them."""
    for times in range(1, 12, 2):
        shutil.rmtree(made.platform.warehouse, ignore_errors=True)
        dying = {"function": "resources.archive.snapshots:append_rows", "event": "return", "times": times}
        (code,) = archivers.run(made, dying)
        if code == 0:
            break
        assert code == -signal.SIGKILL, times
        assert_complete_where_it_says_so(made)
        assert archivers.run(made, {}) == [0], times
        made.assert_whole(TRACES)
    assert times > 5, "two batches have five commits at least"


@pytest.mark.parametrize(("event", "times", "spans"), [("call", 1, False), ("call", 3, True), ("return", 5, True)])
def test_killed_around_the_commit_of_files_each_row_is_there_once(
    made: Production, archivers: Archivers, event: str, times: int, spans: bool
) -> None:
    """Files nobody committed are in no table, and are none that upkeep would take for a stranger's."""
    dying = {"files": True, "function": "resources.archive.snapshots:add_files", "event": event, "times": times}
    assert archivers.run(made, dying) == [-signal.SIGKILL]
    assert_complete_where_it_says_so(made)
    assert bool(made.rows("spans")) == spans
    left = {str(file.relative_to(made.folder("spans"))) for file in made.folder("spans").glob("*/*.parquet")}
    listed = set(open_table(str(made.folder("spans"))).file_uris())
    assert len(left) > len(listed)
    assert not any(is_foreign(path, True) for path in left)
    assert archivers.run(made, {}) == [0]
    made.assert_whole(TRACES)


def test_killed_again_and_again_nothing_is_lost_and_nothing_twice(made: Production, archivers: Archivers) -> None:
    """Functions, instants and what comes meanwhile are drawn; after the last run, all is there once."""
    seed = random.SystemRandom().randrange(10**6)
    dice, traces = random.Random(seed), TRACES
    places = {
        "resources.archive.snapshots:append_rows": 3,
        "resources.archive.append:_append_batch": 1,
        "resources.archive.snapshots:ArchiveTables.ids": 1,
        "resources.archive.ending:Ending.with_traces": 1,
    }
    for function in dice.sample(sorted(places), 3):
        made.add_traces(3, traces)
        traces += 3
        dying = {
            "function": function,
            "event": dice.choice(["call", "return"]),
            "times": dice.randint(1, places[function]),
        }
        assert archivers.run(made, dying) == [-signal.SIGKILL], f"seed {seed}"
        assert_complete_where_it_says_so(made)
    assert archivers.run(made, {}) == [0], f"seed {seed}"
    made.assert_whole(traces)


def batch_numbers(made: Production) -> dict[str, int]:
    experiment = str(made.sql("SELECT max(experiment_id) FROM trace_info")[0][0])
    return {
        table: Notes(open_table(str(made.folder(table))), experiment).get(BATCH, DAY)
        for table in ("spans", "assessments", "traces")
    }


def test_two_archivers_of_a_day_leave_each_row_once_and_no_number_goes_back(
    made: Production, archivers: Archivers
) -> None:
    assert archivers.run(made, {}, {}) == [0, 0]
    made.assert_whole(TRACES)
    before = batch_numbers(made)
    made.add_traces(25, TRACES)
    assert archivers.run(made, {}, {}) == [0, 0]
    made.assert_whole(TRACES + 25)
    assert all(number >= before[table] for table, number in batch_numbers(made).items())


@pytest.mark.parametrize(("limit", "files"), [(2_000, False), (20_000, False), (20_000, True)])
def test_a_disk_that_is_full_is_one_sentence_and_the_next_run_heals(
    made: Production, archivers: Archivers, limit: int, files: bool
) -> None:
    """Limited is the size of a file: below that of the log's first entry, and of a batch of spans."""
    assert archivers.run(made, {"bytes": limit, "files": files}) == [3]
    assert not files or made.rows("spans") == [], "half a file was committed"
    said = (made.platform.home / "refused").read_text()
    assert "free space" in said
    assert "\n" not in said
    assert archivers.run(made, {}) == [0]
    made.assert_whole(TRACES)


def test_a_store_that_is_upgraded_while_it_is_read(made: Production, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written stays, the day is not called done, and the next run reads by MLflow's API if it must."""
    from resources.archive import append as archive_append

    (revision,) = made.sql("SELECT version_num FROM alembic_version")
    monkeypatch.setattr(archive_append, "BATCH_TRACES", 10)
    real = archive_append._append_batch

    def upgraded_after_a_batch(*args: Any) -> None:
        real(*args)
        made.sql("UPDATE alembic_version SET version_num = 'f00f00f00f00'")

    monkeypatch.setattr(archive_append, "_append_batch", upgraded_after_a_batch)
    with pytest.raises(Refused, match=r"schema|upgraded"):
        made.archive()
    monkeypatch.undo()
    assert 0 < len(made.rows("traces")) < TRACES
    made.sql("UPDATE alembic_version SET version_num = ?", *revision)

    assert made.archive().settled == TRACES
    made.assert_whole(TRACES)
