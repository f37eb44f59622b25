"""Types of columns as DESCRIBE says them, and how a value of each is taken.

Lives here: reading a type's text, and SQL that gives text, a map or a field whatever the type is.
Add here: a type that a table of the workspace turns out to have.
Not here: which columns are read (`archive_sources.py`).

The same column may be VARIANT in one workspace, MAP<STRING, STRING> in another and JSON text in a third.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lifecycle_assets.refused import Refused

_MAP = "MAP<STRING, STRING>"


@dataclass(frozen=True)
class Kind:
    """A type: its outer name (`struct`, `array`, `map`, `variant`, `string`, ...), and the fields of a struct.

    Of an array of structs they are the elements'.
    """

    name: str
    fields: Mapping[str, "Kind"] = field(default_factory=dict)


def read_kind(text: str) -> Kind:
    """The type of a text such as `array<struct<a: string, b: map<string, string>>>`."""
    text = text.strip()
    outer = re.match(r"\w+", text)
    name = outer[0].lower() if outer else ""
    inner = re.match(r"\w+\s*[<(](.*)[>)](\[\])?$", text, re.S)
    if name == "array" and inner:
        return Kind("array", read_kind(inner[1]).fields)
    if name == "struct" and inner:
        fields = (re.match(r'\s*[`"]?([^`":\s]+)[`"]?\s*:?\s*(.*)', part, re.S) for part in _parts(inner[1]))
        known = {match[1].lower(): read_kind(match[2]) for match in fields if match}
        return Kind("array" if text.endswith("[]") else "struct", known)
    if text.endswith("[]"):
        return Kind("array")
    return Kind({"json": "variant", "varchar": "string", "text": "string"}.get(name, name))


def as_map(value: str, kind: Kind) -> str:
    """A map of strings; null where the value is no object."""
    if kind.name == "map":
        return value
    return f"try_cast({value if kind.name == 'variant' else f'parse_json({value})'} AS {_MAP})"


def as_json(value: str, kind: Kind) -> str:
    """Text of a value: JSON when it is structured or a VARIANT, else as it is written there."""
    return f"to_json({value})" if kind.name in ("variant", "map", "struct", "array") else f"CAST({value} AS STRING)"


def as_time(value: str, kind: Kind) -> str:
    """A timestamp, of one or of epoch milliseconds or ISO 8601 text."""
    if kind.name in ("bigint", "long", "int", "double", "decimal"):
        return f"timestamp_millis(CAST({value} AS BIGINT))"
    return value if kind.name.startswith("timestamp") else f"CAST({value} AS TIMESTAMP)"


def pick(kinds: Mapping[str, Kind], where: str, *names: str) -> str:
    """The first of `names` that is there. Raises `Refused` naming the table when none is."""
    for name in names:
        if name in kinds:
            return name
    raise Refused(
        f"{where} has no column {names[0]} (it has {', '.join(kinds) or 'none that can be read'}): traces are not "
        "archived from a table of another shape; look whether the workspace changed it."
    )


def _parts(text: str) -> list[str]:
    """`text` cut at its outermost commas."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"<": 1, "(": 1, ">": -1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
