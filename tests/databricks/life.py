"""The whole life of the small agent, the same steps on either platform.

Lives here: the steps, and what is seen of them: records, checks, rows, answers of commands, requests.
Add here: a step both platforms have. Not here: assertions (`test_parity.py`), the page (`docs/make_databricks.py`).
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

from lifecycle_assets.cli.main import main
from lifecycle_assets.home import open_instance, prepare_home
from resources.gateways import open_gateway
from resources.platform import Platform
from tests.building import ATTRIBUTES as SMALL
from tests.building import LABELING, World, checks_of, day_of, make_agent, new_world, noon
from tests.databricks.conftest import forget_clients, point_clients
from tests.workspace.app import Workspace
from tests.workspace.server import served_workspace

ATTRIBUTES: dict[str, Any] = {
    "experiment": "/Shared/tiny",
    "labeling": {**LABELING, "reviewers": ["ann@example.com"]},
    "scorers": [
        {"name": "shouted", "source": "scorers.py:shouted"},
        {"name": "length", "source": "scorers.py:length"},
    ],
    "deployment": {"target": "local"},
}
"""What the small agent declares: one declaration for both platforms."""

RELEASE = ("eval_dataset", "logged_model", "eval_results", "uc_model_version", "champion_alias", "deployment")
MONITOR = ("registered_scorers", "trace_scores", "archived_traces", "quality_metrics")
EVALUATION, CODE = SMALL["eval"], SMALL["agent"]
COMMANDS = {
    "status": ["tiny"],
    "history": ["tiny"],
    "plan": ["tiny"],
    "query": ["tiny", "SELECT count(*) AS n FROM traces"],
    "lineage": ["champion", "--agent", "tiny"],
}
SENSORS = ("scorer_backfill_sensor", "labeling_session_sensor", "label_sync_sensor", "champion_drift_sensor")


@dataclass
class Seen:
    """What was seen: by step, check, asset, table and command. `requests` are `METHOD route` by step, in order."""

    steps: dict[str, bool] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    commands: dict[str, tuple[int, Any]] = field(default_factory=dict)
    ticks: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: dict[str, list[str]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


def live(world: World, workspace: Workspace | None = None) -> Seen:
    """Release, ask, monitor, review; returns what was seen. `workspace` is the emulated one, when it is one."""
    seen = Seen()
    agent, day = world.agent, day_of(1)

    def run(step: str, work: Callable[[], dg.ExecuteInProcessResult]) -> None:
        with _requests(seen, step, workspace):
            result = work()
        seen.steps[step] = result.success
        if not result.success:
            failed = next((e.step_failure_data for e in result.all_events if e.is_step_failure), None)
            told = failed.user_failure_data.description if failed and failed.user_failure_data else str(failed)
            seen.why[step] = str(told)
        seen.checks.update({name: check.passed for name, check in checks_of(result).items()})

    def asset(name: str, partition: str | None = None) -> None:
        job = "release" if name in RELEASE else "monitor" if name in MONITOR else "labeling"
        key = dg.AssetKey([agent.name, name])
        run(name, lambda: world.run(job, asset_selection=[key], partition_key=partition))

    for name in RELEASE:
        asset(name)
    asset("registered_scorers", day)
    model_id = (
        open_gateway("registry").versions(agent.spec.model_name)[-1].model_id if seen.steps["champion_alias"] else ""
    )
    calls = [
        {"question": f"question {n}", "at": noon(1).isoformat(), "model_id": model_id, "up": None if n < 3 else False}
        for n in range(6)
    ]
    with _requests(seen, "an application answers users", workspace):
        _ask(
            {
                "experiment": agent.spec.experiment,
                "destination": open_gateway("tracing").destination(agent),
                "calls": calls,
            }
        )
    if workspace is not None:
        workspace.tick(3)
    for name in MONITOR[1:]:
        asset(name, day)
    cursors: dict[str, str | None] = {}
    for name in SENSORS:
        if name == "label_sync_sensor":
            _review(world, open_gateway("desk"), seen, workspace)
        with _requests(seen, name, workspace):
            tick = world.tick(name, cursors.get(name))
        seen.ticks[name] = {"requests": len(tick.run_requests), "why": bool(tick.skip_message)}
        for request in tick.run_requests:
            job = "scorer_backfill" if name.startswith("scorer") else "labeling"
            run(f"{name}: what it asked for", lambda r=request, j=job: world.do(r, j))
    run("the monitor job, again", lambda: world.run("monitor", partition_key=day))
    run("the upkeep job", lambda: world.run("upkeep"))

    def command(name: str, *arguments: str) -> None:
        with _requests(seen, f"lifecycle {name}", workspace):
            answer = CliRunner().invoke(
                main,
                [name, *arguments, "--json"],
                catch_exceptions=False,
                env={"LIFECYCLE_DEFS": str(agent.folder.parent)},
            )
        seen.commands[name] = (answer.exit_code, json.loads(answer.stdout) if answer.stdout.strip() else answer.output)

    world = world.declared(
        agent={**CODE, "config": {"greeting": "hello there"}},
        eval={**EVALUATION, "gate": {**EVALUATION["gate"], "approval": "required"}},
    )
    run("a second version waits for approval", lambda: world.run("release"))
    command("approve", "tiny", "2", "--reason", "It answers as well.")
    with _requests(seen, "approval_sensor", workspace):
        tick = world.tick("approval_sensor")
    seen.ticks["approval_sensor"] = {"requests": len(tick.run_requests), "why": bool(tick.skip_message)}
    for request in tick.run_requests:
        run("approval_sensor: what it asked for", lambda r=request: world.do(r, "release"))
    command("rollback", "tiny", "--reason", "Users preferred the first one.")
    for name in ("labeling_session", "human_labels", "judge_agreement", *MONITOR, *RELEASE):
        event = world.instance.get_latest_materialization_event(dg.AssetKey([agent.name, name]))
        made = event.asset_materialization if event else None
        record = made.metadata.get("lifecycle/record") if made else None
        seen.records[name] = record.value if record else None
    for name in ("traces", "spans", "assessments", "promotions", "quality_metrics"):
        found = open_gateway("sql").query(agent.spec.table_prefix, f"SELECT * FROM {name}", limit=1000)
        seen.tables[name] = found.dicts()
    for name, arguments in COMMANDS.items():
        command(name, *arguments)
    return seen


def _review(world: World, desk: Any, seen: Seen, workspace: Workspace | None) -> None:
    session = seen_session(world)
    with _requests(seen, "a reviewer answers", workspace):
        for item in desk.items(session):
            answers = {"correct": True, "expected": "hello"}
            desk.review(world.agent, session, item.trace_id, answers, reviewer="ann@example.com")


def seen_session(world: World) -> str:
    """The id of the last labeling session."""
    event = world.instance.get_latest_materialization_event(dg.AssetKey([world.agent.name, "labeling_session"]))
    assert event is not None, "no labeling session was opened"
    assert event.asset_materialization is not None
    record: Any = event.asset_materialization.metadata["lifecycle/record"].value
    return record["session_id"]


def _ask(request: dict[str, Any]) -> list[str]:
    """Let an application of its own process trace these calls; returns the trace ids."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.databricks.ask"],
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def _requests(seen: Seen, step: str, workspace: Workspace | None) -> Iterator[None]:
    before = len(workspace.log) if workspace else 0
    yield
    if workspace:
        seen.requests.setdefault(step, []).extend(f"{one.method} {one.route}" for one in workspace.log[before:])


def on_a_new_workspace(folder: Path) -> Seen:
    """The life against an emulated workspace of its own, with state below `folder`."""
    with served_workspace() as workspace, pytest.MonkeyPatch.context() as patch:
        point_clients(patch, workspace, folder / "home")
        patch.setenv("LIFECYCLE_ENVIRONMENT", "prod")
        patch.setenv("DAGSTER_HOME", str(folder / "home" / "dagster"))
        platform = Platform.from_env()
        prepare_home(platform)
        with open_instance(platform) as instance:
            seen = live(World(make_agent(folder / "agents", attributes=ATTRIBUTES), platform, instance), workspace)
        forget_clients()
        assert not workspace.unknown, f"requests no part knows: {workspace.unknown}"
    return seen


def on_a_laptop(store: Path, folder: Path) -> Seen:
    """The same life on the local platform; `store` is an empty migrated MLflow store."""
    with new_world(store, folder, attributes=ATTRIBUTES) as world, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIFECYCLE_ENVIRONMENT", "prod")
        return live(world)
