"""Where each stage of an agent stands, as facts.

Lives here: one function a stage, each reading its facts from where they are kept.
Add here: a stage, or a fact of one.
Not here: the release group (`stages_release.py`), printing (`status.py`), what should change (`plan.py`).
"""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from lifecycle_assets.candidate.source import observe_source
from lifecycle_assets.cli.output import iso
from lifecycle_assets.cli.sources import Recorded, Sources, guarded
from lifecycle_assets.cli.stages_release import Facts, champion_stage, deployment_stage, differs, version_stage
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.monitoring.settled import settled_before_ms
from lifecycle_assets.records import (
    ArchiveRecord,
    DatasetRecord,
    EvalRecord,
    ModelRecord,
    ScoresRecord,
    SessionRecord,
    UpkeepRecord,
)
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.text import unescaped

SESSIONS = 5
"""Labeling sessions shown, newest first."""

CLOCKS_MS = 60_000
"""How far clocks of machines that are well set may differ: a trace dated further ahead is said to be."""

DAYS = 60
"""Materializations of `trace_scores` among which the newest day is looked for."""


def agent_status(agent: Agent, sources: Sources) -> Facts:
    """Every stage by name, in the order of the lifecycle."""
    return {name: guarded(sources, partial(read, agent, sources)) for name, read in STAGES.items()}


def _source(agent: Agent, sources: Sources) -> Facts:
    source = observe_source(agent)
    return {"digest": source.digest, "git_commit": source.git_commit}


def _dataset(agent: Agent, sources: Sources) -> Facts | None:
    found = sources.latest(agent, "eval_dataset", DatasetRecord)
    return (
        None
        if found is None
        else {
            "at": found.at,
            "name": found.record.name,
            "digest": found.record.digest,
            "rows": found.record.rows,
        }
    )


def _model(agent: Agent, sources: Sources) -> Facts | None:
    found = sources.latest(agent, "logged_model", ModelRecord)
    if found is None:
        return None
    model, now = found.record, observe_source(agent).digest
    behind = (
        ""
        if model.source_digest == now
        else f"the source is now {now}, the model was logged from {model.source_digest}"
    )
    return {
        "at": found.at,
        "model_id": model.model_id,
        "run_id": model.run_id,
        "source_digest": model.source_digest,
        **differs(behind),
    }


def _evaluation(agent: Agent, sources: Sources) -> Facts | None:
    found = sources.latest(agent, "eval_results", EvalRecord)
    if found is None:
        return None
    record = found.record
    return {
        "at": record.at or found.at,
        "run_id": record.run_id,
        "model_id": record.model_id,
        "verdict": record.verdict,
        "reasons": record.reasons,
        "rows": record.rows,
        "errors": record.errors,
        "dataset_digest": record.dataset_digest,
        "metrics": record.metrics,
    }


def _scorers(agent: Agent, sources: Sources) -> Facts | None:
    found = sources.scorers.registered(agent) if sources.experiment(agent) else []
    rows = [
        {"name": s.name, "registered_name": s.registered_name, "version": s.version, "sample_rate": s.sample_rate}
        for s in found
    ]
    return {"scorers": rows} if rows else None


def _archive(agent: Agent, sources: Sources) -> Facts | None:
    counts = sources.sql.tables(agent.spec.table_prefix)
    newest = sources.traces.newest(agent.spec.experiment) if sources.experiment(agent) else None
    now_ms, settled_ms = int(time.time() * 1000), settled_before_ms(agent)
    due, ahead = newest, 0
    if newest and newest.ended_ms >= settled_ms:  # It may not be archived yet: an older one is what should be there.
        due = sources.traces.newest(agent.spec.experiment, settled_before_ms=settled_ms)
        ahead = sources.traces.dated_from(agent.spec.experiment, now_ms + CLOCKS_MS)
        newest = sources.traces.newest(agent.spec.experiment, settled_before_ms=now_ms + CLOCKS_MS) if ahead else newest
    if not ahead and not any(counts[table] for table in ("traces", "spans", "assessments")) and newest is None:
        return None
    last = sources.rows(agent, "SELECT max(request_time) AS newest FROM traces")[0]["newest"]
    ran = sources.latest(agent, "archived_traces", ArchiveRecord)
    produced = datetime.fromtimestamp(newest.request_ms / 1000, UTC) if newest else None
    behind = max(0.0, due.request_ms / 1000 - last.timestamp()) if due and last else 0.0 if last else None
    return {
        "last_ran": ran.at if ran else "",
        "rows": counts,
        "newest_trace_archived": iso(last),
        "newest_trace_produced": iso(produced),
        "behind_seconds": None if behind is None else round(behind, 3),
        "dated_ahead": ahead,
        "newest_trace": newest.trace_id if newest else "",
        "newest_trace_model_id": newest.model_id if newest else "",
        **differs("" if sources.platform.is_databricks else _lost(agent, sources)),
    }


def _lost(agent: Agent, sources: Sources) -> str:
    """Why MLflow's store is not the one the tables were filled from."""
    from resources.archive.lost_store import lost_store

    return lost_store(sources.platform, agent.spec.table_prefix, agent.spec.experiment)


def _upkeep(agent: Agent, sources: Sources) -> Facts | None:
    found = sources.latest(agent, "archive_upkeep", UpkeepRecord)
    return None if found is None else {"at": found.at, **found.record.to_json()}


def _coverage(agent: Agent, sources: Sources) -> Facts | None:
    found = sources.records(agent, "trace_scores", ScoresRecord, limit=DAYS)
    if not found:
        return None
    # Newest first, so that `max` keeps the newest materialization of the newest day.
    last = max(found, key=lambda one: one.record.day)
    by_day = {one.record.day: one for one in reversed(found)}
    pending = [one for one in by_day.values() if one.numbers.get("pending")]
    return {
        "at": last.at,
        "day": last.record.day,
        "traces": last.record.traces,
        "coverage": last.record.coverage,
        **publishing_lag(pending, datetime.now(UTC)),
    }


def publishing_lag(pending: Sequence[Recorded[ScoresRecord]], now: datetime) -> Facts:
    """Scores that MLflow does not show yet, by the last run of each day that has some, and for how long the oldest."""
    minutes = [
        one.numbers.get("oldest_pending_minutes", 0) + (now - datetime.fromisoformat(one.at)).total_seconds() / 60
        for one in pending
    ]
    return {
        "pending": sum(int(one.numbers["pending"]) for one in pending),
        "oldest_pending_minutes": round(max(minutes), 1) if minutes else None,
    }


def _sessions(agent: Agent, sources: Sources) -> Facts | None:
    by_id: dict[str, SessionRecord] = {}
    for one in sources.records(agent, "labeling_session", SessionRecord, limit=DAYS):
        if one.record.session_id:
            by_id.setdefault(one.record.session_id, one.record)
    rows = []
    for session in [*by_id.values()][:SESSIONS]:
        items = sources.desk.items(session.session_id) if sources.has_store else []
        done = sum(1 for item in items if item.status == "complete")
        rows.append(
            {
                "session_id": session.session_id,
                "name": session.name,
                "opened_at": session.opened_at,
                "items": len(items),
                "completed": done,
                "reason": session.reason,
            }
        )
    return {"sessions": rows} if rows else None


def _checks(agent: Agent, sources: Sources) -> Facts | None:
    """Checks whose newest evaluation failed."""
    import dagster as dg

    if sources.instance is None:
        return None
    keys = sorted(agent_definitions(agent).resolve_asset_graph().asset_check_keys)
    failed, seen = [], 0
    for key in keys:
        record = sources.instance.get_latest_asset_check_evaluation_record(key)
        said = record.evaluation if record else None
        # A check of a run that stopped before it was only planned: it says nothing.
        if record is None or not isinstance(said, dg.AssetCheckEvaluation):
            continue
        seen += 1
        if not said.passed:
            failed.append(
                {
                    "at": iso(record.create_timestamp),
                    "asset": key.asset_key.to_user_string(),
                    "check": key.name,
                    "severity": said.severity.value,
                    "blocking": bool(said.blocking),
                    "why": unescaped(said.description or ""),
                }
            )
    return {"evaluated": seen, "failed": failed} if seen else None


STAGES: dict[str, Callable[[Agent, Sources], Facts | None]] = {
    "agent_source": _source,
    "eval_dataset": _dataset,
    "logged_model": _model,
    "eval_results": _evaluation,
    "uc_model_version": version_stage,
    "champion_alias": champion_stage,
    "deployment": deployment_stage,
    "registered_scorers": _scorers,
    "trace_scores": _coverage,
    "archived_traces": _archive,
    "archive_upkeep": _upkeep,
    "labeling_session": _sessions,
    "checks": _checks,
}
"""Stage to its reader, in the order of the lifecycle."""
