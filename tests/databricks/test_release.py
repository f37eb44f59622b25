"""Candidate and release in a workspace: logging, evaluating, registering in Unity Catalog, aliases, loading back.

Lives here: promises of `resources/databricks/registry/model_registry.py`, and of the workers that log and evaluate.
Add here: an answer of the registry that must not lead to a second version, or to none.
Not here: what holds on every platform (`tests/resources/test_model_registry.py`), datasets (`test_datasets.py`).
"""

import copy
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.records import SourceRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.alias_ledger import MlflowAliasLedger
from resources.databricks.evaluation.evaluator import DatabricksEvaluator
from resources.databricks.registry import model_registry
from resources.databricks.registry.model_registry import UnityModelRegistry
from resources.evaluation_steps import stored_traces
from resources.mlflow_store import open_client, open_mlflow
from resources.model_registry import LoggedModel, RegisteredVersion
from resources.platform import Platform
from tests.building import ATTRIBUTES, evaluation_of, make_agent
from tests.databricks.conftest import forget_clients, point_clients
from tests.databricks.seeding import link, put_trace
from tests.resources.test_alias_ledger import a_move
from tests.workspace.agents import AgentEvents
from tests.workspace.app import Workspace
from tests.workspace.artifacts import Storage
from tests.workspace.logged_models import LoggedModels
from tests.workspace.runs import Runs
from tests.workspace.server import served_workspace
from tests.workspace.traces import Traces
from tests.workspace.tracking import Tracking
from tests.workspace.unity_models import UnityModels

NAME = "main.agents.tiny"
TAGS = {"lifecycle.eval_run_id": "run-1", "lifecycle.approval": "not_required"}
CREATE, FINALIZE = "POST .*/model-versions/create$", "POST .*/model-versions/finalize$"
MODEL, TAG = "POST .*/registered-models/create$", "POST .*/model-versions/set-tag$"
KEPT: dict[type, str] = {
    Tracking: "experiments",
    Runs: "runs",
    LoggedModels: "models",
    Storage: "blobs",
    UnityModels: "models",
}
"""What a workspace holds of a logged and registered agent: part and attribute."""


@dataclass(frozen=True)
class Candidate:
    """An agent logged while answers got lost, registered and loaded back, and what the workspace held then."""

    agent: Agent
    model: LoggedModel
    version: RegisteredVersion
    answer: str
    held: dict[type, Any]
    requests: list[str]
    progress: list[str]


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Candidate]:
    """Two worker processes: one logs, one loads back."""
    folder = tmp_path_factory.mktemp("candidate")
    code = {**ATTRIBUTES["agent"], "resources": [{"type": "serving_endpoint", "name": "judge"}]}
    agent, progress = make_agent(folder, attributes={"agent": code}), []
    with served_workspace() as workspace, pytest.MonkeyPatch.context() as patch:
        point_clients(patch, workspace, folder / "home")
        registry = UnityModelRegistry(Platform.from_env())
        workspace.fail("POST .*/runs/create$", kind="lost")
        workspace.fail("POST .*/mlflow/logged-models$", kind="lost")
        workspace.fail("PUT .*/fs/files/.*/MLmodel$", status=403, error_code="PERMISSION_DENIED")
        model = registry.log(agent, SourceRecord("digest-1", "0123abcd"), progress=progress.append)
        version = registry.register(NAME, model.model_id, TAGS)
        answer = registry.loads_back(version, agent.spec.agent.input_example, progress=progress.append)
        assert not workspace.unknown
        held = {part: copy.deepcopy(getattr(workspace[part], name)) for part, name in KEPT.items()}
        requests = [f"{entry.method} {entry.path}" for entry in workspace.log]
        yield Candidate(agent, model, version, answer, held, requests, progress)
        forget_clients()


@pytest.fixture
def registry(
    candidate: Candidate, workspace: Workspace, databricks: Platform, monkeypatch: pytest.MonkeyPatch
) -> UnityModelRegistry:
    """A workspace of its own that holds the logged model and no registered one; waits are short."""
    for part, name in KEPT.items():
        setattr(workspace[part], name, {} if part is UnityModels else copy.deepcopy(candidate.held[part]))
    monkeypatch.setattr(model_registry, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(model_registry, "LOST_ANSWER_SECONDS", 0.3)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    return UnityModelRegistry(databricks)


def versions_of(workspace: Workspace) -> dict[str, str]:
    """Versions the workspace holds: number to status."""
    held = workspace[UnityModels].models.get(NAME, {"versions": {}})["versions"]
    return {number: version["info"]["status"] for number, version in held.items()}


def test_an_agent_is_logged_once_whatever_is_lost(candidate: Candidate) -> None:
    model = candidate.model
    assert (model.created, model.has_signature, model.resources) == (True, True, 1)
    assert model.answer == "hello ARE YOU THERE?"
    assert model.url.endswith(f"/ml/experiments/{model.experiment_id}/models/{model.model_id}")
    assert candidate.progress == ["logging the model", "smoke prediction"]
    assert list(candidate.held[LoggedModels]) == [model.model_id]
    runs = candidate.held[Runs]
    assert runs[model.run_id]["info"]["status"] == "FINISHED"
    assert [run["info"]["status"] for run_id, run in runs.items() if run_id != model.run_id] == ["KILLED"]
    assert not [request for request in candidate.requests if "/traces" in request], "no trace noise"
    assert [r for r in candidate.requests if r.endswith(f"{model.model_id}/artifacts/credentials-for-upload")]
    files = [path for path in candidate.held[Storage] if f"/LoggedModels/{model.model_id}/" in path]
    (description,) = [path for path in files if path.endswith("/MLmodel")]
    assert b"serving_endpoint" in candidate.held[Storage][description]


def test_the_version_loads_back_from_the_catalog(candidate: Candidate) -> None:
    assert candidate.answer == candidate.model.answer
    assert candidate.version.model_id == candidate.model.model_id
    assert dict(candidate.version.tags) == {**TAGS, "lifecycle.model_id": candidate.model.model_id}
    stored = candidate.held[UnityModels][NAME]["versions"]["1"]
    assert stored["tags"]["lifecycle_approval"] == "not_required"
    assert stored["info"]["source"] == f"models:/{candidate.model.model_id}"
    assert "mlflow.modelVersions" in candidate.held[LoggedModels][candidate.model.model_id]["tags"]
    assert [request for request in candidate.requests if request.startswith("GET /storage/Models/main/agents/tiny/1/")]


@pytest.mark.parametrize(
    ("where", "kind", "slow_states"), [(CREATE, "lost", 0), (FINALIZE, "lost", 2), (FINALIZE, "truncated", 0)]
)
def test_a_lost_answer_makes_no_second_version(
    registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace, where: str, kind: str, slow_states: int
) -> None:
    workspace.slow_states = slow_states
    workspace.fail(where, kind=kind)
    version = registry.register(NAME, candidate.model.model_id, TAGS)
    assert versions_of(workspace) == {version.version: "READY"}
    again = registry.register(NAME, candidate.model.model_id, {"lifecycle.verdict": "passed"})
    assert again.version == version.version
    assert registry.versions(NAME) == [again]


def test_a_lost_answer_leaves_one_model_and_one_alias(
    registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace
) -> None:
    workspace.fail("POST .*/registered-models/create$", kind="lost")
    workspace.fail("POST .*/registered-models/alias$", kind="truncated")
    version = registry.register(NAME, candidate.model.model_id, TAGS)
    registry.set_alias(NAME, "champion", version.version)
    registry.set_alias(NAME, "champion", version.version)
    assert registry.aliases(NAME) == {"champion": version.version}
    assert len(workspace.calls("POST .*/registered-models/alias$")) == 1, "it was set, only the answer was cut off"


def test_of_many_at_once_one_version_and_one_ledger_remain(
    registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace, databricks: Platform
) -> None:
    """Three at once, while answers of the writes that decide get lost."""
    agent, found, go = candidate.agent, [], threading.Barrier(3)
    for path in ("runs/log-parameter", "experiments/create"):
        workspace.fail(f"POST .*/mlflow/{path}$", kind="lost")

    def register_and_claim(number: int) -> None:
        go.wait()
        version = UnityModelRegistry(databricks).register(NAME, candidate.model.model_id, TAGS)
        found.append((version.version, MlflowAliasLedger(databricks).claim(agent, 1, a_move(f"move of {number}"))))

    threads = [threading.Thread(target=register_and_claim, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [("1", False), ("1", False), ("1", True)]
    assert versions_of(workspace) == {"1": "READY"}
    assert len(workspace.calls("POST .*/model-versions/create$")) == 1

    ledger = MlflowAliasLedger(databricks)
    run_id = workspace[UnityModels].models[NAME]["tags"]["lifecycle_ledger"]
    asked = len(workspace.log)
    [entry] = ledger.entries(agent)
    assert len(workspace.log) - asked == 1, "what this process knows is not asked again"
    ledger.finish(agent, entry.number)
    assert not ledger.claim(agent, 1, a_move("too late"))
    assert [(one.move, one.done) for one in ledger.entries(agent)] == [(entry.move, True)]
    run = workspace[Runs].runs[run_id]
    assert all(len(value.encode()) <= 500 for value in run["params"].values()), "what Databricks documents"
    names = {one["name"]: one["tags"].get("lifecycle.ledger") for one in workspace[Tracking].experiments.values()}
    assert names[f"/agents/{NAME}.ledger"] == run_id


@pytest.mark.parametrize(
    "where", ["POST .*/registered-models/create$", CREATE, FINALIZE, "POST .*/model-versions/set-tag$"]
)
def test_a_denied_registration_is_a_sentence_and_heals_once_it_is_granted(
    registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace, where: str
) -> None:
    model_id, denied = candidate.model.model_id, {"status": 403, "error_code": "PERMISSION_DENIED", "times": 9}
    if where == TAG:
        registry.register(NAME, model_id, {})
    workspace.fail(where, message="no CREATE MODEL VERSION", **denied)
    with pytest.raises(Refused, match=r"denies permission \(no CREATE MODEL VERSION\)") as refusal:
        registry.register(NAME, model_id, TAGS)
    assert "\n" not in str(refusal.value)
    assert registry.aliases(NAME) == {}
    workspace.faults.clear()
    version = registry.register(NAME, model_id, TAGS)
    assert [number for number, status in versions_of(workspace).items() if status == "READY"] == [version.version]
    assert dict(version.tags).items() >= TAGS.items()


def test_what_the_catalog_does_not_take_is_one_sentence(
    registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace
) -> None:
    workspace[UnityModels].missing_schemas.add("main.agents")
    with pytest.raises(Refused, match=r"schema main\.agents does not exist: CREATE SCHEMA main\.agents"):
        registry.register(NAME, candidate.model.model_id, TAGS)
    blobs = workspace[Storage].blobs
    (file,) = [path for path in blobs if path.endswith(f"{candidate.model.model_id}/artifacts/MLmodel")]
    blobs[file] = blobs[file].replace(b"\nsignature:", b"\nno_signature:")
    with pytest.raises(Refused, match=f"{candidate.model.model_id} has no signature"):
        registry.register("main.other.tiny", candidate.model.model_id, TAGS)
    assert workspace[UnityModels].models["main.other.tiny"]["versions"] == {}


def test_a_run_that_died_between_its_requests_is_repaired(
    registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace
) -> None:
    """Dead after the version was created; what it left is removed, what is not ours or has an alias stays."""
    model_id = candidate.model.model_id
    workspace.fail("PUT /storage/.*", status=403, times=100)
    with pytest.raises(Exception, match="403"):
        registry.register(NAME, model_id, TAGS)
    workspace.faults.clear()
    left = workspace[UnityModels].models[NAME]
    assert versions_of(workspace) == {"1": "PENDING_REGISTRATION"}
    for number, tags in {"2": left["versions"]["1"]["tags"], "3": {"lifecycle_model_id": model_id}}.items():
        left["versions"][number] = copy.deepcopy(left["versions"]["1"])
        left["versions"][number]["info"]["version"] = number
        left["versions"][number]["tags"] = dict(tags)
        left["versions"][number]["info"]["creation_timestamp"] -= 3_600_000
    left["aliases"]["kept"], left["made"] = "2", 3
    version = registry.register(NAME, model_id, TAGS)
    assert version.version == "4"
    assert versions_of(workspace) == {"2": "PENDING_REGISTRATION", "3": "PENDING_REGISTRATION", "4": "READY"}


def test_a_version_is_ready_before_it_gets_an_alias(
    registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.slow_states = 3
    version = registry.register(NAME, candidate.model.model_id, TAGS)
    assert versions_of(workspace) == {"1": "READY"}
    held = workspace[UnityModels].models[NAME]["versions"]["1"]
    held["info"]["status"], held["polls"] = "PENDING_REGISTRATION", 1000
    monkeypatch.setattr(model_registry, "READY_SECONDS", 0.2)
    with pytest.raises(Refused, match=f"Registering version 1 of {NAME} is not done after"):
        registry.set_alias(NAME, "champion", version.version)
    held["info"].update(status="FAILED_REGISTRATION", status_message="the scan found something")
    with pytest.raises(Refused, match="the scan found something"):
        registry.set_alias(NAME, "champion", version.version)
    assert registry.aliases(NAME) == {}


def test_short_pages_hide_no_version(registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace) -> None:
    registry.register(NAME, candidate.model.model_id, TAGS)
    held = workspace[UnityModels].models[NAME]
    for number in ("2", "3", "4", "10"):
        held["versions"][number] = copy.deepcopy(held["versions"]["1"])
        held["versions"][number]["info"].update(version=number, source=f"models:/m-{number}", model_id=f"m-{number}")
        held["versions"][number]["tags"] = {}
    workspace.page_size = 2
    found = registry.versions(NAME)
    assert [(one.version, one.model_id) for one in found[1:]] == [(n, f"m-{n}") for n in ("2", "3", "4", "10")]
    before = len(workspace.calls("GET .*/model-versions/get$"))
    assert registry.versions(NAME) == found
    assert len(workspace.calls("GET .*/model-versions/get$")) == before + 4, "what the graph made is not asked again"


@pytest.mark.parametrize(
    ("status", "error_code"),
    [(500, "INTERNAL_ERROR"), (403, "PERMISSION_DENIED"), (404, "NOT_FOUND"), (404, "ENDPOINT_NOT_FOUND")],
)
def test_a_registry_that_cannot_be_read_is_not_empty(
    registry: UnityModelRegistry, workspace: Workspace, status: int, error_code: str
) -> None:
    assert (registry.versions(NAME), registry.aliases(NAME)) == ([], {})
    workspace.fail("GET .*/unity-catalog/", status=status, error_code=error_code, message="nothing here", times=1000)
    for read in (registry.versions, registry.aliases):
        with pytest.raises(Exception, match=r"nothing here|refuse|permission|answer"):
            read(NAME)


def test_files_reach_the_catalog_by_the_files_api_too(
    registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace, databricks: Platform, tmp_path: Path
) -> None:
    workspace[UnityModels].sdk_storage = True
    version = registry.register(NAME, candidate.model.model_id, TAGS)
    mlflow = open_mlflow(databricks)
    folder = mlflow.artifacts.download_artifacts(f"models:/{NAME}/{version.version}", dst_path=str(tmp_path))
    assert (Path(folder) / "agent.py").read_text() == candidate.agent.path("agent.py").read_text()
    assert workspace.calls("PUT /api/2.0/fs/files/Models/main/agents/tiny/1/")
    assert not workspace.calls("/storage/")


def test_artifacts_of_a_run_take_the_other_way_when_the_files_api_fails(
    registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace, databricks: Platform
) -> None:
    client, run_id = open_client(databricks), candidate.model.run_id
    workspace.fail(".*/api/2.0/fs/", status=403, error_code="PERMISSION_DENIED", times=1000)
    client.log_dict(run_id, {"a": 1}, "folder/evaluation.json")
    assert [file.path for file in client.list_artifacts(run_id, "folder")] == ["folder/evaluation.json"]
    assert open_mlflow(databricks).artifacts.load_dict(f"runs:/{run_id}/folder/evaluation.json") == {"a": 1}
    assert {entry.authorization for entry in workspace.calls("/storage/")} == {""}, "no token leaves the workspace"


def test_an_evaluation_is_evidence_about_the_logged_model(
    registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace, databricks: Platform
) -> None:
    """One worker process: `mlflow.genai.evaluate` in the workspace, with an answer lost when its run was made."""
    agent, model_id = candidate.agent, candidate.model.model_id
    evaluator = DatabricksEvaluator(databricks)
    dataset = evaluator.ensure_dataset(agent)
    workspace.fail("POST .*/runs/create$", kind="lost")
    done = evaluator.evaluate(agent, model_id, dataset, progress=lambda _: None, dagster_run_id="dagster-1")
    assert (done.reused, done.agent_errors) == (False, 0)
    assert (done.evidence.model_id, done.evidence.rows) == (model_id, dataset.rows)
    assert [outcome.value for outcome in done.evidence.outcomes["shouted"]] == [1.0, 1.0, 1.0]
    assert done.url.endswith(f"/ml/experiments/{candidate.model.experiment_id}/runs/{done.run_id}")

    runs = workspace[Runs].runs
    assert runs[done.run_id]["info"]["status"] == "FINISHED"
    made = [run for run in runs.values() if run["tags"].get("lifecycle.step") == "evaluation"]
    assert sorted(run["info"]["status"] for run in made) == ["FINISHED", "KILLED"]
    assert runs[done.run_id]["models_in"] == [{"model_id": model_id}]
    assert runs[done.run_id]["datasets"][0]["dataset"]["name"] == dataset.name
    metrics = {metric["key"]: metric["value"] for metric in workspace[LoggedModels].model(model_id)["metrics"]}
    assert (metrics["shouted/mean"], metrics["length/error_rate"]) == (1.0, 0.0)
    traces = workspace[Traces].all(candidate.model.experiment_id)
    marked = [span["attributes"]["lifecycle.eval_run_id"] for trace in traces for span in trace["spans"]]
    assert set(marked) == {json.dumps(done.run_id)}, "killed half-way, a trace would be known by its spans"
    assert len(traces) == dataset.rows
    assert {len(trace["info"]["assessments"]) for trace in traces} == {2}
    assert workspace[AgentEvents].events

    again = evaluator.evaluate(agent, model_id, dataset, progress=lambda _: None)
    assert (again.run_id, again.reused) == (done.run_id, True)
    kept = evaluation_of(model_id, run_id=done.run_id)
    evaluator.keep_decision(kept)
    assert evaluator.decision(done.run_id, kept.decision_digest) == kept
    assert runs[done.run_id]["tags"]["lifecycle.verdict"] == "passed"


def test_what_can_be_read_late_is_not_taken_for_silence(
    registry: UnityModelRegistry, candidate: Candidate, workspace: Workspace, databricks: Platform
) -> None:
    """A search of the workspace shows traces of Unity Catalog before what was said of them a second ago."""
    experiment, run_id = candidate.model.experiment_id, candidate.model.run_id
    link(workspace, experiment)
    said = {
        "assessment_name": "shouted",
        "source": {"source_type": "CODE", "source_id": "shouted"},
        "feedback": {"value": True},
        "metadata": {"mlflow.assessment.sourceRunId": run_id},
    }
    early, late = (put_trace(workspace, experiment, number, 1_790_000_000_000) for number in (1, 2))
    workspace[Traces].add_assessment(early, said)
    writes = threading.Timer(1.0, workspace[Traces].add_assessment, (late, said))
    writes.start()
    wanted = {early: ["shouted"], late: ["shouted"]}
    found = stored_traces(open_mlflow(databricks), experiment, run_id, wanted)
    writes.join()
    assert {trace_id: len(found[trace_id].assessments) for trace_id in wanted} == {early: 1, late: 1}
