"""Traces leave MLflow only when the tables are proven to hold them, and everything of them stays in the tables."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks import corpus
from lifecycle_assets.spec_file import Agent
from resources.archive.delta_archive import DeltaArchive
from resources.delta.repair import restore
from resources.delta.write import append_rows, table_to_write
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.platform import Platform
from resources.scoring.trace_scores import id_of
from resources.sql.engine import DuckDbEngine
from resources.tables import PARTITION, arrow_table
from resources.upkeep.delta_upkeep import DeltaUpkeep
from resources.upkeep.mlflow_archival import UNTIL_TAG
from tests.building import make_agent

FIRST = date(2026, 11, 10)
DAYS = [FIRST, FIRST + timedelta(days=1), FIRST + timedelta(days=2)]
NOW = FIRST + timedelta(days=4)
"""On this day the first two days are due: they are older than two days."""
TRACES = 40
UNTIL = datetime(2026, 11, 12, 12, tzinfo=UTC)


def agent_in(folder: Path, **archive: Any) -> Agent:
    declared = {"settle_minutes": 0, "late_days": 1, "store_retention": {"after_days": 2, "how": "delete"}, **archive}
    return make_agent(folder / "agents", attributes={"archive": declared})


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Path:
    """A home with 60 traces over three days in MLflow, all of them in the tables."""
    folder = tmp_path_factory.mktemp("archived")
    (folder / "home").mkdir()
    shutil.copy(migrated_store, folder / "home" / "mlflow.db")
    platform, agent = Platform.from_env({"LIFECYCLE_HOME": str(folder / "home")}), agent_in(folder)
    until_ms = int(UNTIL.timestamp() * 1000) + corpus.LEAD_MS
    corpus.write(folder / "home", TRACES, days=2, until_ms=until_ms, experiment=agent.spec.experiment)
    for day in DAYS:
        archive_day(platform, agent, day)
    assert rows(platform, agent)["traces"] == TRACES
    return folder


@pytest.fixture
def platform(archived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    shutil.copytree(archived, tmp_path / "copy", dirs_exist_ok=True)
    monkeypatch.setenv("LIFECYCLE_HOME", str(tmp_path / "copy" / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Platform.from_env()


def archive_day(platform: Platform, agent: Agent, day: date, *, anew: bool = False) -> Any:
    """`anew` is what the step asks for when it counts fewer rows than were written."""
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    return DeltaArchive(platform).archive_day(agent, day, settled_before_ms=now_ms, progress=print, anew=anew)


def rows(platform: Platform, agent: Agent) -> dict[str, int]:
    return DuckDbEngine(platform).tables(agent.spec.table_prefix)


def contents(platform: Platform, agent: Agent) -> Mapping[str, list[Any]]:
    engine = DuckDbEngine(platform)
    return {
        table: list(engine.query(agent.spec.table_prefix, f"FROM {table} ORDER BY ALL", limit=10_000).rows)
        for table in ("spans", "assessments")
    } | {"traces": list(engine.query(agent.spec.table_prefix, TRACES_SQL, limit=10_000).rows)}


TRACES_SQL = "SELECT trace_id, trace_date, request, response, state, metadata FROM traces ORDER BY ALL"


def in_mlflow(platform: Platform, agent: Agent, *, spans: bool = False) -> dict[str, Any]:
    found = open_client(platform).search_traces(
        locations=[experiment_id(platform, agent.spec.experiment)], max_results=500, include_spans=spans
    )
    return {trace.info.trace_id: trace for trace in found}


def by_day(platform: Platform, agent: Agent) -> dict[date, int]:
    query = "SELECT trace_date, count(*) FROM traces GROUP BY 1"
    return dict(DuckDbEngine(platform).query(agent.spec.table_prefix, query).rows)


def ids_of(platform: Platform, agent: Agent, day: date) -> list[str]:
    query = "SELECT trace_id FROM traces WHERE trace_date = ? ORDER BY request_time"
    return [row[0] for row in DuckDbEngine(platform).query(agent.spec.table_prefix, query, [day]).rows]


def released(platform: Platform, agent: Agent, now: date = NOW) -> dict[date, tuple[int, str]]:
    return {one.day: (one.traces, one.why) for one in DeltaUpkeep(platform).release(agent, now, print)}


def test_proven_days_leave_mlflow_and_stay_in_the_tables(platform: Platform, tmp_path: Path) -> None:
    agent = agent_in(tmp_path)
    held, counts = contents(platform, agent), by_day(platform, agent)

    assert released(platform, agent) == {day: (counts[day], "") for day in DAYS[:2]}
    assert set(in_mlflow(platform, agent)) == set(ids_of(platform, agent, DAYS[2]))
    assert released(platform, agent) == {}
    # Archiving the days again finds none of their traces in MLflow, and takes nothing away.
    for day in DAYS:
        assert archive_day(platform, agent, day).absent == ()
    assert contents(platform, agent) == held


def test_a_day_stays_in_mlflow_until_the_tables_are_proven_to_hold_it(platform: Platform, tmp_path: Path) -> None:
    """One obstacle after another; only the first day is due."""
    agent, mlflow, now = agent_in(tmp_path), open_mlflow(platform), FIRST + timedelta(days=3)
    trace_id, other = ids_of(platform, agent, FIRST)[3], ids_of(platform, agent, FIRST)[4]
    key = {"trace_id": trace_id, "trace_date": FIRST}

    def why() -> str:
        [(traces, said)] = released(platform, agent, now).values()
        assert (traces, trace_id in in_mlflow(platform, agent)) == (0, True)
        return said

    assert released(platform, agent_in(tmp_path / "other", store_retention=None), now) == {}
    assert released(platform, agent, now - timedelta(days=1)) == {}
    remove(platform, agent, "traces", f"trace_id = '{trace_id}'")
    assert why() == (
        f"{FIRST}: stays in MLflow, 1 of its traces are not in the tables ({trace_id}); "
        "run the day's archived_traces again."
    )
    archive_day(platform, agent, FIRST)
    remove(platform, agent, "spans", f"trace_id = '{trace_id}'")
    assert "spans in MLflow are not in the tables" in why()
    archive_day(platform, agent, FIRST, anew=True)
    late = mlflow.log_feedback(trace_id=trace_id, name="late", value=True)
    assert "1 assessments in MLflow are not in the tables as they are now" in why()
    archive_day(platform, agent, FIRST)
    mlflow.update_assessment(trace_id, late.assessment_id, mlflow.entities.Feedback(name="late", value=False))
    assert "1 assessments in MLflow are not in the tables as they are now" in why()
    archive_day(platform, agent, FIRST)
    append(platform, agent, "quarantine", key | {"reason": "its spans are no JSON"})
    assert "1 of its traces are in quarantine" in why()
    remove(platform, agent, "quarantine", f"trace_id = '{trace_id}'")
    score = key | {"assessment_id": id_of(trace_id, "s", "1"), "name": "s", "scorer_version": "1", "valid": True}
    append(platform, agent, "assessments", score | {"kind": "feedback", "value_number": 1.0})
    assert "1 scores are not in MLflow yet" in why()
    remove(platform, agent, "assessments", "name = 's'")

    from mlflow.genai import review_queues as reviews

    experiment = experiment_id(platform, agent.spec.experiment)
    queue = reviews.create_review_queue("q", queue_type="custom", users=["ann"], experiment_id=experiment)
    reviews.add_items_to_review_queue(queue.queue_id, item_ids=[trace_id, other])
    reviews.set_review_queue_item_status(queue.queue_id, item_id=other, status="complete", completed_by="ann")
    assert f"1 of its traces are under review ({trace_id})" in why()
    reviews.set_review_queue_item_status(queue.queue_id, item_id=trace_id, status="declined", completed_by="ann")
    # The other days, which nothing speaks against, go although a day before them has to wait.
    remove(platform, agent, "traces", f"trace_id = '{trace_id}'")
    found = released(platform, agent)
    assert [bool(said) for _, said in found.values()] == [True, False]
    archive_day(platform, agent, FIRST)
    assert released(platform, agent, now) == {FIRST: (len(ids_of(platform, agent, FIRST)), "")}


def test_a_release_that_is_killed_goes_on_with_what_is_left(platform: Platform, tmp_path: Path) -> None:
    """Killed after its first call to delete."""
    agent = agent_in(tmp_path)
    held = contents(platform, agent)
    code = (
        "import sys; from datetime import date; from pathlib import Path; from tests.deadly import deadly;"
        "from lifecycle_assets.spec_file import read_agent; from resources.platform import Platform;"
        "from resources.upkeep.delta_upkeep import DeltaUpkeep;"
        "deadly('resources.upkeep.store_retention:_delete', 'return', 1);"
        f"DeltaUpkeep(Platform.from_env()).release(read_agent(Path(sys.argv[1])), date.fromisoformat('{NOW}'), print)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code, str(agent.folder / "defs.yaml")], env=env, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left = in_mlflow(platform, agent)
    assert 0 < len(left) < TRACES

    assert all(why == "" for _, why in released(platform, agent).values())
    assert set(in_mlflow(platform, agent)) == set(ids_of(platform, agent, DAYS[2]))
    assert contents(platform, agent) == held


def test_mlflows_archival_moves_spans_and_the_tables_keep_what_they_have(platform: Platform, tmp_path: Path) -> None:
    agent = agent_in(tmp_path, store_retention={"after_days": 2, "how": "archive"})
    held, due = contents(platform, agent), {one for day in DAYS[:2] for one in ids_of(platform, agent, day)}
    experiment, client = experiment_id(platform, agent.spec.experiment), open_client(platform)

    def places() -> dict[str, str]:
        found = in_mlflow(platform, agent)
        return {one: trace.info.tags["mlflow.trace.spansLocation"] for one, trace in found.items()}

    # MLflow would take others along that ask for it, and a day nobody has proven.
    asked = json.dumps({"type": "duration", "value": "1d"})
    client.set_experiment_tag(experiment, "mlflow.trace.archivalRetention", asked)
    [(_, why)] = released(platform, agent).values()
    assert "has the tag mlflow.trace.archivalRetention" in why
    client.delete_experiment_tag(experiment, "mlflow.trace.archivalRetention")
    remove(platform, agent, "traces", f"trace_id = '{ids_of(platform, agent, FIRST)[0]}'")
    assert set(released(platform, agent)) == {FIRST}
    assert set(places().values()) == {"TRACKING_STORE"}
    archive_day(platform, agent, FIRST)

    found = released(platform, agent)

    assert {day: why for day, (_, why) in found.items()} == dict.fromkeys(DAYS[:2], "")
    assert {one for one, place in places().items() if place == "ARCHIVE_REPO"} == due
    assert len(places()) == TRACES
    assert client.get_experiment(experiment).tags[UNTIL_TAG] == str(DAYS[2])
    assert released(platform, agent) == {}
    for day in DAYS:
        assert archive_day(platform, agent, day).absent == ()
    assert contents(platform, agent) == held


def test_a_partition_deleted_by_hand_is_archived_again(platform: Platform, tmp_path: Path) -> None:
    agent = agent_in(tmp_path)
    held = contents(platform, agent)
    for table in ("traces", "spans"):
        shutil.rmtree(Path(platform.table_uri(agent.spec.table_prefix + table)) / f"{PARTITION}={FIRST}")

    [one] = DeltaUpkeep(platform).restore(agent, print)
    assert (one.day, one.is_lost) == (FIRST, False)
    assert "run archived_traces of that day again" in one.said
    assert DeltaUpkeep(platform).restore(agent, print) == []
    assert archive_day(platform, agent, FIRST).absent == ()
    assert contents(platform, agent) == held


def test_a_day_mlflow_has_no_more_is_not_given_up(platform: Platform, tmp_path: Path) -> None:
    agent = agent_in(tmp_path)
    released(platform, agent)
    folder = Path(platform.table_uri(agent.spec.table_prefix + "spans")) / f"{PARTITION}={FIRST}"
    folder.rename(tmp_path / "moved away")

    [one] = restore(platform, agent, print)
    assert one.is_lost
    assert "MLflow holds 0 of the day's" in one.said
    assert "put the files back from a backup" in one.said
    (tmp_path / "moved away").rename(folder)
    assert restore(platform, agent, print) == []


def remove(platform: Platform, agent: Agent, table: str, condition: str) -> None:
    from deltalake import DeltaTable

    DeltaTable(platform.table_uri(agent.spec.table_prefix + table)).delete(condition)


def append(platform: Platform, agent: Agent, table: str, row: dict[str, Any]) -> None:
    where = platform.table_uri(agent.spec.table_prefix + table)
    append_rows(table_to_write(where, table), arrow_table(table, [row]))
