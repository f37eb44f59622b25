"""MLflow trace filters as SQL, so that coverage counts the traces a scorer's filter takes.

Lives here: the conversion, which is pure: clauses joined by AND to a condition over columns and maps of a trace.
Add here: a field of a trace that filters may name and that the sources hold.
Not here: where the columns come from (`coverage_sql.py`).

Keys and values become parameters, never text of the statement. A trace without the tag or metadata a clause names
does not match it, also not by `!=`, as in MLflow.
"""

import re
from dataclasses import dataclass

from lifecycle_assets.refused import Refused

_CLAUSE = re.compile(
    r"""\s*(?:(?P<kind>tags?|metadata|request_metadata|attributes?|trace)\s*\.\s*)?
        (?P<key>`[^`]+`|"[^"]+"|[\w.]+)\s*
        (?:(?P<null>IS\s+(?:NOT\s+)?NULL)\b
          |(?P<compare>!=|<>|>=|<=|=|<|>|I?LIKE\b)\s*(?P<value>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?))
        \s*""",
    re.IGNORECASE | re.VERBOSE,
)
_AND = re.compile(r"AND\b", re.IGNORECASE)
_MAPS = {"tag": "tags", "tags": "tags", "metadata": "metadata", "request_metadata": "metadata"}
_NUMBERS = {
    "timestamp": "request_ms",
    "timestamp_ms": "request_ms",
    "execution_time": "execution_ms",
    "execution_time_ms": "execution_ms",
    "end_time": "ended_ms",
    "end_time_ms": "ended_ms",
}
_TEXTS = {"status": "state", "state": "state", "request_id": "trace_id", "trace_id": "trace_id"}
_NAMED = {"name": ("tags", "mlflow.traceName"), "run_id": ("metadata", "mlflow.sourceRun")}


@dataclass(frozen=True)
class Condition:
    """A condition over `trace_id, state, request_ms, ended_ms, execution_ms, tags, metadata`, and its parameters."""

    sql: str
    parameters: dict[str, str | float]


def condition_of(filter_string: str, *, prefix: str = "f") -> Condition:
    """The condition of an MLflow trace filter; an empty filter is TRUE. `prefix` begins the parameters' names.

    Raises `Refused` naming the clause when it is not a comparison of a tag, of metadata, or of status, name, run_id,
    timestamp_ms, execution_time_ms or end_time_ms, or when clauses are joined by anything but AND.
    """
    rest, found, parameters = filter_string.strip(), [], {}
    while rest:
        match = _CLAUSE.match(rest)
        after = rest[match.end() :] if match else ""
        joint = _AND.match(after)
        if match is None or (after and joint is None):
            raise _not_understood(rest)
        found.append(_comparison(match, f"{prefix}{len(found)}", parameters))
        rest = after[joint.end() :].strip() if joint else ""
        if joint and not rest:
            raise _not_understood(after)
    return Condition(" AND ".join(found) or "TRUE", parameters)


def _comparison(match: re.Match[str], name: str, parameters: dict[str, str | float]) -> str:
    key = match["key"].strip('`"')
    kind = _MAPS.get((match["kind"] or "").lower(), "")
    number = not kind and key.lower() in _NUMBERS
    if not kind and key.lower() in _NAMED:
        kind, key = _NAMED[key.lower()]
    if kind:
        parameters[f"{name}k"] = key
        left = f"{kind}[:{name}k]"
    elif number:
        left = _NUMBERS[key.lower()]
    elif key.lower() in _TEXTS:
        left = _TEXTS[key.lower()]
    else:
        raise _not_understood(match[0])
    if match["null"]:
        return f"{left} {' '.join(match['null'].upper().split())}"
    compare = {"!=": "<>"}.get(match["compare"], match["compare"].upper())
    text = match["value"][0] in "'\""
    if text == number or (not number and compare in ("<", "<=", ">", ">=")) or (number and "LIKE" in compare):
        raise _not_understood(match[0])
    value = match["value"]
    parameters[f"{name}v"] = re.sub(r"\\(.)", r"\1", value[1:-1]) if text else float(value)
    return f"{left} {compare} :{name}v"


def _not_understood(clause: str) -> Refused:
    return Refused(
        f"The scorer filter's clause {clause.strip()[:120]!r} cannot be counted by SQL; write comparisons such as "
        "tags.environment = 'prod' or attributes.status = 'OK', joined by AND."
    )
