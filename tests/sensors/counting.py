"""What a tick asks: every SQL statement of this process, by the SQLite file it goes to.

Lives here: counting. Add here: another kind of question worth counting. Not here: what is asked.

Python tells a profiler of each call; before the call that executes a statement, the connection is told to say its
statements. So SQLAlchemy's are heard as well as those of the standard library, and nothing is replaced.
"""

import sqlite3
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

COUNTED = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "CREATE")


@dataclass(frozen=True)
class Asked:
    """One statement, and the file name of the database it went to."""

    file: str
    sql: str


def asked_during(act: Callable[[], Any]) -> list[Asked]:
    """The statements of this thread, and of threads it starts, while `act` runs; without PRAGMA and BEGIN."""
    heard: list[Asked] = []
    hear = partial(_hear, heard)
    threading.setprofile(hear)
    sys.setprofile(hear)
    try:
        act()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # ty: ignore[invalid-argument-type] None ends it
    return heard


def requests_during(act: Callable[[], Any]) -> list[str]:
    """Method and path of every HTTP request of this process while `act` runs, as Python's audit hooks hear them."""
    sent: list[str] = []
    _listening.append(sent)
    try:
        act()
    finally:
        _listening.remove(sent)
    return sent


_listening: list[list[str]] = []


def _sent(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "http.client.send" and isinstance(arguments[1], bytes) and b" HTTP/1.1\r\n" in arguments[1][:2000]:
        for sent in _listening:
            sent.append(arguments[1].split(b" HTTP/1.1", 1)[0].decode())


sys.addaudithook(_sent)


def of_file(asked: list[Asked], file: str) -> list[str]:
    """The statements that went to that database."""
    return [one.sql for one in asked if one.file == file]


def _hear(heard: list[Asked], _frame: Any, event: str, called: Any) -> None:
    if event != "c_call" or getattr(called, "__name__", "") not in ("execute", "executemany", "executescript"):
        return
    owner = called.__self__
    connection = owner.connection if isinstance(owner, sqlite3.Cursor) else owner
    if isinstance(connection, sqlite3.Connection):
        (_, _, path), *_ = connection.execute("PRAGMA database_list").fetchall()
        file = Path(path.decode() if isinstance(path, bytes) else path).name
        connection.set_trace_callback(partial(_note, heard, file))


def _note(heard: list[Asked], file: str, sql: str) -> None:
    if sql.lstrip().upper().startswith(COUNTED):
        heard.append(Asked(file, " ".join(sql.split())))
