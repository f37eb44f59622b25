"""Two agents in one code location: they share nothing, and one that is broken does not disturb the other."""

from pathlib import Path

import dagster as dg
import pytest

from lifecycle_assets.component import agent_definitions
from lifecycle_assets.home import open_instance, prepare_home
from resources.census import count
from resources.gateways import GATEWAYS
from resources.mlflow_store import open_client
from resources.model_registry import MlflowModelRegistry
from resources.platform import Platform
from tests.building import make_agent


@pytest.fixture
def instance(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    monkeypatch.setenv("DAGSTER_HOME", str(prepare_home(platform)))
    return open_instance(platform)


def failure_of(outcome: dg.ExecuteInProcessResult) -> tuple[str, str]:
    """Step and sentence of the first step that failed."""
    for event in outcome.all_events:
        if event.is_step_failure and event.step_failure_data.user_failure_data:
            return str(event.step_key), str(event.step_failure_data.user_failure_data.description)
    raise AssertionError("no step refused")


def test_a_broken_agent_fails_where_it_is_used_and_the_other_lives(
    platform: Platform, instance: dg.DagsterInstance, tmp_path: Path
):
    good = make_agent(tmp_path, "good")
    broken = make_agent(
        tmp_path,
        "broken",
        agent_py="import no_such_package\nimport mlflow\n\nmlflow.models.set_model(no_such_package.Agent())\n",
        scorers_py="def shouted(:\n",
    )
    definitions = dg.Definitions.merge(agent_definitions(good), agent_definitions(broken))

    outcome = definitions.resolve_job_def("broken_release").execute_in_process(instance=instance, raise_on_error=False)
    step, sentence = failure_of(outcome)
    assert step == "broken__logged_model"
    assert "no_such_package" in sentence
    assert "agent.py" in sentence
    assert "\n" not in sentence

    assert definitions.resolve_job_def("good_release").execute_in_process(instance=instance).success
    assert (
        definitions.resolve_job_def("good_monitor")
        .execute_in_process(instance=instance, partition_key=f"{dg_today()}")
        .success
    )
    for sensor in ("scorer_backfill_sensor", "labeling_session_sensor", "champion_drift_sensor", "alert_sensor"):
        definition = definitions.resolve_sensor_def(f"good_{sensor}")
        with dg.build_sensor_context(
            instance=instance, definitions=definitions, resources=dict(GATEWAYS), sensor_name=definition.name
        ) as context:
            definition.evaluate_tick(context)

    registry = MlflowModelRegistry(platform)
    assert registry.aliases(good.spec.model_name) == {"champion": "1"}
    assert registry.versions(broken.spec.model_name) == []
    assert count(platform, broken).logged_models == 0
    experiments = {e.name: e.experiment_id for e in open_client(platform).search_experiments()}
    assert experiments["/agents/good"] != experiments["/agents/broken"]
    tables = sorted(path.name for path in (platform.home / "warehouse" / "main" / "agents").iterdir())
    assert all(name.startswith("good_") for name in tables), tables


def dg_today() -> str:
    """The newest day of the partitions."""
    return dg.DailyPartitionsDefinition("2025-01-01", end_offset=1).get_last_partition_key() or ""
