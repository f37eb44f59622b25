"""Claims: of several processes that want the same thing, one gets it.

Lives here: the one write of MLflow's that never overwrites, and how a process names itself in a claim.
Add here: something that every claim has to do.
Not here: what is claimed (`alias_ledger.py`, `model_registry.py`).

A parameter of a run is written once: on SQLite by a unique key, on a server and on Databricks by their promise
(https://mlflow.org/docs/latest/rest-api.html, "Log Param"). The loser is told "Changing param values is not allowed",
the same value again is accepted, and it works on a finished run.
"""

import os
import socket
import threading
from typing import TYPE_CHECKING

from resources import run_marks as marks

if TYPE_CHECKING:
    from mlflow import MlflowClient

VALUE_BYTES = 500
"""Bytes of a value: what Databricks documents for a parameter. Open-source MLflow cuts at 6000, without an error."""

ELSEWHERE_SECONDS = 300
"""How long a process of another machine is believed to be at work: it cannot be asked."""


def claim(client: "MlflowClient", run_id: str, key: str, value: str) -> str:
    """Write `value` under `key` of the run unless another value is there; the value that stands there now.

    Repeating is harmless: what was written although its answer got lost is read back. Any other failure is raised,
    and then nothing may be concluded about who holds the claim.
    """
    if len(value.encode()) > VALUE_BYTES:
        raise ValueError(f"{key}: {len(value.encode())} bytes cannot be claimed, {VALUE_BYTES} are allowed")
    from mlflow.exceptions import MlflowException

    failure: MlflowException | None = None
    try:
        client.log_param(run_id, key, value)
    except MlflowException as error:  # Lost to another, or the answer got lost: the run knows.
        failure = error
    stands = client.get_run(run_id).data.params.get(key)
    if stands is None:
        raise failure or RuntimeError(f"run {run_id} does not give {key} back")
    return stands


def myself() -> str:
    """How this thread of this process names itself in a claim."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{threading.get_ident()}"


def at_work(claimant: str, age_seconds: float, *, believed_seconds: float) -> bool:
    """Whether the claimant may still be doing what it claimed `age_seconds` ago.

    Not when it ran on this machine and is gone, nor when it is this thread, which is doing something else now;
    nor, because numbers of processes are used again, after `believed_seconds`. Of another machine's process nothing
    is known: it is believed for `ELSEWHERE_SECONDS` at most.
    """
    host, process, thread = [*claimant.rsplit(":", 2), "", ""][:3]
    if host != socket.gethostname()[:64] or not (process.isdigit() and thread.isdigit()):
        return age_seconds < min(believed_seconds, ELSEWHERE_SECONDS)
    if age_seconds >= believed_seconds:
        return False
    if int(process) != os.getpid():
        return marks.process_lives(int(process))
    lives = {one.ident for one in threading.enumerate()}
    return int(thread) != threading.get_ident() and int(thread) in lives
