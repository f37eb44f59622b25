"""The asset `deployment`, and the proof of what runs.

Lives here: handing the champion to the runtime, and holding the newest trace against the champion.
Add here: a fact the runtime must be told, a further proof.
Not here: targets and how each is told (`resources/deployer.py`, `resources/databricks/deployment/`), the files for
runtimes nobody tells (`resources/hand_off.py`).
"""

import re
from typing import TYPE_CHECKING, Any

import dagster as dg

from lifecycle_assets.edges import lifecycle_asset, result, upstream
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.spec_file import Agent
from resources import run_marks as marks
from resources.needs import Deployer, ModelRegistry, TraceStore, Tracing
from resources.platform import Platform

if TYPE_CHECKING:
    from lifecycle_assets.records import ChampionRecord, DeploymentRecord
    from resources.deployer import Move

GROUP = "release"


def deployment(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/deployment`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["champion_alias"],
        kinds={"mlflow"},
        pool=f"{agent.name}_deployment",
        skippable=True,
    )
    def deployment(
        context: dg.AssetExecutionContext,
        deployer: dg.ResourceParam[Deployer],
        registry: dg.ResourceParam[ModelRegistry],
        tracing: dg.ResourceParam[Tracing],
    ) -> dg.MaterializeResult | None:
        """What was handed to the runtime: the version, and the environment that makes its traces name the model.

        To a file that `lifecycle serve` starts from, to a receiver of your own, or to an endpoint, an app or a job of a
        workspace, which is waited for. A failed update is taken back to what ran before. The version's tags say where
        it went and when. Left out while nobody is champion, such as when the first version waits for its approval. Safe
        to run again, and to go back to a former version: the runtime is asked what it has now, and told nothing when
        that is the same.
        """
        from lifecycle_assets.records import ChampionRecord
        from lifecycle_assets.text import table
        from resources.hand_off import deployment_tags

        champion = upstream(context, "champion_alias", ChampionRecord)
        if not champion.version:
            waiting = f": version {champion.challenger} waits for its approval" if champion.challenger else ""
            context.log.info(f"Nobody is champion{waiting}. Nothing is handed over.")
            return None
        handed = deployer.hand_off(agent, asked_for(champion, registry), progress=context.log.info)
        registry.tag_version(champion.name, champion.version, deployment_tags(agent, handed))
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
                **_files(agent, handed),
                "next": _next_step(agent, handed),
            },
        )

    return deployment


def asked_for(champion: "ChampionRecord", registry: ModelRegistry) -> "Move":
    """The move a record asks the runtime to follow. Raises `Refused` when champion has moved on since.

    A run that was held up would otherwise hand an older champion over after a rollback: who moves champion hands over
    after the move, one at a time.
    """
    from resources.deployer import Move

    now = registry.aliases(champion.name).get(CHAMPION, "")
    if now != champion.version:
        who = f"version {now}" if now else "nobody"
        raise Refused(
            f"champion is {who} in MLflow and version {champion.version} in the record of champion_alias: nothing was "
            "handed over; materialize champion_alias, then deployment."
        )
    commit = registry.version(champion.name, champion.version).tags.get(marks.GIT_COMMIT, "none")
    return Move(
        version=champion.version,
        model_id=champion.model_id,
        at=champion.promoted_at,
        previous=champion.previous,
        evidence_digest=champion.evidence_digest,
        git_commit="" if commit == "none" else commit,
    )


def _files(agent: Agent, handed: "DeploymentRecord") -> dict[str, Any]:
    """The hand-off for runtimes nobody tells: as text for the page, and locally as files beside the hand-off."""
    from resources.deployer import variables_elsewhere
    from resources.hand_off import keep_files, rendered

    platform, texts, faults = Platform.from_env(), {}, {}
    if handed.target != "none":
        env = variables_elsewhere(agent, platform, version=handed.version, model_id=handed.model_id)
        texts, faults = rendered(env)
    if not platform.is_databricks:
        keep_files(platform.home / "deployments" / agent.name, texts)
    return {**{name: _as_written(text) for name, text in texts.items()}, **faults}


def _as_written(text: str) -> dg.MarkdownMetadataValue:
    """A file's text, shown to the letter: the fence is longer than any the text holds."""
    fence = "`" * max([3, *(1 + len(run) for run in re.findall("`+", text))])
    return dg.MetadataValue.md(f"{fence}text\n{text}{fence}")


def _location(handed: "DeploymentRecord") -> dg.MetadataValue:
    """The page of the runtime as a link, the file of a local hand-off as text."""
    if handed.location.startswith(("https://", "http://")):
        return dg.MetadataValue.url(handed.location)
    return dg.MetadataValue.text(handed.location or "none")


def _next_step(agent: Agent, handed: "DeploymentRecord") -> str:
    if handed.target == "local":
        return f"lifecycle serve {agent.name}"
    if handed.target == "none":
        return "nothing: the declared target is none"
    return "send a request, then run the check running_version_matches_champion: the newest trace proves what runs"


def running_version_matches_champion(agent: Agent) -> dg.AssetChecksDefinition:
    """Declare the check that proves from traces what runs."""

    # A description and no docstring: Dagster parses docstrings for parameters.
    @dg.asset_check(
        asset=dg.AssetKey([agent.name, "deployment"]),
        name="running_version_matches_champion",
        description="The newest production trace was answered by the champion's logged model.",
    )
    def running_version_matches_champion(
        registry: dg.ResourceParam[ModelRegistry], traces: dg.ResourceParam[TraceStore]
    ) -> dg.AssetCheckResult:
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
