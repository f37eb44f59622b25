"""`lifecycle status`: where each stage of an agent stands.

Lives here: one function a stage, each reading its facts from where they are kept, and printing them.
Add here: a stage, or a fact of one.
Not here: what should change (`plan.py`), why something happened (`lineage.py`, `history.py`).

A stage nothing is known of is "not yet"; one that could not be read says why and is never shown as empty.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from lifecycle_assets.candidate.source import observe_source
from lifecycle_assets.cli.agents import chosen_agents
from lifecycle_assets.cli.output import clean, iso, json_option, mark, print_json, print_line, print_table
from lifecycle_assets.cli.sources import Sources, guarded, shown_uri
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.records import (
    ChampionRecord,
    DatasetRecord,
    EvalRecord,
    ModelRecord,
    ScoresRecord,
    SessionRecord,
)
from lifecycle_assets.release.promotion import CHAMPION, PREVIOUS, last_move
from lifecycle_assets.spec_file import Agent
from resources.platform import Platform

SESSIONS = 5
"""Labeling sessions shown, newest first."""

DAYS = 60
"""Materializations of `trace_scores` among which the newest day is looked for."""

Facts = dict[str, Any]


def agent_status(agent: Agent, sources: Sources) -> Facts:
    """Every stage by name, in the order of the lifecycle."""
    return {name: guarded(shown_uri(sources.platform), lambda: read(agent, sources)) for name, read in STAGES.items()}


def _source(agent: Agent, sources: Sources) -> Facts:
    source = observe_source(agent)
    return {"digest": source.digest, "git_commit": source.git_commit}


def _dataset(agent: Agent, sources: Sources) -> Facts | None:
    found = sources.latest(agent, "eval_dataset", DatasetRecord)
    return found and {
        "at": found.at,
        "name": found.record.name,
        "digest": found.record.digest,
        "rows": found.record.rows,
    }


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
        **_differs(behind),
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


def _version(agent: Agent, sources: Sources) -> Facts | None:
    versions = sources.registry.versions(agent.spec.model_name) if sources.has_store else []
    if not versions:
        return None
    newest = versions[-1]
    return {
        "at": iso(newest.created_ms / 1000),
        "version": newest.version,
        "model_id": newest.model_id,
        "verdict": newest.tags.get("lifecycle.verdict", ""),
        "versions": len(versions),
    }


def _champion(agent: Agent, sources: Sources) -> Facts | None:
    aliases = sources.registry.aliases(agent.spec.model_name) if sources.has_store else {}
    recorded = sources.latest(agent, "champion_alias", ChampionRecord)
    move = last_move(sources.sql, agent.spec.table_prefix)
    if not aliases and recorded is None and move is None:
        return None
    live, ledger = aliases.get(CHAMPION, ""), move["to_version"] if move else ""
    known = {"the last record": recorded.record.version if recorded else "", "the ledger": ledger}
    others = [
        f"{where} says {'version ' + said if said else 'nobody'}" for where, said in known.items() if said != live
    ]
    differs = f"champion is {'version ' + live if live else 'nobody'}, {', '.join(others)}" if others else ""
    return {
        "at": iso(move["at"]) if move else "",
        "champion": live,
        "previous": aliases.get(PREVIOUS, ""),
        "recorded": known["the last record"],
        "ledger": ledger,
        **_differs(differs),
    }


def _deployment(agent: Agent, sources: Sources) -> Facts | None:
    handed = sources.deployer.current(agent)
    if handed is None:
        return None
    live = sources.registry.aliases(agent.spec.model_name).get(CHAMPION, "") if sources.has_store else ""
    differs = (
        "" if live == handed.version else f"handed over is version {handed.version}, champion is {live or 'nobody'}"
    )
    return {
        "at": handed.handed_at,
        "target": handed.target,
        "version": handed.version,
        "model_id": handed.model_id,
        **_differs(differs),
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
    if not any(counts[table] for table in ("traces", "spans", "assessments")) and newest is None:
        return None
    last = sources.rows(agent, "SELECT max(request_time) AS newest FROM traces")[0]["newest"]
    produced = datetime.fromtimestamp(newest.request_ms / 1000, UTC) if newest else None
    behind = (produced - last).total_seconds() if produced and last else None
    return {
        "at": iso(last),
        "rows": counts,
        "newest_archived": iso(last),
        "newest_production": iso(produced),
        "behind_seconds": None if behind is None else max(0.0, round(behind, 3)),
        "lag_seconds": round((datetime.now(UTC) - last).total_seconds(), 1) if last else None,
        "newest_trace": newest.trace_id if newest else "",
        "newest_trace_model_id": newest.model_id if newest else "",
    }


def _coverage(agent: Agent, sources: Sources) -> Facts | None:
    found = sources.records(agent, "trace_scores", ScoresRecord, limit=DAYS)
    if not found:
        return None
    # Newest first, so that `max` keeps the newest materialization of the newest day.
    last = max(found, key=lambda one: one.record.day)
    return {"at": last.at, "day": last.record.day, "traces": last.record.traces, "coverage": last.record.coverage}


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
    if sources.instance is None:
        return None
    keys = sorted(agent_definitions(agent).resolve_asset_graph().asset_check_keys)
    failed, seen = [], 0
    for key in keys:
        record = sources.instance.get_latest_asset_check_evaluation_record(key)
        said = record.evaluation if record else None
        if record is None or said is None:
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
                    "why": said.description or "",
                }
            )
    return {"evaluated": seen, "failed": failed} if seen else None


STAGES: dict[str, Callable[[Agent, Sources], Facts | None]] = {
    "agent_source": _source,
    "eval_dataset": _dataset,
    "logged_model": _model,
    "eval_results": _evaluation,
    "uc_model_version": _version,
    "champion_alias": _champion,
    "deployment": _deployment,
    "registered_scorers": _scorers,
    "trace_scores": _coverage,
    "archived_traces": _archive,
    "labeling_session": _sessions,
    "checks": _checks,
}
"""Stage to its reader, in the order of the lifecycle."""


def _differs(sentence: str) -> Facts:
    return {"state": "differs", "why": sentence} if sentence else {}


def is_nothing(stages: Facts) -> bool:
    """Whether nothing but the source exists."""
    return all(stage["state"] == "not yet" for name, stage in stages.items() if name != "agent_source")


@click.command()
@click.argument("agent", required=False)
@json_option
def status(agent: str | None, as_json: bool) -> int:
    """Where each stage of each agent stands."""
    agents, broken = chosen_agents(agent)
    platform = Platform.from_env()
    sources = Sources(platform)
    found = {one.name: agent_status(one, sources) for one in agents}
    if as_json:
        answer = [
            {"agent": name, "nothing_yet": is_nothing(stages), "stages": stages} for name, stages in found.items()
        ]
        print_json({"platform": platform.name, "tracking_uri": shown_uri(platform), "agents": answer, "broken": broken})
    else:
        for name, stages in found.items():
            _print(name, stages)
    unread = any(stage["state"] == "could not read" for stages in found.values() for stage in stages.values())
    return 1 if unread or (broken and agent is None) else 0


def _print(name: str, stages: Facts) -> None:
    if is_nothing(stages):
        print_line(f"{name}: nothing yet; run make demo, or make ui and materialize {name}/eval_results.")
        return
    print_line(f"{name}")
    for stage, facts in stages.items():
        words = ", ".join(_words(facts))
        click.echo(f"  {stage:<20}{mark(facts['state'])}" + (f"  {clean(words)}" if words else ""))
    coverage = stages["trace_scores"].get("coverage", {})
    versions = {s["registered_name"]: s for s in stages["registered_scorers"].get("scorers", [])}
    rows = [
        (
            one,
            versions.get(one, {}).get("version", ""),
            versions.get(one, {}).get("sample_rate", ""),
            *_counts(coverage.get(one)),
        )
        for one in sorted({*versions, *coverage})
    ]
    if rows:
        print_table(["scorer", "version", "rate", "sampled", "scored", "errored", "waiting"], rows)
    if stages["labeling_session"].get("sessions"):
        shown = stages["labeling_session"]["sessions"]
        print_table(
            ["labeling session", "items", "completed", "opened"],
            [(s["name"], s["items"], s["completed"], s["opened_at"]) for s in shown],
        )
    for one in stages["checks"].get("failed", []):
        print_line(f"  failed: {one['asset']} {one['check']} ({one['severity']}): {one['why']}")


def _counts(coverage: Facts | None) -> tuple[Any, ...]:
    return (
        tuple(coverage.get(name, "") for name in ("sampled", "scored", "errored", "waiting")) if coverage else ("",) * 4
    )


def _words(facts: Facts) -> list[str]:
    """The facts of a stage that fit on its line."""
    words = [f"{key.replace('_', ' ')} {clean(value)}" for key, value in facts.items() if _is_short(key, value)]
    words += (
        [f"{table} {n}" for table, n in facts.get("rows", {}).items()] if isinstance(facts.get("rows"), dict) else []
    )
    words += [" ".join(facts["reasons"])] if facts.get("reasons") else []
    words += [f"{len(facts['failed'])} failed"] if "failed" in facts else []
    words += [facts["why"]] if facts.get("why") else []
    return words


def _is_short(key: str, value: object) -> bool:
    return key not in ("state", "why") and value not in ("", None) and not isinstance(value, dict | list)
