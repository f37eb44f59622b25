"""The model registry against real MLflow: on SQLite, and over HTTP.

Lives here: logging, registering and aliases as their users see them.
Add here: a promise of `resources/model_registry.py`.
Not here: evaluations (`test_evaluator.py`), the worker itself (`test_worker.py`).
"""

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lifecycle_assets.records import SourceRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.alias_ledger import MlflowAliasLedger
from resources.mlflow_store import open_client, open_mlflow
from resources.model_registry import LoggedModel, MlflowModelRegistry
from resources.platform import Platform
from tests.building import AGENT_PY, ATTRIBUTES, make_agent
from tests.moving import logged as logged_models
from tests.resources.killing import kill_when, worker_is_gone
from tests.resources.mlflow_server import mlflow_server
from tests.resources.test_alias_ledger import a_move

SOURCE = SourceRecord("digest-1", "0123abcd")
NAME = "main.agents.tiny"

HELPED_AGENT_PY = AGENT_PY.replace("import mlflow\n", "import mlflow\nimport tiny_helper\n", 1)

END = len(AGENT_PY.splitlines()) + 2
PREDICT = 1 + next(n for n, line in enumerate(AGENT_PY.splitlines()) if "question = request" in line)


def quiet(_: str) -> None:
    """Takes progress and shows none."""


@pytest.fixture(scope="module")
def home(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store the read-mostly tests of this module share."""
    home = tmp_path_factory.mktemp("registry")
    shutil.copy(migrated_store, home / "mlflow.db")
    return home


@pytest.fixture(scope="module")
def shared(home: Path) -> Platform:
    """The platform of that store."""
    return Platform.from_env({"LIFECYCLE_HOME": str(home)})


@pytest.fixture(scope="module")
def agent(home: Path) -> Agent:
    """An agent with everything a logged model may carry."""
    code = {
        **ATTRIBUTES["agent"],
        "config": {"greeting": "hello", "tools": ["search"]},
        "resources": [{"type": "serving_endpoint", "name": "judge"}, {"type": "table", "name": "main.a.b"}],
    }
    return make_agent(home / "agents", attributes={"agent": code})


@pytest.fixture(scope="module")
def logged(shared: Platform, agent: Agent) -> LoggedModel:
    """That agent, logged once."""
    lines: list[str] = []
    model = MlflowModelRegistry(shared).log(agent, SOURCE, progress=lines.append, dagster_run_id="dagster-1")
    assert lines == ["logging the model", "smoke prediction"]
    return model


def test_a_logged_model_says_what_was_seen(shared: Platform, logged: LoggedModel) -> None:
    assert logged.created
    assert logged.has_signature
    assert logged.requirements == ("mlflow==3.17.2",)
    assert logged.resources == 2
    assert logged.answer == "hello ARE YOU THERE?"
    assert 0 < logged.smoke_seconds < 5
    assert logged.url == ""
    model = open_client(shared).get_logged_model(logged.model_id)
    assert model.tags["lifecycle.source_digest"] == "digest-1"
    assert model.tags["lifecycle.git_commit"] == "0123abcd"
    assert model.tags["lifecycle.complete"] == "true"
    assert json.loads(model.tags["lifecycle.smoke"])["answer"] == logged.answer
    run = open_client(shared).get_run(logged.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["lifecycle.dagster_run_id"] == "dagster-1"


def test_the_configuration_is_kept_beside_the_model(shared: Platform, agent: Agent, logged: LoggedModel) -> None:
    mlflow = open_mlflow(shared)
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{logged.model_id}"))
    assert json.loads((folder / "agent_config.json").read_text()) == agent.spec.agent.config
    assert "serving_endpoint" in (folder / "MLmodel").read_text()


def test_logging_and_loading_back_write_no_trace(shared: Platform, agent: Agent, logged: LoggedModel) -> None:
    registry = MlflowModelRegistry(shared)
    version = registry.register("main.agents.quiet", logged.model_id, {})
    assert registry.loads_back(version, agent.spec.agent.input_example, progress=quiet) == "hello ARE YOU THERE?"
    assert open_client(shared).search_traces(locations=[logged.experiment_id]) == []


def test_unchanged_source_finds_its_model_and_changed_source_makes_one(
    shared: Platform, agent: Agent, logged: LoggedModel
) -> None:
    registry = MlflowModelRegistry(shared)
    again = registry.log(agent, SOURCE, progress=quiet)
    assert (again.model_id, again.created, again.answer) == (logged.model_id, False, logged.answer)
    changed = registry.log(agent, SourceRecord("digest-2", ""), progress=quiet)
    assert changed.created
    assert changed.model_id != logged.model_id


def test_another_agents_set_model_does_not_leak(shared: Platform, home: Path, logged: LoggedModel) -> None:
    other = make_agent(home / "agents", "other", agent_py=AGENT_PY.replace("question.upper()", "'the other one'"))
    model = MlflowModelRegistry(shared).log(other, SOURCE, progress=quiet)
    assert model.answer == "hello the other one"
    assert model.experiment_id != logged.experiment_id


def test_a_module_beside_the_agent_needs_code_paths(shared: Platform, home: Path) -> None:
    registry = MlflowModelRegistry(shared)
    (home / "agents" / "helped").mkdir(parents=True)
    (home / "agents" / "helped" / "tiny_helper.py").write_text("VALUE = 1\n")
    lone = make_agent(home / "agents", "helped", agent_py=HELPED_AGENT_PY)
    with pytest.raises(Refused, match="tiny_helper"):
        registry.log(lone, SOURCE, progress=quiet)
    code = {**ATTRIBUTES["agent"], "code_paths": ["tiny_helper.py"]}
    whole = make_agent(home / "agents", "helped", agent_py=HELPED_AGENT_PY, attributes={"agent": code})
    assert registry.log(whole, SOURCE, progress=quiet).created


@pytest.mark.parametrize(
    ("broken", "check", "words"),
    [
        (AGENT_PY.replace("mlflow.models.set_model", "print"), "set_model_present", ["agent.py", "set_model"]),
        (AGENT_PY + "\ndef broken(:\n", None, [f"agent.py line {END}", "is not Python", "correct"]),
        (AGENT_PY + "\nimport no_such_package\n", None, [f"agent.py line {END}", "no_such_package", "correct"]),
        (
            AGENT_PY.replace("question = request", "raise KeyError('no key'); question = request"),
            "smoke_prediction",
            [f"agent.py line {PREDICT}", "KeyError: 'no key'", "correct"],
        ),
        (
            AGENT_PY.replace("mlflow.models.set_model(TinyAgent())", "if False:\n    mlflow.models.set_model(1)"),
            "set_model_present",
            ["set_model"],
        ),
    ],
    ids=["no set_model", "syntax error", "import error", "predict raises", "set_model not reached"],
)
def test_a_broken_agent_is_one_sentence_and_leaves_no_model(
    shared: Platform, tmp_path: Path, broken: str, check: str | None, words: list[str]
) -> None:
    agent = make_agent(tmp_path, "broken", agent_py=broken)
    with pytest.raises(Refused) as refused:
        MlflowModelRegistry(shared).log(agent, SOURCE, progress=quiet)
    assert refused.value.check == check
    assert [word for word in words if word not in str(refused.value)] == []
    assert "\n" not in str(refused.value)
    client = open_client(shared)
    experiment = client.get_experiment_by_name("/agents/broken").experiment_id
    assert client.search_logged_models([experiment]) == []
    assert {run.info.status for run in client.search_runs([experiment])} <= {"FAILED"}


def test_registering_twice_gives_one_version_with_its_tags_completed(shared: Platform, logged: LoggedModel) -> None:
    registry = MlflowModelRegistry(shared)
    assert registry.versions(NAME) == []
    first = registry.register(NAME, logged.model_id, {"eval": "run-1"})
    again = registry.register(NAME, logged.model_id, {"eval": "run-2", "digest": "d"})
    assert (first.version, again.version) == ("1", "1")
    [only] = registry.versions(NAME)
    assert only == again
    assert dict(only.tags) == {"eval": "run-2", "digest": "d", "lifecycle.model_id": logged.model_id}
    links = json.loads(open_client(shared).get_logged_model(logged.model_id).tags["mlflow.modelVersions"])
    assert {"name": NAME, "version": "1"} in links


def test_a_version_whose_maker_died_is_found_again(shared: Platform, logged: LoggedModel) -> None:
    """The process died right after MLflow made the version: tags beyond the first and the link back are missing."""
    client = open_client(shared)
    client.create_registered_model("main.agents.crashed")
    client.create_model_version(
        "main.agents.crashed", source=f"models:/{logged.model_id}", model_id=logged.model_id, run_id=logged.run_id
    )
    registry = MlflowModelRegistry(shared)
    version = registry.register("main.agents.crashed", logged.model_id, {"eval": "run-1"})
    assert version.version == "1"
    assert version.tags["lifecycle.model_id"] == logged.model_id
    assert len(registry.versions("main.agents.crashed")) == 1


def test_of_two_versions_the_one_people_may_know_is_kept(shared: Platform, logged: LoggedModel) -> None:
    """A process that was thought dead made a second version, and died before it could remove it."""
    client, registry, name = open_client(shared), MlflowModelRegistry(shared), "main.agents.twice"

    def twin(worker: str) -> str:
        tags = {"lifecycle.model_id": logged.model_id, **({"lifecycle.worker": worker} if worker else {})}
        source = f"models:/{logged.model_id}"
        return str(client.create_model_version(name, source, tags=tags, model_id=logged.model_id).version)

    first = registry.register(name, logged.model_id, {})
    assert "lifecycle.worker" not in first.tags
    twin(f"{socket.gethostname()}:{2**22 + 1}:1")
    by_hand, aliased = twin(""), twin(f"{socket.gethostname()}:{2**22 + 1}:1")
    assert registry.register(name, logged.model_id, {}).version == "1"
    assert [one.version for one in registry.versions(name)] == ["1", by_hand]
    aliased = twin(f"{socket.gethostname()}:{2**22 + 1}:1")
    registry.set_alias(name, "champion", aliased)
    assert registry.register(name, logged.model_id, {}).version == aliased
    assert [one.version for one in registry.versions(name)] == ["1", by_hand, aliased]


def test_tags_a_version_cannot_have_stop_before_anything_is_made(shared: Platform, logged: LoggedModel) -> None:
    registry = MlflowModelRegistry(shared)
    for tags in ({"a=b": "x"}, {"k" * 251: "x"}, {f"k{number}": "x" for number in range(51)}):
        with pytest.raises(Refused, match="tag"):
            registry.register("main.agents.tagged", logged.model_id, tags)
    assert registry.versions("main.agents.tagged") == []
    version = registry.register("main.agents.tagged", logged.model_id, {"long": "é" * 200_000})
    assert len(version.tags["long"]) == 1000
    assert registry.versions("main.agents.tagged") == [version]


def test_aliases_move_and_only_absence_is_empty(shared: Platform, logged: LoggedModel, tmp_path: Path) -> None:
    registry = MlflowModelRegistry(shared)
    assert registry.aliases("main.agents.absent") == {}
    version = registry.register("main.agents.aliased", logged.model_id, {}).version
    assert registry.aliases("main.agents.aliased") == {}
    registry.set_alias("main.agents.aliased", "champion", version)
    registry.set_alias("main.agents.aliased", "champion", version)
    assert registry.aliases("main.agents.aliased") == {"champion": "1"}
    with pytest.raises(Refused, match=r"Version 7 of main\.agents\.aliased is not there"):
        registry.set_alias("main.agents.aliased", "champion", "7")
    registry.delete_alias("main.agents.aliased", "champion")
    registry.delete_alias("main.agents.aliased", "champion")
    assert registry.aliases("main.agents.aliased") == {}
    (tmp_path / "mlflow.db").write_text("this is no database, and long enough to be read as one " * 20)
    broken = MlflowModelRegistry(Platform.from_env({"LIFECYCLE_HOME": str(tmp_path)}))
    with pytest.raises(Refused, match="SQLite"):
        broken.aliases("main.agents.absent")
    with pytest.raises(Refused, match="SQLite"):
        broken.versions("main.agents.absent")


def test_a_version_that_does_not_load_is_refused(shared: Platform, agent: Agent, logged: LoggedModel) -> None:
    registry = MlflowModelRegistry(shared)
    version = registry.register("main.agents.loads", logged.model_id, {})
    explosive = {"input": [{"role": "user", "content": "explode"}]}
    with pytest.raises(Refused, match="the agent exploded") as refused:
        registry.loads_back(version, explosive, progress=quiet)
    assert refused.value.check == "loads_back"


def test_killed_while_logging_and_run_again_one_model_is_complete(platform: Platform, tmp_path: Path) -> None:
    flag = tmp_path / "slow"
    slow = AGENT_PY + f"\nimport pathlib, time\nwhile pathlib.Path({str(flag)!r}).exists():\n    time.sleep(0.1)\n"
    agent = make_agent(tmp_path, agent_py=slow)
    flag.touch()
    worker = kill_when("log", agent, platform, step="logged_model")
    assert worker_is_gone(worker)
    flag.unlink()
    registry = MlflowModelRegistry(platform)
    model = registry.log(agent, SOURCE, progress=quiet)
    client = open_client(platform)
    runs = client.search_runs([model.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]
    assert [found.model_id for found in client.search_logged_models([model.experiment_id])] == [model.model_id]
    assert registry.log(agent, SOURCE, progress=quiet).model_id == model.model_id


@pytest.fixture(scope="module")
def served(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The same over HTTP."""
    home = tmp_path_factory.mktemp("served")
    shutil.copy(migrated_store, home / "server.db")
    with mlflow_server(home / "server.db", home / "home") as platform:
        yield platform


def test_logging_registering_and_aliases_work_over_http(served: Platform, tmp_path: Path) -> None:
    agent, registry = make_agent(tmp_path), MlflowModelRegistry(served)
    model = registry.log(agent, SOURCE, progress=quiet)
    assert model.answer == "hello ARE YOU THERE?"
    assert model.url == f"{served.tracking_uri}/#/experiments/{model.experiment_id}/models/{model.model_id}"
    assert registry.log(agent, SOURCE, progress=quiet).model_id == model.model_id
    assert (registry.versions(NAME), registry.aliases(NAME)) == ([], {})
    version = registry.register(NAME, model.model_id, {"eval": "run-1"})
    assert registry.register(NAME, model.model_id, {"eval": "run-1"}) == version
    registry.set_alias(NAME, "champion", version.version)
    assert registry.aliases(NAME) == {"champion": "1"}
    assert registry.versions(NAME) == [version]
    assert registry.loads_back(version, agent.spec.agent.input_example, progress=quiet) == model.answer
    assert open_client(served).search_traces(locations=[model.experiment_id]) == []


def test_over_http_one_version_and_one_ledger_remain_whoever_is_first(served: Platform, tmp_path: Path) -> None:
    agent = make_agent(tmp_path, "raced")
    [evaluation] = logged_models(agent, served, 1, decided=False)
    found, go = [], threading.Barrier(3)

    def register_and_claim(number: int) -> None:
        go.wait()
        version = MlflowModelRegistry(served).register("main.agents.raced", evaluation.model_id, {"eval": "run-1"})
        move = replace(a_move(f"move of {number}"), actor=f"process {number}")
        found.append((version.version, MlflowAliasLedger(served).claim(agent, 1, move)))

    threads = [threading.Thread(target=register_and_claim, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [("1", False), ("1", False), ("1", True)]
    assert len(MlflowModelRegistry(served).versions("main.agents.raced")) == 1
    ledger = MlflowAliasLedger(served)
    ledger.finish(agent, 1)
    assert [entry.done for entry in ledger.entries(agent)] == [True]


def test_a_server_that_is_gone_is_an_error_and_not_an_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    gone = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    with pytest.raises(Refused, match="does not answer"):
        MlflowModelRegistry(gone).aliases(NAME)
