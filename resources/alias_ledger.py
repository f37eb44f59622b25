"""The ledger of a registered model: every move of its aliases, written down before it is carried out.

Lives here: the gateway to the ledger, and MLflow's implementation of it.
Add here: a question about past moves.
Not here: which move to make (`lifecycle_assets/release/decision.py`), carrying it out
(`lifecycle_assets/release/moves.py`).

MLflow sets an alias to whatever it is told last. A parameter of a run, though, is written once: of several processes
that write different values under one name, one succeeds. The ledger therefore is a run whose parameters are the moves
by number, and a move counts once its number is claimed.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lifecycle_assets.records import AliasMove
from lifecycle_assets.spec_file import Agent


@dataclass(frozen=True)
class Entry:
    """A move and its number, from 1. `done`: its aliases and its rows in `promotions` were seen to be there."""

    number: int
    move: AliasMove
    done: bool


class AliasLedger(ABC):
    """Moves of one registered model's aliases, in order."""

    @abstractmethod
    def entries(self, agent: Agent) -> list[Entry]:
        """Every move so far, oldest first; empty only when none was ever claimed. Reading makes nothing."""

    @abstractmethod
    def claim(self, agent: Agent, number: int, move: AliasMove) -> bool:
        """Write `move` under `number` unless another move is there; whether `move` is what stands there now.

        Repeating with the same move is true again: an answer that was lost does no harm.
        """

    @abstractmethod
    def finish(self, agent: Agent, number: int) -> None:
        """Note that the move of that number was carried out; repeating changes nothing."""
