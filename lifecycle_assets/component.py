"""The Dagster component a `defs.yaml` names: one agent, the whole graph.

Lives here: putting assets, checks, jobs, schedules and sensors of one agent together.
Add here: nothing but a new part of that sum.
Not here: what the parts do.
"""

from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel, ConfigDict

from lifecycle_assets.candidate.assets import candidate_assets
from lifecycle_assets.jobs import agent_jobs, agent_schedules
from lifecycle_assets.monitoring.assets import monitoring_assets
from lifecycle_assets.release.assets import points_at_gated_version, release_assets
from lifecycle_assets.release.deployment import running_version_matches_champion
from lifecycle_assets.release.shadow_check import shadow_check
from lifecycle_assets.review.assets import review_assets
from lifecycle_assets.spec import AgentSpec
from lifecycle_assets.spec_file import Agent, parse_agent
from resources.gateways import GATEWAYS
from sensors.registry import agent_sensors


class Attributes(BaseModel):
    """Takes whatever stands under `attributes`: `parse_agent` checks it and answers in one sentence.

    Editors and `dg utils` are shown the schema of `AgentSpec`.
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The schema of the declaration."""
        return AgentSpec.model_json_schema(*args, **kwargs)


class AgentLifecycle(dg.Component):
    """One GenAI agent: logged model, evaluation, version, champion, scorers, traces, labels as assets."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The model Dagster reads `attributes` into."""
        return Attributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> "AgentLifecycle":
        """The component of one `defs.yaml`. Raises an error of one sentence for a wrong declaration."""
        declared = attributes.model_dump() if attributes else {}
        return cls(parse_agent(declared, Path(context.path) / "defs.yaml"))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The agent's definitions; loads none of the agent's code."""
        return agent_definitions(self.agent)


def agent_definitions(agent: Agent) -> dg.Definitions:
    """Everything Dagster knows of one agent."""
    return dg.Definitions(
        assets=[
            *candidate_assets(agent),
            *release_assets(agent),
            *monitoring_assets(agent),
            *review_assets(agent),
        ],
        asset_checks=[points_at_gated_version(agent), running_version_matches_champion(agent), shadow_check(agent)],
        jobs=agent_jobs(agent),
        schedules=agent_schedules(agent),
        sensors=agent_sensors(agent),
        resources=GATEWAYS,
    )
