"""Where the stages of an agent's release stand, as facts: version, aliases, deployment.

Lives here: one function a stage of that group.
Add here: a fact of one of them.
Not here: the other stages (`stages.py`), what the next run would do (`plan_release.py`).
"""

from typing import Any

from lifecycle_assets.cli.output import iso
from lifecycle_assets.cli.release_state import ReleaseState, barred_versions, read_state, waiting
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.records import ChampionRecord
from lifecycle_assets.release.aliases import CHALLENGER, CHAMPION, PREVIOUS
from lifecycle_assets.release.drift import alias_drift, unfinished, who
from lifecycle_assets.release.standing import champion_moves
from lifecycle_assets.spec_file import Agent

Facts = dict[str, Any]


def differs(sentence: str) -> Facts:
    """The state of a stage that is not as it should be, and why; nothing for an empty sentence."""
    return {"state": "differs", "why": sentence} if sentence else {}


def version_stage(agent: Agent, sources: Sources) -> Facts | None:
    """The newest registered version."""
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


def champion_stage(agent: Agent, sources: Sources) -> Facts | None:
    """Who is champion, who was before, who waits, who is barred, and whether MLflow, ledger and record agree."""
    state = read_state(agent, sources)
    found = sources.latest(agent, "champion_alias", ChampionRecord)
    if not state.aliases and found is None and not state.entries:
        return None
    made, recorded = champion_moves(state.moves), found.record.version if found else ""
    return {
        "at": made[-1].at if made else "",
        "champion": state.champion,
        "previous": state.aliases.get(PREVIOUS, ""),
        "challenger": state.aliases.get(CHALLENGER, ""),
        "recorded": recorded,
        "ledger": state.left.get(CHAMPION, ""),
        "waiting": waiting(agent, state),
        "barred": barred_versions(state),
        **differs("; ".join(_faults(state, recorded))),
    }


def deployment_stage(agent: Agent, sources: Sources) -> Facts | None:
    """What was handed to the runtime."""
    handed = sources.deployer.current(agent)
    if handed is None:
        return None
    live = sources.registry.aliases(agent.spec.model_name).get(CHAMPION, "") if sources.has_store else ""
    behind = (
        "" if live == handed.version else f"handed over is version {handed.version}, champion is {live or 'nobody'}"
    )
    return {
        "at": handed.handed_at,
        "target": handed.target,
        "version": handed.version,
        "model_id": handed.model_id,
        **differs(behind),
    }


def _faults(state: ReleaseState, recorded: str) -> list[str]:
    """What does not agree, each as a sentence without its end."""
    known = {"the last record": recorded, "the ledger": state.left.get(CHAMPION, "")}
    others = [f"{where} says {who(said)}" for where, said in known.items() if said != state.champion]
    found = [f"champion is {who(state.champion)}, {', '.join(others)}"] if others else []
    drift = alias_drift(state.aliases, state.entries, state.versions)
    if drift and not others:
        found.append(drift.sentence.removesuffix("."))
    deleted = [(alias, number) for alias, number in state.named.items() if not state.version(number)]
    found += [f"{alias} is version {number}, which was deleted" for alias, number in deleted]
    return [*found, *(f"the move of {one.move.at} was begun and not finished" for one in unfinished(state.entries))]
