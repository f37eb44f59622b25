"""Handing over to a model serving endpoint.

Lives here: making or updating the endpoint, waiting for it, and taking a failed update back.
Add here: a further setting of the endpoint.
Not here: what a configuration says (`serving_config.py`), the variables (`resources/deployer.py`).
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from lifecycle_assets.records import DeploymentRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.deployment.handing import HANDED_AT, asked, at, now, patient, said, shown
from resources.databricks.deployment.serving_config import Wanted, entity_of, env_of, failure_of, serves_version
from resources.databricks.workspace import open_workspace, wait_for
from resources.deployer import Deployer, Move, nothing_handed_over, silent, variables
from resources.platform import Platform
from resources.worker import Progress

if TYPE_CHECKING:
    from databricks.sdk.service.serving import EndpointCoreConfigOutput, ServedEntityOutput, ServingEndpointDetailed

ROUNDS = 3
"""How often others may come between before this gives up."""


def endpoint_name(agent: Agent, platform: Platform) -> str:
    """The declared endpoint, else `<agent>-<environment>`, within the 63 characters a name may have."""
    environment = platform.environment
    return agent.spec.deployment.endpoint or f"{agent.name[: 62 - len(environment)]}-{environment}"


class ServingDeployer(Deployer):
    """Keeps an endpoint at the champion's version, its environment and its share of the requests.

    Why a rerun is safe: what the endpoint serves, or is being updated to, is read before anything is asked for. An
    update that was started by a run that died, or whose answer was lost, is found in progress and waited for; an update
    somebody else has in progress is waited for first. A failed update is taken back to what was served before.
    """

    def __init__(self, platform: Platform, *, every: float = 2.0) -> None:
        self._platform = platform
        self._every = every

    def hand_off(self, agent: Agent, move: Move, *, progress: Progress = silent) -> DeploymentRecord:
        """Make or update the endpoint and wait for it.

        Raises `Refused` with the endpoint's own message when the update fails (what was served before serves again),
        and when it is not over in time (it goes on).
        """
        name, what = self._name(agent), f"endpoint {self._name(agent)}"
        with asked(what):
            env = variables(agent, self._platform, model_id=move.model_id, runtime="endpoint")
            wanted = Wanted.of(agent, move.version, {**env, HANDED_AT: now()})
            refusal: OSError | None = None
            former, mine = None, False
            for _ in range(ROUNDS):
                found = self._get(name)
                if found is not None and _updating(found):
                    mine, former = wanted.is_served(found.pending_config), found.config
                    progress(f"{what}: {'the update' if mine else 'an update of somebody else'} is in progress")
                    found = self._settled(agent, progress)
                if found is not None and wanted.is_served(found.config):
                    return self._record(agent, found)
                if found is not None and mine and _failed(found):
                    raise self._taken_back(agent, found, former, progress)
                if found is not None and mine and not refusal and serves_version(found.config, wanted):
                    # The server shows the configuration in another way than it was asked for.
                    return replace(self._record(agent, found), model_id=move.model_id)
                if refusal is not None:
                    raise refusal
                former = found.config if found else None
                refusal = self._ask(agent, found is None, wanted, former)
                mine = refusal is None
        raise Refused(f"{what} is updated by somebody else again and again: run this step again when that is over.")

    def current(self, agent: Agent) -> DeploymentRecord | None:
        """What the endpoint serves of this model: of several versions the one handed over last."""
        with asked(f"endpoint {self._name(agent)}"):
            found = self._get(self._name(agent))
        return self._record(agent, found) if found is not None and self._entity(agent, found.config) else None

    def environment(self, agent: Agent) -> dict[str, str]:
        """The variables of the served version; references to secrets as they stand there."""
        with asked(f"endpoint {self._name(agent)}"):
            found = self._get(self._name(agent))
        entity = self._entity(agent, found.config) if found is not None else None
        if entity is None:
            raise nothing_handed_over(agent)
        return shown(env_of(entity))

    def _name(self, agent: Agent) -> str:
        return endpoint_name(agent, self._platform)

    def _page(self, agent: Agent) -> str:
        return f"{open_workspace(self._platform).config.host}/ml/endpoints/{self._name(agent)}"

    def _get(self, name: str) -> "ServingEndpointDetailed | None":
        from databricks.sdk.errors import NotFound

        try:
            return open_workspace(self._platform).serving_endpoints.get(name)
        except NotFound as error:
            if error.error_code == "ENDPOINT_NOT_FOUND":  # The API is not there, which says nothing of the endpoint.
                raise
            return None

    def _settled(self, agent: Agent, progress: Progress) -> "ServingEndpointDetailed":
        """The endpoint once no update is in progress."""
        name = self._name(agent)

        def look() -> "ServingEndpointDetailed | None":
            found = self._get(name)
            if found is None:
                raise Refused(f"endpoint {name} was deleted while it was updated: run this step again.")
            return None if _updating(found) else found

        return wait_for(
            f"endpoint {name}",
            patient(look, progress),
            seconds=60 * agent.spec.deployment.wait_minutes,
            progress=progress,
            every=self._every,
        )

    def _ask(
        self, agent: Agent, absent: bool, wanted: Wanted, active: "EndpointCoreConfigOutput | None"
    ) -> OSError | None:
        """Start the update. An error is given back: whether the request arrived is read from the endpoint."""
        from databricks.sdk.service.serving import EndpointCoreConfigInput, EndpointTag

        endpoints, config = open_workspace(self._platform).serving_endpoints, wanted.beside(active)
        try:
            if absent:
                first = EndpointCoreConfigInput(
                    served_entities=config.served_entities, traffic_config=config.traffic_config
                )
                endpoints.create(self._name(agent), config=first, tags=[EndpointTag("lifecycle_agent", agent.name)])
            else:
                endpoints.update_config(
                    self._name(agent),
                    served_entities=config.served_entities,
                    traffic_config=config.traffic_config,
                    auto_capture_config=config.auto_capture_config,
                )
        except OSError as error:
            return error
        return None

    def _taken_back(
        self,
        agent: Agent,
        failed: "ServingEndpointDetailed",
        former: "EndpointCoreConfigOutput | None",
        progress: Progress,
    ) -> Refused:
        """The refusal of a failed update, after the former configuration was restored."""
        from resources.databricks.deployment.serving_config import again

        name, why = self._name(agent), said(failure_of(failed))
        told = f"endpoint {name} could not be updated: {why}; see {self._page(agent)}."
        if former is None or not former.served_entities:
            return Refused(f"{told} It served nothing before; mend the cause, then run this step again.")
        progress(f"endpoint {name}: the update failed, what was served before is restored")
        config = again(former)
        try:
            open_workspace(self._platform).serving_endpoints.update_config(
                name,
                served_entities=config.served_entities,
                traffic_config=config.traffic_config,
                auto_capture_config=config.auto_capture_config,
            )
        except OSError as error:
            progress(f"endpoint {name}: {said(str(error), 100)}; looking whether it was heard")
        restored = self._settled(agent, progress)
        if _failed(restored):
            return Refused(f"{told} Restoring what was served before failed too: {said(failure_of(restored))}.")
        return Refused(f"{told} What was served before serves again; mend the cause, then run this step again.")

    def _entity(self, agent: Agent, config: "EndpointCoreConfigOutput | None") -> "ServedEntityOutput | None":
        return entity_of(config, agent.spec.model_name)

    def _record(self, agent: Agent, found: "ServingEndpointDetailed") -> DeploymentRecord:
        entity = self._entity(agent, found.config)
        assert entity is not None  # Whoever asks has seen it.
        env = env_of(entity)
        return DeploymentRecord(
            "databricks_serving",
            self._page(agent),
            entity.entity_version or "",
            env.get("MLFLOW_ACTIVE_MODEL_ID", ""),
            env.get(HANDED_AT) or at(entity.creation_timestamp or found.last_updated_timestamp),
        )


def _update_state(found: "ServingEndpointDetailed") -> str:
    state = found.state.config_update if found.state else None
    return state.value if state else ""


def _updating(found: "ServingEndpointDetailed") -> bool:
    return _update_state(found) == "IN_PROGRESS"


def _failed(found: "ServingEndpointDetailed") -> bool:
    return _update_state(found) in ("UPDATE_FAILED", "UPDATE_CANCELED")
