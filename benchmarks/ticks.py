"""Sensor ticks on a store that holds much: each sensor's own, with nothing new and with 100 traces more.

Lives here: jobs `tick_<sensor>` (nothing happened), `tick_new_traces` (100 traces came), `tick_over_http`.
Add here: a sensor. Not here: what a tick may ask, which tests count (`tests/sensors/test_idle.py`), the daemon
(`daemon.py`).

The baseline is the sensor people write: `MlflowClient.search_traces`, its default page, at every tick. Both sides are
evaluated by Dagster on the same instance, so that its own share of a tick is in both. Imports and a first tick are not
timed.
"""

import json
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.job import Job, Turn

if TYPE_CHECKING:
    import dagster as dg

    from lifecycle_assets.spec_file import Agent

SENSORS = (
    "scorer_backfill_sensor",
    "labeling_session_sensor",
    "label_sync_sensor",
    "labels_landed_sensor",
    "approval_sensor",
    "champion_drift_sensor",
    "rollback_sensor",
    "alert_sensor",
)
NEW = 100
REPEATS = 9
VERSIONS = 20


def agents_of(turn: Turn, number: int = 1) -> "list[Agent]":
    """Agents on the corpus' experiment, each with something behind each of its sensors."""
    from benchmarks.sample import sample_agent
    from lifecycle_assets.spec import AgentSpec
    from lifecycle_assets.spec_file import Agent

    agent = sample_agent(turn)
    declared = agent.spec.model_dump(mode="json", exclude_unset=True)
    gate = {**declared["eval"]["gate"], "approval": "required"}
    rollback = {"automatic": True, "rules": [{"metric": "error_rate", "max_drop": 0.1}]}
    declared |= {"eval": {**declared["eval"], "gate": gate}, "rollback": rollback}
    names = [f"agent_{place}" for place in range(number)]
    return [
        Agent(AgentSpec.model_validate({**declared, "name": name, "model_name": f"main.agents.{name}"}), agent.folder)
        for name in names
    ]


def use(folder: Path, uri: str = "") -> None:
    """Name the prepared state, behind `uri` when it is served, to everything this process opens."""
    store = uri or f"sqlite:///{folder / 'mlflow.db'}"
    os.environ |= {"LIFECYCLE_HOME": str(folder), "DAGSTER_HOME": str(folder / "dagster"), "MLFLOW_TRACKING_URI": store}


def prepare(turn: Turn) -> None:
    """A copy of the store with one agent's model, session and dataset; cursors before and after 100 further traces."""
    prepare_agents(turn, 1)


def prepare_agents(turn: Turn, number: int) -> None:
    """The same with so many agents."""
    from benchmarks.corpus import write
    from lifecycle_assets.home import prepare_home
    from resources.platform import Platform

    shutil.copyfile(turn.store, turn.folder / "mlflow.db")
    use(turn.folder)
    prepare_home(Platform.from_env())
    agents = agents_of(turn, number)
    definitions, cursors = definitions_of(agents), {}
    with opened() as instance:
        for agent in agents:
            _live(agent, instance)
        for _ in range(2):
            cursors = _cursors(definitions, _names(agents), instance, cursors)
        before = cursors
        write(turn.folder, NEW, start=10_000_000, experiment=turn.experiment)
        cursors = _cursors(definitions, _names(agents), instance, before)
    kept = {"before": before, "after": cursors}
    (turn.folder / "cursors.json").write_text(json.dumps(kept), encoding="utf-8")


@contextmanager
def opened() -> "Generator[dg.DagsterInstance]":
    """The home's instance of Dagster."""
    from lifecycle_assets.home import open_instance
    from resources.platform import Platform

    with open_instance(Platform.from_env()) as instance:
        yield instance


def _live(agent: "Agent", instance: "dg.DagsterInstance") -> None:
    """What each sensor looks at: a model with versions, a dataset, a session, and the records of all of them."""
    import dagster as dg

    from lifecycle_assets.edges import RECORD_KEY
    from resources.evaluator import MlflowEvaluator
    from resources.mlflow_store import experiment_id, open_client, open_mlflow
    from resources.platform import Platform

    platform, name = Platform.from_env(), agent.spec.model_name
    client, mlflow = open_client(platform), open_mlflow(platform)
    client.create_registered_model(name)
    for number in range(VERSIONS):
        client.create_model_version(name, source="file:/m", tags={"lifecycle.model_id": f"m-{number}"})
    client.set_registered_model_alias(name, "champion", str(VERSIONS))
    experiment = experiment_id(platform, agent.spec.experiment)
    from mlflow.genai import review_queues

    queue = review_queues.create_review_queue(
        agent.name, queue_type="custom", users=["ann"], schema_ids=[], experiment_id=experiment
    )
    found = client.search_traces(locations=[experiment], max_results=20, include_spans=False)
    traces = [trace.info.trace_id for trace in found]
    mlflow.genai.review_queues.add_items_to_review_queue(queue.queue_id, item_ids=traces)
    dataset = MlflowEvaluator(platform).ensure_dataset(agent)
    records: dict[str, dict[str, Any]] = {
        "eval_dataset": dataset.to_json(),
        "logged_model": {},
        "registered_scorers": {"digest": "d", "model_id": "m", "scorers": []},
        "labeling_session": {
            "session_id": queue.queue_id,
            "name": agent.name,
            "trace_ids": traces,
            "champion_version": str(VERSIONS),
            "reason": "",
            "opened_at": "2026-01-01T00:00:00+00:00",
        },
    }
    for asset, record in records.items():
        metadata = {RECORD_KEY: dg.MetadataValue.json(record)}
        instance.report_runless_asset_event(
            dg.AssetMaterialization(dg.AssetKey([agent.name, asset]), metadata=metadata)
        )


def _cursors(
    definitions: "dg.Definitions", names: list[str], instance: "dg.DagsterInstance", since: dict[str, str | None]
) -> dict[str, str | None]:
    """Every sensor's cursor after a tick."""
    time.sleep(0.1)  # A store that was written to a moment ago is asked by its rows.
    cursors = dict(since)
    for name in names:
        done = tick(definitions, name, instance, since.get(name))
        cursors[name] = done.cursor or since.get(name)
        for event in done.asset_events:
            instance.report_runless_asset_event(event)
    return cursors


def definitions_of(agents: "list[Agent]") -> "dg.Definitions":
    """The code location of these agents."""
    import dagster as dg

    from lifecycle_assets.component import agent_definitions

    return dg.Definitions.merge(*map(agent_definitions, agents))


def _names(agents: "list[Agent]") -> list[str]:
    return [f"{agent.name}_{sensor}" for agent in agents for sensor in SENSORS]


def tick(definitions: "dg.Definitions", name: str, instance: "dg.DagsterInstance", cursor: str | None) -> Any:
    """One tick as the code server evaluates it."""
    import dagster as dg

    with dg.build_sensor_context(
        instance=instance, cursor=cursor, definitions=definitions, sensor_name=name
    ) as context:
        return definitions.resolve_sensor_def(name).evaluate_tick(context)


def users_sensor(turn: Turn, name: str = "users", interval: int = 30) -> "dg.Definitions":
    """A sensor as people write it: the newest traces of the experiment, at every tick."""
    import dagster as dg
    import mlflow

    @dg.asset(name=f"{name}_product")
    def product() -> None:
        """What the sensor would ask for."""

    @dg.sensor(
        name=name,
        target=dg.AssetSelection.assets(f"{name}_product"),
        minimum_interval_seconds=interval,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def users(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(turn.experiment)
        assert experiment is not None
        found = client.search_traces(locations=[experiment.experiment_id])
        newest = max((trace.info.request_time for trace in found), default=0)
        return dg.SkipReason(f"{newest} is the newest")

    return dg.Definitions(assets=[product], sensors=[users])


def users(turn: Turn) -> None:
    """The baseline: one tick of a sensor that asks for the default page of traces."""
    assert turn.shared is not None
    use(turn.shared)
    _users(turn, 1)


def users_eight(turn: Turn) -> None:
    """The baseline of one agent: as many such ticks as it has sensors."""
    assert turn.shared is not None
    use(turn.shared)
    _users(turn, len(SENSORS))


def users_over_http(turn: Turn) -> None:
    """The same over HTTP."""
    from benchmarks.server import mlflow_server

    assert turn.shared is not None
    turn.folder.mkdir(exist_ok=True)
    with mlflow_server(turn.shared / "mlflow.db", 1, turn.folder) as uri:
        use(turn.shared, uri)
        _users(turn, len(SENSORS))


def _users(turn: Turn, ticks: int) -> None:
    definitions = users_sensor(turn)
    with opened() as instance:
        tick(definitions, "users", instance, None)
        for _ in range(REPEATS):
            with turn.timed():
                for _ in range(ticks):
                    tick(definitions, "users", instance, None)


def _ours(turn: Turn, sensor: str) -> None:
    assert turn.shared is not None
    use(turn.shared)
    definitions, name = definitions_of(agents_of(turn)), f"agent_0_{sensor}"
    with opened() as instance:
        _time(turn, definitions, {name: _kept(turn, "after")[name]}, instance)


def _kept(turn: Turn, when: str) -> dict[str, str | None]:
    assert turn.shared is not None
    return json.loads((turn.shared / "cursors.json").read_text(encoding="utf-8"))[when]


def _time(
    turn: Turn, definitions: "dg.Definitions", cursors: dict[str, str | None], instance: "dg.DagsterInstance"
) -> None:
    """Ticks of these sensors, one after the other, again and again from the same cursors."""
    for name, cursor in cursors.items():
        tick(definitions, name, instance, cursor)
    for _ in range(REPEATS):
        with turn.timed():
            done = [tick(definitions, name, instance, cursor) for name, cursor in cursors.items()]
        assert not any(one.run_requests for one in done)


def scorer_backfill(turn: Turn) -> None:
    """An idle tick."""
    _ours(turn, "scorer_backfill_sensor")


def labeling_session(turn: Turn) -> None:
    """An idle tick."""
    _ours(turn, "labeling_session_sensor")


def label_sync(turn: Turn) -> None:
    """An idle tick."""
    _ours(turn, "label_sync_sensor")


def labels_landed(turn: Turn) -> None:
    """An idle tick."""
    _ours(turn, "labels_landed_sensor")


def approval(turn: Turn) -> None:
    """An idle tick."""
    _ours(turn, "approval_sensor")


def champion_drift(turn: Turn) -> None:
    """An idle tick."""
    _ours(turn, "champion_drift_sensor")


def rollback(turn: Turn) -> None:
    """An idle tick."""
    _ours(turn, "rollback_sensor")


def alert(turn: Turn) -> None:
    """An idle tick."""
    _ours(turn, "alert_sensor")


def new_traces(turn: Turn) -> None:
    """All sensors of an agent after 100 traces came."""
    assert turn.shared is not None
    use(turn.shared)
    with opened() as instance:
        _time(turn, definitions_of(agents_of(turn)), _kept(turn, "before"), instance)


def over_http(turn: Turn) -> None:
    """All sensors of an agent, idle, on a server."""
    from benchmarks.server import mlflow_server

    assert turn.shared is not None
    turn.folder.mkdir(exist_ok=True)
    with mlflow_server(turn.shared / "mlflow.db", 1, turn.folder) as uri, _in(turn.shared, uri) as instance:
        agents = agents_of(turn)
        definitions, cursors = definitions_of(agents), _kept(turn, "after")
        for _ in range(2):
            cursors = _cursors(definitions, _names(agents), instance, cursors)
        _time(turn, definitions, cursors, instance)


@contextmanager
def _in(folder: Path, uri: str) -> "Generator[dg.DagsterInstance]":
    use(folder, uri)
    with opened() as instance:
        yield instance


IDLE = "An idle tick, Dagster's own share included, against one that asks for the default page of traces."
LESS = "less than the baseline; at most 2 ms of it in MLflow's store"
OURS = (scorer_backfill, labeling_session, label_sync, labels_landed, approval, champion_drift, rollback, alert)

JOBS = (
    *(Job(f"tick_{side.__name__}_sensor", IDLE, LESS, users, side, prepare=prepare) for side in OURS),
    Job(
        "tick_new_traces",
        "All eight sensors of an agent after 100 traces came, against as many ticks of the baseline.",
        "each at most 100 ms",
        users_eight,
        new_traces,
        prepare=prepare,
    ),
    Job(
        "tick_over_http",
        "All eight sensors of an agent, idle, on an MLflow server, against as many ticks of the baseline.",
        "10 ms for each of the nine things watched there",
        users_over_http,
        over_http,
        prepare=prepare,
    ),
)
