"""What ticks cost: counted questions, never time. An idle tick asks MLflow's store nothing at all.

Lives here: every sensor's questions when nothing happened, when traces came, and when much is stored.
Add here: a sensor. Not here: what sensors decide (`test_ticks.py`), what a glance sees (`test_store_glance.py`).
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from lifecycle_assets.refused import Refused
from resources.feedback import send_feedback
from resources.file_facts import TICK_NS
from tests.building import ATTRIBUTES, Released, World, day_of, noon
from tests.resources.mlflow_server import mlflow_server
from tests.sensors.counting import Asked, asked_during, of_file, requests_during

STORE, DAGSTER = "mlflow.db", "index.db"

ROOT = Path(__file__).parents[2]

WATCHED = {
    "alert_sensor": 0,
    "approval_sensor": 1,
    "champion_drift_sensor": 4,
    "label_sync_sensor": 1,
    "labeling_session_sensor": 0,
    "labels_landed_sensor": 1,
    "rollback_sensor": 2,
    "scorer_backfill_sensor": 0,
}
"""Things of MLflow's store that each sensor watches: its queries after something else was written there."""

OF_DAGSTER = {
    "alert_sensor": 1,
    "approval_sensor": 0,
    "champion_drift_sensor": 6,
    "label_sync_sensor": 4,
    "labeling_session_sensor": 2,
    "labels_landed_sensor": 4,
    "rollback_sensor": 0,
}
"""Statements to Dagster's own storage of an idle tick: two an asset, one for the runs that ended."""

HEAVY = (
    "mlflow",
    "pandas",
    "deltalake",
    "duckdb",
    "numpy",
    "scipy",
    "pyarrow",
    "adbc_driver_manager",
    "sqlalchemy_adbc",
)


@pytest.fixture(scope="module")
def watched_world(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world in which every sensor has something to watch: approval, automatic rollback, a session under review."""
    with released.copy(tmp_path_factory.mktemp("idle")) as world:
        gate = {**ATTRIBUTES["eval"]["gate"], "approval": "required"}
        rollback = {"automatic": True, "rules": [{"metric": "shouted/mean", "max_drop": 0.1}]}
        world = world.declared(eval={**ATTRIBUTES["eval"], "gate": gate}, rollback=rollback)
        trace_id = world.ask("odd", at=noon(1) + timedelta(minutes=1))
        config = {"name": "weekly", "trace_ids": [trace_id]}
        assert world.run(
            "labeling",
            asset_selection=[dg.AssetKey(["tiny", "labeling_session"])],
            run_config={"ops": {"tiny__labeling_session": {"config": config}}},
        ).success
        yield world


def settled(world: World, sensor: str, cursor: str | None = None) -> str | None:
    """The sensor's cursor once it has seen everything."""
    for _ in range(3):
        time.sleep(TICK_NS / 1e9 * 1.5)  # A store that was just written to cannot be told by its file.
        tick, before = world.tick(sensor, cursor), cursor
        assert not tick.run_requests
        cursor = tick.cursor or cursor
        if cursor == before:
            break
    return cursor


@pytest.mark.parametrize("sensor", WATCHED)
def test_an_idle_tick_asks_the_store_nothing_and_one_query_a_thing_when_traces_came(watched_world: World, sensor: str):
    world = watched_world
    cursor = settled(world, sensor)
    ticks: list[Any] = []
    idle = asked_during(lambda: ticks.append(world.tick(sensor, cursor)))
    assert of_file(idle, STORE) == []
    assert len(of_file(idle, DAGSTER)) + len(of_file(idle, "runs.db")) <= OF_DAGSTER.get(sensor, 99), idle

    send_feedback(world.platform, world.ask("new", at=noon(0)), up=True, user="ann")
    busy = asked_during(lambda: ticks.append(world.tick(sensor, cursor)))
    assert len(of_file(busy, STORE)) == WATCHED[sensor], of_file(busy, STORE)
    assert len(busy) - len(of_file(busy, STORE)) == len(idle)
    again = asked_during(lambda: world.tick(sensor, settled(world, sensor, ticks[-1].cursor or cursor)))
    assert not any(tick.run_requests for tick in ticks)
    assert len(of_file(again, STORE)) <= 3 * WATCHED[sensor], "of the ticks that settle"


def test_what_is_stored_makes_no_tick_ask_more(watched_world: World):
    """Traces, versions and materializations: eight more of each, and the questions are the same."""
    world = watched_world
    cursors = {sensor: settled(world, sensor) for sensor in WATCHED}

    def questions() -> dict[str, list[int]]:
        found = {}
        for sensor, cursor in cursors.items():
            asked = asked_during(lambda sensor=sensor, cursor=cursor: world.tick(sensor, cursor))
            found[sensor] = [len(of_file(asked, STORE)), len(asked) - len(of_file(asked, STORE))]
        return found

    few = questions()
    source, tags = f"models:/{world.champion_model_id}", world.versions()[0].tags
    for number in range(8):
        world.ask(f"more {number}", at=noon(0) + timedelta(seconds=number))
        world.client.create_model_version(world.agent.spec.model_name, source=source, tags=tags)
        event = dg.AssetMaterialization(dg.AssetKey(["tiny", "quality_metrics"]), partition=day_of(0))
        world.instance.report_runless_asset_event(event)
    cursors |= {sensor: settled(world, sensor, cursor) for sensor, cursor in cursors.items()}
    assert questions() == few


def test_idle_ticks_load_no_heavy_module(watched_world: World, tmp_path: Path):
    """In a process of its own, as a code server that was just started: from kept cursors every sensor says no."""
    world = watched_world
    cursors = {sensor: settled(world, sensor) for sensor in WATCHED}
    code = """
import json, sys
from pathlib import Path
from lifecycle_assets.home import open_instance
from lifecycle_assets.spec_file import read_agent
from resources.platform import Platform
from tests.building import World

file, cursors, heavy = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
platform = Platform.from_env()
with open_instance(platform) as instance:
    world = World(read_agent(file), platform, instance)
    for sensor, cursor in cursors.items():
        before = set(sys.modules)
        tick = world.tick(sensor, cursor)
        loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before} & set(heavy))
        print(json.dumps([sensor, loaded, len(tick.run_requests or [])]))
"""
    arguments = [str(world.agent.folder / "defs.yaml"), json.dumps(cursors), json.dumps(HEAVY)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert found == [[sensor, [], 0] for sensor in WATCHED]


def test_a_code_server_opens_dagster_s_instance_once_for_all_ticks(watched_world: World):
    """Left to itself, Dagster opens it for every tick, to give it to the resources a sensor declares."""
    world, ref = watched_world, watched_world.instance.get_ref()
    cursors = {sensor: settled(world, sensor) for sensor in WATCHED}

    def ticks() -> None:
        for sensor, cursor in cursors.items():
            definition = world.definitions.resolve_sensor_def(f"tiny_{sensor}")
            assert not definition.required_resource_keys
            with dg.build_sensor_context(
                instance_ref=ref, definitions=world.definitions, sensor_name=definition.name, cursor=cursor
            ) as context:
                assert not definition.evaluate_tick(context).run_requests

    def opening(asked: list[Asked]) -> list[str]:
        return [one.sql for one in asked if "alembic_version" in one.sql and one.file != STORE]

    assert opening(asked_during(ticks))
    assert opening(asked_during(ticks)) == []


def test_a_lost_cursor_and_one_of_an_earlier_release_are_safe(watched_world: World):
    earlier = {
        "champion_drift_sensor": '{"reported": ""}',
        "labeling_session_sensor": '{"champion": "1", "tables": "3:4"}',
        "label_sync_sensor": '{"completions": ""}',
        "rollback_sensor": '{"champion": "", "fired": "", "until": ""}',
    }
    for sensor, cursor in earlier.items():
        for kept in (cursor, None, "{", '{"seen": "x", "things": "y"}'):
            tick = watched_world.tick(sensor, kept)
            assert not tick.run_requests
            assert not tick.asset_events
            assert tick.skip_message


OF_SERVER = {
    "alert_sensor": 0,
    "approval_sensor": 1,
    "champion_drift_sensor": 4,
    "label_sync_sensor": 1,
    "labeling_session_sensor": 0,
    "labels_landed_sensor": 1,
    "rollback_sensor": 2,
    "scorer_backfill_sensor": 0,
}
"""Requests of an idle tick to an MLflow server: one for each watched thing."""


def test_over_http_a_tick_is_one_request_for_each_watched_thing(
    watched_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world = watched_world
    with mlflow_server(world.platform.home / "mlflow.db", tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.tracking_uri)
        cursors = {}
        for sensor in OF_SERVER:  # The first tick finds the ledger.
            tick = world.tick(sensor)
            cursors[sensor] = world.tick(sensor, tick.cursor).cursor or tick.cursor
        asked = {s: requests_during(lambda s=s: world.tick(s, cursors[s])) for s in OF_SERVER}
        for sensor, statements in OF_DAGSTER.items():
            idle = asked_during(lambda sensor=sensor: world.tick(sensor, cursors[sensor]))
            assert len(idle) <= statements, idle
        World(world.agent, server, world.instance).ask("over http", at=noon(0))
        later = {s: requests_during(lambda s=s: world.tick(s, cursors[s])) for s in OF_SERVER}
        name, drift = world.agent.spec.model_name, "champion_drift_sensor"
        world.client.set_registered_model_alias(name, "challenger", "1")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.tracking_uri)  # MLflow names there whom it was opened for.
        moved = world.tick(drift, cursors[drift])
        world.client.delete_registered_model_alias(name, "challenger")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.tracking_uri)
    assert {sensor: len(requests) for sensor, requests in asked.items()} == OF_SERVER, asked
    assert later == asked, "traces make no difference"
    assert "challenger is version 1" in (moved.skip_message or "")
    assert moved.asset_events
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for sensor, requests in OF_SERVER.items():
        if requests:
            with pytest.raises(Refused):  # That nobody answers is not that nothing changed.
                world.tick(sensor, cursors[sensor])


@pytest.mark.parametrize(("name", "statements"), [("monitor_hourly", 6), ("labeling_weekly", 0)])
def test_schedules_ask_the_store_nothing(watched_world: World, name: str, statements: int):
    world, ticks = watched_world, []
    repository, at = world.definitions.get_repository_def(), noon(0) + timedelta(minutes=5)

    def evaluate() -> None:
        with dg.build_schedule_context(
            instance=world.instance, scheduled_execution_time=at, repository_def=repository
        ) as context:
            ticks.append(world.definitions.resolve_schedule_def(f"tiny_{name}").evaluate_tick(context))

    asked = asked_during(evaluate)
    assert of_file(asked, STORE) == []
    assert len(of_file(asked, DAGSTER)) <= statements, asked
    assert ticks[0].run_requests
