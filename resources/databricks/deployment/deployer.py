"""Handing the champion over in a workspace: which runtime a declared target is.

Lives here: the choice. Add here: a target. Not here: the runtimes (one module each), the local hand-off
(`resources/deployer.py`).
"""

from lifecycle_assets.records import DeploymentRecord
from lifecycle_assets.spec_file import Agent
from resources.databricks.deployment.apps import AppDeployer
from resources.databricks.deployment.job_trigger import JobDeployer
from resources.databricks.deployment.serving import ServingDeployer
from resources.deployer import Deployer, LocalDeployer, silent
from resources.platform import Platform
from resources.worker import Progress


class DatabricksDeployer(Deployer):
    """Hands over to the declared target; `none` and `local` mean what they mean on a laptop.

    `every` is how many seconds lie between two looks at what is waited for.
    """

    def __init__(self, platform: Platform, *, every: float = 2.0) -> None:
        local = LocalDeployer(platform)
        self._runtimes: dict[str, Deployer] = {
            "none": local,
            "local": local,
            "databricks_serving": ServingDeployer(platform, every=every),
            "databricks_app": AppDeployer(platform, every=every),
            "databricks_job": JobDeployer(platform, every=every),
        }

    def hand_off(self, agent: Agent, *, version: str, model_id: str, progress: Progress = silent) -> DeploymentRecord:
        """See the runtime of the declared target."""
        return self._of(agent).hand_off(agent, version=version, model_id=model_id, progress=progress)

    def current(self, agent: Agent) -> DeploymentRecord | None:
        """As the workspace has it now, never as it was recorded."""
        return self._of(agent).current(agent)

    def environment(self, agent: Agent) -> dict[str, str]:
        """As the workspace has it now; a secret is a reference or not shown."""
        return self._of(agent).environment(agent)

    def _of(self, agent: Agent) -> Deployer:
        return self._runtimes[agent.spec.deployment.target]
