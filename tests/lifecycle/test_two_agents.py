"""Two agents in one code location, one of which cannot be imported: the other one lives on, and they share nothing."""

from pathlib import Path

import pytest

from resources.scorer_source import declared_scorers
from tests.building import AGENT_PY, World, checks_of, make_agent, refusal

SENSORS = (
    "scorer_backfill_sensor",
    "labeling_session_sensor",
    "label_sync_sensor",
    "champion_drift_sensor",
    "alert_sensor",
)


@pytest.fixture
def broken(world: World, tmp_path: Path) -> World:
    """The agent `tiny_two`, whose file raises when it is imported, beside the released `tiny`."""
    agent = make_agent(tmp_path / "more", "tiny_two", agent_py="raise RuntimeError('no licence')\n" + AGENT_PY)
    return World(agent, world.platform, world.instance, beside=(world.agent,))


def test_an_agent_that_does_not_import_stops_only_itself(world: World, broken: World):
    names = {job.name for job in broken.definitions.get_repository_def().get_all_jobs()}
    assert {"tiny_release", "tiny_two_release"} <= names, "the code location loads"

    done = broken.run("release")
    assert not done.success
    failed = {event.step_key for event in done.all_events if event.is_step_failure}
    assert failed == {"tiny_two__logged_model"}
    file = broken.agent.path("agent.py")
    assert refusal(done) == (
        f"{file} line 1: raised RuntimeError: no licence when the file was loaded; correct it there."
    )
    assert "\n" not in refusal(done)
    assert broken.materialized("logged_model") == 0
    assert broken.aliases() == {}
    assert not checks_of(done)

    good = World(world.agent, world.platform, world.instance, beside=(broken.agent,))
    assert good.run("release").success
    for sensor in SENSORS:
        assert good.tick(sensor).run_requests == []
        assert broken.tick(sensor).run_requests == []

    assert good.experiment != broken.experiment
    assert broken.client.search_traces(locations=[broken.experiment], include_spans=False) == []
    assert broken.client.search_logged_models([broken.experiment], "tags.`lifecycle.complete` = 'true'") == []
    one, two = ({s.registered_name for s in declared_scorers(w.agent, "local")} for w in (good, broken))
    assert not one & two
    held = set(good.client.get_experiment(good.experiment).tags)
    assert {name.rpartition(".")[2] for name in held if "local_" in name} == one
    tables = {path.name for path in Path(good.platform.warehouse).glob("main/agents/*")}
    assert {"tiny_traces", "tiny_promotions"} <= tables
    assert not [name for name in tables if name.startswith("tiny_two_")]
    assert good.agent.spec.table_prefix != broken.agent.spec.table_prefix
