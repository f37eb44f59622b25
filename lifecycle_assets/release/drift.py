"""Drift: what is in MLflow against what the graph left there.

Lives here: the pure comparison of aliases, versions, their tags and scorers with the ledger and the graph's records.
Add here: a further thing people change by hand.
Not here: reading it (`sensors/drift.py`, `cli/plan.py`), undoing it.

A move that was begun and not finished is none: its aliases may be where they were before or where it puts them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lifecycle_assets.records import ScorerVersion, VersionRecord, digest
from lifecycle_assets.release.aliases import CHALLENGER, CHAMPION, PREVIOUS
from lifecycle_assets.release.standing import standing
from resources.needs import Entry, RegisteredVersion

KEPT = (CHAMPION, PREVIOUS, CHALLENGER)
"""The aliases the graph keeps; every other alias of the model is somebody else's."""

IDENTITY = MODEL, EVALUATION, EVIDENCE, VERDICT = (
    "lifecycle.model_id",
    "lifecycle.eval_run_id",
    "lifecycle.evidence_digest",
    "lifecycle.verdict",
)
"""Version tags that say who a version is and on which evidence. What approves it is a decision, and not among them."""

LETS_THROUGH = ("passed", "dry_run", "ungated")
"""Verdicts a registered version can have."""

NAMED = 10
"""Versions a sentence names; it counts the others."""

SHOWN = 60
"""Characters of a tag's value that a sentence shows: anybody may have written it."""

FOREIGN = "neither the ledger nor a record of the graph knows this version"

VersionRecords = Callable[[], Sequence[VersionRecord]]
"""Reads what `uc_model_version` recorded, newest first."""


@dataclass(frozen=True)
class Drift:
    """What is not as the graph left it of one asset: its state now, which names the change, and sentences."""

    asset: str
    state: str
    sentence: str


def find_drift(
    *,
    aliases: Mapping[str, str],
    entries: Sequence[Entry],
    versions: Sequence[RegisteredVersion],
    recorded_versions: VersionRecords,
    recorded: Sequence[ScorerVersion],
    registered: Mapping[str, ScorerVersion],
) -> list[Drift]:
    """Everything that differs, at most one `Drift` an asset, in the order of the lifecycle.

    `aliases` and `versions` are MLflow's, `entries` the ledger's, oldest first; `recorded` are the scorers as the graph
    registered them, `registered` as they are, by registered name. `recorded_versions` is asked only when a tag is not
    the one of the version's last move.
    """
    found = (
        version_drift(aliases, entries, versions, recorded_versions),
        alias_drift(aliases, entries, versions),
        scorer_drift(recorded, registered),
    )
    return [drift for drift in found if drift is not None]


def unfinished(entries: Sequence[Entry]) -> list[Entry]:
    """Moves that were written down and not carried out to the end: the next run carries them out."""
    done = max((index for index, entry in enumerate(entries) if entry.done), default=-1)
    return list(entries[done + 1 :])


def named(aliases: Mapping[str, str], entries: Sequence[Entry]) -> set[str]:
    """The versions an alias of ours names, in MLflow or in the ledger: those whose tags are compared; at most six."""
    left = standing(entry.move for entry in entries)
    return {number for number in (*left.values(), *(aliases.get(alias, "") for alias in KEPT)) if number}


def alias_drift(
    aliases: Mapping[str, str], entries: Sequence[Entry], versions: Sequence[RegisteredVersion]
) -> Drift | None:
    """Aliases that are not where the ledger left them, those the graph never set included."""
    left = standing(entry.move for entry in entries)
    before = standing(entry.move for entry in entries[: len(entries) - len(unfinished(entries))])
    there = {version.version for version in versions}
    sentences, moved = [], []
    for alias in KEPT:
        now = aliases.get(alias, "")
        if now in (left.get(alias, ""), before.get(alias, "")):
            continue
        lost = f", which does not exist{_or_any_more(now, entries)}" if now and now not in there else ""
        sentences.append(f"{alias} is {who(now)}{lost}; the graph left it at {who(left.get(alias, ''))}.")
        moved.append(f"{alias}={now or 'none'}")
    if not sentences:
        return None
    champion = aliases.get(CHAMPION) or "none"
    others = [one for one in moved if not one.startswith(f"{CHAMPION}=")]
    return Drift("champion_alias", ", ".join([champion, *others]), " ".join(sentences))


def version_drift(
    aliases: Mapping[str, str],
    entries: Sequence[Entry],
    versions: Sequence[RegisteredVersion],
    recorded_versions: VersionRecords,
) -> Drift | None:
    """Versions that are gone, were registered by somebody else, or say something else of where they come from.

    Tags are compared for versions that an alias of ours names.
    """
    left, by_number = standing(entry.move for entry in entries), {one.version: one for one in versions}
    sentences, states = [], []
    for alias, number in left.items():
        if number not in by_number:
            sentences.append(f"version {number} was deleted; the graph left {alias} at it.")
            states.append(f"without {number}")
    about = [by_number[number] for number in sorted(named(aliases, entries)) if number in by_number]
    changed = {one.version: text for one in about if (text := _retagged(one, entries, recorded_versions))}
    foreign = [one.version for one in versions if EVALUATION not in one.tags or changed.get(one.version) == FOREIGN]
    if foreign:
        some = ", ".join(foreign[-NAMED:]) + (f" and {len(foreign) - NAMED} more" if len(foreign) > NAMED else "")
        sentences.append(f"registered outside the graph, on no evaluation of it: version {some}.")
        states.append(f"outside {foreign[-1]}")
    for number in sorted(set(changed) - set(foreign), key=int):
        sentences.append(changed[number])
        states.append(f"{number} with {digest([by_number[number].tags.get(tag) for tag in IDENTITY], length=8)}")
    # An alias and the one after it may name the same version.
    return Drift("uc_model_version", ", ".join(dict.fromkeys(states)), " ".join(sentences)) if sentences else None


def scorer_drift(recorded: Sequence[ScorerVersion], registered: Mapping[str, ScorerVersion]) -> Drift | None:
    """Scorers that are gone or changed; scorers of somebody else are none of ours."""
    changed = sorted(s.registered_name for s in recorded if registered.get(s.registered_name) != s)
    if not changed:
        return None
    now_there = [registered[name].to_json() if name in registered else name for name in changed]
    text = f"not as the graph registered them: {', '.join(changed)}."
    return Drift("registered_scorers", digest(now_there), text)


def who(version: str) -> str:
    """An alias's target in words."""
    return f"version {version}" if version else "nobody"


def _retagged(version: RegisteredVersion, entries: Sequence[Entry], recorded_versions: VersionRecords) -> str:
    """How the version's tags differ from what it was registered on; empty when they do not.

    A version that was evaluated again says so before an alias moves: its newest record counts as much as its last move.
    """
    if EVALUATION not in version.tags:
        return ""
    said = _of_last_move(version.version, entries)
    if said is not None and _agrees(version, said):
        return ""
    record = next((one for one in recorded_versions() if one.version == version.version), None)
    if record is not None:
        said = {MODEL: record.model_id, EVALUATION: record.eval_run_id, EVIDENCE: record.evidence_digest}
    if said is None:
        return FOREIGN
    if _agrees(version, said):
        return ""
    tags = {**said, VERDICT: said.get(VERDICT, " or ".join(LETS_THROUGH))}
    differ = [
        f"{tag} is '{version.tags.get(tag, ''):.{SHOWN}}', not {wanted}"
        for tag, wanted in tags.items()
        if not _is(version, tag, said)
    ]
    return f"version {version.version} says something else than it was registered on: {'; '.join(differ)}."


def _of_last_move(number: str, entries: Sequence[Entry]) -> dict[str, str] | None:
    """The tags a version had when a move last left champion or challenger at it; None when no move did."""
    for entry in reversed(entries):
        move = entry.move
        if number in (move.after.get(CHAMPION), move.after.get(CHALLENGER)):
            verdict = {VERDICT: move.decision} if move.decision in LETS_THROUGH else {}
            return {MODEL: move.model_id, EVALUATION: move.eval_run_id, EVIDENCE: move.evidence_digest, **verdict}
    return None


def _agrees(version: RegisteredVersion, said: Mapping[str, str]) -> bool:
    return all(_is(version, tag, said) for tag in IDENTITY)


def _is(version: RegisteredVersion, tag: str, said: Mapping[str, str]) -> bool:
    found = version.tags.get(tag, "")
    return found == said[tag] if tag in said else found in LETS_THROUGH


def _or_any_more(number: str, entries: Sequence[Entry]) -> str:
    return " any more" if any(number in entry.move.after.values() for entry in entries) else ""
