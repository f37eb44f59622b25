"""Every tick ends in time, also when the workspace hangs or says that it is busy.

Lives here: ticks against a workspace at fault. Not here: what a tick decides (`tests/sensors/`).
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
