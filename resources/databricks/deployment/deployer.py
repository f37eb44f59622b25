"""Handing the champion over in a workspace: which runtime a declared target is.

Lives here: the choice. Add here: a target. Not here: the runtimes (one module each), the local hand-off
(`resources/local_deployer.py`).
"""

from resources.databricks.deployment.apps import AppDeployer
from resources.databricks.deployment.job_trigger import JobDeployer
from resources.databricks.deployment.serving import ServingDeployer
from resources.databricks.deployment.webhook import WorkspaceWebhookDeployer
from resources.deployer import TargetDeployer
from resources.local_deployer import LocalDeployer
from resources.platform import Platform


class DatabricksDeployer(TargetDeployer):
    """Hands over to the declared target as the workspace has it; `none` and `local` mean what they mean on a laptop.

    `every` is how many seconds lie between two looks at what is waited for.
    """

    def __init__(self, platform: Platform, *, every: float = 2.0) -> None:
        local = LocalDeployer(platform)
        super().__init__(
            {
                "none": local,
                "local": local,
                "databricks_serving": ServingDeployer(platform, every=every),
                "databricks_app": AppDeployer(platform, every=every),
                "databricks_job": JobDeployer(platform, every=every),
                "webhook": WorkspaceWebhookDeployer(platform, backoff_seconds=min(every, 1.0)),
            }
        )
