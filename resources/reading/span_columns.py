"""From stored spans to the columns of `spans`, many at a time.

Lives here: one pass over the contents of a page, and telling which spans are out of the ordinary.
Add here: a further kind of span that need not be read by MLflow.
Not here: the rows of single spans (`trace_rows.py`), reading (`database_sql.py`).

What is made here is what `trace_rows.span_row` makes of the same span, without an object for each: a span whose
attributes are not texts of plain JSON, or whose kind MLflow derives from others, is odd and left to it.
"""

import json
import re
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from resources.arrow_compute import compute
from resources.reading.row_batches import UNREADABLE
from resources.redaction import Text
from resources.trace_rows import OWN_COLUMN

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[str, str, str | None, str | None, str]

_INPUTS, _OUTPUTS, _TYPE, _REQUEST = OWN_COLUMN
_KIND = re.compile(r'"[A-Za-z_ ]+"')
_HEX_ID = "^[0-9a-f]{16}$"
_SHORT, _MOST = 48, 4_000  # Characters of a member that is remembered, and how many are.
_ID_LENGTH = 12  # Characters of a span's id in base64, as MLflow keeps it in the content.
_BLOCK = 128  # Spans whose texts Python holds at once: these stay in the processor's cache, and their memory is reused.
_NOTHING = ("", "", None, None, "")


class SpanColumns:
    """Makes columns of spans. One object a thread: it remembers attributes that come again and again."""

    def __init__(self) -> None:
        import orjson

        self._loads = orjson.loads
        self._last = "null"
        self._members: dict[tuple[str, str], str] = {}
        self._keys: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        self._text = Text(())

    def of(self, spans: "pa.Table") -> "pa.Table":
        """The columns of `spans` without `trace_id` and `trace_date`, with `nth`, `start_ns` and `odd`, in order."""
        import pyarrow as pa

        pc = compute()

        read, (name, kind, inputs, outputs, attributes) = self._read(spans.column("content"))
        status, ended, started = (spans.column(column) for column in ("status", "end_ns", "start_ns"))
        parent = spans.column("parent_span_id")
        sound = [
            pa.chunked_array([read]),
            pc.is_in(status, value_set=pa.array(["OK", "ERROR", "UNSET"], pa.string())),
            pc.fill_null(pc.match_substring_regex(spans.column("span_id"), _HEX_ID), False),
            pc.fill_null(pc.greater(started, 0), False),
            pc.fill_null(pc.greater(ended, 0), True),
        ]
        ordinary = sound[0]
        for one in sound[1:]:
            ordinary = pc.and_(ordinary, one)
        moment = pa.timestamp("us", tz="UTC")
        return pa.table(
            {
                "nth": spans.column("nth"),
                "span_id": spans.column("span_id"),
                "parent_span_id": pc.if_else(pc.equal(parent, ""), None, parent),
                "name": name,
                "type": kind,
                "start_time": pc.divide(started, 1000).cast(moment),
                "end_time": pc.divide(ended, 1000).cast(moment),
                "status": status,
                "inputs": inputs,
                "outputs": outputs,
                "attributes": attributes,
                "start_ns": started,
                "odd": pc.invert(ordinary),
            }
        )

    def _read(self, contents: "pa.ChunkedArray") -> "tuple[pa.Array, list[pa.Array]]":
        """Whether each content is ordinary, and the columns of `_made`."""
        import pyarrow as pa

        read: list[bool] = []
        parts: list[list[pa.Array]] = [[pa.array([], pa.string())] for _ in _NOTHING]
        for chunk in contents.chunks:
            texts = iter(_texts(chunk))
            while block := list(islice(texts, _BLOCK)):
                made = list(map(self._made, block))
                read += [one is not None for one in made]
                for part, values in zip(parts, zip(*(one or _NOTHING for one in made), strict=True), strict=True):
                    part.append(pa.array(values, pa.string()))
        return pa.array(read, pa.bool_()), [pa.concat_arrays(part) for part in parts]

    def _made(self, content: Any) -> Row | None:
        """Name, type, inputs, outputs and further attributes of a span; None for an odd one."""
        loads = self._loads
        try:
            span = loads(content)
            attributes, status, name = span["attributes"], span["status"], span["name"]
            span["parent_span_id"], span["start_time_unix_nano"], span["end_time_unix_nano"]
            if name.__class__ is not str or len(span["span_id"]) != _ID_LENGTH:
                return None
            inputs, outputs = attributes.pop(_INPUTS, None), attributes.pop(_OUTPUTS, None)
            attributes.pop(_REQUEST, None)
            for raw in (inputs, outputs):
                # Texts of plain JSON, as `redaction.is_plain` says. A call is often given what the one before was.
                if raw is not None and raw != self._last:
                    if raw.__class__ is not str:
                        return None
                    loads(raw)
                    self._last = raw
            kind = attributes.pop(_TYPE, None)
            known = self._kinds.get(kind) or self._kind(kind)
            if not known or (known == "UNKNOWN" and any(not key.startswith("mlflow.") for key in attributes)):
                return None
            members = [self._members.get(pair) or self._member(*pair) for pair in attributes.items()]
            if len(members) > 1:
                members.sort()
            if status.get("message"):
                members.append(f'"status.description": {_quoted(status["message"])}')
            if span.get("events"):
                # Python's reader of JSON has another number than a strict one for some.
                events = json.loads(bytes(content))["events"]
                members.append(f'"events": {self._text.compact(events)}')
        except UNREADABLE:
            return None
        return name, known, inputs, outputs, "{" + ", ".join(members) + "}"

    def _member(self, key: str, raw: Any) -> str:
        if raw.__class__ is not str:
            raise TypeError(raw)
        self._loads(raw)
        quoted = self._keys.get(key)
        if quoted is None:
            quoted = _quoted(key)
            if len(self._keys) < _MOST and len(key) <= _SHORT:
                self._keys[key] = quoted
        member = f"{quoted}: {raw}"
        if len(member) <= _SHORT and len(self._members) < _MOST:
            self._members[key, raw] = member
        return member

    def _kind(self, raw: Any) -> str:
        """The type of a span by its attribute; empty for one only MLflow can tell."""
        if raw is None:
            return "UNKNOWN"
        known = self._kinds.get(raw)
        if known is None:
            known = raw[1:-1] if _KIND.fullmatch(raw) else ""
            if len(self._kinds) < _MOST:
                self._kinds[raw] = known
        return known


def _quoted(said: Any) -> str:
    if said.__class__ is not str:
        raise TypeError(said)
    return json.dumps(said, ensure_ascii=False)


def _texts(chunk: "pa.Array") -> Any:
    """The texts of an array as views of its memory: nothing is copied, and a null is empty."""
    import numpy as np

    _, offsets, data = chunk.buffers()
    if data is None or not len(chunk):
        return [b""] * len(chunk)
    at = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
    seen = memoryview(data)
    return (seen[start:end] for start, end in pairwise(at))
