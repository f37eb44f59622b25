"""The group `review`: labeling session, labels, agreement of judges with people.

Lives here: thin assets over `choosing.py`, `labels.py`, `agreement.py` and the gateways.
Add here: something that is done with what people said.
Not here: when a session opens (`sensors/labeling.py`).
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from lifecycle_assets.edges import latest, lifecycle_asset, recent_records, result, upstream
from lifecycle_assets.spec import Labeling, LabelSchema
from lifecycle_assets.spec_file import Agent
from resources.needs import Evaluator, LabelingDesk, SqlEngine, TraceStore
from resources.platform import Platform

if TYPE_CHECKING:
    from lifecycle_assets.records import SessionRecord
    from lifecycle_assets.review.agreement import Agreement

GROUP = "review"
SESSIONS_KEPT = 50
"""Labeling sessions, newest first, whose completed items are still synced."""
EVER = 1000
"""Materializations of labeling_session that are looked through for a session's record."""

SCORE_SQL = """
SELECT trace_id, value_number AS value FROM assessments
WHERE valid AND name = ? AND scorer_version = ? AND value_number IS NOT NULL
"""


class SessionConfig(dg.Config):
    """What a labeling session is about."""

    trace_ids: list[str] = Field(
        default_factory=list, description="Traces to review; empty: chosen by the declared rules."
    )
    name: str = Field(default="", description="Name of the session; empty: <agent>-<UTC day>.")
    reason: str = Field(default="asked for", description="Why it opens, in words.")


def review_assets(agent: Agent) -> list[dg.AssetsDefinition]:
    """The assets of this group for one agent."""
    return [labeling_session(agent), human_labels(agent), judge_agreement(agent)]


def labeling_session(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/labeling_session`."""

    @lifecycle_asset(agent.name, group=GROUP, deps=["archived_traces"], kinds={"mlflow"}, pool=f"{agent.name}_labeling")
    def labeling_session(
        context: dg.AssetExecutionContext,
        config: SessionConfig,
        desk: dg.ResourceParam[LabelingDesk],
        traces: dg.ResourceParam[TraceStore],
        sql: dg.ResourceParam[SqlEngine],
    ) -> dg.MaterializeResult:
        """The open or last labeling session: traces that people should review, with the declared questions.

        A trace that was ever in a session is not queued again, also when a reviewer removed it. Safe to run again:
        the session is found by its name and completed; without a trace to review nothing is opened.
        """
        from lifecycle_assets.records import ChampionRecord, SessionRecord
        from lifecycle_assets.review.choosing import choose_traces
        from lifecycle_assets.text import literal, table
        from resources.labeling_desk import QUEUED_TAG

        before = latest(context.instance, context.asset_key, SessionRecord)
        now = datetime.now(UTC)
        name = config.name or f"{agent.name}-{now:%Y-%m-%d}"
        wanted = dict.fromkeys(config.trace_ids, config.reason)
        if not wanted:
            prefix = f"{Platform.from_env().environment}_{agent.name}_"
            wanted = choose_traces(sql, agent.spec.table_prefix, agent.spec.labeling, scorer_prefix=prefix)
        tagged = {trace.info.trace_id: trace.info.tags.get(QUEUED_TAG, "") for trace in traces.read(list(wanted))}
        recorded = {session.session_id for session in sessions_of(context.instance, agent.name, limit=EVER)}
        # A trace tagged with a session no record names was queued by a run that died: that session is resumed.
        left = [tag for tag in tagged.values() if tag and tag not in recorded]
        if not left and all(tagged.values()):
            context.log.info("no trace qualifies: no session is opened")
            unchanged = before or SessionRecord("", "", [], "", "no trace qualified", now.isoformat(timespec="seconds"))
            return result(unchanged, data_version=unchanged.session_id or "none", metadata={"new": "nothing to review"})
        session = desk.open(agent, desk.interrupted(agent, left) or name, [*wanted])
        champion = latest(context.instance, dg.AssetKey([agent.name, "champion_alias"]), ChampionRecord)
        record = SessionRecord(
            session_id=session.session_id,
            name=session.name,
            trace_ids=[item.trace_id for item in desk.items(session.session_id)],
            champion_version=champion.version if champion else "",
            reason=config.reason,
            opened_at=before.opened_at
            if before and before.session_id == session.session_id
            else now.isoformat(timespec="seconds"),
        )
        return result(
            record,
            data_version=session.session_id,
            metadata={
                "mlflow/review_queue": session.name,
                "created": session.created,
                "reason": literal(config.reason),
                "traces": table(["trace", "why"], [(t, wanted.get(t, "queued before")) for t in record.trace_ids]),
                "reviewers": ", ".join(map(literal, agent.spec.labeling.reviewers)) or "anybody",
                **({"mlflow/queue_url": dg.MetadataValue.url(session.url)} if session.url else {}),
            },
        )

    return labeling_session


def human_labels(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/human_labels`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["labeling_session"],
        kinds={"mlflow"},
        checks={"reviewer_agreement": "Reviewers who answered the same question on the same trace agree."},
        pool=f"{agent.name}_dataset",
    )
    def human_labels(
        context: dg.AssetExecutionContext,
        desk: dg.ResourceParam[LabelingDesk],
        traces: dg.ResourceParam[TraceStore],
        evaluator: dg.ResourceParam[Evaluator],
    ) -> dg.MaterializeResult:
        """Labels of completed items, with expectations merged into the evaluation dataset.

        Safe to run again: records are merged by their inputs, so that repeating changes nothing.
        """
        from lifecycle_assets.records import LabelsRecord, SessionRecord, digest
        from lifecycle_assets.review.agreement import cohen_kappa
        from lifecycle_assets.review.labels import OPEN_SESSIONS, completions, dataset_records, reviewer_pairs
        from lifecycle_assets.text import table

        sessions = sessions_of(context.instance, agent.name)
        newest = upstream(context, "labeling_session", SessionRecord)
        items = {session.session_id: desk.items(session.session_id) for session in sessions}
        completed = [item.trace_id for found in items.values() for item in found if item.status == "complete"]
        labels = desk.labels(agent, completed) if completed else []
        desk.bring_home(agent, labels)
        rows = [traces.rows(trace, redact=agent.redactions).trace for trace in traces.read(completed)]
        requests = {row["trace_id"]: row["request"] for row in rows}
        records = dataset_records(labels, agent.spec.labeling.schemas, requests)
        dataset = evaluator.merge_labels(agent, records) if records else evaluator.ensure_dataset(agent)
        record = LabelsRecord(
            session_id=newest.session_id,
            completions=completions(dict(list(items.items())[:OPEN_SESSIONS])),
            completed=len(completed),
            labels=len(labels),
            merged=len(records),
            dataset_digest=dataset.digest,
        )
        return result(
            record,
            data_version=digest(record.to_json()),
            metadata={
                "completed": len(completed),
                "labels": len(labels),
                "merged into dataset": len(records),
                "mlflow/dataset": dataset.name,
                "answers": table(
                    ["trace", "question", "answer", "reviewer"],
                    [(label.trace_id, label.schema, label.value, label.reviewer) for label in labels[:50]],
                ),
            },
            checks=[reviewer_check(cohen_kappa(reviewer_pairs(labels, agent.spec.labeling)), agent.spec.labeling)],
        )

    return human_labels


def sessions_of(instance: dg.DagsterInstance, agent: str, *, limit: int = SESSIONS_KEPT) -> "list[SessionRecord]":
    """The agent's labeling sessions, newest first, each once; those of the last `limit` materializations.

    Each as it was last recorded, with every trace that was ever in it: also the one a reviewer removed.
    """
    from lifecycle_assets.records import SessionRecord

    key = dg.AssetKey([agent, "labeling_session"])
    found: dict[str, SessionRecord] = {}
    for record in recent_records(instance, key, SessionRecord, limit=limit):
        if record.session_id:
            kept = found.get(record.session_id, record)
            found[record.session_id] = replace(kept, trace_ids=[*dict.fromkeys(kept.trace_ids + record.trace_ids)])
    return list(found.values())


def reviewer_check(agreement: "Agreement | None", labeling: Labeling) -> dg.AssetCheckResult:
    """Reviewers agree, or no trace was labeled by two."""
    return _agreement_check(
        "reviewer_agreement", [("reviewers", agreement)], labeling, nobody="No trace was labeled by two people."
    )


def judge_agreement(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/judge_agreement`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["human_labels", "trace_scores"],
        kinds={"duckdb"},
        checks={"judges_agree_with_people": "Cohen's kappa of each judge with people reaches the declared value."},
    )
    def judge_agreement(
        context: dg.AssetExecutionContext, desk: dg.ResourceParam[LabelingDesk], sql: dg.ResourceParam[SqlEngine]
    ) -> dg.MaterializeResult:
        """Agreement of each judge with people, as Cohen's kappa with its 95 % interval.

        Counts traces that a person labeled and the judge's current version scored. Safe to run again: it only reads.
        """
        from lifecycle_assets.records import LabelsRecord, ScorersRecord, digest
        from lifecycle_assets.review.agreement import Agreement, cohen_kappa
        from lifecycle_assets.review.labels import judge_pairs
        from lifecycle_assets.text import table

        upstream(context, "human_labels", LabelsRecord)
        scorers = latest(context.instance, dg.AssetKey([agent.name, "registered_scorers"]), ScorersRecord)
        versions = {scorer.name: scorer for scorer in scorers.versions} if scorers else {}
        trace_ids = [
            trace_id for session in sessions_of(context.instance, agent.name) for trace_id in session.trace_ids
        ]
        labels = desk.labels(agent, trace_ids) if trace_ids else []
        found: list[tuple[LabelSchema, Agreement | None]] = []
        for schema in agent.spec.labeling.schemas:
            scorer = versions.get(schema.judges or "")
            if schema.judges and scorer:
                rows = sql.query(
                    agent.spec.table_prefix, SCORE_SQL, [scorer.registered_name, scorer.version], limit=100_000
                )
                scores = {row["trace_id"]: row["value"] for row in rows.dicts()}
                found.append((schema, cohen_kappa(judge_pairs(labels, schema, scores))))
        shown = [(s.judges, s.name, *_numbers(agreement)) for s, agreement in found]
        return dg.MaterializeResult(
            metadata={"agreement": table(["judge", "question", "kappa", "low", "high", "traces", "agreed"], shown)},
            data_version=dg.DataVersion(digest(shown)),
            check_results=[
                _agreement_check(
                    "judges_agree_with_people",
                    [(str(schema.judges), agreement) for schema, agreement in found],
                    agent.spec.labeling,
                    nobody="No trace has both a label and a score yet.",
                )
            ],
        )

    return judge_agreement


def _numbers(agreement: "Agreement | None") -> tuple[float | None, float | None, float | None, int, int]:
    if agreement is None:
        return None, None, None, 0, 0
    return agreement.kappa, agreement.ci_low, agreement.ci_high, agreement.n, agreement.agreed


def _agreement_check(
    check: str, found: "list[tuple[str, Agreement | None]]", labeling: Labeling, *, nobody: str
) -> dg.AssetCheckResult:
    """Passed when every kappa that could be had reaches `min_kappa`.

    Nothing to compare is a warning, not a pass; so is a kappa below whose interval still reaches `min_kappa`.
    """
    known = [(name, agreement) for name, agreement in found if agreement is not None]
    low = [name for name, agreement in known if agreement.kappa is not None and agreement.kappa < labeling.min_kappa]
    surely = [
        name for name, agreement in known if agreement.ci_high is not None and agreement.ci_high < labeling.min_kappa
    ]
    undefined = [name for name, agreement in known if agreement.kappa is None]
    sentences = [f"{name}: kappa is below {labeling.min_kappa:g}: look at the traces they differ on." for name in low]
    sentences += [f"{name}: kappa says nothing, one side gave one answer throughout: label more." for name in undefined]
    return dg.AssetCheckResult(
        check_name=check,
        passed=bool(known) and not sentences,
        severity=dg.AssetCheckSeverity.ERROR if surely else dg.AssetCheckSeverity.WARN,
        description=" ".join(sentences) or ("They agree." if known else nobody),
    )
