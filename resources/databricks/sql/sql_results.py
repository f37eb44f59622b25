"""The rows of a statement that succeeded.

Lives here: every chunk, in replies of the API or as files of the workspace's storage, to Python values.
Add here: another form of result. Not here: values of a type (`sql_values.py`), running statements (`statements.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from lifecycle_assets.refused import Refused
from resources.databricks.sql.sql_values import read_value

if TYPE_CHECKING:
    from databricks.sdk.service.sql import ExternalLink, StatementExecutionAPI, StatementResponse

_FILE_SECONDS = 60  # A file has up to 20 MiB.

Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """Columns with their Databricks types and rows as Python values; `truncated` when there were more than asked."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool = False

    def dicts(self) -> list[dict[str, Any]]:
        """Rows as dictionaries."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def read_answer(api: "StatementExecutionAPI", response: "StatementResponse", limit: int | None) -> Answer:
    """At most `limit` rows. Raises `Refused` when there are fewer than announced: a part is never taken for all."""
    manifest = response.manifest
    listed = (manifest.schema.columns if manifest and manifest.schema else None) or []
    columns = tuple(column.name or "" for column in listed)
    types = tuple((column.type_text or getattr(column.type_name, "value", "") or "STRING").upper() for column in listed)
    rows: list[tuple[Any, ...]] = []
    for texts in _texts(api, response) if listed else ():
        rows.append(tuple(read_value(text, kind) for text, kind in zip(texts, types, strict=True)))
        if limit is not None and len(rows) > limit:
            break
    truncated = bool(manifest and manifest.truncated) or (limit is not None and len(rows) > limit)
    expected = manifest.total_row_count if manifest else None
    if not truncated and expected is not None and len(rows) != expected:
        raise Refused(f"The SQL warehouse announced {expected} rows and gave {len(rows)}; run again.")
    return Answer(columns, types, tuple(rows if limit is None else rows[:limit]), truncated)


def again(ask: Callable[[], Result]) -> Result:
    """`ask`, once more when its answer broke off: the SDK repeats a lost answer, not half of one."""
    from requests.exceptions import ChunkedEncodingError, ContentDecodingError, JSONDecodeError

    try:
        return ask()
    except (ChunkedEncodingError, ContentDecodingError, JSONDecodeError):
        return ask()


def _texts(api: "StatementExecutionAPI", response: "StatementResponse") -> Iterator[list[str | None]]:
    """The rows of every chunk, in order, as the texts they are sent as."""
    chunk, seen = response.result, {0}
    while chunk is not None:
        links = chunk.external_links or []
        yield from chunk.data_array or []  # ty: ignore[invalid-yield] - the SDK leaves nulls out of its type
        for link in links:
            yield from again(partial(_file, link))
        following = links[-1].next_chunk_index if links else chunk.next_chunk_index
        if following is None or following in seen:
            return
        seen.add(following)
        chunk = again(partial(api.get_statement_result_chunk_n, response.statement_id or "", following))


def _file(link: "ExternalLink") -> list[list[str | None]]:
    """A chunk that lies in the storage. Raises `Refused` when it cannot be fetched."""
    import requests

    # An address is the permission, so neither our sign-in is sent along nor a .netrc, and no error may quote it.
    failed = "A part of the answer could not be fetched from the workspace's storage"
    try:
        reply = requests.get(
            link.external_link or "",
            headers=link.http_headers or {},
            auth=lambda request: request,
            timeout=_FILE_SECONDS,
        )
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Refused(f"{failed} ({type(error).__name__}): open the way to it from here, or run again.") from None
    if not reply.ok:
        raise Refused(f"{failed} ({reply.status_code}): run again.")
    return reply.json()
