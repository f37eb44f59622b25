"""The group `monitoring`: scorers, production traces, scores, the archive, daily numbers.

Lives here: the group, and thin assets over the gateways.
Add here: a step between a production trace and a score.
Not here: tables (`tables.py`), what a day's steps do (`steps.py`), people's labels (`lifecycle_assets/review/`).
"""

import warnings

import dagster as dg
from pydantic import Field

from lifecycle_assets.edges import RECORD_KEY, lifecycle_asset, result, upstream
from lifecycle_assets.monitoring.tables import archived_traces, quality_metrics
from lifecycle_assets.monitoring.upkeep import archive_upkeep
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import MAX_SCORERS
from lifecycle_assets.spec_file import Agent
from resources.needs import Compute, ScorerRegistry, Scoring, TraceStore
from resources.platform import Platform

GROUP = "monitoring"


class ScoresConfig(dg.Config):
    """What one run of `trace_scores` may do; the launchpad shows it."""

    scorers: list[str] = Field(default=[], description="Declared names of the scorers that are called; empty: all.")
    max_traces: int = Field(default=0, ge=0, description="Traces (or sessions) scored at most, newest first; 0: all.")
    max_cost_usd: float = Field(default=0.0, ge=0, description="USD spent at most by cost_per_call; 0: no cap.")


def monitoring_assets(agent: Agent) -> list[dg.AssetsDefinition | dg.SourceAsset]:
    """The assets of this group for one agent."""
    days = trace_days(agent)
    return [
        registered_scorers(agent),
        production_traces(agent),
        trace_scores(agent, days),
        archived_traces(agent, days),
        quality_metrics(agent, days),
        archive_upkeep(agent),
    ]


def trace_days(agent: Agent) -> dg.DailyPartitionsDefinition:
    """UTC days from the declared start until today."""
    return dg.DailyPartitionsDefinition(start_date=agent.spec.archive.start_date, end_offset=1)


def registered_scorers(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/registered_scorers`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["champion_alias"],
        kinds={"mlflow"},
        blocking={
            "self_contained": "Every scorer runs alone, in an empty namespace.",
            "within_limits": f"At most {MAX_SCORERS} scorers, every rate within 0..1.",
        },
        checks={"as_declared": "What is registered is what defs.yaml declares."},
        pool=f"{agent.name}_scorers",
    )
    def registered_scorers(
        context: dg.AssetExecutionContext, scorers: dg.ResourceParam[ScorerRegistry]
    ) -> dg.MaterializeResult:
        """The scorers registered with MLflow under versions of their source, with their sampling rates.

        Each is tried alone before it is registered. Safe to run again: the same source keeps its version; rates
        and filters follow the declaration.
        """
        from lifecycle_assets.records import ChampionRecord, ScorersRecord, digest
        from lifecycle_assets.text import table
        from resources.scorer_source import declared_scorers

        champion = upstream(context, "champion_alias", ChampionRecord)
        held = {scorer.registered_name: scorer.digest for scorer in scorers.registered(agent)}
        declared = declared_scorers(agent, Platform.from_env().environment)
        # What is registered stood alone then: only a new source is tried.
        is_new = any(held.get(scorer.registered_name) != scorer.digest for scorer in declared)
        faults = scorers.try_alone(agent, progress=context.log.info) if is_new else {}
        if faults:
            raise Refused(" ".join(faults[name] for name in sorted(faults)), check="self_contained")
        registered = scorers.register(agent, progress=context.log.info)
        now = scorers.registered(agent)
        record = ScorersRecord(
            digest=digest([scorer.to_json() for scorer in registered]),
            model_id=champion.model_id,
            scorers=[scorer.to_json() for scorer in registered],
        )
        drifted = sorted(
            {s.registered_name for s in registered}
            ^ {s.registered_name for s in now if s.sample_rate > 0 or s in registered}
        )
        return result(
            record,
            data_version=record.digest,
            metadata={
                "scorers": table(
                    ["scorer", "registered as", "version", "rate", "filter", "USD a call"],
                    [
                        (s.name, s.registered_name, s.version, s.sample_rate, s.filter, s.cost_per_call)
                        for s in registered
                    ],
                )
            },
            checks=[
                dg.AssetCheckResult(check_name="self_contained", passed=True),
                dg.AssetCheckResult(
                    check_name="within_limits",
                    passed=len(registered) <= MAX_SCORERS and all(0 <= s.sample_rate <= 1 for s in registered),
                    description=f"{len(registered)} of {MAX_SCORERS} scorers.",
                ),
                dg.AssetCheckResult(
                    check_name="as_declared",
                    passed=not drifted,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=f"Differ: {', '.join(drifted)}." if drifted else "As declared.",
                ),
            ],
        )

    return registered_scorers


def production_traces(agent: Agent) -> dg.SourceAsset:
    """Declare `<agent>/production_traces`."""
    with warnings.catch_warnings():
        # See agent_source: beta, unchanged since 1.8, held by the pin.
        warnings.simplefilter("ignore", dg.BetaWarning)

        @dg.observable_source_asset(
            key=dg.AssetKey([agent.name, "production_traces"]),
            group_name=GROUP,
            description="The production traces in the MLflow experiment: those of users, not those of evaluations. "
            "Observe it to see the newest.",
            tags={"dagster/kind/mlflow": ""},
        )
        def observed_traces(traces: dg.ResourceParam[TraceStore]) -> dg.ObserveResult:
            newest = traces.newest(agent.spec.experiment)
            seen = (
                {"newest_trace": newest.trace_id, "request_ms": newest.request_ms}
                if newest
                else {"newest_trace": "none"}
            )
            return dg.ObserveResult(
                data_version=dg.DataVersion(newest.trace_id if newest else "none"),
                metadata={
                    **seen,
                    "model_id": newest.model_id if newest else "",
                    RECORD_KEY: dg.MetadataValue.json(seen),
                },
            )

    return observed_traces


def trace_scores(agent: Agent, days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """Declare `<agent>/trace_scores`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["production_traces", "registered_scorers"],
        kinds={"mlflow"},
        checks={"coverage": "The declared share of sampled traces has its score in time, and no scorer failed."},
        partitions=days,
        pool=f"{agent.name}_scores",
    )
    def trace_scores(
        context: dg.AssetExecutionContext,
        config: ScoresConfig,
        compute: dg.ResourceParam[Compute],
        scoring: dg.ResourceParam[Scoring],
    ) -> dg.MaterializeResult:
        """Scores of a day's production traces and sessions by every active scorer's current version.

        They land in the table assessments, and then in MLflow under the same ids. Sampling is by hash: the same
        decision for a trace and a scorer for ever. Only missing (trace, scorer, version) triples are scored; a scorer
        that raises leaves its error, which is tried again when it may pass by itself. Safe to run again.
        """
        from lifecycle_assets.monitoring.dispatch import materialize
        from lifecycle_assets.records import ScorersRecord
        from resources.scoring.scoring import ScoreLimits

        registered = upstream(context, "registered_scorers", ScorersRecord)
        unknown = sorted(set(config.scorers) - {scorer.name for scorer in agent.spec.scorers})
        if unknown:
            raise Refused(
                f"{agent.name}/trace_scores: scorers names {', '.join(map(repr, unknown))[:200]}, which defs.yaml does "
                f"not declare; declared are {', '.join(scorer.name for scorer in agent.spec.scorers)}."
            )
        limits = ScoreLimits(config.scorers, config.max_traces, config.max_cost_usd)
        inputs = {"registered_scorers": registered, "limits": limits}
        return materialize(context, agent, compute, gateways={"scoring": scoring}, inputs=inputs)

    return trace_scores
