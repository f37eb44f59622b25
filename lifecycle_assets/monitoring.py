"""The group `monitoring`: scorers, production traces, scores, the archive, daily numbers.

Lives here: thin assets over `scoring.py`, `quality.py` and the gateways.
Add here: a step between a production trace and a number people watch.
Not here: SQL and arithmetic (`quality.py`), people's labels (`review.py`).
"""

import re
import time
import warnings
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from lifecycle_assets.edges import RECORD_KEY, lifecycle_asset, result, upstream
from lifecycle_assets.quality import HISTORY_SQL, daily_rows, hold
from lifecycle_assets.records import ArchiveRecord, ChampionRecord, ScorersRecord, ScoresRecord, digest
from lifecycle_assets.refused import Refused
from lifecycle_assets.scoring import score_day
from lifecycle_assets.spec import MAX_SCORERS
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.text import lines_plot, table
from resources.archive import Archive
from resources.model_registry import ModelRegistry
from resources.platform import Platform
from resources.scorer_registry import ScorerRegistry
from resources.scorer_source import declared_scorers
from resources.sql_engine import SqlEngine
from resources.trace_store import TraceStore

GROUP = "monitoring"
PLOT_DAYS = 30
"""Days of history shown in the picture of `quality_metrics`."""


def monitoring_assets(agent: Agent) -> list[dg.AssetsDefinition | dg.SourceAsset]:
    """The assets of this group for one agent."""
    days = trace_days(agent)
    return [
        registered_scorers(agent),
        production_traces(agent),
        trace_scores(agent, days),
        archived_traces(agent, days),
        quality_metrics(agent, days),
    ]


def trace_days(agent: Agent) -> dg.DailyPartitionsDefinition:
    """UTC days from the declared start until today."""
    return dg.DailyPartitionsDefinition(start_date=agent.spec.archive.start_date, end_offset=1)


def settled_before_ms(agent: Agent) -> int:
    """Epoch milliseconds before which a trace must have ended to be taken."""
    return int((time.time() - agent.spec.archive.settle_minutes * 60) * 1000)


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
        champion = upstream(context, "champion_alias", ChampionRecord)
        held = {scorer.registered_name: scorer.digest for scorer in scorers.registered(agent)}
        declared = declared_scorers(agent, Platform.from_env().environment)
        # What is registered stood alone then: only a new source is tried.
        is_new = any(held.get(scorer.registered_name) != scorer.digest for scorer in declared)
        faults = scorers.try_alone(agent, progress=context.log.info) if is_new else {}
        if faults:
            raise Refused(" ".join(faults[name] for name in sorted(faults)), check="self_contained")
        registered = scorers.register(agent)
        now = scorers.registered(agent)
        record = ScorersRecord(
            digest=digest([scorer.to_json() for scorer in registered]),
            model_id=champion.model_id,
            scorers=[scorer.to_json() for scorer in registered],
        )
        drifted = sorted({s.registered_name for s in registered} ^ {s.registered_name for s in now if s.sample_rate > 0 or s in registered})
        return result(
            record,
            data_version=record.digest,
            metadata={
                "scorers": table(
                    ["scorer", "registered as", "version", "rate", "filter", "USD a call"],
                    [(s.name, s.registered_name, s.version, s.sample_rate, s.filter, s.cost_per_call) for s in registered],
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
            seen = {"newest_trace": newest.trace_id, "request_ms": newest.request_ms} if newest else {"newest_trace": "none"}
            return dg.ObserveResult(
                data_version=dg.DataVersion(newest.trace_id if newest else "none"),
                metadata={**seen, "model_id": newest.model_id if newest else "", RECORD_KEY: dg.MetadataValue.json(seen)},
            )

    return observed_traces


def trace_scores(agent: Agent, days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """Declare `<agent>/trace_scores`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["production_traces", "registered_scorers"],
        kinds={"mlflow"},
        checks={"coverage": "Every sampled trace of the day has a score of every active scorer's current version."},
        partitions=days,
        pool=f"{agent.name}_scores",
    )
    def trace_scores(
        context: dg.AssetExecutionContext,
        traces: dg.ResourceParam[TraceStore],
        scorers: dg.ResourceParam[ScorerRegistry],
    ) -> dg.MaterializeResult:
        """Scores of a day's production traces by every active scorer's current version, as MLflow assessments.

        Sampling is by hash: the same decision for a trace and a scorer for ever. Only missing (trace, scorer,
        version) pairs are scored; a scorer that raises leaves an assessment with its error. Safe to run again.
        """
        day = date.fromisoformat(context.partition_key)
        registered = upstream(context, "registered_scorers", ScorersRecord)
        seen, written, coverage = score_day(
            agent,
            day,
            registered.versions,
            traces=traces,
            registry=scorers,
            settled_before_ms=settled_before_ms(agent),
            progress=context.log.info,
        )
        record = ScoresRecord(context.partition_key, registered.digest, seen, coverage)
        rows = [(name, c["version"], c["sampled"], c["scored"], c["errored"], c["waiting"]) for name, c in sorted(coverage.items())]
        return result(
            record,
            data_version=digest(record.to_json()),
            metadata={
                "traces": seen,
                "written": written,
                "coverage": table(["scorer", "version", "sampled", "scored", "errored", "waiting"], rows),
            },
            checks=[coverage_check(record)],
        )

    return trace_scores


def coverage_check(record: ScoresRecord) -> dg.AssetCheckResult:
    """Passed when nothing sampled is waiting and nothing errored; an error of a scorer is a warning."""
    waiting = {name: c["waiting"] for name, c in record.coverage.items() if c["waiting"]}
    errored = {name: c["errored"] for name, c in record.coverage.items() if c["errored"]}
    sentences = [f"{name} has not scored {n} sampled traces: run the day again." for name, n in sorted(waiting.items())]
    sentences += [f"{name} failed on {n} traces: see the errors in assessments." for name, n in sorted(errored.items())]
    return dg.AssetCheckResult(
        check_name="coverage",
        passed=not sentences,
        severity=dg.AssetCheckSeverity.ERROR if waiting else dg.AssetCheckSeverity.WARN,
        description=" ".join(sentences) or f"Every sampled trace of {record.day} is scored.",
    )


def archived_traces(agent: Agent, days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """Declare `<agent>/archived_traces`."""
    redact = [(re.compile(rule.pattern), rule.replacement) for rule in agent.spec.archive.redact]

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["production_traces", "trace_scores"],
        kinds={"deltalake"},
        checks={
            "complete": "Every settled production trace of the day is in the table.",
            "no_duplicates": "Each trace, span and assessment is there once.",
        },
        partitions=days,
        pool=f"{agent.name}_tables",
    )
    def archived_traces(
        context: dg.AssetExecutionContext,
        traces: dg.ResourceParam[TraceStore],
        archive: dg.ResourceParam[Archive],
        sql: dg.ResourceParam[SqlEngine],
    ) -> dg.MaterializeResult:
        """A day's production traces, spans and assessments in Delta tables.

        Text is redacted before it is written. Late assessments and changed tags are upserted. Safe to run again:
        rows are merged by key, children before traces, and a day that is up to date gets no commit.
        """
        day, prefix = date.fromisoformat(context.partition_key), agent.spec.table_prefix
        infos = traces.infos(agent.spec.experiment, day, settled_before_ms=settled_before_ms(agent))
        rows = [traces.rows(trace, redact=redact) for trace in traces.read([info.trace_id for info in infos])]
        written = archive.upsert_day(prefix, day, rows)
        absent = sorted({info.trace_id for info in infos} - archive.trace_ids(prefix, day))
        counts, doubled = count_rows(sql, prefix, day)
        record = ArchiveRecord(
            day=context.partition_key,
            traces=counts["traces"],
            spans=counts["spans"],
            assessments=counts["assessments"],
            watermark_ms=max((info.request_ms for info in infos), default=0),
        )
        return result(
            record,
            data_version=digest(record.to_json()),
            metadata={
                "dagster/row_count": record.traces,
                "dagster/partition_row_count": record.traces,
                "dagster/table_name": f"{prefix}traces",
                "written": table(["table", "inserted", "updated"], [(name, w.inserted, w.updated) for name, w in written.items()]),
                "rows": table(["table", "rows"], sorted(counts.items())),
            },
            checks=[
                dg.AssetCheckResult(
                    check_name="complete",
                    passed=not absent,
                    description=f"{len(infos)} in MLflow, {record.traces} in the table"
                    + (f"; missing {', '.join(absent[:5])}: run the day again." if absent else "."),
                ),
                dg.AssetCheckResult(
                    check_name="no_duplicates",
                    passed=not doubled,
                    description=f"More rows than keys in {', '.join(doubled)}." if doubled else "One row a key.",
                ),
            ],
        )

    return archived_traces


def count_rows(sql: SqlEngine, prefix: str, day: date) -> tuple[dict[str, int], list[str]]:
    """Rows of a day in each table, and the tables in which a key stands twice."""
    keys = {"traces": "trace_id", "spans": "(trace_id, span_id)", "assessments": "(trace_id, assessment_id)"}
    counts, doubled = {}, []
    for name, key in keys.items():
        row = sql.query(
            prefix, f"SELECT count(*) AS n, count(DISTINCT {key}) AS k FROM {name} WHERE trace_date = ?", [day]  # noqa: S608
        ).dicts()[0]
        counts[name] = row["n"]
        if row["n"] != row["k"]:
            doubled.append(name)
    return counts, doubled


def quality_metrics(agent: Agent, days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """Declare `<agent>/quality_metrics`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["archived_traces"],
        kinds={"duckdb", "deltalake"},
        checks={rule.name: f"Alert rule on {rule.metric}." for rule in agent.spec.alerts.rules},
        partitions=days,
        pool=f"{agent.name}_tables",
    )
    def quality_metrics(
        context: dg.AssetExecutionContext,
        archive: dg.ResourceParam[Archive],
        sql: dg.ResourceParam[SqlEngine],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.MaterializeResult:
        """The day's numbers by model version: scores with intervals, latency, errors, feedback; the last 30 days as a picture.

        Safe to run again: the day's rows are replaced as a whole, and only when they differ.
        """
        day, prefix = date.fromisoformat(context.partition_key), agent.spec.table_prefix
        versions = {v.model_id: v.version for v in registry.versions(agent.spec.model_name)}
        scorer_prefix = f"{Platform.from_env().environment}_{agent.name}_"
        rows = daily_rows(sql, prefix, day, scorer_prefix=scorer_prefix, versions=versions)
        written = archive.replace_day(prefix, "quality_metrics", day, rows)
        history = sql.query(prefix, HISTORY_SQL, [day - timedelta(days=PLOT_DAYS), day]).dicts()
        series: dict[str, list[tuple[str, float, float | None, float | None]]] = {}
        for row in history:
            series.setdefault(row["metric"], []).append((row["day"], row["value"], row["low"], row["high"]))
        checks = []
        for rule in agent.spec.alerts.rules:
            breach = hold(rule, [(point[0], point[1]) for point in series.get(rule.metric, [])])
            severity = dg.AssetCheckSeverity.WARN if breach.unknown else dg.AssetCheckSeverity.ERROR
            checks.append(
                dg.AssetCheckResult(
                    check_name=rule.name, passed=not breach.breached, severity=severity, description=breach.sentence
                )
            )
        shown = {name: series[name] for name in sorted(series) if not name.endswith("/error_rate")}
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(rows),
                "dagster/table_name": f"{prefix}quality_metrics",
                "written": written.inserted + written.updated,
                "numbers": table(
                    ["version", "metric", "value", "n", "low", "high"],
                    [(r["version"], r["metric"], r["value"], r["n"], r["ci_low"], r["ci_high"]) for r in rows],
                ),
                **({"plot": lines_plot(f"{agent.name}, last {PLOT_DAYS} days", shown, unit="value")} if shown else {}),
            },
            data_version=dg.DataVersion(digest(rows)),
            check_results=checks,
        )

    return quality_metrics


def today() -> date:
    """The UTC day it is."""
    return datetime.now(UTC).date()
