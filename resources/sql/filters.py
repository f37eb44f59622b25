"""MLflow trace filters as SQL, so that plans and coverage count the traces a scorer's filter takes.

Lives here: the conversion, which is pure: clauses joined by AND to a condition over columns and maps of a trace.
Add here: a field of a trace that filters may name and that the sources hold.
Not here: where the columns come from (`backfill_counts.py`, and `coverage_sql.py` for a workspace).

Keys and values become parameters, never text of the statement. A trace without the tag or metadata a clause names
does not match it, also not by `!=`, as in MLflow. Of feedback and expectations it counts whether there is one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lifecycle_assets.refused import Refused

_CLAUSE = re.compile(
    r"""\s*(?:(?P<kind>(?-i:tags?|metadata|request_metadata|attributes?|trace|feedback|expectation))\s*\.\s*)?
        (?P<key>`[^`]+`|"[^"]+"|[\w.]+)\s*
        (?:(?P<null>IS\s+(?:NOT\s+)?NULL)\b
          |(?P<compare>!=|>=|<=|=|<|>|I?LIKE\b)\s*(?P<value>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?))
        \s*""",
    re.IGNORECASE | re.VERBOSE,
)
_AND = re.compile(r"AND\b", re.IGNORECASE)
_PARAMETER = re.compile(r":(\w+)")
_MAPS = {"tag": "tags", "tags": "tags", "metadata": "metadata", "request_metadata": "metadata"}
_JUDGED = ("feedback", "expectation")
_NUMBERS = {
    "timestamp": "request_ms",
    "timestamp_ms": "request_ms",
    "execution_time": "execution_ms",
    "execution_time_ms": "execution_ms",
    "end_time": "ended_ms",
    "end_time_ms": "ended_ms",
}
_TEXTS = {"status": "state", "request_id": "trace_id"}
_NAMED = {"name": ("tags", "mlflow.traceName"), "run_id": ("metadata", "mlflow.sourceRun")}


@dataclass(frozen=True)
class Condition:
    """A condition over `trace_id, state, request_ms, ended_ms, execution_ms, tags, metadata, judged`.

    With its parameters. `judged` is a map with a key such as `expectation.answer` for each assessment of the trace.
    """

    sql: str
    parameters: dict[str, str | float]

    def positional(self) -> tuple[str, list[str | float]]:
        """The condition with `?` for each parameter, and their values in that order."""
        names = _PARAMETER.findall(self.sql)
        return _PARAMETER.sub("?", self.sql), [self.parameters[name] for name in names]


def condition_of(filter_string: str, *, prefix: str = "f", judged: str = "judged[{key}]") -> Condition:
    """The condition of an MLflow trace filter; an empty filter is TRUE. `prefix` begins the parameters' names.

    `judged` is what is null for a trace without the assessment `{key}`, where those are not kept in a map.
    Raises `Refused` naming the clause when it is not a comparison of a tag, of metadata, or of status, name, run_id,
    timestamp_ms, execution_time_ms or end_time_ms, nor asks whether there is a feedback or an expectation, or when
    clauses are joined by anything but AND.
    """
    found, parameters = [], {}
    for match in _clauses(filter_string):
        found.append(_comparison(match, f"{prefix}{len(found)}", parameters, judged))
    return Condition(" AND ".join(found) or "TRUE", parameters)


def split_judged(filter_string: str) -> tuple[str, dict[str, bool]]:
    """The filter without its clauses on feedback and expectations, and whether each of those is to be there.

    Search in a workspace does not take them. A filter that cannot be read is given back whole.
    """
    try:
        matches = list(_clauses(filter_string))
    except Refused:
        return filter_string, {}
    judged = {m: f"{m['kind']}.{_key(m)}" for m in matches if m["kind"] in _JUDGED and m["null"]}
    rest = " AND ".join(match[0].strip() for match in matches if match not in judged)
    return rest, {name: "NOT" in match["null"].upper() for match, name in judged.items()}


def _clauses(filter_string: str) -> Iterator[re.Match[str]]:
    rest = filter_string.strip()
    while rest:
        match = _CLAUSE.match(rest)
        after = rest[match.end() :] if match else ""
        joint = _AND.match(after)
        if match is None or (after and joint is None):
            raise _not_understood(rest)
        yield match
        rest = after[joint.end() :].strip() if joint else ""
        if joint and not rest:
            raise _not_understood(after)


def _key(match: re.Match[str]) -> str:
    return match["key"].strip('`"')


def _comparison(match: re.Match[str], name: str, parameters: dict[str, str | float], judged: str) -> str:
    key = _key(match)
    said = match["kind"] or ""
    if said in _JUDGED:
        if not match["null"]:
            raise _not_understood(match[0])
        parameters[f"{name}k"] = f"{said}.{key}"
        return f"{judged.format(key=f':{name}k')} {' '.join(match['null'].upper().split())}"
    kind = _MAPS.get(said, "")
    number = not kind and key in _NUMBERS
    if not kind and key in _NAMED:
        kind, key = _NAMED[key]
    if kind:
        parameters[f"{name}k"] = key
        left = f"{kind}[:{name}k]"
    elif number:
        left = _NUMBERS[key]
    elif key in _TEXTS:
        left = _TEXTS[key]
    else:
        raise _not_understood(match[0])
    if match["null"] and not kind:
        raise _not_understood(match[0])  # MLflow's search asks that of tags, metadata, name and run_id only.
    if match["null"]:
        return f"{left} {' '.join(match['null'].upper().split())}"
    compare = {"!=": "<>"}.get(match["compare"], match["compare"].upper())
    text = match["value"][0] in "'\""
    if key == "timestamp" and number and "." in match["value"]:
        raise _not_understood(match[0])  # To MLflow's parser that word is SQL's.
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
