"""One SQL statement on the SQL warehouse, to its end and with all its rows.

Lives here: sending, waiting, cancelling, and what a failed statement means for a person.
Add here: an error class of Databricks SQL that people can mend.
Not here: which SQL (`dialect.py`, `archive_sql.py`), the answer (`sql_results.py`), warehouses (`warehouse.py`).

The answer to a sent statement may be lost, and then the client sends it again. So what is run here must be the same
when it runs twice: a query, a MERGE by key, a replacement of the rows of a condition, CREATE … IF NOT EXISTS.
"""

import contextlib
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from resources.databricks.faults import message
from resources.databricks.sql.sql_results import Answer, again, read_answer
from resources.databricks.sql.sql_values import parameter
from resources.databricks.workspace import open_workspace
from resources.explain import explained
from resources.platform import Platform

if TYPE_CHECKING:
    from databricks.sdk.service.sql import StatementResponse

TIMEOUT_SECONDS = 600.0
"""How long a statement may take in all, a starting warehouse included."""

_ANSWER_SECONDS = 10  # The server holds the first answer so long; a request may take twice that.
_LONGEST_PAUSE = 5.0
_CONDITION = re.compile(r"\s*(?:[A-Z_]+: )?\[([A-Z0-9_.]+)\]")
_DENIED = re.compile(
    r"does not have (?:the )?(?:permission |privilege )?`?([A-Z][A-Z _]+?)`? on (\w+) ['`\"]?([^'\"\s]+)"
)


class StatementFailed(Refused):
    """Databricks ran the statement and it failed; `condition` is its error class, such as TABLE_OR_VIEW_NOT_FOUND."""

    def __init__(self, sentence: str, condition: str) -> None:
        super().__init__(sentence)
        self.condition = condition


def run_statement(
    platform: Platform,
    sql: str,
    params: Mapping[str, Any] | None = None,
    *,
    limit: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Answer:
    """Run `sql`, with `params` bound to its `:name` markers, and return at most `limit` rows.

    Values may be text, numbers, booleans, dates, times with a zone and None. Raises `StatementFailed` for what
    Databricks answered, `Refused` without a usable warehouse or after `timeout_seconds`; the statement is cancelled
    then, as it is when this process is interrupted.
    """
    until = time.monotonic() + timeout_seconds
    with explained("databricks"), _asking(platform):
        try:
            return _run(platform, sql, params or {}, limit, until, timeout_seconds, inline=True)
        except _TooLarge:
            return _run(platform, sql, params or {}, limit, until, timeout_seconds, inline=False)


def _run(
    platform: Platform,
    sql: str,
    params: Mapping[str, Any],
    limit: int | None,
    until: float,
    seconds: float,
    *,
    inline: bool,
) -> Answer:
    """The answer in the API's own replies (at most 25 MiB) or as files of the workspace's storage."""
    from databricks.sdk.service.sql import Disposition, ExecuteStatementRequestOnWaitTimeout, Format

    api = open_workspace(platform).statement_execution
    response = again(
        lambda: api.execute_statement(
            sql,
            _named(platform),
            parameters=[parameter(name, value) for name, value in params.items()] or None,
            row_limit=None if limit is None else limit + 1,  # One more tells whether there are more.
            disposition=Disposition.INLINE if inline else Disposition.EXTERNAL_LINKS,
            format=Format.JSON_ARRAY,
            wait_timeout=f"{_ANSWER_SECONDS}s" if seconds > _ANSWER_SECONDS else "5s",
            on_wait_timeout=ExecuteStatementRequestOnWaitTimeout.CONTINUE,
        )
    )
    response = _finished(platform, response, until, seconds)
    if _state(response) != "SUCCEEDED":
        error = response.status.error if response.status else None
        text = (error.message if error else None) or f"the statement is {_state(response).lower()}"
        if inline and "inline byte limit" in text.lower():
            raise _TooLarge
        raise _failed(platform, text)
    return read_answer(api, response, limit)


class _TooLarge(Exception):  # noqa: N818 - it reads as what happened
    """The answer does not fit the API's replies."""


def _named(platform: Platform) -> str:
    if not platform.warehouse_id:
        raise Refused(
            "DATABRICKS_WAREHOUSE_ID is not set: set it to the id of a SQL warehouse you may use (SQL Warehouses, "
            "Connection details)."
        )
    return platform.warehouse_id


def _finished(platform: Platform, response: "StatementResponse", until: float, seconds: float) -> "StatementResponse":
    """The response once the statement ended; cancelled when time is up or this process is interrupted."""
    from databricks.sdk.errors import DatabricksError

    api, pause, statement_id = open_workspace(platform).statement_execution, 0.2, response.statement_id or ""
    try:
        while _state(response) in ("PENDING", "RUNNING"):
            if time.monotonic() + pause > until:
                raise _Late
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
            response = again(lambda: api.get_statement(statement_id))
    except BaseException as error:
        with contextlib.suppress(DatabricksError, OSError):  # It ends by itself; what stopped us is what to say.
            api.cancel_execution(statement_id)
        if isinstance(error, _Late):
            raise Refused(
                f"The query took longer than {seconds:g} s and was cancelled; narrow it, such as by trace_date, or "
                "look whether the SQL warehouse is busy."
            ) from None
        raise
    return response


class _Late(Exception):  # noqa: N818 - it reads as what happened
    """Time is up."""


def _state(response: "StatementResponse") -> str:
    state = response.status.state if response.status else None
    return state.value if state else "FAILED"


def _failed(platform: Platform, text: str) -> StatementFailed:
    found = _CONDITION.match(text)
    return StatementFailed(explain_sql(platform, text), found[1] if found else "")


def explain_sql(platform: Platform, text: str) -> str:
    """What Databricks SQL said, in one short sentence, with the statement that mends it where there is one."""
    said = " ".join(text.partition("== SQL")[0].split())
    said = re.sub(r"\s*SQLSTATE: \w+.*$", "", said)[:300].rstrip(". ")
    denied, absent = _DENIED.search(said), re.search(r"`([^`]+)`(?:\.`([^`]+)`)?|'([\w.]+)'", said)
    name = ".".join(part for part in (absent.groups() if absent else ()) if part)
    if denied:
        privilege, kind, name = denied[1].strip().replace("_", " "), denied[2].upper(), denied[3].rstrip(".'`")
        kind = kind if kind in ("CATALOG", "SCHEMA", "VOLUME", "FUNCTION") else "TABLE"
        statement = f"GRANT {privilege} ON {kind} {ticked(name.replace('`', ''))} TO `{_me(platform)}`"
        return f"The SQL warehouse refused: {said}; have its owner run: {statement}"
    if "INSUFFICIENT_PERMISSIONS" in said or "PERMISSION_DENIED" in said:
        return f"The SQL warehouse refused: {said}; run lifecycle doctor to see the GRANT that is missing."
    if "NO_SUCH_CATALOG" in said or "CATALOG_NOT_FOUND" in said:
        return f"The SQL warehouse says: {said}; run CREATE CATALOG {ticked(name)}, or correct defs.yaml."
    if "SCHEMA_NOT_FOUND" in said:
        return f"The SQL warehouse says: {said}; run CREATE SCHEMA {ticked(name)}, or correct defs.yaml."
    return f"The SQL warehouse says: {said}."


def ticked(name: str) -> str:
    """A dotted name as SQL, each part in backticks."""
    return ".".join(f"`{part.replace('`', '``')}`" for part in name.split("."))


def _me(platform: Platform) -> str:
    from databricks.sdk.errors import DatabricksError

    try:
        return (open_workspace(platform).current_user.me().user_name or "").replace("`", "``") or "<principal>"
    except (DatabricksError, OSError):
        return "<principal>"


@contextmanager
def _asking(platform: Platform) -> Generator[None]:
    """Turn what is wrong with the warehouse itself into `Refused`; the rest is the workspace's."""
    from databricks.sdk.errors import BadRequest, NotFound, PermissionDenied

    try:
        yield
    except (NotFound, BadRequest) as error:
        if (
            not isinstance(error, NotFound)
            and "endpoint id" not in str(error)
            and "warehouse" not in str(error).lower()
        ):
            raise Refused(explain_sql(platform, message(error))) from error
        raise Refused(
            f"DATABRICKS_WAREHOUSE_ID is '{platform.warehouse_id[:60]}', and the workspace has no such SQL warehouse "
            f"({message(error)[:200]}): set it to an id of lifecycle doctor's workspace (SQL Warehouses)."
        ) from error
    except PermissionDenied as error:
        raise Refused(
            f"The SQL warehouse {platform.warehouse_id[:60]} may not be used ({message(error)[:200]}): have CAN USE on "
            "it granted, or name another by DATABRICKS_WAREHOUSE_ID."
        ) from error
