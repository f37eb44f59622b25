"""Registered scorers: declared scorers as MLflow keeps them, by version, and their registered copies at work.

Lives here: trying, registering and loading scorers, and the sampling configuration.
Add here: what is asked of registered scorers as a set.
Not here: reading declarations (`scorer_source.py`), what answers mean (`scorer_outcome.py`), writing scores.

Open-source MLflow keeps a sampling rate only for judges behind its gateway (`start()` refuses the rest), and makes a
new version of a scorer at every registration. So rate, filter, digest and version of each scorer are one tag of the
experiment, `lifecycle.scorer.<registered name>`, written after the registration it describes.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from lifecycle_assets.records import ScorerVersion
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import MAX_SCORERS
from lifecycle_assets.spec_file import Agent
from resources.explain import explained
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.model_steps import agent_request
from resources.platform import Platform
from resources.scorer_source import DeclaredScorer, declared_scorers, free_names, is_stored_whole, load_declared
from resources.scoring.call import Call, call_of
from resources.worker import Progress, run_worker

TAG = "lifecycle.scorer."
"""Prefix of the experiment tags that hold the registered scorers' configuration."""


def silent(line: str) -> None:
    """Nobody is told."""


class ScorerRegistry(ABC):
    """Registers scorers as declared and hands back the registered copies."""

    @abstractmethod
    def try_alone(self, agent: Agent, *, progress: Progress, trace_id: str = "") -> dict[str, str]:
        """Declared scorers that do not stand alone: name to a sentence naming what is missing; empty is well.

        `trace_id` is a trace to try them on; empty is a synthetic one. Nothing is stored: safe to repeat.
        """

    @abstractmethod
    def register(self, agent: Agent, *, progress: Progress = silent) -> list[ScorerVersion]:
        """Register the active scorers; the same source digest keeps its version, rates and filters are updated.

        Scorers no longer declared are stopped (rate 0), never deleted. Returns what `registered` returns from then on.
        Raises `Refused` when the server does not take code scorers, or the experiment would hold too many. Safe to
        repeat after a kill anywhere: a copy that was registered but not noted yet is found by its source.
        """

    @abstractmethod
    def registered(self, agent: Agent) -> list[ScorerVersion]:
        """What is registered for the agent now, by name; without what was stopped because it is not declared."""

    @abstractmethod
    def load(self, agent: Agent, scorer: ScorerVersion, *, direct: bool = False) -> Call:
        """The registered copy of that version, ready to be called; `direct` as of `call_of`.

        Raises `Refused` when it is gone.
        """

    @abstractmethod
    def registered_at_ms(self, agent: Agent) -> dict[str, int]:
        """Registered name to when its current definition came into effect, epoch milliseconds; one request."""


class MlflowScorerRegistry(ScorerRegistry):
    """The scorers of the agent's MLflow experiment, on SQLite or a server. One writer at a time (a Dagster pool)."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._loaded: dict[tuple[str, str, str], Any] = {}

    def try_alone(self, agent: Agent, *, progress: Progress, trace_id: str = "") -> dict[str, str]:
        """Look at the sources, then try the rest in a process of its own (some 5 s)."""
        declared = declared_scorers(agent, self._platform.environment)
        faults = {scorer.name: fault for scorer in declared if (fault := _static_fault(agent, scorer))}
        request = {
            **agent_request(agent),
            "scorers": [scorer.name for scorer in declared if scorer.name not in faults],
            "trace_id": trace_id,
        }
        if not request["scorers"]:
            return faults
        with explained(self._platform.tracking_uri):
            answer = run_worker("try_scorers", request, platform=self._platform, progress=progress)
        for note in answer["notes"].values():
            progress(f"note: {note}")
        return faults | answer["faults"]

    def register(self, agent: Agent, *, progress: Progress = silent) -> list[ScorerVersion]:
        """Register in order of declaration; see the base class."""
        declared = {scorer.registered_name: scorer for scorer in declared_scorers(agent, self._platform.environment)}
        with explained(self._platform.tracking_uri):
            experiment = experiment_id(self._platform, agent.spec.experiment)
            states = self._states(experiment)
            active = {name for name, state in states.items() if state["sample_rate"] > 0} - self._owned(states, agent)
            if len(active | set(declared)) > MAX_SCORERS:
                raise Refused(
                    f"experiment {agent.spec.experiment}: {len(active | set(declared))} scorers would be active, "
                    f"{MAX_SCORERS} are allowed; declare fewer, or set the sample_rate of others to 0 "
                    f"({', '.join(sorted(active - set(declared)))})."
                )
            for name, scorer in declared.items():
                version = self._version(agent, experiment, scorer, states.get(name))
                state = state_of(agent, scorer, version)
                self._note(experiment, name, states.get(name), {**state, **_since(states.get(name), state)})
            for name in self._owned(states, agent) - set(declared):
                self._note(experiment, name, states[name], {**states[name], "sample_rate": 0.0, "stopped": True})
            return self.registered(agent)

    def registered(self, agent: Agent) -> list[ScorerVersion]:
        """Read the experiment's tags: one call, no scorer is loaded, so a sensor may ask."""
        with explained(self._platform.tracking_uri):
            states = self._states(experiment_id(self._platform, agent.spec.experiment))
        own = {name: states[name] for name in self._owned(states, agent) if not states[name]["stopped"]}
        return [
            ScorerVersion.from_json({**state, "registered_name": name})
            for name, state in sorted(own.items(), key=lambda item: item[1]["name"])
        ]

    def registered_at_ms(self, agent: Agent) -> dict[str, int]:
        """See the base class."""
        with explained(self._platform.tracking_uri):
            states = self._states(experiment_id(self._platform, agent.spec.experiment))
        return {name: state["registered_at_ms"] for name, state in states.items() if "registered_at_ms" in state}

    def load(self, agent: Agent, scorer: ScorerVersion, *, direct: bool = False) -> Call:
        """Load it once a process. MLflow rebuilds a code scorer by running its stored source in this process."""
        experiment = experiment_id(self._platform, agent.spec.experiment)
        key = (experiment, scorer.registered_name, scorer.version)
        if key not in self._loaded:
            with explained(self._platform.tracking_uri):
                copy = self._copy(experiment, scorer.registered_name, scorer.version)
            if copy is None:
                raise Refused(
                    f"{scorer.registered_name} version {scorer.version} is not in experiment {agent.spec.experiment} "
                    f"any more; materialize {agent.name}/registered_scorers to register it again."
                )
            self._loaded[key] = copy
        seconds = next((one.timeout_seconds for one in agent.spec.scorers if one.name == scorer.name), 60.0)
        return call_of(self._loaded[key], seconds=seconds, direct=direct)

    def _version(self, agent: Agent, experiment: str, scorer: DeclaredScorer, state: Mapping[str, Any] | None) -> str:
        """The version that holds this source: the noted one, one that was registered but not noted, or a new one."""
        name = scorer.registered_name
        if state and state["digest"] == scorer.digest and self._copy(experiment, name, state["version"]):
            return state["version"]
        made = load_declared(agent, scorer)
        newest = self._copy(experiment, name)
        if newest is not None and stored_form(newest) == stored_form(made):
            return str(newest.scorer_version)
        from mlflow.exceptions import MlflowException

        try:
            return str(made.register(name=name, experiment_id=experiment).scorer_version)
        except MlflowException as error:
            if "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS" not in str(error):
                raise
            what = "server" if self._platform.tracking_uri.startswith("http") else "process"
            raise Refused(
                f"{scorer.name}: this MLflow {what} takes no code scorers; "
                f"start the {what} with MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS=true."
            ) from error

    def _copy(self, experiment: str, name: str, version: str | None = None) -> Any:
        """The registered copy (default: newest version), None when there is none."""
        open_mlflow(self._platform)
        from mlflow.exceptions import MlflowException
        from mlflow.genai.scorers import get_scorer

        try:
            return get_scorer(name=name, experiment_id=experiment, version=int(version) if version else None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _states(self, experiment: str) -> dict[str, dict[str, Any]]:
        """Every scorer's configuration in the experiment, by registered name."""
        tags = open_client(self._platform).get_experiment(experiment).tags
        return {key.removeprefix(TAG): json.loads(value) for key, value in tags.items() if key.startswith(TAG)}

    def _owned(self, states: Mapping[str, Mapping[str, Any]], agent: Agent) -> set[str]:
        owner = {"agent": agent.name, "environment": self._platform.environment}
        return {name for name, state in states.items() if owner.items() <= state.items()}

    def _note(self, experiment: str, name: str, former: Mapping[str, Any] | None, state: Mapping[str, Any]) -> None:
        if former != state:
            open_client(self._platform).set_experiment_tag(experiment, TAG + name, json.dumps(state, sort_keys=True))


def state_of(agent: Agent, scorer: DeclaredScorer, version: str) -> dict[str, Any]:
    """The value of a scorer's tag."""
    spec = scorer.spec
    return {
        "name": scorer.name,
        "version": version,
        "digest": scorer.digest,
        "sample_rate": spec.sample_rate,
        "filter": spec.filter,
        "level": spec.level,
        "cost_per_call": spec.cost_per_call,
        "agent": agent.name,
        "environment": scorer.registered_name.removesuffix(f"_{agent.name}_{scorer.name}"),
        "stopped": False,
    }


def _since(former: Mapping[str, Any] | None, state: Mapping[str, Any]) -> dict[str, int]:
    """Since when the scorer scores what it scores: a new version, rate or filter begins anew."""
    same = ("version", "sample_rate", "filter", "stopped")
    if former is not None and all(former.get(key) == state[key] for key in same):
        return {"registered_at_ms": former["registered_at_ms"]} if "registered_at_ms" in former else {}
    return {"registered_at_ms": int(time.time() * 1000)}


def stored_form(scorer: Any) -> Any:
    """What MLflow stores of a scorer, without its names and MLflow's version; equal for equal copies."""

    def without_names(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_names(item) for key, item in value.items() if key not in ("name", "mlflow_version")}
        return value

    rebuilt = type(scorer).model_validate(json.loads(json.dumps(scorer.model_dump())))
    return json.loads(json.dumps(without_names(rebuilt.model_dump())))


def _static_fault(agent: Agent, scorer: DeclaredScorer) -> str:
    """What the source alone shows to be missing from a registered copy; empty when nothing is."""
    source = scorer.spec.source
    if not isinstance(source, str):
        return ""
    file, _, function = source.partition(":")
    if not is_stored_whole(agent.path(file), function):
        return (
            f"{scorer.name}: MLflow stores whole lines of the body; write the body of '{function}' on lines of its own."
        )
    missing = free_names(agent.path(file), function)
    if missing:
        names = ", ".join(f"'{name}'" for name in missing)
        return f"{scorer.name} uses {names} of its module; define or import {names} inside the function '{function}'."
    return ""
