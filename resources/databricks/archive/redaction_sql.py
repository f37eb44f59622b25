"""Redaction as SQL: the declared rules, applied by the warehouse before a text is written.

Lives here: the expression that redacts one text, and Python's patterns said as Databricks (Java) reads them.
Add here: a further disguise in which text that a rule names can come.
Not here: which texts are redacted (`archive_sql.py`), redaction in this process (`resources/redaction.py`).

As locally, rules meet strings as they were said: JSON is taken apart into its strings and numbers, escapes are undone,
a number that matches becomes a string. JSON inside of a string is not entered; its escapes are undone, and where that
makes a rule match the string is kept without them. Patterns and replacements are parameters, never part of the text.
"""

import re
from collections.abc import Mapping

from lifecycle_assets.refused import Refused
from resources.redaction import Redaction

_MARKS = {"mark_backslash": "\ufdd0", "mark_quote": "\ufdd1"}
_ASCII = "".join(map(chr, range(0x20, 0x80)))

CONSTANTS = {
    **_MARKS,
    "two_backslashes": "\\\\",
    "backslash_quote": '\\"',
    "has_escape": r"\\",
    "json_begin": r'^[\[{"]',
    "json_string": '"[^"]*"',
    "json_skeleton": r"^[\[\]{}:,0-9eE+.trufalsn \n\r\t-]*$",
    "json_tokens": '"[^"]*"|-?[0-9][0-9eE+.-]*|[^"0-9-]+|-',
    "json_number": "^-?[0-9]",
    "bad_escape": r"\\[^/bfnrtu]|\\u[0-9a-fA-F]{0,3}[^0-9a-fA-F]|\\u[dD][89a-fA-F]|[\x00-\x1f]",
    "surrogate_pair": r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}",
    "spelled": r"\\+u00[2-7][0-9a-fA-F]",
    "spelled_tokens": r"\\+u00[2-7][0-9a-fA-F]|[^\\]+|\\",
    "ascii": _ASCII,
    "run_n": r"\\+n",
    "run_r": r"\\+r",
    "run_t": r"\\+t",
    "run_quote": r'\\+"',
    "newline": "\n",
    "carriage": "\r",
    "tab": "\t",
}
"""Parameters of a statement that looks into JSON: engines read backslashes in SQL text differently."""


def let(value: str, name: str, body: str) -> str:
    """`body`, in which `name` stands for `value`, computed once."""
    return f"transform(array({value}), {name} -> {body})[0]"


def quoted(value: str) -> str:
    """A string as a JSON string."""
    return f"regexp_replace(to_json(map('v', {value})), '^[{{]\"v\":|[}}]$', '')"


def unquoted(token: str) -> str:
    """What a JSON string says; the text itself when it is none."""
    return f"coalesce(get_json_object(concat('{{\"v\": ', {token}, '}}'), '$.v'), {token})"


def protected(value: str) -> str:
    """JSON text in which every `"` begins or ends a string."""
    inner = f"replace({value}, :two_backslashes, :mark_backslash)"
    return f"replace({inner}, :backslash_quote, :mark_quote)"


def unreadable(value: str) -> str:
    """Whether JSON text, protected, holds an escape no reader takes, such as half of a surrogate pair."""
    return f"regexp_replace({value}, :surrogate_pair, '') RLIKE :bad_escape"


class Redactor:
    """The rules of one agent. Raises `Refused` for a pattern that Databricks would read differently."""

    def __init__(self, rules: Redaction) -> None:
        self._rules = range(len(rules))
        self._wide = [number for number in self._rules if '"' in rules[number][0].pattern]
        self.parameters: dict[str, str] = {}
        for number, (pattern, replacement) in enumerate(rules):
            self.parameters[f"rule_{number}"] = java_pattern(pattern)
            self.parameters[f"stands_{number}"] = java_replacement(replacement, pattern)

    def texts(self, *values: str) -> str:
        """An array of the SQL `values` (string expressions), each redacted; null stays null.

        All at once: the expression is long, and a statement that says it for every column is slow to plan.
        """
        listed = f"array({', '.join(values)})"
        if not self._rules:
            return listed
        skeleton = f"regexp_replace({protected('whole')}, :json_string, '')"
        is_json = f"whole RLIKE :json_begin AND {skeleton} RLIKE :json_skeleton"
        done = f"CASE WHEN {is_json} THEN {self._json('whole')} ELSE {self._clean('whole')} END"
        return f"transform({listed}, whole -> {done})"

    def _json(self, value: str) -> str:
        restored = "replace(replace(piece, :mark_quote, :backslash_quote), :mark_backslash, :two_backslashes)"
        said = let(self._clean("said"), "clean", f"CASE WHEN clean = said THEN token ELSE {quoted('clean')} END")
        applied = self._applied("token")
        token = (
            "CASE WHEN token LIKE '\"%' THEN "
            f"CASE WHEN {unreadable('piece')} THEN {applied} ELSE {let(unquoted('token'), 'said', said)} END "
            f"WHEN token RLIKE :json_number AND {applied} <> token THEN {quoted(applied)} "
            "ELSE token END"
        )
        pieces = f"regexp_extract_all({protected(value)}, :json_tokens, 0)"
        joined = f"array_join(transform({pieces}, piece -> {let(restored, 'token', token)}), '')"
        for number in self._wide:
            joined = f"regexp_replace({joined}, :rule_{number}, :stands_{number})"
        return joined

    def _clean(self, value: str) -> str:
        """Escapes stay when undoing them makes no rule match that did not match anyway."""
        kept = f"CASE WHEN {_undone('direct')} = plain THEN direct ELSE plain END"
        undone = let(self._applied(_undone(value)), "plain", kept)
        return let(self._applied(value), "direct", f"CASE WHEN {value} RLIKE :has_escape THEN {undone} ELSE direct END")

    def _applied(self, value: str) -> str:
        for number in self._rules:
            value = f"regexp_replace({value}, :rule_{number}, :stands_{number})"
        return value


def _undone(value: str) -> str:
    """`value` with escapes of JSON undone, however deep: runs of backslashes count as one."""
    high = "instr('234567', substring(letter, length(letter) - 1, 1)) - 1"
    low = "instr('0123456789abcdef', lower(substring(letter, length(letter), 1)))"
    letter = f"CASE WHEN letter RLIKE :spelled THEN substring(:ascii, ({high}) * 16 + {low}, 1) ELSE letter END"
    spelled = f"array_join(transform(regexp_extract_all({value}, :spelled_tokens, 0), letter -> {letter}), '')"
    text = f"CASE WHEN {value} RLIKE :spelled THEN {spelled} ELSE {value} END"
    for run, stands in (("run_n", "newline"), ("run_r", "carriage"), ("run_t", "tab")):
        text = f"regexp_replace({text}, :{run}, :{stands})"
    return f"regexp_replace({text}, :run_quote, '\"')"


_OUTSIDE = {
    "d": r"\p{Nd}",
    "D": r"\P{Nd}",
    "w": r"[\p{L}\p{N}_]",
    "W": r"[^\p{L}\p{N}_]",
    "s": r"[\s\p{Z}]",
    "Z": r"\z",
}
_INSIDE = {"d": r"\p{Nd}", "D": r"\P{Nd}", "w": r"\p{L}\p{N}_", "s": r"\s\p{Z}"}
_SAME = "ABSWbfnrtv"
_GROUPS = ("(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>")


def java_pattern(rule: re.Pattern[str]) -> str:
    """A pattern of Python's as Databricks reads it: Unicode classes, group names, braces and dots say the same.

    Raises `Refused` for what it has no equal of: conditionals, comments, verbose or ASCII mode, names of characters.
    """
    pattern, names = rule.pattern, rule.groupindex
    out, at, inside = "", 0, False
    dot = "." if re.search(r"\(\?[a-z]*s", pattern) else r"[^\n]"
    while at < len(pattern):
        rest = pattern[at:]
        if rest[0] == "\\":
            text, used = _escape(rest, pattern, inside)
        elif inside:
            text, used = ("\\[", 1) if rest[0] == "[" else (rest[0], 1)
            inside = rest[0] != "]"
            if rest.startswith("&&"):
                raise _unlike(pattern, "&& in a set")
        elif rest[0] == "[":
            used = 3 if rest.startswith("[^]") else 2 if rest.startswith(("[^", "[]")) else 1
            text, inside = rest[:used].replace("]", "\\]"), True
        elif rest[0] == "(":
            text, used = _group(rest, pattern, names)
        elif rest[0] in "{}":
            text, used = _brace(rest)
        else:
            text, used = (dot if rest[0] == "." else rest[0]), 1
        out, at = out + text, at + used
    return out


def java_replacement(template: str, pattern: re.Pattern[str]) -> str:
    """A replacement of `re.sub` as Databricks reads it: `$1` for a group, `$` and backslash escaped."""

    def one(match: re.Match[str]) -> str:
        group = match["name"] or match["number"]
        if group:
            return f"${pattern.groupindex.get(group, group)}"
        if match["control"]:
            return {"n": "\n", "r": "\r", "t": "\t"}[match["control"]]
        return {"$": "\\$", "\\\\": "\\\\"}.get(match[0], match[0].replace("\\", "\\\\"))

    return re.sub(r"\\g<(?P<name>\w+)>|\\(?P<number>[1-9]\d?)|\\(?P<control>[nrt])|\\\\|\\|\$", one, template)


def _escape(rest: str, pattern: str, inside: bool) -> tuple[str, int]:
    letter = rest[1]
    spelled = re.match(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))", rest)
    if spelled:
        return f"\\x{{{int(spelled[1] or spelled[2] or spelled[3], 16):x}}}", len(spelled[0])
    known = _INSIDE if inside else _OUTSIDE
    if letter in known:
        return known[letter], 2
    reference = not inside and re.match(r"\\[1-9]\d?", rest)
    if reference:
        return reference[0], len(reference[0])
    if letter.isalnum() and (letter not in _SAME or (inside and letter == "b")):
        raise _unlike(pattern, f"\\{letter}")
    return rest[:2], 2


def _group(rest: str, pattern: str, names: Mapping[str, int]) -> tuple[str, int]:
    named = re.match(r"\(\?P<\w+>", rest)
    if named:
        return "(", len(named[0])
    again = re.match(r"\(\?P=(\w+)\)", rest)
    if again:
        return f"\\{names[again[1]]}", len(again[0])
    flags = re.match(r"\(\?([ims]+)([:)])", rest)
    if flags:
        if "i" in flags[1] and not pattern.isascii():
            raise _unlike(pattern, "letters beyond ASCII with (?i)")
        return flags[0], len(flags[0])
    special = next((one for one in _GROUPS if rest.startswith(one)), "")
    if rest.startswith("(?") and not special:
        raise _unlike(pattern, rest[:4])
    return (special or "("), len(special or "(")


def _brace(rest: str) -> tuple[str, int]:
    counted = re.match(r"\{(\d*)(?:(,)(\d*))?\}", rest)
    if counted and (counted[1] or counted[3]):
        return f"{{{counted[1] or 0}{counted[2] or ''}{counted[3] or ''}}}", len(counted[0])
    return f"\\{rest[0]}", 1


def _unlike(pattern: str, what: str) -> Refused:
    return Refused(
        f"archive.redact: Databricks reads {what} in the pattern {pattern[:80]!r} differently from Python, or not at "
        "all; write the rule without it."
    )
