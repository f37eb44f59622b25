"""The ledger of a registered model: every move of its aliases, written down before it is carried out.

Lives here: the gateway to the ledger, and MLflow's implementation of it.
Add here: a question about past moves.
Not here: which move to make (`lifecycle_assets/release/decision.py`), carrying it out
(`lifecycle_assets/release/moves.py`).

MLflow sets an alias to whatever it is told last. A parameter of a run, though, is written once: of several processes
that write different values under one name, one succeeds (`claims.py`). The ledger therefore is a run whose parameters
are the moves by number, and a move counts once its number is claimed. The parameter is short, as Databricks wants it;
it holds the digest of the move, and a tag written before it, named by that digest, holds the move. So a tag that was
changed is noticed.

Which run is the ledger is decided by a write that cannot be done twice either: an experiment is created under a name
made from the registered model's, and in one request with a tag that names the run. The registered model then names the
run too, so that neither a lost experiment nor a moved one begins a second ledger.
"""

import json
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from lifecycle_assets.records import AliasMove, digest
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources import claims
from resources import run_marks as marks
from resources.explain import explained
from resources.mlflow_store import experiment_id, open_client
from resources.platform import Platform

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.exceptions import MlflowException

LEDGER = "lifecycle.ledger"
"""Tag that names the run: on the experiment that decides, and on the registered model."""

MODEL_NAME = "lifecycle.model_name"

MOVE_BYTES = 5000
"""Bytes of a move: what every store of MLflow is to take as a tag's value
(https://mlflow.org/docs/latest/rest-api.html, "Set Tag")."""

WORK_SECONDS = 30.0
"""How long the process that claimed a move is left to carry it out by itself."""

_NUMBER = re.compile(r"move\.([0-9]{6})")

_runs: dict[tuple[Platform, str], str] = {}
"""Registered model to ledger, for those this process has seen: it never becomes another run."""


@dataclass(frozen=True)
class Entry:
    """A move and its number, from 1.

    `done`: its aliases and its rows in `promotions` were seen to be there. `at_work`: the process that claimed it may
    be carrying it out right now.
    """

    number: int
    move: AliasMove
    done: bool
    at_work: bool = False


class AliasLedger(ABC):
    """Moves of one registered model's aliases, in order."""

    @abstractmethod
    def entries(self, agent: Agent) -> list[Entry]:
        """Every move so far, oldest first; empty only when none was ever claimed. Reading makes nothing.

        Raises `Refused` when the ledger was deleted, changed by hand, or belongs to another agent.
        """

    @abstractmethod
    def claim(self, agent: Agent, number: int, move: AliasMove) -> bool:
        """Write `move` under `number` unless another move is there; whether `move` is what stands there now.

        Repeating with the same move is true again: an answer that was lost does no harm.
        """

    @abstractmethod
    def finish(self, agent: Agent, number: int) -> None:
        """Note that the move of that number was carried out; repeating changes nothing."""


class MlflowAliasLedger(AliasLedger):
    """A ledger in a run of the agent's experiment: embedded store, server and Databricks alike."""

    def __init__(self, platform: Platform) -> None:
        """Opens nothing yet."""
        self._platform = platform

    def entries(self, agent: Agent) -> list[Entry]:
        """See `AliasLedger.entries`. One request, when the process has seen the ledger before; else up to three."""
        with explained(self._platform.tracking_uri):
            client = open_client(self._platform)
            run_id = self._known(client, agent)
            if run_id is None:
                return []
            try:
                return _read(self._run(client, agent, run_id))
            except Refused:
                # A store reads tags and parameters one after the other: a move that was claimed in between seems to
                # have no tag. It was written before the claim, so that the second look finds it.
                return _read(self._run(client, agent, run_id))

    def claim(self, agent: Agent, number: int, move: AliasMove) -> bool:
        """See `AliasLedger.claim`. Three requests; the first claim of all makes the ledger.

        The move is there before it is claimed: killed in between, it is a tag that nothing names.
        """
        text, name = json.dumps(move.to_json(), ensure_ascii=False, sort_keys=True), digest(move.to_json())
        if len(text.encode()) > MOVE_BYTES:
            raise ValueError(f"a move of {len(text.encode())} bytes cannot be kept, {MOVE_BYTES} are allowed")
        with explained(self._platform.tracking_uri):
            client = open_client(self._platform)
            run_id = self._known(client, agent) or self._make(client, agent)
            client.set_tag(run_id, f"move.{name}", text)
            mine = json.dumps({"digest": name, "after": move.after, "by": claims.myself()})
            stands = _claimed(run_id, number, claims.claim(client, run_id, f"move.{number:06}", mine))
            if stands["digest"] != name:
                client.delete_tag(run_id, f"move.{name}")
            return stands["digest"] == name

    def finish(self, agent: Agent, number: int) -> None:
        """See `AliasLedger.finish`. One request."""
        with explained(self._platform.tracking_uri):
            client = open_client(self._platform)
            run_id = self._known(client, agent)
            if run_id is None:
                raise Refused(_lost(agent, "is not there any more"))
            client.set_tag(run_id, f"done.{number:06}", "true")

    def _known(self, client: "MlflowClient", agent: Agent) -> str | None:
        """The run that is the ledger; None only when none was ever made."""
        key = self._platform, agent.spec.model_name
        if key not in _runs:
            found = self._named_by_model(client, agent.spec.model_name) or self._elected(client, agent)
            if found is None:
                return None
            _runs[key] = found
        return _runs[key]

    def _run(self, client: "MlflowClient", agent: Agent, run_id: str) -> "Run":
        """The ledger as it is now, provided that it is this agent's and not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if not _absent(error):
                raise
            raise Refused(
                _lost(agent, f"was run {run_id}, which does not exist any more: restore it from the store's backup")
            ) from None
        if run.info.lifecycle_stage != "active":
            raise Refused(
                _lost(agent, f"is run {run_id}, which was deleted: restore it (mlflow runs restore --run-id {run_id})")
            )
        if run.data.tags.get(MODEL_NAME) != agent.spec.model_name:
            raise Refused(
                f"Run {run_id} is named as the ledger of {agent.spec.model_name} and is not: correct the tag "
                f"{LEDGER} of the registered model."
            )
        owner = run.data.tags.get(marks.AGENT, "")
        if owner != agent.name:
            raise Refused(
                f"The aliases of {agent.spec.model_name} are moved by the agent '{marks.shortened(owner, 100)}': give "
                f"{agent.name} another model_name in defs.yaml; or, when it is the same agent under a new name, set "
                f"the tag {marks.AGENT} of run {run_id} to {agent.name}."
            )
        return run

    def _make(self, client: "MlflowClient", agent: Agent) -> str:
        """A new ledger, or the one that another process made first: whoever names its run in the experiment wins.

        Killed anywhere, there is a run that nothing names, or a ledger.
        """
        name = agent.spec.model_name
        tags = {marks.AGENT: agent.name, marks.STEP: "ledger", MODEL_NAME: name}
        experiment = experiment_id(self._platform, agent.spec.experiment)
        run_id = client.create_run(experiment, run_name=f"ledger of {name}", tags=tags).info.run_id
        winner = self._elect(client, agent, run_id)
        if winner != run_id:
            client.delete_run(run_id)
        else:
            client.set_terminated(run_id, "FINISHED")
        self._run(client, agent, winner)
        self._name_on_model(client, name, winner)
        _runs[self._platform, name] = winner
        return winner

    def _name_on_model(self, client: "MlflowClient", name: str, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.set_registered_model_tag(name, self._tag(), run_id)
        except MlflowException:  # On SQLite the same tag, written by two at once, is an error to one of them.
            if self._named_by_model(client, name) != run_id:
                raise

    def _elect(self, client: "MlflowClient", agent: Agent, run_id: str) -> str:
        from mlflow.exceptions import MlflowException

        about = (
            f"Names the run that keeps the moves of the aliases of {agent.spec.model_name}. It holds nothing else; "
            "leave it here."
        )
        tags = {marks.AGENT: agent.name, marks.STEP: "ledger", LEDGER: run_id, "mlflow.note.content": about}
        failure: MlflowException | None = None
        try:
            client.create_experiment(deciding_experiment(agent), tags=tags)
        except MlflowException as error:  # There already, or made and the answer lost: the experiment knows.
            failure = error
        winner = self._elected(client, agent)
        if winner is None:
            raise failure or RuntimeError(f"experiment {deciding_experiment(agent)} was made and is not there")
        return winner

    def _elected(self, client: "MlflowClient", agent: Agent) -> str | None:
        """The run that the deciding experiment names; None when there is no such experiment."""
        name = deciding_experiment(agent)
        found = client.get_experiment_by_name(name)
        if found is None:
            return None
        if found.lifecycle_stage != "active":
            restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
            raise Refused(_lost(agent, f"is named by the experiment {name}, which was deleted: restore it ({restore})"))
        if not found.tags.get(LEDGER):
            raise Refused(
                f"The experiment {name} has lost its tag {LEDGER}: set it to the id of the run 'ledger of "
                f"{agent.spec.model_name}' in {agent.spec.experiment}, or, when nothing was ever promoted, rename it."
            )
        return found.tags[LEDGER]

    def _named_by_model(self, client: "MlflowClient", name: str) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            return client.get_registered_model(name).tags.get(self._tag())
        except MlflowException as error:
            if not _absent(error):
                raise
            return None

    def _tag(self) -> str:
        """Unity Catalog takes no dots in the names of tags."""
        return LEDGER.replace(".", "_") if self._platform.is_databricks else LEDGER


def deciding_experiment(agent: Agent) -> str:
    """Name of the experiment whose tag says which run is the ledger.

    Beside the agent's own: on Databricks names are paths in the workspace.
    """
    folder, slash, _ = agent.spec.experiment.rpartition("/")
    return f"{folder}{slash}{agent.spec.model_name}.ledger"


def _read(run: "Run") -> list[Entry]:
    """The entries of a ledger. Raises `Refused` when somebody changed it."""
    run_id, tags = run.info.run_id, run.data.tags
    entries = []
    for key in sorted(key for key in run.data.params if _NUMBER.fullmatch(key)):
        number = int(key.removeprefix("move."))
        claimed = _claimed(run_id, number, run.data.params[key])
        move, is_named = _written(tags.get(f"move.{claimed['digest']}", "{}"))
        if move is None or is_named != claimed["digest"] or number != len(entries) + 1:
            raise Refused(
                f"Run {run_id}, the ledger, was changed by hand at move {number}: set its tag "
                f"move.{claimed['digest']} back to what it was, from the backup of MLflow's store."
            )
        age = time.time() - datetime.fromisoformat(move.at).timestamp()
        done = tags.get(f"done.{number:06}") == "true"
        at_work = not done and claims.at_work(claimed["by"], age, believed_seconds=WORK_SECONDS)
        entries.append(Entry(number, move, done, at_work))
    return entries


@lru_cache(maxsize=1024)
def _written(text: str) -> tuple[AliasMove | None, str]:
    """The move that a tag holds and its digest; None when it holds none. A ledger is read several times a move."""
    try:
        move = AliasMove.from_json(json.loads(text))
    except (ValueError, TypeError):
        return None, ""
    return move, digest(move.to_json())


def _claimed(run_id: str, number: int, value: str) -> dict[str, str]:
    try:
        found = json.loads(value)
        return {"digest": str(found["digest"]), "by": str(found["by"])}
    except (ValueError, TypeError, KeyError):
        raise Refused(
            f"Parameter move.{number:06} of run {run_id}, the ledger, was not written by a move: restore the run from "
            "the backup of MLflow's store."
        ) from None


def _lost(agent: Agent, what: str) -> str:
    return f"The ledger of {agent.spec.model_name} {what}; no alias is moved without it."


def _absent(error: "MlflowException") -> bool:
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
