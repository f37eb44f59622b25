"""What `lifecycle plan` says of versions, aliases and the deployment.

Lives here: what somebody changed by hand, what the next run would do to aliases, and who waits or is barred.
Add here: a condition of a move that people ask about beforehand.
Not here: the conditions (`lifecycle_assets/release/decision.py`), other declared things (`plan.py`).
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from lifecycle_assets.cli.differences import BARRED, UNCHANGED, Difference
from lifecycle_assets.cli.release_state import ReleaseState, barred_versions, in_words, read_state, waiting
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.records import EvalRecord, ScorersRecord, ScorerVersion, VersionRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHALLENGER, CHAMPION
from lifecycle_assets.release.approval import Approval, read_approval
from lifecycle_assets.release.decision import Decision, decide, evidence_taken_back
from lifecycle_assets.release.drift import alias_drift, scorer_drift, unfinished, version_drift, who
from lifecycle_assets.release.promotion import decision_waited_on, present_champion
from lifecycle_assets.spec_file import Agent
from resources.model_registry import RegisteredVersion

UNREGISTERED = "(not registered yet)"
"""What stands for the number of a version to be."""

RECORDS = 100
"""Records of `uc_model_version` that are looked at when a version's tags are not those of its move."""


def version_differences(agent: Agent, sources: Sources) -> list[Difference]:
    """Versions that are gone, were registered by somebody else, or say something else of where they come from."""
    state = read_state(agent, sources)

    def recorded() -> list[VersionRecord]:
        found = sources.records(agent, "uc_model_version", VersionRecord, limit=RECORDS)
        return [one.record for one in found]

    found = version_drift(state.aliases, state.entries, state.versions, recorded)
    if found:
        return [Difference("versions", "drift", _sentence(found.sentence), f"{agent.name}_release")]
    return [Difference("versions", UNCHANGED, f"{len(state.versions)} registered, as the graph left them.")]


def alias_differences(agent: Agent, sources: Sources) -> list[Difference]:
    """Aliases against the ledger, then what the next run would do to them, who waits, and who is barred."""
    state, job = read_state(agent, sources), f"{agent.name}_release"
    found = []
    drift = alias_drift(state.aliases, state.entries, state.versions)
    if drift:
        text = f"{_sentence(drift.sentence)} Somebody moved it outside the graph; the next run decides anew."
        found.append(Difference(CHAMPION, "drift", text, job))
    for entry in unfinished(state.entries):
        text = (
            f"The {entry.move.decision} move of {entry.move.at} ({in_words(entry.move)}) was begun and not finished: "
            "the next run carries it out."
        )
        found.append(Difference(CHAMPION, "interrupted", text, job))
    found += [*_next_run(agent, sources, state, job), *_waiting(agent, state), *_barred(state)]
    if state.champion and not any(one.what == CHAMPION for one in found):
        found.append(Difference(CHAMPION, UNCHANGED, f"champion is version {state.champion}, as the ledger says."))
    if not found:
        text = "Nobody is champion; the first version that passes its gate would be."
        found.append(Difference(CHAMPION, "new", text, job))
    return found


def deployment_differences(agent: Agent, sources: Sources) -> list[Difference]:
    """What was handed to the runtime against the champion."""
    target, job = agent.spec.deployment.target, f"{agent.name}_release"
    live = sources.registry.aliases(agent.spec.model_name).get(CHAMPION, "") if sources.has_store else ""
    handed = sources.deployer.current(agent)
    if target == "none":
        return [Difference("deployment", UNCHANGED, "The declared target is none.")]
    if handed is None:
        return [Difference("deployment", "new", "Nothing was handed over; the champion would be.", job)]
    if handed.version != live:
        text = f"Handed over is version {handed.version}, champion is {who(live)}: the champion would be handed over."
        return [Difference("deployment", "changed", text, job)]
    return [Difference("deployment", UNCHANGED, f"Version {handed.version} is handed over.")]


def scorer_drifts(agent: Agent, sources: Sources, registered: list[ScorerVersion]) -> list[Difference]:
    """Registered scorers that are not as the graph registered them."""
    recorded = sources.latest(agent, "registered_scorers", ScorersRecord)
    found = scorer_drift(recorded.record.versions if recorded else [], {s.registered_name: s for s in registered})
    if found is None:
        return []
    return [Difference("scorers", "drift", _sentence(found.sentence), f"{agent.name}_scorer_backfill")]


def _next_run(agent: Agent, sources: Sources, state: ReleaseState, job: str) -> Iterator[Difference]:
    """What happens to the version of the newest evaluation, by the very functions that decide it."""
    found = sources.latest(agent, "eval_results", EvalRecord)
    if found is None:
        return
    evaluation, version = found.record, state.version_of(found.record.model_id)
    try:
        decision = _decision(agent, sources, evaluation, version, state)
    except Refused as refusal:
        yield Difference(CHAMPION, "refused", f"champion would not move. {refusal}")
        return
    if decision.action == "promote":
        text = f"champion would move from {who(state.champion)} to the version of {evaluation.model_id}."
        yield Difference(CHAMPION, "changed", f"{text} {decision.sentence}", job)
    if decision.action == "reject" and waiting(agent, state):
        yield Difference(CHALLENGER, "changed", f"{decision.sentence} It would be challenger no more.", job)
    if decision.action == "wait" and not waiting(agent, state):
        yield Difference(CHALLENGER, "changed", f"{decision.sentence} It would become challenger.", job)
    if decision.action == "refuse":
        yield Difference(CHAMPION, "refused", f"champion would not move. {decision.sentence}")


def _decision(
    agent: Agent, sources: Sources, evaluation: EvalRecord, version: RegisteredVersion | None, state: ReleaseState
) -> Decision:
    """What is decided on `version`, None for a model that is not registered yet. Raises `Refused` as deciding does."""
    gate, settled, number = agent.spec.eval.gate, state.settled(), version.version if version else ""
    champion = present_champion(number or UNREGISTERED, settled, agent.name)
    incumbent = settled.versions.get(champion)
    asked = version is not None and gate.approval == "required"
    return decide(
        evaluation,
        version=number or UNREGISTERED,
        model_id=evaluation.model_id,
        gate=gate,
        approval=read_approval(version, gate, sources.registry) if version and asked else Approval(),
        champion=champion,
        champion_model_id=incumbent.model_id if incumbent else "",
        taken_back=evidence_taken_back(state.moves),
        now=datetime.now(UTC),
        waited_on=decision_waited_on(number, state.moves),
    )


def _waiting(agent: Agent, state: ReleaseState) -> Iterator[Difference]:
    found = waiting(agent, state)
    if found:
        text = f"Version {found['version']} waits for approval since {found['since']}: {found['approve']}"
        yield Difference(CHALLENGER, "waiting", text)


def _barred(state: ReleaseState) -> Iterator[Difference]:
    for one in barred_versions(state):
        text = (
            f"Version {one['version']} was taken back at {one['since']} ({one['why']}): it is not promoted again "
            "until its evidence changes."
        )
        yield Difference(f"version {one['version']}", BARRED, text)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if text.startswith(("version", "registered", "not")) else text
