"""The asset check `shadow`: a version on the champion's recorded requests.

Lives here: the check's declaration, its configuration, what its page shows.
Add here: a fact of the comparison people want to see there.
Not here: the comparison (`shadow.py`), the job (`lifecycle_assets/jobs.py`).
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from lifecycle_assets.edges import RECORD_KEY
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.explain import explained
from resources.needs import ModelRegistry, Replayer, ScorerRegistry, SqlEngine
from resources.platform import Platform

if TYPE_CHECKING:
    from lifecycle_assets.release.shadow import ShadowRecord

SHADOW = "shadow"


def shadow_key(agent: str) -> dg.AssetCheckKey:
    """The key of the check."""
    return dg.AssetCheckKey(dg.AssetKey([agent, "uc_model_version"]), SHADOW)


class ShadowConfig(dg.Config):
    """What is compared."""

    version: str = Field(default="", description="Version (or alias) to ask; empty: who waits as challenger.")
    traces: int | None = Field(default=None, description="Requests at most; default shadow.max_traces of defs.yaml.")
    max_cost_usd: float | None = Field(
        default=None, description="USD the scorers may cost; default shadow.max_cost_usd of defs.yaml."
    )


def shadow_check(agent: Agent) -> dg.AssetChecksDefinition:
    """Declare `<agent>/uc_model_version:shadow`, which runs only when it is asked for."""
    key = shadow_key(agent.name)
    spec = dg.AssetCheckSpec(
        SHADOW,
        asset=key.asset_key,
        description="A waiting version answers the champion's own recorded requests, and both answers are compared "
        f"request by request. Run the job {agent.name}_shadow, or lifecycle shadow {agent.name} VERSION.",
    )

    # With can_subset it need not answer: materializing the asset selects its checks too, and this one costs money.
    @dg.multi_asset_check(name=f"{agent.name}__shadow", specs=[spec], can_subset=True, pool=f"{agent.name}_evaluation")
    def shadow(
        context: dg.AssetCheckExecutionContext,
        config: ShadowConfig,
        registry: dg.ResourceParam[ModelRegistry],
        scorers: dg.ResourceParam[ScorerRegistry],
        sql: dg.ResourceParam[SqlEngine],
        replayer: dg.ResourceParam[Replayer],
    ) -> Iterator[dg.AssetCheckResult]:
        from lifecycle_assets.release.shadow import shadow_version

        if not is_asked_for(context.run, agent.name):
            context.log.info(f"the check {SHADOW} was not asked for: run the job {agent.name}_shadow")
            return
        platform = Platform.from_env()
        try:
            with explained(platform.tracking_uri):
                record = shadow_version(
                    agent,
                    version=config.version,
                    traces=config.traces,
                    max_cost_usd=config.max_cost_usd,
                    registry=registry,
                    scorers=scorers,
                    sql=sql,
                    replayer=replayer,
                    environment=platform.environment,
                    now=datetime.now(UTC),
                    progress=context.log.info,
                    dagster_run_id=context.run.run_id,
                )
        except Refused as refusal:
            raise refusal.with_traceback(None) from None
        yield check_result(agent.name, record)

    return shadow


def is_asked_for(run: dg.DagsterRun, agent: str) -> bool:
    """Whether a run is of the job, or was started for this check and not for its asset."""
    return run.job_name == f"{agent}_{SHADOW}" or (
        shadow_key(agent) in (run.asset_check_selection or ()) and not run.asset_selection
    )


def check_result(agent: str, record: "ShadowRecord") -> dg.AssetCheckResult:
    """The comparison as Dagster shows it: an error when the version is worse, a warning when nobody can tell."""
    from lifecycle_assets.text import differences_plot, plain, table

    key = shadow_key(agent)
    metrics = [
        (m["metric"], m["outcome"], m["champion"], m["version"], m["difference"], m["low"], m["high"], m["pairs"])
        for m in record.metrics
    ]
    drawn = [
        (m["metric"], m["difference"], m["low"], m["high"], m["allowed"], m["outcome"].replace("_", " "))
        for m in record.metrics
        if m["difference"] is not None
    ]
    losses = [(one["metric"], one["request"], one["answer"], one["champion"], one["version"]) for one in record.losses]
    return dg.AssetCheckResult(
        check_name=key.name,
        asset_key=key.asset_key,
        passed=record.is_well,
        severity=dg.AssetCheckSeverity.ERROR if record.outcome == "worse" else dg.AssetCheckSeverity.WARN,
        description=" ".join([record.headline, *(plain(one, 500) for one in record.sentences)]),
        metadata={
            "outcome": record.outcome,
            "version": record.version,
            "champion": record.champion,
            "mlflow/run_id": record.run_id,
            "comparison": table(
                ["metric", "outcome", "champion", "version", "improvement", "low", "high", "pairs"], metrics
            ),
            **({"plot": differences_plot("The version against the champion", drawn)} if drawn else {}),
            **(
                {"largest_losses": table(["metric", "recorded trace", "new trace", "champion", "version"], losses)}
                if losses
                else {}
            ),
            "pairs": record.pairs,
            "left_out": table(["why", "requests"], sorted(record.skipped.items())),
            "scorers_left_out": table(["scorer", "why"], sorted(record.left_out.items())),
            "cost_usd": record.cost_usd,
            "reused": record.reused,
            **({"mlflow/run_url": dg.MetadataValue.url(record.url)} if record.url else {}),
            RECORD_KEY: dg.MetadataValue.json(record.to_json()),
        },
    )
