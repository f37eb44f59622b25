"""A Databricks workspace in memory, as its clients see it over HTTP.

Lives here: routing, the request log, faults, ticks, and the ASGI application; no route of the product itself.
Add here: what every part of the workspace needs.
Not here: the parts (one module each: `tracking.py`, `lake.py`, ...).

A part is a class with `routes`: it is made once a workspace (`workspace[Part]`) and holds its own state. Handlers run
one at a time, so that no part needs a lock; background work is done by an explicit `tick`.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote

PartT = TypeVar("PartT")


class Failure(Exception):  # noqa: N818 - it reads as what the server answers
    """An error answer in the shape of Databricks: `{"error_code": ..., "message": ...}`."""

    def __init__(self, status: int, error_code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error_code": error_code, "message": message, **more}


def not_found(what: str) -> Failure:
    """404 as most of the workspace says it."""
    return Failure(404, "RESOURCE_DOES_NOT_EXIST", f"{what} does not exist.")


@dataclass(frozen=True)
class Call:
    """A request: path parameters in `parts`, query values in `query` (the last of each name) and `queries` (all)."""

    method: str
    path: str
    parts: dict[str, str]
    queries: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        """Query parameters, the last value of each."""
        return {name: values[-1] for name, values in self.queries.items()}

    @property
    def json(self) -> dict[str, Any]:
        """The body as JSON, empty when there is none."""
        return json.loads(self.body) if self.body else {}


@dataclass(frozen=True)
class Reply:
    """An answer that is not simply JSON with status 200."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Call], "dict[str, Any] | list[Any] | Reply | None"]


@dataclass(frozen=True)
class Route:
    """A handler for a method and a path pattern: `{name}` is one segment, `{name:path}` the rest."""

    method: str
    pattern: str
    handler: Handler

    @property
    def regex(self) -> re.Pattern[str]:
        """The pattern compiled."""
        return _compiled(self.pattern)


@dataclass
class Logged:
    """A request as it came and what was answered (status 0: no answer was sent); `route` is the pattern it met."""

    method: str
    path: str
    query: dict[str, str]
    json: Any
    status: int
    at: float
    authorization: str = ""
    route: str = ""


@dataclass
class Fault:
    """What happens to the next `times` requests whose `METHOD path` matches `pattern` (a regular expression).

    `kind`: `status` (answer `status` with `error_code`, `message` and Retry-After `retry_after` without doing the
    work), `hang` (sleep `seconds`, then do it), `reset` (close the connection, nothing done), `lost` (do the work,
    then close the connection), `truncated` (do the work, send half of the answer).
    """

    pattern: str
    kind: str = "status"
    status: int = 500
    error_code: str = "INTERNAL_ERROR"
    message: str = "injected"
    retry_after: int | None = None
    seconds: float = 60.0
    times: int = 1


class Workspace:
    """The whole workspace: an ASGI application with the state of all parts.

    `page_size` forces list answers to be short; `slow_states` is how many polls a state takes to settle.
    """

    def __init__(self, parts: Iterable[type] = ()) -> None:
        self.url = ""
        self.token = "emulated-token"
        self.log: list[Logged] = []
        self.faults: list[Fault] = []
        self.unknown: list[str] = []
        self.page_size: int | None = None
        self.slow_states = 0
        self._parts: dict[type, Any] = {}
        self._routes: list[tuple[Route, re.Pattern[str]]] = []
        self._lock = threading.RLock()
        self._background: list[Callable[[], None]] = []
        for part in parts:
            self[part]

    def __getitem__(self, part: type[PartT]) -> PartT:
        """The one instance of a part; its routes are known from then on."""
        with self._lock:
            if part not in self._parts:
                self._parts[part] = part(self)  # type: ignore[call-arg]
                for route in self._parts[part].routes():
                    self._routes.append((route, route.regex))
            return self._parts[part]

    def every_tick(self, work: Callable[[], None]) -> None:
        """Have `work` done at every tick: a part calls this for what a workspace does in the background."""
        self._background.append(work)

    def tick(self, times: int = 1) -> None:
        """Do the background work of every part."""
        for _ in range(times):
            for work in list(self._background):
                with self._lock:
                    work()

    def fail(self, pattern: str, **what: Any) -> None:
        """Arm a fault; see `Fault`."""
        self.faults.append(Fault(pattern, **what))

    def calls(self, pattern: str) -> list[Logged]:
        """Requests whose `METHOD path` matches the regular expression, oldest first."""
        return [entry for entry in self.log if re.search(pattern, f"{entry.method} {entry.path}")]

    def page(self, items: list[Any], call: Call, *, default: int = 100) -> tuple[list[Any], str]:
        """One page of `items` and the token of the next one (empty at the end), by `page_token` and `max_results`."""
        asked = call.query.get("max_results") or call.query.get("page_size") or (call.json or {}).get("max_results")
        size = min(int(asked or default), self.page_size or 10**9)
        start = int(call.query.get("page_token") or (call.json or {}).get("page_token") or 0)
        token = str(start + size) if start + size < len(items) else ""
        return items[start : start + size], token

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        call = Call(
            method=scope["method"],
            path=unquote(scope["raw_path"].decode().partition("?")[0]),
            parts={},
            queries=parse_qs(scope["query_string"].decode(), keep_blank_values=True),
            headers={name.decode().lower(): value.decode() for name, value in scope["headers"]},
            body=body,
        )
        entry = Logged(call.method, call.path, call.query, _readable(call), 0, time.time(), _scheme(call))
        self.log.append(entry)
        entry.route = self._pattern(call)
        fault = self._fault(call)
        if fault and fault.kind == "reset":
            send.__self__.transport.abort()
            return
        if fault and fault.kind == "hang":
            await asyncio.sleep(fault.seconds)
        if fault and fault.kind == "status":
            headers = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
            text = json.dumps({"error_code": fault.error_code, "message": fault.message}).encode()
            reply = Reply(text, fault.status, {"content-type": "application/json", **headers})
        else:
            reply = await asyncio.get_running_loop().run_in_executor(None, self._answer, call)
        if fault and fault.kind == "lost":
            send.__self__.transport.abort()
            return
        entry.status = reply.status
        headers = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
        length = [(b"content-length", str(len(reply.body)).encode())]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers + length})
        if fault and fault.kind == "truncated":
            await send({"type": "http.response.body", "body": reply.body[: len(reply.body) // 2], "more_body": True})
            send.__self__.transport.close()
            return
        await send({"type": "http.response.body", "body": b"" if call.method == "HEAD" else reply.body})

    def _fault(self, call: Call) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, f"{call.method} {call.path}"):
                fault.times -= 1
                return fault
        return None

    def _pattern(self, call: Call) -> str:
        """The pattern of the route a request meets, empty for an unknown one."""
        met = (r.pattern for r, regex in self._routes if r.method == call.method and regex.fullmatch(call.path))
        return next(met, "")

    def _answer(self, call: Call) -> Reply:
        with self._lock:
            try:
                said = self._handled(call)
            except Failure as failure:
                return _json(failure.body, failure.status)
            except Exception as error:  # noqa: BLE001 - a bug of the emulator must be seen by the test
                self.unknown.append(f"{call.method} {call.path}: {type(error).__name__}: {error}")
                return _json({"error_code": "INTERNAL_ERROR", "message": f"emulator: {error!r}"}, 500)
        return said if isinstance(said, Reply) else _json(said if said is not None else {}, 200)

    def _handled(self, call: Call) -> Any:
        if call.path.startswith("/api/") and call.headers.get("authorization") != f"Bearer {self.token}":
            raise Failure(401, "UNAUTHENTICATED", "Credential was not sent or was of an unsupported type for this API.")
        for route, regex in self._routes:
            match = regex.fullmatch(call.path) if route.method == call.method else None
            if match:
                return route.handler(Call(**{**call.__dict__, "parts": match.groupdict()}))
        self.unknown.append(f"{call.method} {call.path}")
        raise Failure(404, "ENDPOINT_NOT_FOUND", f"No API found for '{call.method} {call.path}'")


def _compiled(pattern: str) -> re.Pattern[str]:
    text = re.sub(r"\{(\w+):path\}", r"(?P<\1>.+)", re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern))
    return re.compile(text)


def _json(value: Any, status: int) -> Reply:
    return Reply(json.dumps(value).encode(), status, {"content-type": "application/json"})


def _readable(call: Call) -> Any:
    try:
        return json.loads(call.body) if call.body else None
    except ValueError:
        return None


def _scheme(call: Call) -> str:
    return call.headers.get("authorization", "").partition(" ")[0]


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
