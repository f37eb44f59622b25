"""How the release of an agent stands: aliases and versions as MLflow has them, moves as the ledger has them.

Lives here: reading the three together, and what follows from them in words.
Add here: a fact of them that two commands say.
Not here: what differs from what the graph left (`lifecycle_assets/release/drift.py`), the tables (`history.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.records import AliasMove
from lifecycle_assets.release.aliases import CHALLENGER, CHAMPION
from lifecycle_assets.release.drift import KEPT, unfinished, who
from lifecycle_assets.release.moves import State
from lifecycle_assets.release.standing import ROLLED_BACK, barred, champion_moves, standing, taken_by
from lifecycle_assets.spec_file import Agent
from resources.alias_ledger import Entry
from resources.model_registry import RegisteredVersion


@dataclass(frozen=True)
class ReleaseState:
    """Aliases and versions (oldest first) now, and the ledger's entries (oldest first)."""

    aliases: Mapping[str, str]
    versions: Sequence[RegisteredVersion]
    entries: Sequence[Entry]

    @property
    def moves(self) -> list[AliasMove]:
        """Every move, oldest first."""
        return [entry.move for entry in self.entries]

    @property
    def left(self) -> dict[str, str]:
        """Alias to version as the ledger left them."""
        return standing(self.moves)

    @property
    def champion(self) -> str:
        """Who is champion in MLflow, empty for nobody."""
        return self.aliases.get(CHAMPION, "")

    @property
    def named(self) -> dict[str, str]:
        """Alias to version for the aliases the graph keeps: as the ledger left them, else as MLflow has them."""
        return {**self.left, **{alias: number for alias, number in self.aliases.items() if alias in KEPT}}

    def version(self, number: str) -> RegisteredVersion | None:
        """The version of that number, None when there is none."""
        return next((one for one in self.versions if one.version == number), None)

    def version_of(self, model_id: str) -> RegisteredVersion | None:
        """The version of a logged model, None when it is not registered."""
        return next((one for one in self.versions if one.model_id == model_id), None)

    def settled(self) -> State:
        """The state once the moves that were begun and not finished are carried out, as the next run does first."""
        begun = {alias: n for entry in unfinished(self.entries) for alias, n in entry.move.after.items()}
        aliases = {alias: number for alias, number in {**self.aliases, **begun}.items() if number}
        versions = {one.version: one for one in self.versions}
        return State(aliases, versions, tuple(self.moves), len(self.entries) + 1)


def read_state(agent: Agent, sources: Sources) -> ReleaseState:
    """The state now; without a store there is none. Raises `Refused` when one of the three cannot be read."""
    if not sources.has_store:
        return ReleaseState({}, [], [])
    name = agent.spec.model_name
    entries = sources.ledger.entries(agent)
    return ReleaseState(sources.registry.aliases(name), sources.registry.versions(name), entries)


def waiting(agent: Agent, state: ReleaseState) -> dict[str, Any] | None:
    """The version that waits for a person, since when, and the commands that decide; None when none waits."""
    number = state.left.get(CHALLENGER, "")
    if not number or number == state.champion:
        return None
    since = next((move.at for move in reversed(state.moves) if move.after.get(CHALLENGER) == number), "")
    return {
        "version": number,
        "since": since,
        "approve": f"lifecycle approve {agent.name} {number} --reason '…'",
        "reject": f"lifecycle reject {agent.name} {number} --reason '…'",
    }


def barred_versions(state: ReleaseState) -> list[dict[str, str]]:
    """Versions that a rollback took back and that are still there: since when, why, on which evidence."""
    found = []
    for number, evidence in barred(state.moves).items():
        taken = next(
            move
            for move in reversed(champion_moves(state.moves))
            if move.decision == ROLLED_BACK and taken_by(move) == number
        )
        if state.version(number) is not None:
            found.append({"version": number, "since": taken.at, "why": taken.reason, "evidence_digest": evidence})
    return found


def in_words(move: AliasMove) -> str:
    """A move as a person says it: every alias that changed, from whom to whom."""
    changed = [
        f"{alias} from {who(move.before.get(alias, ''))} to {who(version)}"
        for alias, version in move.after.items()
        if version != move.before.get(alias, "")
    ]
    return ", ".join(changed) or "nothing"
