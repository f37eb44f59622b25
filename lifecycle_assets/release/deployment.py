"""The asset `deployment`, and the proof of what runs.

Lives here: handing the champion to the runtime, and holding the newest trace against the champion.
Add here: a fact the runtime must be told, a further proof.
Not here: targets and how each is told (`resources/deployer.py`, `resources/databricks/deployment/`).
"""

import dagster as dg

from lifecycle_assets.edges import lifecycle_asset, result, upstream
from lifecycle_assets.records import ChampionRecord, DeploymentRecord
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.text import table
from resources.deployer import Deployer
from resources.model_registry import ModelRegistry
from resources.platform import Platform
from resources.trace_store import TraceStore
from resources.tracing import Tracing

GROUP = "release"


def deployment(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/deployment`."""

    @lifecycle_asset(
        agent.name, group=GROUP, deps=["champion_alias"], kinds={"mlflow"}, pool=f"{agent.name}_deployment"
    )
    def deployment(
        context: dg.AssetExecutionContext, deployer: dg.ResourceParam[Deployer], tracing: dg.ResourceParam[Tracing]
    ) -> dg.MaterializeResult:
        """What was handed to the runtime: the version, and the environment that makes its traces name the model.

        To a file that `lifecycle serve` starts from, or to an endpoint, an app or a job of a workspace, which is waited
        for. A failed update is taken back to what ran before. Safe to run again: the runtime is asked what it was told
        last, and told nothing when that is the same.
        """
        champion = upstream(context, "champion_alias", ChampionRecord)
        handed = deployer.hand_off(
            agent, version=champion.version, model_id=champion.model_id, progress=context.log.info
        )
        environment = deployer.environment(agent)
        elsewhere = tracing.otlp_environment(agent)
        return result(
            handed,
            data_version=champion.model_id,
            metadata={
                "target": handed.target,
                "location": _location(handed),
                "mlflow/champion": f"models:/{champion.name}/{champion.version}",
                "mlflow/model_id": champion.model_id,
                "environment": table(["variable", "value"], sorted(environment.items())),
                **({"opentelemetry": table(["variable", "value"], sorted(elsewhere.items()))} if elsewhere else {}),
                "next": _next_step(agent, handed),
            },
        )

    return deployment


def _location(handed: DeploymentRecord) -> dg.MetadataValue:
    """The page of the runtime as a link, the file of a local hand-off as text."""
    if handed.location.startswith(("https://", "http://")):
        return dg.MetadataValue.url(handed.location)
    return dg.MetadataValue.text(handed.location or "none")


def _next_step(agent: Agent, handed: DeploymentRecord) -> str:
    if handed.target == "local":
        return f"lifecycle serve {agent.name}"
    if handed.target == "none":
        return "nothing: the declared target is none"
    return "send a request, then run the check running_version_matches_champion: the newest trace proves what runs"


def running_version_matches_champion(agent: Agent) -> dg.AssetChecksDefinition:
    """Declare the check that proves from traces what runs."""

    @dg.asset_check(asset=dg.AssetKey([agent.name, "deployment"]), name="running_version_matches_champion")
    def running_version_matches_champion(
        registry: dg.ResourceParam[ModelRegistry], traces: dg.ResourceParam[TraceStore]
    ) -> dg.AssetCheckResult:
        """The newest production trace was answered by the champion's logged model."""
        champion = registry.aliases(agent.spec.model_name).get(CHAMPION, "")
        versions = {v.version: v.model_id for v in registry.versions(agent.spec.model_name)}
        newest = traces.newest(agent.spec.experiment)
        passed, sentence = compare_running(versions.get(champion, ""), newest.model_id if newest else None)
        shared = Platform.from_env().is_databricks and agent.spec.deployment.traffic < 100
        if shared and not passed:
            sentence += f" The champion has {agent.spec.deployment.traffic} % of the requests: see further traces."
        return dg.AssetCheckResult(
            passed=passed,
            severity=dg.AssetCheckSeverity.ERROR if newest and not shared else dg.AssetCheckSeverity.WARN,
            description=sentence,
            metadata={"champion": champion or "nobody", "newest_trace": newest.trace_id if newest else "none"},
        )

    return running_version_matches_champion


def compare_running(champion_model_id: str, running_model_id: str | None) -> tuple[bool, str]:
    """Whether traces prove that the champion runs, and the sentence that says so. None means no trace at all."""
    if running_model_id is None:
        return False, "No production trace has arrived: nothing proves what runs. Send a request, then check again."
    if not champion_model_id:
        return False, "Nobody is champion, or the champion names no logged model: promote a version first."
    if not running_model_id:
        return False, "The newest trace names no model: set MLFLOW_ACTIVE_MODEL_ID as the hand-off says."
    if running_model_id != champion_model_id:
        return (
            False,
            f"The newest trace is from {running_model_id}, champion is {champion_model_id}: restart the runtime.",
        )
    return True, f"The newest trace is from the champion's model {champion_model_id}."
