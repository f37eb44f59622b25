"""Text on its way into a table: made writable, and redacted.

Lives here: what happens to a string, a JSON text or a value before it leaves this process.
Add here: a further disguise in which text that a rule names can come.
Not here: which field becomes which column (`trace_rows.py`), the rules (`archive.redact` in `defs.yaml`).

Text is kept whole, whatever is in it: a lone surrogate becomes U+FFFD, NaN becomes the string "NaN", an attribute
that is not JSON becomes a JSON string. JSON text that a strict reader takes is kept letter by letter unless a rule
matches in it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

Redaction = Sequence[tuple[re.Pattern[str], str]]
"""Rules in the order they are applied: what matches is replaced (as in `re.sub`)."""

NESTED = "[nested too deeply to be kept]"
"""What stands for a value nested some hundred levels deep, which Python's JSON cannot walk."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_quoted = json.JSONEncoder(ensure_ascii=False).encode  # Made once.


class Text:
    """Text on its way into a table: made writable, and redacted when there are rules.

    Rules meet strings as they were said: escapes are undone, JSON inside of JSON is entered, a number that
    matches becomes a string. A rule with a double quote in it also meets the JSON text as a whole.
    """

    def __init__(self, rules: Redaction) -> None:
        self._rules = tuple(rules)
        self._wide = tuple(rule for rule in self._rules if '"' in rule[0].pattern)

    def clean(self, text: str) -> str:
        """`text` as valid Unicode."""
        return text if text.isascii() else _SURROGATE.sub("\ufffd", text)

    def plain(self, text: str | None) -> str | None:
        """A string, redacted."""
        if text is None:
            return None
        try:
            return self._redacted(self.clean(text)) if self._rules else self.clean(text)
        except RecursionError:
            return NESTED

    def pairs(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Tags or metadata, redacted, in the order of their keys."""
        said = () if self._rules else (*values, *values.values())
        if said and all(one.__class__ is str and one.isascii() for one in said):
            return {key: values[key] for key in sorted(values)}
        return {self.plain(key) or "": self.plain(str(values[key])) or "" for key in sorted(values)}

    def payload(self, raw: Any, preview: str | None = None) -> str | None:
        """JSON text of an attribute as MLflow keeps it; without one the preview, which MLflow may have cut off."""
        return self.plain(preview) if raw is None else self.kept(raw)

    def kept(self, raw: Any) -> str:
        """JSON text as it is, redacted; JSON of `raw` where that is no text of plain JSON."""
        if not isinstance(raw, str):
            return self.compact(raw)
        if not is_plain(raw):
            return self.json(loads(raw))
        if not self._rules:
            return raw
        try:
            value = json.loads(raw)
            text = raw if self._walk(value) == value else self.json(value)
        except (RecursionError, ValueError):
            return self.json(loads(raw))
        return self._as_a_whole(text) if self._wide else text

    def compact(self, value: Any) -> str:
        """JSON of a value that MLflow keeps as one, not as text, without spaces; redacted, it has them."""
        try:
            if self._rules or "NaN" in (text := json.dumps(value)) or "Infinity" in text:
                return self.json(value)
            return orjson.dumps(value).decode()
        except (TypeError, ValueError, RecursionError):
            return self.json(value)

    def members(self, values: Mapping[str, Any]) -> list[str]:
        """Members of a JSON object, each kept or redacted, in the order of their text."""
        named = {self.plain(str(key)) or "": value for key, value in values.items()}
        return sorted(f"{_quoted(key)}: {self.kept(value)}" for key, value in named.items())

    def whole(self, members: Sequence[str]) -> str:
        """A JSON object of its members; rules with a double quote in them meet it as a whole."""
        text = self.clean("{" + ", ".join(members) + "}")
        return self._as_a_whole(text) if self._wide else text

    def json(self, value: Any, *, whole: bool = False) -> str:
        """JSON text of a value, redacted; with `whole`, 1.0 is written as 1."""
        try:
            value = _as_said(value) if whole else value
            try:
                said = self._walk(value) if self._rules else value
                text = json.dumps(said, ensure_ascii=False, allow_nan=False, default=str)
            except ValueError:
                text = json.dumps(self._walk(value), ensure_ascii=False, default=str)
        except RecursionError:
            return json.dumps(NESTED)
        return self._as_a_whole(self.clean(text)) if self._wide else self.clean(text)

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.plain(value)
        if isinstance(value, Mapping):
            return {self.plain(str(key)): self._walk(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._walk(inner) for inner in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            said = json.dumps(value)  # NaN and Infinity by the names JSON readers know.
            redacted = self.plain(said)
            return value if redacted == said and (isinstance(value, int) or math.isfinite(value)) else redacted
        return value

    def _redacted(self, text: str) -> str:
        if text[:1] in ("{", "[", '"'):
            value = loads(text)
            if value != text:
                inner = self._walk(value)
                text = text if inner == value else json.dumps(inner, ensure_ascii=False, default=str)
        if "\\u" in text:
            spoken = self.clean(_ESCAPE.sub(lambda match: chr(int(match[1], 16)), text))
            redacted = self._applied(spoken, self._rules)
            return self._applied(text, self._rules) if redacted == spoken else redacted
        return self._applied(text, self._rules)

    def _as_a_whole(self, text: str) -> str:
        redacted = self._applied(text, self._wide)
        return redacted if redacted == text or loads(redacted) != redacted else json.dumps(redacted)

    @staticmethod
    def _applied(text: str, rules: Redaction) -> str:
        for pattern, replacement in rules:
            text = pattern.sub(replacement, text)
        return text


def is_plain(raw: Any) -> bool:
    """Whether `raw` is text of JSON in the strict sense: no NaN, no number beyond a double, no half of a surrogate."""
    try:
        orjson.loads(raw)
    except ValueError:
        return False
    return True


def loads(raw: Any) -> Any:
    """The value of JSON text; the text itself when it is not JSON, anything else as it is."""
    if not isinstance(raw, str):
        return raw
    try:
        return json.loads(raw)
    except RecursionError:
        return NESTED
    except ValueError:
        return raw


def _as_said(value: Any) -> Any:
    """A structure with 1 for 1.0: over HTTP every number is a float."""
    if isinstance(value, Mapping):
        return {key: _as_said(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_said(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
