"""Moving aliases: one winner, and every move carried out whole.

Lives here: reading how things stand, claiming a move in the ledger, setting its aliases and writing its rows.
Add here: something that every move has to do.
Not here: which move to make (`decision.py`, `rollback.py`), where moves are kept (`resources/alias_ledger.py`).

A move counts from the moment it is claimed; all that follows (aliases, rows of `promotions`, the note that it is
done) may be repeated by anybody, and is: whoever comes next first finishes what the ledger holds unfinished. So a
process killed at any instruction leaves either nothing or a move that the next one completes from the ledger alone.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from lifecycle_assets.records import REASON_CHARACTERS, AliasMove, EvalRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHAMPION, PREVIOUS
from lifecycle_assets.release.standing import ROLLED_BACK, champion_moves, standing
from lifecycle_assets.spec_file import Agent
from resources.needs import AliasLedger, Archive, Evaluator, ModelRegistry, RegisteredVersion
from resources.worker import Progress

PROMOTIONS = "promotions"

ACTOR_CHARACTERS = 200
"""Characters of an actor that a move keeps."""

ATTEMPTS = 10
"""How often a move is decided anew after another process claimed first."""

PATIENCE_SECONDS = 30.0
"""How long a process that claimed a move and still runs is left to finish it by itself."""

LOOK_SECONDS = 0.1
"""How long between two looks at what it has done."""


@dataclass(frozen=True)
class State:
    """How things stand once everything in the ledger is carried out.

    `aliases` as the registry has them now, `versions` by version, `moves` all of them, oldest first.
    """

    aliases: Mapping[str, str]
    versions: Mapping[str, RegisteredVersion]
    moves: tuple[AliasMove, ...]
    next_number: int


@dataclass(frozen=True)
class Moved:
    """The move that was made, None when none was wanted, and how things stand after it."""

    move: AliasMove | None
    state: State


def new_move(
    *,
    decision: str,
    before: Mapping[str, str],
    after: Mapping[str, str],
    evaluation: EvalRecord,
    actor: str,
    reason: str,
    dagster_run_id: str,
) -> AliasMove:
    """A move of now, on the evidence of `evaluation`; `reason` and `actor` are cut to what a move can hold."""
    return AliasMove(
        at=_iso(datetime.now(UTC)),
        decision=decision,
        before=dict(before),
        after=dict(after),
        model_id=evaluation.model_id,
        eval_run_id=evaluation.run_id,
        evidence_digest=evaluation.evidence_digest,
        decision_digest=evaluation.decision_digest,
        actor=_bounded(actor, ACTOR_CHARACTERS),
        reason=_bounded(reason, REASON_CHARACTERS),
        dagster_run_id=dagster_run_id,
    )


class AliasMover:
    """Moves the aliases of one agent's registered model."""

    def __init__(
        self,
        agent: Agent,
        *,
        registry: ModelRegistry,
        ledger: AliasLedger,
        archive: Archive,
        evaluator: Evaluator,
        progress: Progress,
    ) -> None:
        """Reads nothing yet."""
        self._agent = agent
        self._name = agent.spec.model_name
        self._registry = registry
        self._ledger = ledger
        self._archive = archive
        self._evaluator = evaluator
        self._progress = progress
        self._decisions: dict[tuple[str, str], str] = {}

    def settle(self) -> State:
        """Carry out what was claimed and not finished, then read how things stand.

        Raises `Refused` when the ledger or the registry cannot be read, or an alias cannot be set.
        """
        moves = self._caught_up()
        return State(
            aliases=self._registry.aliases(self._name),
            versions={one.version: one for one in self._registry.versions(self._name)},
            moves=moves,
            next_number=len(moves) + 1,
        )

    def move(self, decide: Callable[[State], AliasMove | None]) -> Moved:
        """Make the move that `decide` wants of the state it is given; None: nothing.

        `decide` may raise `Refused`, and is asked again when another process moved first. Raises `Refused` when an
        alias was changed by hand between reading and claiming, when the move names a version that does not exist,
        when its decision cannot be read, and when others win every time: nothing is claimed then. When the registry
        does not let an alias be set, the move stays claimed and the next run carries it out.
        """
        for _ in range(ATTEMPTS):
            state = self.settle()
            wanted = decide(state)
            if wanted is None:
                return Moved(None, state)
            move = self._possible(wanted, state)
            evidence = self._evidence(move)
            if not self._still_stands(move, state):
                continue
            if self._ledger.claim(self._agent, state.next_number, move):
                moves = (*state.moves, move)
                if self._carry_out(state.next_number, move, moves, set(state.versions), evidence) == moves:
                    aliases = {alias: v for alias, v in {**state.aliases, **move.after}.items() if v}
                    return Moved(move, replace(state, aliases=aliases, moves=moves, next_number=len(moves) + 1))
                return Moved(move, self.settle())
        raise Refused(
            f"{self._name}: other processes moved its aliases {ATTEMPTS} times while this one tried to; look at "
            "lifecycle history, then run again."
        )

    def _caught_up(self) -> tuple[AliasMove, ...]:
        """Every move, all of them carried out: by whoever claimed it when that process is at it, else by this one."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            entries = self._ledger.entries(self._agent)
            open_ones = [entry for entry in entries if not entry.done]
            if not open_ones:
                return tuple(entry.move for entry in entries)
            if open_ones[-1].at_work and time.monotonic() < until:
                time.sleep(LOOK_SECONDS)
                continue
            versions = {one.version for one in self._registry.versions(self._name)}
            moves = tuple(entry.move for entry in entries)
            for entry in open_ones:
                self._progress(f"Move {entry.number} of {entry.move.at} was claimed and not finished: finishing it")
                self._carry_out(entry.number, entry.move, moves, versions, self._evidence(entry.move))

    def _carry_out(
        self, number: int, move: AliasMove, moves: tuple[AliasMove, ...], versions: set[str], evidence: str
    ) -> tuple[AliasMove, ...]:
        """Aliases, rows, note; returns all moves as they are by then. Safe to repeat, and in two processes at once.

        A process that was stalled may set an alias that others have moved on since. So the ledger is read again after
        setting, and until nobody has moved on, what it says by then is set.
        """
        while True:
            says, known = standing(moves), moves
            self._point({alias: says.get(alias, "") for alias in move.after}, versions, number)
            moves = tuple(entry.move for entry in self._ledger.entries(self._agent))
            if moves == known:
                break
            versions = {one.version for one in self._registry.versions(self._name)}
        for row in _rows(move, evidence, of_champion=move in champion_moves(moves)):
            self._archive.append_once(self._agent.spec.table_prefix, PROMOTIONS, row, key=("alias", "at"))
        champion = move.after.get(CHAMPION, "")
        if champion and champion not in versions and moves[-1] == move:
            self._ledger.claim(self._agent, number + 1, self._taken_back(move, moves))
        self._ledger.finish(self._agent, number)
        return moves

    def _point(self, aliases: Mapping[str, str], versions: set[str], number: int) -> None:
        """Make the aliases name these versions; one whose version was deleted is left as it is."""
        order = [PREVIOUS, CHAMPION, *sorted(aliases)]
        try:
            for alias in sorted(aliases, key=order.index):
                if not aliases[alias]:
                    self._registry.delete_alias(self._name, alias)
                elif aliases[alias] in versions:
                    self._registry.set_alias(self._name, alias, aliases[alias])
        except Refused as refusal:
            raise Refused(
                f"Move {number} of the aliases of {self._name} is decided and not yet carried out: {refusal} The next "
                "run carries it out."
            ) from None

    def _taken_back(self, move: AliasMove, moves: Sequence[AliasMove]) -> AliasMove:
        """The move that follows one whose champion was deleted before it was set: back to who is champion."""
        stands = self._registry.aliases(self._name).get(CHAMPION, "")
        theirs = [one for one in champion_moves(moves) if one.after[CHAMPION] == stands]
        blank = {"model_id": "", "eval_run_id": "", "evidence_digest": "", "decision_digest": ""}
        evidence = {name: getattr(theirs[-1], name) for name in blank} if stands and theirs else blank
        about = [alias for alias in (CHAMPION, PREVIOUS) if alias in move.after]
        return replace(
            move,
            at=_after(_iso(datetime.now(UTC)), moves),
            decision=ROLLED_BACK,
            before={alias: move.after[alias] for alias in about},
            after={alias: stands if alias == CHAMPION else move.before.get(alias, "") for alias in about},
            reason=f"Version {move.after[CHAMPION]} was deleted before it could become champion.",
            **evidence,
        )

    def _possible(self, wanted: AliasMove, state: State) -> AliasMove:
        """The move as it is claimed: later than all others, and `previous` naming nobody when that version is gone."""
        after = dict(wanted.after)
        if after.get(PREVIOUS) and after[PREVIOUS] not in state.versions:
            after[PREVIOUS] = ""
        for alias, version in after.items():
            if version and version not in state.versions:
                raise Refused(
                    f"Version {version} of {self._name} does not exist, so {alias} cannot name it: look at lifecycle "
                    "status, then materialize uc_model_version again."
                )
        return replace(wanted, at=_after(wanted.at, state.moves), after=after)

    def _still_stands(self, move: AliasMove, state: State) -> bool:
        """Whether the aliases are what the move was decided on; False when another process has moved since."""
        now = self._registry.aliases(self._name)
        for alias in sorted({*move.before, *move.after}):
            was, stands = move.before.get(alias, ""), now.get(alias, "")
            if was == stands:
                continue
            if len(self._ledger.entries(self._agent)) != len(state.moves):
                return False
            raise Refused(
                f"{self._name}: {alias} named {_named(was)} when this move was decided and names {_named(stands)} "
                "now, changed by hand; nothing was moved: run again to decide anew."
            )
        return True

    def _evidence(self, move: AliasMove) -> str:
        """The whole decision as JSON, as the row of `promotions` keeps it; its digest names it, so it is read once."""
        key = move.eval_run_id, move.decision_digest
        if not move.eval_run_id:
            return "{}"
        if key not in self._decisions:
            self._decisions[key] = json.dumps(self._evaluator.decision(*key).to_json(), sort_keys=True)
        return self._decisions[key]


def _rows(move: AliasMove, evidence: str, *, of_champion: bool) -> list[dict[str, Any]]:
    """The rows of `promotions`: one an alias that changed; `previous` follows from `champion` and has none.

    `of_champion`: the move changed who is champion, also where a hand had set the alias before.
    """
    changed = [
        alias
        for alias in sorted({*move.before, *move.after} - {PREVIOUS})
        if alias in move.after
        and (of_champion if alias == CHAMPION else move.before.get(alias, "") != move.after[alias])
    ]
    return [
        {
            "at": datetime.fromisoformat(move.at),
            "alias": alias,
            "from_version": move.before.get(alias, ""),
            "to_version": move.after[alias],
            "model_id": move.model_id,
            "decision": move.decision,
            "reason": move.reason,
            "actor": move.actor,
            "evidence": evidence,
            "dagster_run_id": move.dagster_run_id,
        }
        for alias in changed
    ]


def _after(at: str, moves: Iterable[AliasMove]) -> str:
    """`at`, or a moment after the newest move: the moment names a move, and clocks of machines differ."""
    newest = max((datetime.fromisoformat(move.at) for move in moves), default=None)
    moment = datetime.fromisoformat(at)
    return _iso(moment if newest is None or moment > newest else newest + timedelta(microseconds=1))


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


def _named(version: str) -> str:
    return f"version {version}" if version else "nobody"


def _bounded(text: str, limit: int) -> str:
    """One line of printable text in at most `limit` characters."""
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"
