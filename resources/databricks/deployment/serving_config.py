"""What the configuration of a serving endpoint says.

Lives here: the configuration a hand-off wants, held against the one that is there; no request.
Add here: a further setting of a served version.
Not here: asking for it (`serving.py`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lifecycle_assets.spec_file import Agent
from resources.databricks.deployment.handing import HANDED_AT, same

if TYPE_CHECKING:
    from databricks.sdk.service.serving import (
        EndpointCoreConfigInput,
        EndpointCoreConfigOutput,
        EndpointPendingConfig,
        ServedEntityOutput,
        ServingEndpointDetailed,
    )

    Config = EndpointCoreConfigOutput | EndpointPendingConfig | None


@dataclass(frozen=True)
class Wanted:
    """A version as it shall be served: its environment, its size and its percent of the requests."""

    entity: str
    model_name: str
    version: str
    env: dict[str, str]
    workload_size: str
    scale_to_zero: bool
    traffic: int

    @classmethod
    def of(cls, agent: Agent, version: str, env: dict[str, str]) -> "Wanted":
        """What the agent declares for this version."""
        declared = agent.spec.deployment
        return cls(
            entity=f"{agent.name[:50]}-{version}",
            model_name=agent.spec.model_name,
            version=version,
            env=env,
            workload_size=declared.workload_size,
            scale_to_zero=declared.scale_to_zero,
            traffic=declared.traffic,
        )

    def is_served(self, config: "Config") -> bool:
        """Whether `config` serves exactly this."""
        entity = self._found(config)
        return (
            entity is not None
            and same(env_of(entity), self.env)
            and (entity.workload_size or self.workload_size).lower() == self.workload_size.lower()
            and bool(entity.scale_to_zero_enabled) == self.scale_to_zero
            and share_of(config, entity) == (self.traffic if self._other(config) else 100)
        )

    def beside(self, active: "EndpointCoreConfigOutput | None") -> "EndpointCoreConfigInput":
        """The configuration to ask for: this version, and with less than all requests also who answered most before.

        What was set on the former version of the model by hand and is not declared here (its kind of compute, its
        instance profile) goes with the new one.
        """
        from databricks.sdk.service import serving

        former = entity_of(active, self.model_name)
        mine = serving.ServedEntityInput(
            name=self.entity,
            entity_name=self.model_name,
            entity_version=self.version,
            environment_vars=self.env,
            workload_size=self.workload_size,
            scale_to_zero_enabled=self.scale_to_zero,
            instance_profile_arn=former.instance_profile_arn if former else None,
            workload_type=_workload_type(former),
        )
        entities, routes = [mine], [serving.Route(served_model_name=self.entity, traffic_percentage=100)]
        other = self._other(active)
        if other is not None:
            kept = serving.ServedEntityInput.from_dict(other.as_dict())
            entities.append(kept)
            routes = [
                serving.Route(served_model_name=self.entity, traffic_percentage=self.traffic),
                serving.Route(served_model_name=kept.name, traffic_percentage=100 - self.traffic),
            ]
        return serving.EndpointCoreConfigInput(
            served_entities=entities,
            traffic_config=serving.TrafficConfig(routes=routes),
            auto_capture_config=_capture(active),
        )

    def _found(self, config: "Config") -> "ServedEntityOutput | None":
        for entity in (config.served_entities if config else None) or []:
            if (entity.entity_name, entity.entity_version) == (self.model_name, self.version):
                return entity
        return None

    def _other(self, config: "Config") -> "ServedEntityOutput | None":
        """Who else keeps requests: the one with the most, None when this version is to have all."""
        others = [
            entity
            for entity in ((config.served_entities if config else None) or [])
            if (entity.entity_name, entity.entity_version) != (self.model_name, self.version)
            and entity.name != self.entity
            and share_of(config, entity) > 0
        ]
        if self.traffic == 100:
            return None
        return max(others, key=lambda entity: share_of(config, entity), default=None)


def serves_version(config: "Config", wanted: Wanted) -> bool:
    """Whether requests reach the wanted version, however the rest is written."""
    entity = entity_of(config, wanted.model_name)
    return entity is not None and entity.entity_version == wanted.version and share_of(config, entity) > 0


def entity_of(config: "Config", model_name: str) -> "ServedEntityOutput | None":
    """The version of a model that was handed over last, None when none is served."""
    found = [e for e in (config.served_entities if config else None) or [] if e.entity_name == model_name]
    return max(found, key=lambda e: (env_of(e).get(HANDED_AT, ""), share_of(config, e)), default=None)


def env_of(entity: "ServedEntityOutput") -> dict[str, str]:
    """The environment of a served version."""
    return dict(entity.environment_vars or {})


def share_of(config: "Config", entity: "ServedEntityOutput") -> int:
    """Percent of the requests that reach a served version."""
    routes = config.traffic_config.routes if config and config.traffic_config else None
    if not routes:
        return 100 if config and len(config.served_entities or []) == 1 else 0
    names = {route.served_entity_name or route.served_model_name: route.traffic_percentage for route in routes}
    return names.get(entity.name, 0)


def failure_of(found: "ServingEndpointDetailed") -> str:
    """What an endpoint says about why it could not be updated."""
    for config in (found.pending_config, found.config):
        for entity in (config.served_entities if config else None) or []:
            state = entity.state
            if state and state.deployment and state.deployment.value in ("DEPLOYMENT_FAILED", "DEPLOYMENT_ABORTED"):
                return state.deployment_state_message or state.deployment.value
    return ""


def again(config: "EndpointCoreConfigOutput") -> "EndpointCoreConfigInput":
    """The request that asks for a configuration the endpoint has had."""
    from databricks.sdk.service import serving

    return serving.EndpointCoreConfigInput(
        served_entities=[serving.ServedEntityInput.from_dict(one.as_dict()) for one in config.served_entities or []],
        traffic_config=config.traffic_config,
        auto_capture_config=_capture(config),
    )


def _capture(config: "EndpointCoreConfigOutput | None"):
    from databricks.sdk.service.serving import AutoCaptureConfigInput

    kept = config.auto_capture_config if config else None
    return AutoCaptureConfigInput.from_dict(kept.as_dict()) if kept else None


def _workload_type(former: "ServedEntityOutput | None"):
    from databricks.sdk.service.serving import ServingModelWorkloadType

    kind = former.workload_type if former else None
    return ServingModelWorkloadType(kind.value) if kind else None
