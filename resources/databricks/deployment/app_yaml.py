"""The part of an app's `app.yaml` that is ours.

Lives here: reading our variables from the text and putting others in their place; no request.
Add here: another key of `app.yaml` a hand-off decides.
Not here: where the text comes from and goes to (`apps.py`).

Ours is a block of items in `env` between two comment lines, and any other item of `env` with a name we set is removed.
Everything else stays as it was written, to the byte: keys, comments, order, quotes, line ends. Where the text cannot
be edited so (`env` in flow style, by alias, or a document that is one flow mapping) it is written anew: all keys and
values stay, comments and layout do not. What was edited is read again and held against what it must say.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from lifecycle_assets.refused import Refused
from resources.hand_off import item_lines

BEGIN = "# lifecycle: set by the deployment of the champion, from here"
END = "# lifecycle: to here"

Items = list[dict[str, str]]
"""Items of `env`: `{name, value}` or `{name, valueFrom}`."""


def items_of(text: str) -> Items:
    """Our items in the text, none when there are none. Raises `Refused` when it is no `app.yaml`."""
    _document(text)
    lines = text.splitlines()
    found = [number for number, line in enumerate(lines) if line.strip() == BEGIN]
    ends = [number for number, line in enumerate(lines) if line.strip() == END]
    if len(found) != 1 or len(ends) != 1 or ends[0] < found[0]:
        return []
    inside = _loaded("\n".join(lines[found[0] + 1 : ends[0]]))
    return inside if isinstance(inside, list) and all(_is_item(item) for item in inside) else []


def render(text: str, items: Items) -> str:
    """The text with `items` as ours. Raises `Refused` when it is no `app.yaml`."""
    document = _document(text)
    names = {item["name"] for item in items}
    kept = [item for item in _foreign(text, document) if not (isinstance(item, dict) and item.get("name") in names)]
    wanted = {**document, "env": [*kept, *items]}
    edited = _edited(text, items)
    if edited is not None and _says(edited, wanted):
        return edited
    plain = yaml.safe_dump({key: value for key, value in document.items() if key != "env"}, sort_keys=False)
    before = yaml.safe_dump(kept, sort_keys=False, width=10**6) if kept else ""
    head = plain if len(document) > ("env" in document) else ""
    return f"{head}env:\n{before}{_block(items, indent='', newline=chr(10))}"


def _document(text: str) -> dict[str, Any]:
    document = _loaded(text)
    document = {} if document is None else document
    if not isinstance(document, dict) or not isinstance(document.get("env") or [], list):
        raise Refused("app.yaml: is no mapping with a list env; correct the file in the app's source.")
    return document


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise Refused(f"app.yaml line {line}: is not YAML; correct the file in the app's source.") from None


def _is_item(item: Any) -> bool:
    known = isinstance(item, dict) and set(item) in ({"name", "value"}, {"name", "valueFrom"})
    return known and all(isinstance(value, str) for value in item.values())


def _says(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return yaml.safe_load(text) == wanted
    except yaml.YAMLError:
        return False


def _foreign(text: str, document: Mapping[str, Any]) -> list[Any]:
    """Items of `env` outside our block."""
    ours = items_of(text)
    return [item for item in document.get("env") or [] if item not in ours]


def _edited(text: str, items: Items) -> str | None:
    """The text with its lines edited, None when `env` is not written as a block sequence."""
    newline = "\r\n" if "\r\n" in text else "\n"
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return f"{_ended(text, newline)}env:{newline}{_block(items, indent='  ', newline=newline)}"
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return None
    lines = text.splitlines(keepends=True)
    env = next((value for key, value in root.value if key.value == "env"), None)
    if env is None:
        return f"{_ended(text, newline)}env:{newline}{_block(items, indent='  ', newline=newline)}"
    if not isinstance(env, yaml.SequenceNode) or env.flow_style or not env.value:
        return None
    names = {item["name"] for item in items}
    gone: set[int] = _marked(lines)
    for node in env.value:
        if _name(node) in names:
            gone.update(range(node.start_mark.line, _last_line(node) + 1))
    after = max(_last_line(node) for node in env.value)
    after = max([after, *(number for number in _marked(lines) if number <= after + 1)])
    first = lines[env.value[0].start_mark.line]
    block = _block(items, indent=first[: len(first) - len(first.lstrip())], newline=newline)
    before = "".join(line for number, line in enumerate(lines) if number <= after and number not in gone)
    rest = "".join(line for number, line in enumerate(lines) if number > after and number not in gone)
    return _ended(before, newline) + block + rest


def _marked(lines: list[str]) -> set[int]:
    """Line numbers of our block with its two comments."""
    begins = [number for number, line in enumerate(lines) if line.strip() == BEGIN]
    ends = [number for number, line in enumerate(lines) if line.strip() == END]
    return set(range(begins[0], ends[0] + 1)) if len(begins) == len(ends) == 1 and begins[0] < ends[0] else set()


def _name(node: yaml.Node) -> str | None:
    if isinstance(node, yaml.MappingNode):
        return next((value.value for key, value in node.value if key.value == "name"), None)
    return None


def _last_line(node: yaml.Node) -> int:
    """The last line a node's own text is on; the mark of a block's end lies behind comments that follow."""
    if isinstance(node, yaml.ScalarNode) or getattr(node, "flow_style", False) or not node.value:
        mark = node.end_mark
        return mark.line - (mark.column == 0 and mark.line > node.start_mark.line)
    inside = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
    return max(_last_line(part) for part in inside)


def _block(items: Items, *, indent: str, newline: str) -> str:
    lines = [BEGIN]
    for item in items:
        kind = "value" if "value" in item else "valueFrom"
        lines += item_lines(item["name"], kind, item[kind])
    return "".join(f"{indent}{line}{newline}" for line in [*lines, END])


def _ended(text: str, newline: str) -> str:
    return text if not text or text.endswith("\n") else text + newline
