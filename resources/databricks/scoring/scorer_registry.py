"""Registered scorers in a workspace: scheduled scorers of the experiment, run by production monitoring.

Lives here: `DatabricksScorerRegistry`: what is asked of the worker, and what is noted of its answer.
Add here: what only a workspace knows of registered scorers.
Not here: writing the list (`scorer_steps.py`), reading it (`scheduled_scorers.py`), scoring (`scoring.py`).

As locally, digest, version, rate and filter of each scorer are one tag of the experiment, written after the
registration it describes, so that sensors read them with one request and run no stored code.
"""

from typing import Any

from lifecycle_assets.records import ScorerVersion
from lifecycle_assets.spec_file import Agent
from resources.databricks.workspace import require_agents
from resources.explain import explained
from resources.mlflow_store import experiment_id
from resources.model_steps import agent_request
from resources.platform import Platform
from resources.scorer_registry import MlflowScorerRegistry, silent, state_of
from resources.scorer_source import declared_scorers
from resources.worker import Progress, run_worker

REGISTER_SECONDS = 300.0
"""How long registering may take: some ten requests a scorer, and one call of each copy."""


class DatabricksScorerRegistry(MlflowScorerRegistry):
    """The scorers of the agent's experiment in a workspace. One writer at a time (a Dagster pool)."""

    def __init__(self, platform: Platform, *, register_seconds: float = REGISTER_SECONDS) -> None:
        super().__init__(platform)
        self._register_seconds = register_seconds

    def register(self, agent: Agent, *, progress: Progress = silent) -> list[ScorerVersion]:
        """Bring the workspace's list up to the declaration; see the base class.

        Scorers of others stay as they are, also when they cannot be rebuilt: then a sentence names them. Raises
        `Refused` when the stored copy of a scorer does not answer as its source does; it is not started then.
        """
        if agent.spec.monitoring.every_minutes is not None:
            require_agents()
        declared = {scorer.registered_name: scorer for scorer in declared_scorers(agent, self._platform.environment)}
        with explained(self._platform.tracking_uri):
            experiment = experiment_id(self._platform, agent.spec.experiment)
            states = self._states(experiment)
            pruned = sorted(self._owned(states, agent) - set(declared))
            answer = run_worker(
                "register_scorers",
                {
                    **agent_request(agent),
                    "experiment_id": experiment,
                    "noted": {name: state for name, state in states.items() if name in declared},
                    "stop": pruned,
                },
                platform=self._platform,
                progress=progress,
                timeout_seconds=self._register_seconds,
            )
            for name, scorer in declared.items():
                held = answer["versions"][name]
                state = {**state_of(agent, scorer, held["version"]), "registered_at_ms": held["registered_at_ms"]}
                self._note(experiment, name, states.get(name), state)
            for name in pruned:
                self._note(experiment, name, states[name], {**states[name], "sample_rate": 0.0, "stopped": True})
            return self.registered(agent)

    def _copy(self, experiment: str, name: str, version: str | None = None) -> Any:
        """As the base class; where the workspace numbers no definitions, the one copy it holds."""
        return super()._copy(experiment, name, version if version and version.isdigit() else None)
