"""From a library's error to a refusal a person can act on.

Lives here: the one place that knows what a locked SQLite file, a full disk or an unreachable server look like.
Add here: a fault of the environment that users meet and can mend.
Not here: faults of a declaration (`lifecycle_assets/spec_file.py`), programming errors (they keep their trace).
"""

import errno
import re
from collections.abc import Generator
from contextlib import contextmanager

_DISK = {
    errno.ENOSPC: "no space is left",
    errno.EFBIG: "a file may not grow further",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
}

_DRIVERS = ("psycopg2", "psycopg", "pymysql", "MySQLdb", "mysql", "pyodbc")
"""Packages by which MLflow reaches a database that a tracking URI names."""

_SCHEMA = re.compile(r"out-of-date database schema \(found version (\w{1,40}), but expected (\w{1,40})\)")
_LACKING = re.compile(
    r"(?:sqlite3\.operationalerror|undefinedtable|undefinedcolumn)\) ((?:no such|column|relation)[^\n]+)"
)


def explain(error: BaseException, where: str) -> str | None:
    """A sentence for a known fault of the environment, None for anything else.

    `where` is what was being talked to, such as the tracking URI; it must not hold a secret.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        sentence = _of_workspace(link) if where.startswith("databricks") else None
        sentence = sentence or _explain_one(link, where)
        if sentence:
            return sentence
        link = link.__cause__ or link.__context__
    return None


def _of_workspace(error: BaseException) -> str | None:
    from resources.databricks.faults import explain_databricks

    return explain_databricks(error)


def _explain_one(error: BaseException, where: str) -> str | None:
    text = str(error).lower()
    if "database is locked" in text:
        return (
            f"{where}: the SQLite file is locked by another process; stop that process or wait for it, then run again."
        )
    if "attempt to write a readonly database" in text or "unable to open database file" in text:
        return f"{where}: the SQLite file cannot be written; give this user write permission, or set LIFECYCLE_HOME."
    schema = _SCHEMA.search(text)
    if schema:
        return (
            f"{where}: the store's schema is {schema[1]}, and the MLflow here knows {schema[2]}; if another MLflow "
            "upgraded the store install the same one here, else take a backup and run mlflow db upgrade; then run "
            "again."
        )
    lacking = _LACKING.search(text)
    if lacking and type(error).__module__.startswith("mlflow."):  # Of MLflow's store: other databases have no upgrade.
        return (
            f"{where}: the database lacks what is asked for ({lacking[1].strip()[:120]}); if it is being upgraded let "
            "that end, then run again."
        )
    if "database or disk is full" in text:
        return f"{where}: the disk is full; free space, or set LIFECYCLE_HOME to another disk, then run again."
    if "file is not a database" in text or ("malformed" in text and "database" in text):
        return f"{where}: the file is not a usable SQLite database; restore it, or move it away to start over."
    if isinstance(error, OSError) and error.errno in _DISK:
        place = error.filename or where
        return f"{place}: {_DISK[error.errno]}; free space or give permission, or set LIFECYCLE_HOME, then run again."
    if type(error).__name__ in ("ConnectionError", "ConnectTimeout", "MaxRetryError", "NewConnectionError"):
        return f"{where}: the server does not answer; start it, or correct MLFLOW_TRACKING_URI, then run again."
    if isinstance(error, ModuleNotFoundError) and error.name in _DRIVERS:
        return f"{where}: the Python package {error.name} is not installed; install it here, then run again."
    if getattr(error, "error_code", "") == "PERMISSION_DENIED":
        said = " ".join(str(error).split())[:200].rstrip(". ")
        return f"{where}: denies permission ({said}); have it granted, then run again."
    if type(error).__name__ in ("InvalidUrlException", "InvalidURL", "InvalidSchema", "MissingSchema"):
        return "MLFLOW_TRACKING_URI is not a usable address; write http(s)://host:port or sqlite:///path."
    if "max retries exceeded with url" in text or "connection refused" in text:
        return f"{where}: the server does not answer; start it, or correct MLFLOW_TRACKING_URI, then run again."
    return None


def without_password(uri: str) -> str:
    """`uri` without user, password and query, so that it can be shown; a path to a file stays whole."""
    scheme, separator, rest = uri.partition("://")
    if separator and scheme.split("+")[0] not in ("sqlite", "file"):
        rest = rest.rpartition("@")[2].partition("?")[0]
    return scheme + separator + rest


@contextmanager
def explained(where: str) -> Generator[None]:
    """Turn known faults inside the block into `Refused`; everything else passes unchanged."""
    try:
        yield
    except Exception as error:
        from lifecycle_assets.refused import Refused  # Which imports Dagster: some 0.5 s, where nothing else does.

        sentence = None if isinstance(error, Refused) else explain(error, without_password(where))
        if sentence is None:
            raise
        raise Refused(sentence) from error
