"""Every tick ends in time, also when the workspace hangs or says that it is busy.

Lives here: ticks against a workspace, at fault and at rest. Not here: what a tick decides (`tests/sensors/`).
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest

from lifecycle_assets.edges import RECORD_KEY
from lifecycle_assets.home import open_instance, prepare_home
from lifecycle_assets.records import SessionRecord
from lifecycle_assets.refused import Refused
from resources.databricks.evaluation.evaluator import DatabricksEvaluator
from resources.platform import Platform
from tests.building import World, make_agent
from tests.workspace.app import Workspace

SENSORS = ("labeling_session_sensor", "label_sync_sensor", "champion_drift_sensor")
"""Those that ask the workspace; the others read Dagster's own storage."""

LIMIT_SECONDS = 45


@pytest.fixture
def world(databricks: Platform, tmp_path: Path) -> Iterator[World]:
    prepare_home(databricks)
    with open_instance(databricks) as instance:
        opened = SessionRecord("app/session", "first", ["tr-1"], "1", "a test", "2026-01-01T00:00:00+00:00")
        key = dg.AssetKey(["tiny", "labeling_session"])
        record = {RECORD_KEY: dg.MetadataValue.json(opened.to_json())}
        instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=record))
        yield World(make_agent(tmp_path, attributes={"experiment": "/Shared/tiny"}), databricks, instance)


QUIET = {
    "labeling_session_sensor": 2,
    "label_sync_sensor": 1,
    "champion_drift_sensor": 4,
    "labels_landed_sensor": 3,
    "approval_sensor": 0,
    "rollback_sensor": 0,
    "alert_sensor": 0,
}
"""Requests of a tick that finds everything as it was: one for each watched thing; a dataset is a table, the dataset
behind it, and its versions."""


def test_a_quiet_tick_is_one_request_for_each_watched_thing(world: World, workspace: Workspace) -> None:
    evaluator = DatabricksEvaluator(world.platform)
    dataset = evaluator.ensure_dataset(world.agent)
    for asset, record in (("eval_dataset", dataset.to_json()), ("logged_model", {})):
        metadata = {RECORD_KEY: dg.MetadataValue.json(record)}
        event = dg.AssetMaterialization(dg.AssetKey([world.agent.name, asset]), metadata=metadata)
        world.instance.report_runless_asset_event(event)
    asked = {}
    for sensor in QUIET:
        cursor = world.tick(sensor).cursor
        cursor = world.tick(sensor, cursor).cursor or cursor
        before = len(workspace.log)
        assert not world.tick(sensor, cursor).run_requests
        asked[sensor] = [f"{one.method} {one.route}" for one in workspace.log[before:]]
        if sensor == "labels_landed_sensor":
            evaluator.merge_labels(world.agent, [{"inputs": {"q": "new"}, "expectations": {"n": 1}}])
            (request,) = world.tick(sensor, cursor).run_requests
            assert request.run_key.startswith("dataset:")
    assert all(len(asked[sensor]) <= most for sensor, most in QUIET.items()), asked


@pytest.mark.parametrize("fault", [{"kind": "hang", "seconds": 120}, {"status": 429, "retry_after": 7}])
def test_a_workspace_at_fault_ends_each_tick_with_a_sentence(
    world: World, workspace: Workspace, fault: dict[str, int]
) -> None:
    world.definitions.resolve_sensor_def("tiny_alert_sensor")  # Once, before threads ask.
    workspace.fail(".*", times=1000, **fault)

    def tick(sensor: str) -> tuple[float, str]:
        began = time.monotonic()
        try:
            world.tick(sensor)
        except Exception as error:  # noqa: BLE001 - Dagster wraps what the sensor raised
            link: BaseException | None = error
            while link is not None and not isinstance(link, Refused):
                link = link.__cause__ or link.__context__
            return time.monotonic() - began, str(link)
        return time.monotonic() - began, ""

    with ThreadPoolExecutor(len(SENSORS)) as pool:
        outcomes = dict(zip(SENSORS, pool.map(tick, SENSORS), strict=True))
    for sensor, (seconds, said) in outcomes.items():
        assert seconds < LIMIT_SECONDS, sensor
        assert any(words in said for words in ("stopped after 40 s", "429 or 503", "does not answer", "within")), (
            sensor,
            said,
        )
    workspace.faults.clear()
