"""Registering scorers as declared, on real MLflow: versions, sampling configuration, and the copies at work."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.gate import Outcome
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.platform import Platform
from resources.scorer_outcome import outcome_of
from resources.scorer_registry import TAG, MlflowScorerRegistry
from resources.scoring.trace_scores import Answer
from tests.building import SCORERS_PY, make_agent
from tests.resources.mlflow_server import mlflow_server

HEAD = "from mlflow.genai.scorers import scorer\n\n\n"


def agent_with(tmp_path: Path, body: str, *names: str, **changes: Any) -> Agent:
    """An agent whose scorers are functions of `body`; the gate and labels rest on the first one."""
    scorers = [{"name": name, "source": f"scorers.py:{name}"} for name in names]
    gate = {"thresholds": [{"metric": f"{names[0]}/mean", "at_least": 0.5}]}
    schema = {"name": "correct", "type": "feedback", "input": "pass_fail", "instruction": "Is it correct?"}
    attributes = {
        "scorers": scorers,
        "eval": {"dataset": "eval_dataset.jsonl", "gate": gate},
        "labeling": {"schemas": [schema]},
        **changes,
    }
    return make_agent(tmp_path, attributes=attributes, scorers_py=HEAD + body)


def declare(agent: Agent, **changes: dict[str, Any]) -> Agent:
    """The agent with fields of its scorers changed, by scorer name."""
    scorers = [scorer.model_copy(update=changes.get(scorer.name, {})) for scorer in agent.spec.scorers]
    return Agent(agent.spec.model_copy(update={"scorers": scorers}), agent.folder)


def only(agent: Agent, *names: str) -> Agent:
    scorers = [scorer for scorer in agent.spec.scorers if scorer.name in names]
    return Agent(agent.spec.model_copy(update={"scorers": scorers}), agent.folder)


def write_trace(platform: Platform, agent: Agent, answer: str = "HELLO") -> Any:
    mlflow = open_mlflow(platform)
    mlflow.set_experiment(experiment_id=experiment_id(platform, agent.spec.experiment))
    with mlflow.start_span("predict") as root:
        root.set_inputs({"question": "are you there?"})
        with mlflow.start_span("answer") as span:
            span.set_outputs(answer)
        root.set_outputs({"answer": answer})
    return mlflow.get_trace(root.trace_id)


def mlflow_versions(platform: Platform, agent: Agent, name: str) -> int:
    """How many versions MLflow holds."""
    open_mlflow(platform)
    from mlflow.genai.scorers.registry import list_scorer_versions

    return len(list_scorer_versions(name=name, experiment_id=experiment_id(platform, agent.spec.experiment)))


@pytest.fixture(scope="module")
def server(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("served")
    shutil.copy(migrated_store, home / "server.db")
    with mlflow_server(home / "server.db", home) as platform:
        yield platform


_NUMBERS = itertools.count()


@pytest.fixture(params=["sqlite", "http"])
def store(request: pytest.FixtureRequest, platform: Platform) -> Platform:
    """SQLite in this process, and a real server."""
    return platform if request.param == "sqlite" else request.getfixturevalue("server")


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    """The small agent in an experiment of its own, because the server outlives a test."""
    return make_agent(tmp_path, attributes={"experiment": f"/agents/scorers-{os.getpid()}-{next(_NUMBERS)}"})


KILLED = """
import os, signal, sys, time
from pathlib import Path
import mlflow.genai.scorers
from lifecycle_assets.spec_file import read_agent
from resources.platform import Platform
from resources.scorer_registry import MlflowScorerRegistry

agent = read_agent(Path(sys.argv[1]))
for delay in sys.argv[2:]:
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        registry = MlflowScorerRegistry(Platform.from_env())
        registry.registered(agent)
        os.write(go, b"go")
        registry.register(agent)
        time.sleep(60)
    os.read(ready, 2)
    time.sleep(float(delay))
    os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Imports everything once, then forks for each delay a process that registers, and kills it after that many seconds."""


class TestRegister:
    def test_registers_what_is_declared_and_repeats_without_a_trace(self, store: Platform, agent: Agent):
        registry = MlflowScorerRegistry(store)
        first = registry.register(agent)
        assert [(s.name, s.registered_name, s.version, s.sample_rate) for s in first] == [
            ("length", "local_tiny_length", "1", 0.5),
            ("shouted", "local_tiny_shouted", "1", 1.0),
        ]
        assert registry.registered(agent) == first
        assert MlflowScorerRegistry(store).register(agent) == first
        assert mlflow_versions(store, agent, "local_tiny_length") == 1

    def test_a_changed_source_is_a_new_version_and_comments_are_not(self, platform: Platform, agent: Agent):
        registry = MlflowScorerRegistry(platform)
        registry.register(agent)
        file = agent.path("scorers.py")
        file.write_text("# A remark.\n" + SCORERS_PY.replace("    spans =", "    # Another.\n    spans =", 1))
        assert [s.version for s in registry.register(agent)] == ["1", "1"]
        file.write_text(SCORERS_PY.replace("return float(len(", "return 2 * float(len("))
        changed = {s.name: s for s in registry.register(agent)}
        assert (changed["length"].version, changed["shouted"].version) == ("2", "1")
        trace = write_trace(platform, agent, "12345")
        assert registry.load(agent, changed["length"])(trace) == Answer(10.0)
        former = Agent(agent.spec, agent.folder)
        old = {**changed["length"].to_json(), "version": "1"}
        assert registry.load(former, type(changed["length"]).from_json(old))(trace) == Answer(5.0)

    def test_a_changed_rate_or_filter_keeps_the_version(self, platform: Platform, agent: Agent):
        registry = MlflowScorerRegistry(platform)
        registry.register(agent)
        changed = registry.register(declare(agent, length={"sample_rate": 0.25, "filter": "tags.env = 'prod'"}))
        assert (changed[0].version, changed[0].sample_rate, changed[0].filter) == ("1", 0.25, "tags.env = 'prod'")
        assert mlflow_versions(platform, agent, "local_tiny_length") == 1

    def test_a_scorer_no_longer_declared_is_stopped_not_deleted(self, platform: Platform, agent: Agent):
        registry = MlflowScorerRegistry(platform)
        length, shouted = registry.register(agent)
        assert registry.register(only(agent, "shouted")) == [shouted]
        tags = open_client(platform).get_experiment(experiment_id(platform, agent.spec.experiment)).tags
        stopped = json.loads(tags[TAG + "local_tiny_length"])
        assert (stopped["sample_rate"], stopped["stopped"], stopped["version"]) == (0.0, True, "1")
        assert registry.load(agent, length) is not None
        assert registry.register(agent) == [length, shouted]
        assert mlflow_versions(platform, agent, "local_tiny_length") == 1

    def test_killed_before_the_tag_the_rerun_finds_its_copy(self, store: Platform, agent: Agent):
        registry = MlflowScorerRegistry(store)
        registered = registry.register(agent)
        experiment = experiment_id(store, agent.spec.experiment)
        open_client(store).delete_experiment_tag(experiment, TAG + "local_tiny_length")
        assert registry.register(agent) == registered
        assert mlflow_versions(store, agent, "local_tiny_length") == 1

    def test_built_in_scorers_and_judges_are_found_by_their_source_too(
        self, platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("LIFECYCLE_JUDGE_MODEL", "openai:/gpt-5-mini")
        judge = {"judge": "Is the answer in {{ outputs }} polite? Answer yes or no."}
        matches = {"builtin": "RegexMatch", "arguments": {"pattern": "HEL+O"}}
        scorers = [{"name": "matches", "source": matches}, {"name": "polite", "source": judge}]
        agent = agent_with(
            tmp_path, "", "matches", scorers=scorers, experiment=f"/agents/scorers-{os.getpid()}-{next(_NUMBERS)}"
        )
        registry, experiment = MlflowScorerRegistry(platform), experiment_id(platform, agent.spec.experiment)
        assert registry.try_alone(agent, progress=print) == {}
        first = registry.register(agent)
        for scorer in first:
            open_client(platform).delete_experiment_tag(experiment, TAG + scorer.registered_name)
        assert registry.register(agent) == first
        assert [s.version for s in first] == ["1", "1"]
        monkeypatch.setenv("LIFECYCLE_JUDGE_MODEL", "openai:/gpt-5")
        assert [s.version for s in registry.register(agent)] == ["1", "2"]
        trace = write_trace(platform, agent)
        assert registry.load(agent, first[0])(trace) == Answer(1.0)

    def test_killed_at_any_moment_the_rerun_registers_each_scorer_once(self, platform: Platform, agent: Agent):
        delays = ("0.03", "0.08")
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(agent.path("defs.yaml")), *delays],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            timeout=300,
            check=False,
        )
        assert done.stdout.split() == ["-9"] * len(delays), done.stderr[-3000:]
        assert [s.version for s in MlflowScorerRegistry(platform).register(agent)] == ["1", "1"]
        assert mlflow_versions(platform, agent, "local_tiny_shouted") == 1
        assert mlflow_versions(platform, agent, "local_tiny_length") == 1

    def test_a_registered_copy_that_somebody_deleted_is_registered_again(self, platform: Platform, agent: Agent):
        registry = MlflowScorerRegistry(platform)
        before = registry.register(agent)[0]
        from mlflow.genai.scorers import delete_scorer

        delete_scorer(
            name="local_tiny_length", experiment_id=experiment_id(platform, agent.spec.experiment), version="all"
        )
        with pytest.raises(Refused, match="local_tiny_length version 1 is not in experiment"):
            MlflowScorerRegistry(platform).load(agent, before)
        again = registry.register(agent)[0]
        assert MlflowScorerRegistry(platform).load(agent, again) is not None

    def test_two_environments_do_not_touch_each_other(
        self, platform: Platform, agent: Agent, monkeypatch: pytest.MonkeyPatch
    ):
        local = MlflowScorerRegistry(platform)
        mine = local.register(agent)
        monkeypatch.setenv("LIFECYCLE_ENVIRONMENT", "prod")
        other = MlflowScorerRegistry(Platform.from_env()).register(only(agent, "shouted"))
        assert [s.registered_name for s in other] == ["prod_tiny_shouted"]
        assert local.registered(agent) == mine

    def test_more_than_twenty_active_scorers_are_refused(self, platform: Platform, tmp_path: Path):
        names = [f"s{number}" for number in range(20)]
        body = "".join(f"@scorer\ndef {name}(outputs):\n    return 1\n\n\n" for name in names)
        registry = MlflowScorerRegistry(platform)
        registry.register(agent_with(tmp_path / "a", body, *names))
        extra = agent_with(tmp_path / "b", body, "s0", name="other", experiment="/agents/tiny")
        with pytest.raises(Refused, match="21 scorers would be active, 20 are allowed"):
            registry.register(extra)
        registry.register(agent_with(tmp_path / "a", body, *names[1:]))
        assert [s.registered_name for s in registry.register(extra)] == ["local_other_s0"]

    def test_a_server_without_code_scorers_is_named_with_the_remedy(
        self, migrated_store: Path, tmp_path: Path, platform: Platform, agent: Agent
    ):
        shutil.copy(migrated_store, tmp_path / "server.db")
        refusing = mlflow_server(tmp_path / "server.db", tmp_path / "s", MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS="false")
        with refusing as served, pytest.raises(Refused, match=r"MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS=true"):
            MlflowScorerRegistry(served).register(agent)

    def test_this_process_without_code_scorers_is_named_with_the_remedy(
        self, platform: Platform, agent: Agent, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS", "false")
        with pytest.raises(Refused, match=r"this MLflow process .*MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS=true"):
            MlflowScorerRegistry(platform).register(agent)

    def test_a_server_that_does_not_answer_is_a_sentence(self, agent: Agent, tmp_path: Path):
        dead = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
        with pytest.raises(Refused, match=r"http://127\.0\.0\.1:9: the server does not answer"):
            MlflowScorerRegistry(dead).registered(agent)


class TestLoad:
    def test_scores_a_real_trace(self, store: Platform, agent: Agent):
        registry = MlflowScorerRegistry(store)
        trace = write_trace(store, agent)
        scored = {s.name: registry.load(agent, s)(trace) for s in registry.register(agent)}
        assert scored == {"length": Answer(5.0), "shouted": Answer(1.0)}

    def test_gives_inputs_outputs_and_expectations_of_the_trace(self, platform: Platform, tmp_path: Path):
        body = """
@scorer
def right(inputs, outputs, expectations):
    assert inputs == {"question": "are you there?"}
    return outputs["answer"] == expectations["expected"]
"""
        agent = agent_with(tmp_path, body, "right")
        registry = MlflowScorerRegistry(platform)
        load = registry.load(agent, registry.register(agent)[0])
        trace = write_trace(platform, agent, "yes I am")
        assert load(trace).message.startswith("TypeError")  # No expectation: the scorer subscripts None.
        mlflow = open_mlflow(platform)
        mlflow.log_expectation(trace_id=trace.info.trace_id, name="expected", value="yes I am")
        assert load(mlflow.get_trace(trace.info.trace_id)) == Answer(1.0)

    def test_a_raising_scorer_is_an_error_of_at_most_500_characters(self, platform: Platform, tmp_path: Path):
        agent = agent_with(tmp_path, '@scorer\ndef bad(outputs):\n    raise KeyError("x" * 900)\n', "bad")
        registry = MlflowScorerRegistry(platform)
        answer = registry.load(agent, registry.register(agent)[0])(write_trace(platform, agent))
        assert (answer.value, answer.code) == (None, "SCORER_ERROR")
        assert answer.message.startswith("KeyError: 'xxx")
        assert len(answer.message) == 500

    def test_one_trace_takes_milliseconds(self, platform: Platform, agent: Agent):
        registry = MlflowScorerRegistry(platform)
        scorer = registry.register(agent)[0]
        trace = write_trace(platform, agent)
        registry.load(agent, scorer)(trace)
        started = time.perf_counter()
        for _ in range(50):
            registry.load(agent, scorer)(trace)
        assert (time.perf_counter() - started) / 50 < 0.05


class TestTryAlone:
    def test_a_module_level_name_is_named(self, platform: Platform, tmp_path: Path):
        agent = agent_with(
            tmp_path, "LIMIT = 3\n\n\n@scorer\ndef short(outputs):\n    return len(outputs) < LIMIT\n", "short"
        )
        faults = MlflowScorerRegistry(platform).try_alone(agent, progress=print)
        assert faults == {
            "short": "short uses 'LIMIT' of its module; define or import 'LIMIT' inside the function 'short'."
        }

    def test_each_scorer_that_does_not_stand_alone_has_its_sentence(self, platform: Platform, tmp_path: Path):
        body = """
import functools


def doubled(function):
    @functools.wraps(function)
    def inner(outputs):
        return 2 * function(outputs)

    return inner


@scorer
def good(outputs):
    return 1.0


@scorer
def missing_module(outputs):
    import no_such_module
    return no_such_module.value


@scorer
def hidden_name(outputs):
    return eval("LIMIT")


@scorer
def one_line(outputs): return 1.0


@scorer
def wrong_default(outputs, of=functools.reduce):
    return 1.0


@scorer
def whole_session(session):
    return 1.0


@scorer
def needs_more(outputs):
    return outputs["no such key"]


LIMIT = 4
"""
        names = ["good", "missing_module", "hidden_name", "one_line", "wrong_default", "whole_session", "needs_more"]
        lines: list[str] = []
        faults = MlflowScorerRegistry(platform).try_alone(agent_with(tmp_path, body, *names), progress=lines.append)
        assert set(faults) == set(names) - {"good", "needs_more"}
        assert "cannot import no_such_module" in faults["missing_module"]
        assert "needs the name 'LIMIT'" in faults["hidden_name"]
        assert "on lines of its own" in faults["one_line"]
        assert "cannot be rebuilt" in faults["wrong_default"]
        assert "sessions" in faults["whole_session"]
        assert any("trying scorer good alone on a synthetic trace" in line for line in lines)
        assert any(line.startswith("note: needs_more fails on a synthetic trace: KeyError") for line in lines)

    def test_tries_on_a_real_trace(self, platform: Platform, agent: Agent):
        lines: list[str] = []
        trace = write_trace(platform, agent)
        registry = MlflowScorerRegistry(platform)
        assert registry.try_alone(agent, progress=lines.append, trace_id=trace.info.trace_id) == {}
        assert any("on the sample trace" in line for line in lines)

    def test_a_file_that_does_not_run_is_a_sentence(self, platform: Platform, tmp_path: Path):
        agent = agent_with(tmp_path, "1 / 0\n\n\n@scorer\ndef short(outputs):\n    return 1\n", "short")
        faults = MlflowScorerRegistry(platform).try_alone(agent, progress=print)
        assert "scorers.py does not run (ZeroDivisionError" in faults["short"]


class TestOutcomes:
    def test_every_kind_of_answer(self):
        from mlflow.entities import AssessmentError, Feedback
        from mlflow.genai.judges import CategoricalRating

        error = AssessmentError(error_code="TIMEOUT", error_message="too slow")
        assert outcome_of(None) == Outcome()
        assert outcome_of(True) == Outcome(1.0)
        assert outcome_of(False) == Outcome(0.0)
        assert outcome_of(3) == Outcome(3.0)
        assert outcome_of("Yes ") == Outcome(1.0)
        assert outcome_of(CategoricalRating.NO) == Outcome(0.0)
        assert outcome_of(Feedback(value="no")) == Outcome(0.0)
        assert outcome_of(Feedback(value=None)) == Outcome()
        assert outcome_of(Feedback(error=error)) == Outcome(error="TIMEOUT: too slow")
        assert outcome_of([]) == Outcome()
        assert outcome_of([Feedback(value=True), Feedback(value=0.5), Feedback(value=None)]) == Outcome(0.75)
        assert outcome_of([Feedback(value=True), Feedback(error=error)]) == Outcome(error="TIMEOUT: too slow")

    @pytest.mark.parametrize("answer", ["maybe", float("nan"), float("inf")])
    def test_what_cannot_be_aggregated_is_an_error(self, answer: object):
        outcome = outcome_of(answer)
        assert outcome.value is None
        assert "return a number, True, False, yes, no or None" in outcome.error
