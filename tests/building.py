"""Builders for tests: a small real agent on disk, and what it needs to run.

Lives here: code that writes an agent's folder, real traces and records.
Add here: a builder a second test module needs.
Not here: fixtures (`conftest.py`), assertions.
"""

import copy
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from lifecycle_assets.component import agent_definitions
from lifecycle_assets.home import open_instance, prepare_home
from lifecycle_assets.records import EvalRecord
from lifecycle_assets.runner import QUIET
from lifecycle_assets.spec_file import Agent, read_agent
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine

AGENT_PY = '''
"""A small agent: repeats the question in upper case, and refuses what it is told to refuse."""

import mlflow
from mlflow.pyfunc import ResponsesAgent
from mlflow.types.responses import ResponsesAgentRequest, ResponsesAgentResponse

CONFIG = mlflow.models.ModelConfig(development_config={"greeting": "hello"})


class TinyAgent(ResponsesAgent):
    def predict(self, request: ResponsesAgentRequest) -> ResponsesAgentResponse:
        question = request.input[-1].content
        if "explode" in question:
            raise RuntimeError("the agent exploded")
        answer = self.answer(question)
        if request.context and request.context.conversation_id:
            mlflow.update_current_trace(
                metadata={
                    "mlflow.trace.session": request.context.conversation_id,
                    "mlflow.trace.user": request.context.user_id or "",
                }
            )
        return ResponsesAgentResponse(output=[self.create_text_output_item(text=answer, id="1")])

    @mlflow.trace(name="answer", span_type="CHAIN")
    def answer(self, question: str) -> str:
        return f"{CONFIG.get('greeting')} {question.upper()}"


mlflow.models.set_model(TinyAgent())
'''

SCORERS_PY = '''
"""Scorers of the small agent."""

from mlflow.genai.scorers import scorer


@scorer
def shouted(trace):
    spans = trace.search_spans(name="answer")
    if not spans:
        return None
    return spans[0].outputs == spans[0].outputs.lower() or "HELLO" in spans[0].outputs.upper()


@scorer
def length(trace):
    spans = trace.search_spans(name="answer")
    return float(len(spans[0].outputs)) if spans else None
'''

ATTRIBUTES: dict[str, Any] = {
    "name": "tiny",
    "model_name": "main.agents.tiny",
    "experiment": "/agents/tiny",
    "agent": {
        "path": "agent.py",
        "config": {"greeting": "hello"},
        "pip_requirements": ["mlflow==3.17.2"],
        "input_example": {"input": [{"role": "user", "content": "are you there?"}]},
    },
    "eval": {
        "dataset": "eval_dataset.jsonl",
        "gate": {"thresholds": [{"metric": "shouted/mean", "at_least": 0.5, "min_rows": 2}]},
    },
    "scorers": [
        {"name": "shouted", "source": "scorers.py:shouted"},
        {"name": "length", "source": "scorers.py:length", "sample_rate": 0.5},
    ],
    "archive": {"settle_minutes": 0},
    "labeling": {
        "schemas": [
            {
                "name": "correct",
                "type": "feedback",
                "input": "pass_fail",
                "instruction": "Is the answer correct?",
                "judges": "shouted",
            }
        ],
        "rules": {"negative_feedback": 2},
    },
}
"""A valid declaration; copy it and change what the test is about."""

DATASET = "\n".join(
    f'{{"inputs": {{"input": [{{"role": "user", "content": "question {i}"}}]}}, "expectations": {{}}}}'
    for i in range(3)
)


def write_agent(
    folder: Path,
    name: str = "tiny",
    *,
    attributes: dict[str, Any] | None = None,
    agent_py: str = AGENT_PY,
    scorers_py: str = SCORERS_PY,
    dataset: str = DATASET,
) -> Path:
    """Write an agent's folder below `folder` and return its `defs.yaml`. `attributes` replace top-level fields."""
    declared = copy.deepcopy(ATTRIBUTES)
    declared.update(name=name, model_name=f"main.agents.{name}", experiment=f"/agents/{name}")
    declared.update(attributes or {})
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "agent.py").write_text(agent_py)
    (home / "scorers.py").write_text(scorers_py)
    (home / "eval_dataset.jsonl").write_text(dataset + "\n")
    file = home / "defs.yaml"
    file.write_text(
        yaml.safe_dump({"type": "lifecycle_assets.component.AgentLifecycle", "attributes": declared}, sort_keys=False)
    )
    return file


def make_agent(folder: Path, name: str = "tiny", **changes: Any) -> Agent:
    """Write an agent and read it back."""
    return read_agent(write_agent(folder, name, **changes))


def evaluation_of(model_id: str = "m-1", **changes: Any) -> EvalRecord:
    """The record of an evaluation that passed, with the given fields replaced."""
    fields: dict[str, Any] = {
        "run_id": "r",
        "model_id": model_id,
        "source_digest": "s",
        "git_commit": "",
        "dataset_name": "d",
        "dataset_digest": "x",
        "scorers": {},
        "rows": 3,
        "rows_digest": "rows",
        "errors": 0,
        "metrics": {},
        "verdict": "passed",
        "reasons": [],
        "findings": [],
        "comparison": "none",
        "incumbent_run_id": "",
        "incumbent_model_id": "",
        "incumbent_rows_digest": "",
        "gate_digest": "g",
        "at": "2026-11-20T00:00:00+00:00",
        "actor": "",
        "dagster_run_id": "",
    }
    return EvalRecord(**{**fields, **changes})


@dataclass(frozen=True)
class World:
    """An agent on a platform of its own with a Dagster instance: jobs run and sensors tick as the daemon does it."""

    agent: Agent
    platform: Platform
    instance: dg.DagsterInstance
    beside: tuple[Agent, ...] = ()

    @cached_property
    def definitions(self) -> dg.Definitions:
        """The code location: the agent, and those beside it."""
        return dg.Definitions.merge(*(agent_definitions(agent) for agent in (self.agent, *self.beside)))

    def run(self, job: str, **options: Any) -> dg.ExecuteInProcessResult:
        """Run `<agent>_<job>` to its end, failed or not."""
        options["run_config"] = {**options.get("run_config", {}), **QUIET}
        definition = self.definitions.resolve_job_def(f"{self.agent.name}_{job}")
        return definition.execute_in_process(instance=self.instance, raise_on_error=False, **options)

    def do(self, request: dg.RunRequest, job: str) -> dg.ExecuteInProcessResult:
        """Run what a sensor asked for."""
        return self.run(
            job,
            partition_key=request.partition_key,
            run_config=request.run_config,
            asset_selection=request.asset_selection,
            tags={**request.tags, "dagster/run_key": request.run_key or ""},
        )

    def tick(self, sensor: str, cursor: str | None = None) -> Any:
        """Evaluate `<agent>_<sensor>`; returns what the daemon gets: requests, skip message, cursor, asset events."""
        name = f"{self.agent.name}_{sensor}"
        with dg.build_sensor_context(
            instance=self.instance,
            definitions=self.definitions,
            sensor_name=name,
            cursor=cursor,
        ) as context:
            return self.definitions.resolve_sensor_def(name).evaluate_tick(context)

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """Rows of the agent's tables."""
        found = DuckDbEngine(self.platform).query(self.agent.spec.table_prefix, query, list(parameters), limit=100_000)
        return [dict(row) for row in found.dicts()]

    @property
    def client(self) -> Any:
        """MLflow's own client."""
        return open_client(self.platform)

    @property
    def experiment(self) -> str:
        """Id of the agent's experiment."""
        return experiment_id(self.platform, self.agent.spec.experiment)

    def aliases(self) -> dict[str, str]:
        """Alias to version as MLflow has it; empty without the model."""
        found = self.client.search_registered_models(f"name = '{self.agent.spec.model_name}'")
        return {alias: str(version) for model in found for alias, version in model.aliases.items()}

    def versions(self) -> list[Any]:
        """Versions as MLflow has them, oldest first."""
        found = self.client.search_model_versions(f"name = '{self.agent.spec.model_name}'")
        return sorted(found, key=lambda version: int(version.version))

    def materialized(self, asset: str) -> int:
        """How often an asset was materialized."""
        key = dg.AssetKey([self.agent.name, asset])
        return len(self.instance.fetch_materializations(key, limit=1000).records)

    def metadata(self, asset: str) -> Mapping[str, Any]:
        """Plain metadata of an asset's last materialization."""
        event = self.instance.get_latest_materialization_event(dg.AssetKey([self.agent.name, asset]))
        assert event is not None
        assert event.asset_materialization is not None
        return {name: value.value for name, value in event.asset_materialization.metadata.items()}

    def ask(self, question: str, *, at: datetime, answered: str = "", model_id: str = "", **metadata: str) -> str:
        """A production trace as the served champion leaves it, at a moment of our choosing; returns its id."""
        mlflow = open_mlflow(self.platform)
        start = int(at.timestamp() * 1000) * 10**6
        inputs = {"request": {"input": [{"role": "user", "content": question}]}}
        root = mlflow.start_span_no_context(
            "predict",
            span_type="AGENT",
            inputs=inputs,
            experiment_id=self.experiment,
            start_time_ns=start,
            metadata={"mlflow.modelId": model_id or self.champion_model_id, "mlflow.trace.session": "s-1", **metadata},
        )
        answer = mlflow.start_span_no_context(
            "answer", parent_span=root, span_type="CHAIN", inputs={"question": question}, start_time_ns=start
        )
        said = answered or f"hello {question.upper()}"
        answer.set_outputs(said)
        answer.end(end_time_ns=start + 10**8)
        root.set_outputs({"output": said})
        root.end(end_time_ns=start + 2 * 10**8)
        return root.trace_id

    @property
    def champion_model_id(self) -> str:
        """Logged model of the champion, empty when nobody is."""
        champion = self.aliases().get("champion")
        return next((v.tags["lifecycle.model_id"] for v in self.versions() if str(v.version) == champion), "")

    def edit(self, file: str, old: str, new: str) -> None:
        """Change a file of the agent's folder."""
        path = self.agent.path(file)
        text = path.read_text()
        assert old in text, f"{file} holds no {old!r}"
        path.write_text(text.replace(old, new))

    def declared(self, **attributes: Any) -> "World":
        """The same world with top-level fields of the declaration replaced."""
        file = self.agent.folder / "defs.yaml"
        document = yaml.safe_load(file.read_text())
        document["attributes"].update(attributes)
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        return World(read_agent(file), self.platform, self.instance)


def refusal(result: dg.ExecuteInProcessResult) -> str:
    """What the first failed step of a run says to people."""
    failure = next(event.step_failure_data for event in result.all_events if event.is_step_failure)
    assert failure.user_failure_data is not None, f"no sentence but a stack: {failure.error}"
    return failure.user_failure_data.description or ""


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """Checks a run evaluated, as `<asset>:<check>`."""
    return {f"{check.asset_key.path[-1]}:{check.check_name}": check for check in result.get_asset_check_evaluations()}


TODAY = datetime.now(UTC).date()
"""The day the tests started on, UTC: a run over midnight keeps its days."""


def noon(days_ago: int) -> datetime:
    """Noon, UTC, some days ago."""
    return datetime.combine(TODAY - timedelta(days=days_ago), time(12), UTC)


def day_of(days_ago: int) -> str:
    """The UTC day some days ago, as a partition key."""
    return f"{noon(days_ago):%Y-%m-%d}"


LABELING: dict[str, Any] = {
    "schemas": [
        *ATTRIBUTES["labeling"]["schemas"],
        {"name": "expected", "type": "expectation", "input": "text", "instruction": "What should it have said?"},
    ],
    "rules": {"negative_feedback": 2},
}
"""The small agent's labeling with an expectation, so that labels reach the dataset."""


@contextmanager
def world_at(home: Path, agent: Agent) -> Iterator[World]:
    """The world in the folder `home`, named by the environment while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("LIFECYCLE_", "DAGSTER_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT")):
                patch.delenv(name)
        patch.setenv("LIFECYCLE_HOME", str(home))
        patch.setenv("DAGSTER_HOME", str(home / "dagster"))
        platform = Platform.from_env()
        prepare_home(platform)
        with open_instance(platform) as instance:
            yield World(agent, platform, instance)


@contextmanager
def new_world(store: Path, folder: Path, name: str = "tiny", **changes: Any) -> Iterator[World]:
    """A world in which nothing has happened, below `folder`; `store` is an empty migrated MLflow store."""
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "mlflow.db").exists():
        shutil.copy(store, home / "mlflow.db")
    with world_at(home, make_agent(folder / "agents", name, **changes)) as world:
        yield world


COMMIT = "5eadbeef" * 5
"""The commit the small agent's folder is at in a released world."""


@dataclass(frozen=True)
class Released:
    """A world that went through its life once: refused by its gate, released, asked on two days, monitored."""

    folder: Path
    refused: str
    refused_checks: dict[str, bool]
    refused_aliases: dict[str, str]
    refused_assets: dict[str, int]
    refused_promotions: int

    @contextmanager
    def copy(self, folder: Path) -> Iterator[World]:
        """A copy a test may change. MLflow's artifacts stay where they are: they are named by absolute path."""
        shutil.copytree(self.folder, folder / "copy", ignore=shutil.ignore_patterns("artifacts"))
        file = folder / "copy" / "agents" / "tiny" / "defs.yaml"
        with world_at(folder / "copy" / "home", read_agent(file)) as world:
            yield world


@cache
def released_once(store: Path) -> Released:
    """The released world of this test run: yesterday and the day before hold six traces each.

    Built once for all processes of pytest-xdist: the second one waits for the first.
    """
    shared = store.parents[2 if "PYTEST_XDIST_WORKER" in os.environ else 1]
    with (shared / "released.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        facts = shared / "released" / "facts.json"
        if not facts.exists():
            facts.write_text(json.dumps(_release(store, shared / "released")))
        return Released(shared / "released", **json.loads(facts.read_text()))


def _release(store: Path, folder: Path) -> dict[str, Any]:
    gate = {"thresholds": [{"metric": "shouted/mean", "at_least": 1.5, "min_rows": 2}]}
    evaluation = {**ATTRIBUTES["eval"], "gate": gate}
    # A checkout without git: `rev-parse HEAD` reads this.
    (folder / "agents" / ".git" / "objects").mkdir(parents=True)
    (folder / "agents" / ".git" / "refs").mkdir()
    (folder / "agents" / ".git" / "HEAD").write_text(COMMIT + "\n")
    with new_world(store, folder, attributes={"eval": evaluation, "labeling": LABELING}) as world:
        first = checks_of(world.run("release"))
        facts = {
            "refused": first["eval_results:gate"].description or "",
            "refused_checks": {name: check.passed for name, check in first.items()},
            "refused_aliases": world.aliases(),
            "refused_assets": {name: world.materialized(name) for name in ("uc_model_version", "champion_alias")},
            "refused_promotions": len(world.rows("SELECT * FROM promotions")),
        }
        world = world.declared(eval=ATTRIBUTES["eval"])
        assert world.run("release").success
        for days_ago in (2, 1):
            for number in range(6):
                world.ask(f"question {number}", at=noon(days_ago) + timedelta(seconds=number))
            assert world.run("monitor", partition_key=day_of(days_ago)).success
    return facts
