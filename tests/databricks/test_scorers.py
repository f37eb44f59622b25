"""Scorers in a workspace are as declared, and nobody else's are lost, whoever writes the list meanwhile."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.scoring.scorer_registry import DatabricksScorerRegistry
from resources.databricks.scoring.scorer_steps import register_scorers
from resources.mlflow_store import experiment_id
from resources.model_steps import agent_request
from resources.platform import Platform
from resources.scorer_registry import MlflowScorerRegistry
from tests.building import SCORERS_PY, make_agent
from tests.workspace.app import Workspace
from tests.workspace.scorers import BASE, Scorers

TWO = [
    {"name": "shouted", "source": "scorers.py:shouted"},
    {"name": "length", "source": "scorers.py:length", "sample_rate": 0.5, "filter": "attributes.status = 'OK'"},
]
SESSION_PY = (
    SCORERS_PY
    + """

@scorer
def patient(session):
    return len(session) < 10
"""
)
QUESTION = {"name": "correct", "type": "feedback", "input": "pass_fail", "instruction": "Is the answer correct?"}
BARE = {
    "eval": {"dataset": "eval_dataset.jsonl", "gate": {"mode": "disabled"}},
    "labeling": {"schemas": [QUESTION]},
}
"""An agent of which only the scorers matter."""
PATIENT = {"name": "patient", "source": "scorers.py:patient", "level": "session"}


def agent_of(tmp_path: Path, scorers: list[dict[str, Any]], **attributes: Any) -> Agent:
    return make_agent(tmp_path, attributes={"scorers": scorers, **BARE, **attributes}, scorers_py=SESSION_PY)


def register(platform: Platform, agent: Agent, **more: Any) -> dict[str, Any]:
    """What the worker does, in this process; a test of its own starts the worker."""
    request = {
        **agent_request(agent),
        "experiment_id": experiment_id(platform, agent.spec.experiment),
        "noted": {},
        "stop": [],
        "settle_seconds": 0,
    }
    return register_scorers({**request, **more})["versions"]


def listed(workspace: Workspace, platform: Platform) -> dict[str, tuple[float, str | None]]:
    """Name to rate and filter, as the workspace holds them."""
    scheduled = workspace[Scorers].scheduled(experiment_id(platform, "/agents/tiny"))
    return {one["name"]: (one["sample_rate"], one.get("filter_string")) for one in scheduled}


def foreign(name: str, serialized: str = "{}", rate: float = 0.25) -> dict[str, Any]:
    return {"name": name, "serialized_scorer": serialized, "custom": {}, "sample_rate": rate, "extra": {"kept": True}}


def test_registered_updated_and_pruned_as_declared_by_the_worker(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    registry, told = DatabricksScorerRegistry(databricks), []
    agent = agent_of(tmp_path, [*TWO, PATIENT], monitoring={"every_minutes": 5})
    experiment = experiment_id(databricks, "/agents/tiny")
    workspace[Scorers].put(experiment, [foreign("of_others", "{not json")])
    workspace.fail(rf"^PATCH {BASE}/scheduled-scorers", kind="lost")
    registered = registry.register(agent, progress=told.append)
    assert [(one.registered_name, one.version, one.sample_rate) for one in registered] == [
        ("dev_tiny_length", "1", 0.5),
        ("dev_tiny_patient", "1", 1.0),
        ("dev_tiny_shouted", "1", 1.0),
    ]
    assert listed(workspace, databricks) == {
        "of_others": (0.25, None),
        "dev_tiny_shouted": (1.0, None),
        "dev_tiny_length": (0.5, "attributes.status = 'OK'"),
        "dev_tiny_patient": (1.0, None),
    }
    assert workspace[Scorers].minutes[experiment] == 5
    (sentence,) = [line for line in told if "cannot be rebuilt" in line]
    assert "'of_others'" in sentence
    assert "delete_scorer(name='of_others'" in sentence

    asked = len(workspace.log)
    assert registry.registered(agent) == registered
    assert [entry.path for entry in workspace.log[asked:]] == ["/api/2.0/mlflow/experiments/get"]

    changed = agent_of(tmp_path, [{**TWO[1], "sample_rate": 0.1, "filter": ""}])
    asked = len(workspace.calls(f"PATCH {BASE}/scheduled-scorers"))
    (length,) = registry.register(changed)
    assert (length.version, length.sample_rate, length.filter) == ("1", 0.1, "")
    assert listed(workspace, databricks) == {
        "of_others": (0.25, None),
        "dev_tiny_shouted": (0.0, None),
        "dev_tiny_length": (0.1, ""),
        "dev_tiny_patient": (0.0, None),
    }
    assert len(workspace.calls(f"PATCH {BASE}/scheduled-scorers")) == asked + 3, "one write for each change, no more"


def test_a_repetition_writes_nothing_and_a_new_source_is_a_new_version(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    workspace.fail(rf"^POST {BASE}/scheduled-scorers", kind="lost")
    first = register(databricks, agent_of(tmp_path, TWO))
    workspace.log.clear()
    again = register(databricks, agent_of(tmp_path, TWO), noted=first)
    assert again == first, "the version and since when it is in effect"
    assert not workspace.calls("^(PATCH|POST) ")
    agent = agent_of(tmp_path, TWO)
    agent.path("scorers.py").write_text(SESSION_PY.replace("lower()", "casefold()"))
    newer = register(databricks, agent, noted=first)
    assert [newer[name]["version"] for name in sorted(newer)] == ["1", "2"]
    assert newer["dev_tiny_shouted"]["registered_at_ms"] > first["dev_tiny_shouted"]["registered_at_ms"]
    assert listed(workspace, databricks)["dev_tiny_shouted"] == (1.0, None)


def test_where_definitions_are_not_numbered_the_source_is_the_version(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    workspace[Scorers].versioned = False
    agent = agent_of(tmp_path, TWO[:1])
    version = register(databricks, agent)["dev_tiny_shouted"]["version"]
    assert len(version) == 16
    copy = DatabricksScorerRegistry(databricks)._copy(
        experiment_id(databricks, "/agents/tiny"), "dev_tiny_shouted", version
    )
    assert copy.name == "dev_tiny_shouted"


def test_what_another_writer_drops_or_overwrites_is_there_in_the_end(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    """The other writer read the list before us and writes it after us: ours are gone, and one of a third party."""
    scorers, experiment = workspace[Scorers], experiment_id(databricks, "/agents/tiny")
    scorers.put(experiment, [foreign("third")])
    interruptions = 2

    def other(_: str) -> None:
        nonlocal interruptions
        interruptions -= 1
        if interruptions >= 0:
            scorers.put(experiment, [foreign("other", rate=0.75)])

    scorers.after_patch = other
    register(databricks, agent_of(tmp_path, TWO))
    assert listed(workspace, databricks) == {
        "other": (0.75, None),
        "third": (0.25, None),
        "dev_tiny_shouted": (1.0, None),
        "dev_tiny_length": (0.5, "attributes.status = 'OK'"),
    }
    kept = {one["name"]: one for one in scorers.scheduled(experiment)}
    assert kept["third"]["extra"] == {"kept": True}, "the whole entry"

    scorers.after_patch = None
    threading.Timer(0.5, scorers.put, (experiment, [foreign("other", rate=0.75)])).start()
    agent = agent_of(tmp_path, [{**TWO[0], "sample_rate": 0.25}])
    register(databricks, agent, settle_seconds=1)
    assert listed(workspace, databricks)["dev_tiny_shouted"] == (0.25, None), "overwritten after the last write"

    scorers.after_patch, interruptions = other, 1000
    agent = agent_of(tmp_path, [{**TWO[0], "sample_rate": 0.5}])
    with pytest.raises(Refused, match=r"other writers changed the list of scorers 4 times"):
        register(databricks, agent)


def test_a_stored_copy_that_says_nothing_is_refused_and_never_started(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    """What is stored is not what was sent: MLflow lost the body, so that the copy returns None for ever."""
    scorers = workspace[Scorers]
    agent = make_agent(
        tmp_path,
        attributes={"scorers": [{"name": "sure", "source": "scorers.py:sure"}], **BARE},
        scorers_py="from mlflow.genai.scorers import scorer\n\n\n@scorer\ndef sure(outputs): return True\n",
    )
    with pytest.raises(Refused, match=r"^sure answers in scorers.py:sure, but its registered copy answers nothing"):
        register(databricks, agent)
    experiment = experiment_id(databricks, "/agents/tiny")
    assert [(one["name"], one["sample_rate"]) for one in scorers.scheduled(experiment)] == [("dev_tiny_sure", 0.0)]


def test_what_cannot_run_there_is_refused_before_anything_is_written(
    workspace: Workspace, databricks: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    experiment = experiment_id(databricks, "/agents/tiny")
    workspace[Scorers].put(experiment, [foreign(f"other_{n}") for n in range(19)])
    with pytest.raises(Refused, match=r"21 scorers would be active, 20 are allowed") as refusal:
        register(databricks, agent_of(tmp_path, TWO))
    assert refusal.value.check == "within_limits"
    monkeypatch.setenv("LIFECYCLE_JUDGE_MODEL", "openai:/gpt-5-mini")
    judge = {"name": "polite", "source": {"judge": "Is {{ outputs }} polite?"}}
    with pytest.raises(Refused, match=r"polite: its judge model is openai:/gpt-5-mini.*databricks:/<serving endpoint>"):
        register(databricks, agent_of(tmp_path, [*TWO, judge]))
    assert not workspace.calls("^(PATCH|POST) .*scheduled-scorers")
    monkeypatch.setenv("LIFECYCLE_JUDGE_MODEL", "databricks:/databricks-gpt-5-mini")
    workspace[Scorers].put(experiment, [])
    safe = {"name": "safe", "source": {"builtin": "Safety"}, "sample_rate": 0.5}
    register(databricks, agent_of(tmp_path, [TWO[0], judge, safe]))
    held = {one["name"]: one for one in workspace[Scorers].scheduled(experiment)}
    assert held["dev_tiny_safe"]["builtin"] == {"name": "dev_tiny_safe"}
    assert held["dev_tiny_safe"]["sample_rate"] == 0.5
    stored = json.loads(held["dev_tiny_polite"]["serialized_scorer"])
    assert stored["instructions_judge_pydantic_data"]["model"] == "databricks:/databricks-gpt-5-mini"


def test_a_scorer_of_sessions_is_registered_locally_as_in_a_workspace(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    agent = agent_of(tmp_path, [TWO[0], PATIENT])
    there = DatabricksScorerRegistry(databricks).register(agent)
    local = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path / "home")})
    registry = MlflowScorerRegistry(local)
    here = registry.register(agent)
    said = [(one.name, one.level, one.version, one.sample_rate) for one in here]
    assert said == [("patient", "session", "1", 1.0), ("shouted", "trace", "1", 1.0)]
    assert [(one.name, one.level, one.version, one.sample_rate) for one in there] == said
    call = registry.load(agent, here[0], direct=True)
    assert (call.session, call([None] * 9).value, call([None] * 10).value) == (True, 1.0, 0.0)
