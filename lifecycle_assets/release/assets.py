"""The group `release`: registered version, champion, deployment.

Lives here: the assets that decide what users meet, thin over `promotion.py` and the gateways.
Add here: a stage between a passed evaluation and the runtime.
Not here: the conditions of a move (`promotion.py`).
"""

from datetime import UTC, datetime

import dagster as dg

from lifecycle_assets.edges import lifecycle_asset, result, upstream
from lifecycle_assets.records import ChampionRecord, EvalRecord, ModelRecord, VersionRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.release.deployment import deployment
from lifecycle_assets.release.promotion import load_back, promote, require_evidence, version_tags
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.text import plain, table
from resources.archive import Archive
from resources.model_registry import ModelRegistry
from resources.sql_engine import SqlEngine

GROUP = "release"


def release_assets(agent: Agent) -> list[dg.AssetsDefinition]:
    """The assets of this group for one agent."""
    return [uc_model_version(agent), champion_alias(agent), deployment(agent)]


def uc_model_version(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/uc_model_version`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["logged_model", "eval_results"],
        kinds={"mlflow"},
        blocking={
            "loads_back": "The version, loaded from the registry in a process of its own, answers the input example.",
            "linked_to_logged_model": "The version names the logged model it was registered from.",
        },
        pool=f"{agent.name}_registry",
    )
    def uc_model_version(
        context: dg.AssetExecutionContext, registry: dg.ResourceParam[ModelRegistry]
    ) -> dg.MaterializeResult:
        """The registered version of a logged model whose evaluation passed.

        Its tags name the model, the evaluation, the dataset digest, the git commit and this run. Safe to run again:
        one version a logged model, found by its tag; an interrupted registration is completed.
        """
        model = upstream(context, "logged_model", ModelRecord)
        evaluation = upstream(context, "eval_results", EvalRecord)
        require_evidence(evaluation, model.model_id, agent.spec.eval.gate, now=datetime.now(UTC))
        tags = version_tags(model, evaluation, agent.spec.eval.gate, context.run.run_id)
        version = registry.register(agent.spec.model_name, model.model_id, tags)
        request = agent.spec.agent.input_example
        answer = load_back(version, model.model_id, request, registry=registry, progress=context.log.info)
        linked = version.model_id == model.model_id
        return result(
            VersionRecord(
                name=version.name,
                version=version.version,
                model_id=version.model_id,
                eval_run_id=evaluation.run_id,
                dataset_digest=evaluation.dataset_digest,
                evidence_digest=evaluation.evidence_digest,
            ),
            data_version=version.version,
            metadata={
                "mlflow/version": f"models:/{version.name}/{version.version}",
                "mlflow/model_id": version.model_id,
                "mlflow/eval_run_id": evaluation.run_id,
                "tags": table(["tag", "value"], sorted(version.tags.items())),
            },
            checks=[
                dg.AssetCheckResult(check_name="loads_back", passed=True, metadata={"answer": plain(answer)}),
                dg.AssetCheckResult(
                    check_name="linked_to_logged_model",
                    passed=linked,
                    description="" if linked else f"It names '{version.model_id}', not {model.model_id}.",
                ),
            ],
        )

    return uc_model_version


def champion_alias(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/champion_alias`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["uc_model_version", "eval_results"],
        kinds={"mlflow", "deltalake"},
        checks={"points_at_gated_version": "The alias points at the version whose evaluation let it through."},
        pool=f"{agent.name}_registry",
    )
    def champion_alias(
        context: dg.AssetExecutionContext,
        registry: dg.ResourceParam[ModelRegistry],
        archive: dg.ResourceParam[Archive],
        sql: dg.ResourceParam[SqlEngine],
    ) -> dg.MaterializeResult:
        """Who is `champion`, and who was before.

        The alias moves only on the passed evaluation of its own version; the first champion is gated like any other.
        Every move is a row of `promotions`. Safe to run again: see `promote`.
        """
        version = upstream(context, "uc_model_version", VersionRecord)
        evaluation = upstream(context, "eval_results", EvalRecord)
        require_evidence(evaluation, version.model_id, agent.spec.eval.gate, now=datetime.now(UTC))
        if version.evidence_digest != evaluation.evidence_digest:
            raise Refused(
                f"Version {version.version} was registered on evidence {version.evidence_digest}, the evaluation is "
                f"now {evaluation.evidence_digest}: materialize uc_model_version first."
            )
        move = promote(
            version,
            evaluation,
            prefix=agent.spec.table_prefix,
            registry=registry,
            archive=archive,
            sql=sql,
            dagster_run_id=context.run.run_id,
            actor=context.run.tags.get("user", "dagster"),
            gate=agent.spec.eval.gate,
        )
        target = registry.aliases(version.name).get(CHAMPION, "")
        return result(
            ChampionRecord(
                name=version.name,
                version=version.version,
                model_id=version.model_id,
                previous=move.from_version,
                challenger="",
                evidence_digest=evaluation.evidence_digest,
                promoted_at=move.at,
            ),
            data_version=version.version,
            metadata={
                "mlflow/champion": f"models:/{version.name}/{version.version}",
                "mlflow/model_id": version.model_id,
                "previous": move.from_version or "nobody",
                "moved": move.moved,
                "mlflow/eval_run_id": evaluation.run_id,
            },
            checks=[
                dg.AssetCheckResult(
                    check_name="points_at_gated_version",
                    passed=target == version.version,
                    description=f"champion is version {target or 'of nobody'}, gated is version {version.version}.",
                )
            ],
        )

    return champion_alias
