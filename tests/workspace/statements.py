"""The Statement Execution API over the lake.

Lives here: statements, their states, results in chunks.
Add here: a disposition or format. Not here: SQL (`lake.py`), warehouses (`unity.py`).

With `workspace.slow_states` a statement runs only after that many polls (or at a tick), as on a busy warehouse.
"""

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from tests.workspace.app import Call, Failure, Reply, Route, Workspace
from tests.workspace.lake import Lake
from tests.workspace.lake_sql import WrongSql
from tests.workspace.unity import Unity

BASE = "/api/2.0/sql/statements"
INLINE_BYTES = 26_214_400
CHUNK_ROWS = 10_000


class Statements:
    """Statements by id: `{statement_id, request, state, waits, error, columns, chunks, rows, truncated}`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.statements: dict[str, dict[str, Any]] = {}
        self.inline_bytes = INLINE_BYTES
        workspace.every_tick(self.finish)

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("POST", BASE, self.execute),
            Route("POST", f"{BASE}/", self.execute),  # the SDK asks with the slash
            Route("GET", f"{BASE}/{{id}}", self.get),
            Route("POST", f"{BASE}/{{id}}/cancel", self.cancel),
            Route("GET", f"{BASE}/{{id}}/result/chunks/{{chunk}}", self.chunk),
            Route("GET", "/storage/results/{id}/{chunk}", self.file),
        ]

    def execute(self, call: Call) -> dict[str, Any]:
        """POST statements."""
        request = call.json
        if not request.get("statement") or not request.get("warehouse_id"):
            raise Failure(400, "INVALID_PARAMETER_VALUE", "statement and warehouse_id are required.")
        wait = request.get("wait_timeout", "10s")
        if not wait.endswith("s") or (wait != "0s" and not 5 <= int(wait[:-1]) <= 50):
            raise Failure(400, "INVALID_PARAMETER_VALUE", "wait_timeout must be 0s or between 5s and 50s.")
        if request.get("format", "JSON_ARRAY") != "JSON_ARRAY":
            raise Failure(400, "INVALID_PARAMETER_VALUE", "Only JSON_ARRAY is served here.")
        self.workspace[Unity].use_warehouse(request["warehouse_id"])
        statement = {
            "statement_id": str(uuid.uuid4()),
            "request": request,
            "state": "PENDING",
            "waits": self.workspace.slow_states,
        }
        self.statements[statement["statement_id"]] = statement
        if wait != "0s":
            if not statement["waits"]:
                self._run(statement)
            elif request.get("on_wait_timeout") == "CANCEL":
                statement["state"] = "CANCELED"
        return self._shown(statement)

    def get(self, call: Call) -> dict[str, Any]:
        """GET statements/{id}."""
        statement = self._statement(call)
        if statement["state"] in ("PENDING", "RUNNING"):
            statement["waits"] -= 1
            statement["state"] = "RUNNING"
            if statement["waits"] <= 0:
                self._run(statement)
        return self._shown(statement)

    def cancel(self, call: Call) -> dict[str, Any]:
        """POST statements/{id}/cancel."""
        statement = self._statement(call)
        if statement["state"] in ("PENDING", "RUNNING"):
            statement["state"] = "CANCELED"
        return {}

    def chunk(self, call: Call) -> dict[str, Any]:
        """GET statements/{id}/result/chunks/{chunk}."""
        statement, number = self._statement(call), int(call.parts["chunk"])
        if statement["state"] != "SUCCEEDED" or number >= len(statement["chunks"]):
            raise Failure(404, "NOT_FOUND", f"Chunk {number} does not exist.")
        return self._chunk(statement, number)

    def file(self, call: Call) -> Reply:
        """GET of an external link: as object stores do, it refuses a second way to sign in."""
        if "authorization" in call.headers:
            raise Failure(400, "InvalidArgument", "Only one auth mechanism allowed")
        return Reply(json.dumps(self._statement(call)["chunks"][int(call.parts["chunk"])]).encode())

    def finish(self) -> None:
        """Run what waits: nobody may be polling for it."""
        for statement in self.statements.values():
            if statement["state"] in ("PENDING", "RUNNING"):
                self._run(statement)

    def _statement(self, call: Call) -> dict[str, Any]:
        if call.parts["id"] not in self.statements:
            raise Failure(404, "NOT_FOUND", f"The statement {call.parts['id']} was not found.")
        return self.statements[call.parts["id"]]

    def _run(self, statement: dict[str, Any]) -> None:
        request = statement["request"]
        place = {"catalog": request.get("catalog", "main"), "schema": request.get("schema", "default")}
        try:
            columns, rows = self.workspace[Lake].run(request["statement"], request.get("parameters") or (), **place)
        except WrongSql as error:
            statement.update(state="FAILED", error={"error_code": "BAD_REQUEST", "message": str(error)})
            return
        limit = int(request.get("row_limit") or len(rows))
        texts = [[_text(value, column[1]) for value, column in zip(row, columns, strict=True)] for row in rows[:limit]]
        if request.get("disposition", "INLINE") == "INLINE" and len(json.dumps(texts)) > self.inline_bytes:
            sentence = (
                "Inline byte limit exceeded. Statements executed with disposition=INLINE can have a result size of at "
                f"most {self.inline_bytes} bytes. Please execute the statement with disposition=EXTERNAL_LINKS if you "
                "want to download the full result."
            )
            statement.update(state="FAILED", error={"error_code": "BAD_REQUEST", "message": sentence})
            return
        size = self.workspace.page_size or CHUNK_ROWS
        chunks = [texts[start : start + size] for start in range(0, len(texts), size)]
        statement.update(state="SUCCEEDED", columns=columns, chunks=chunks, truncated=len(rows) > limit)

    def _shown(self, statement: dict[str, Any]) -> dict[str, Any]:
        status: dict[str, Any] = {"state": statement["state"]}
        if "error" in statement:
            status["error"] = statement["error"]
        shown: dict[str, Any] = {"statement_id": statement["statement_id"], "status": status}
        if statement["state"] != "SUCCEEDED":
            return shown
        columns, chunks, starts = statement["columns"], statement["chunks"], _starts(statement["chunks"])
        shown["manifest"] = {
            "format": "JSON_ARRAY",
            "schema": {
                "column_count": len(columns),
                **({"columns": _schema(columns)} if columns else {}),
            },
            "total_chunk_count": len(chunks),
            **({"chunks": [_place(number, start, chunks) for number, start in enumerate(starts)]} if chunks else {}),
            "total_row_count": sum(map(len, chunks)),
            "truncated": statement["truncated"],
        }
        shown["result"] = self._chunk(statement, 0) if chunks else {}
        return shown

    def _chunk(self, statement: dict[str, Any], number: int) -> dict[str, Any]:
        chunks = statement["chunks"]
        external = statement["request"].get("disposition") == "EXTERNAL_LINKS"
        found = {**_place(number, _starts(chunks)[number], chunks)}
        if external:
            found["external_link"] = f"{self.workspace.url}/storage/results/{statement['statement_id']}/{number}"
        else:
            found["data_array"] = chunks[number]
        if number + 1 < len(chunks):
            found["next_chunk_index"] = number + 1
            link = f"{BASE}/{statement['statement_id']}/result/chunks/{number + 1}"
            found["next_chunk_internal_link"] = f"{link}?row_offset={found['row_offset'] + found['row_count']}"
        return {"external_links": [found]} if external else found


def _schema(columns: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "type_name": type_name, "type_text": text, "position": position}
        for position, (name, type_name, text) in enumerate(columns)
    ]


def _starts(chunks: list[list[Any]]) -> list[int]:
    starts = [0]
    for chunk in chunks:
        starts.append(starts[-1] + len(chunk))
    return starts[:-1]


def _place(number: int, start: int, chunks: list[list[Any]]) -> dict[str, int]:
    return {"chunk_index": number, "row_offset": start, "row_count": len(chunks[number])}


def _text(value: Any, type_name: str) -> str | None:
    """A value as JSON_ARRAY gives it: always text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        zoned = value.astimezone(UTC) if value.tzinfo else value
        return zoned.strftime("%Y-%m-%dT%H:%M:%S.%f") + ("Z" if type_name == "TIMESTAMP" else "")
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(_plain(value))
    return "NaN" if value != value else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return _text(value, "TIMESTAMP") if isinstance(value, datetime | date) else value
