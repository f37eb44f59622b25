"""Cutting documentation into passages: bounded, citable, in a stable order, each once.

Here live the structure of a documentation text (paragraphs, list entries, arguments, code,
headings) and the removal of reStructuredText and Markdown markup. Add to it when a kind of markup
reaches an answer unread. Finding documentation (`docs_agent_corpus`) and ranking passages
(`docs_agent_search`) do not belong here.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_PASSAGE_CHARS = 1000
MIN_PASSAGE_CHARS = 40

_ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`[~!]?([^`<]+?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_+|!?\[([^\]]*)\]\([^)\s]*\)")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,300}>")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_BULLET = re.compile(r"(?:[-*+•]|\d{1,2}[.)])\s+")
_SECTION = re.compile(r"(Args|Arguments|Parameters|Params|Attributes|Returns?|Yields|Raises|Examples?|Notes?)\s*:?")
_DIRECTIVE = re.compile(r"\.\. ([\w-]+)::\s*(.*)")
# Rules, table options and link targets: markup that says nothing to a reader.
_NO_TEXT = re.compile(r"[=\-~*^_+|# :]+|:[\w-]+:(?: .*)?|\.\. _.*|\.\. [\w-]+::")
_CODE_DIRECTIVES = {"code-block", "code", "testcode", "testoutput", "sourcecode", "literalinclude"}


@dataclass(frozen=True)
class Passage:
    """A citable piece of documentation.

    `uri` names the documented object or file (`#2` for its second passage), `title` is the same
    without that number. `text` holds a paragraph, list entry or argument a line, headings after
    `#`, and code within fences.
    """

    uri: str
    title: str
    text: str


def cut(texts: Iterable[tuple[str, str]]) -> list[Passage]:
    """The passages of `(name, documentation)` pairs in their order; of equal texts the first."""
    seen: set[str] = set()
    passages = []
    for name, text in texts:
        for title, part in _headed(name, text) if "/" in name else [(name, text)]:
            for number, chunk in enumerate(split(part), start=1):
                if chunk not in seen:
                    seen.add(chunk)
                    uri = title if number == 1 else f"{title}#{number}"
                    passages.append(Passage(uri, title, chunk))
    return passages


def split(text: str) -> Iterator[str]:
    """Cut documentation into passages of at most `MAX_PASSAGE_CHARS` along its own structure."""
    held: list[str] = []
    size = 0
    for unit in _units(text):
        if held and size + len(unit) > MAX_PASSAGE_CHARS:
            yield "\n".join(held)
            held, size = [], 0
        held.append(unit)
        size += len(unit) + 1
    if size > MIN_PASSAGE_CHARS:
        yield "\n".join(held)


def _units(text: str) -> Iterator[str]:
    """Paragraphs, list entries, arguments and code blocks, one line each except the code."""
    words: list[str] = []
    lines = text.expandtabs(4).splitlines()
    entry_indent: int | None = None  # indentation of the entries of an `Args:` section
    position = 0
    while position < len(lines):
        line = lines[position].strip()
        indent = len(lines[position]) - len(lines[position].lstrip())
        position += 1
        directive = _DIRECTIVE.fullmatch(line)
        if line.startswith(("```", "~~~")) or (directive and directive[1] in _CODE_DIRECTIVES):
            yield from _flush(words)
            fence = None if directive else line[:3]
            code, position = _code(lines, position, indent, fence)
            if code:
                yield code
        elif not line or _NO_TEXT.fullmatch(line):
            yield from _flush(words)
        elif _SECTION.fullmatch(line):
            yield from _flush(words)
            listed = line.startswith(("Arg", "Param", "Attr", "Raise"))
            entry_indent = _indent_of_next(lines, position) if listed else None
            if line.startswith(("Return", "Raise", "Yield")):
                words.append(line.rstrip(":") + ":")
        else:
            heading = line.startswith("#")
            starts = heading or bool(_BULLET.match(line)) or indent == entry_indent
            if starts and words not in (["Returns:"], ["Raises:"], ["Yields:"]):
                yield from _flush(words)
            words.append(directive[2] if directive else line)
            if heading:
                yield from _flush(words)
    yield from _flush(words)


def _flush(words: list[str]) -> Iterator[str]:
    """The unit collected in `words`, cleaned and cut to the bound; empties `words`."""
    text = clean(" ".join(words))
    words.clear()
    while len(text) > MAX_PASSAGE_CHARS:
        space = text.rfind(" ", 0, MAX_PASSAGE_CHARS // 2)
        end = max(text.rfind(". ", 0, MAX_PASSAGE_CHARS), space) + 1 or MAX_PASSAGE_CHARS
        yield text[:end].strip()
        text = text[end:].strip()
    if text:
        yield text


def _code(lines: list[str], position: int, indent: int, fence: str | None) -> tuple[str, int]:
    """The code block from `position` as a fenced text, and the position after it."""
    body: list[str] = []
    while position < len(lines):
        line = lines[position]
        if fence and line.strip().startswith(fence):
            position += 1
            break
        if not fence and line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        if line.strip() and not (not fence and line.strip().startswith(":")):
            body.append(line)
        position += 1
    code = inspect.cleandoc("\n".join(["", *body])).replace("```", "'''")[: MAX_PASSAGE_CHARS - 10]
    return (f"```\n{code}\n```" if code else ""), position


def _indent_of_next(lines: list[str], position: int) -> int:
    """Indentation of the first line with text from `position` on."""
    following = next((line for line in lines[position:] if line.strip()), "")
    return len(following) - len(following.lstrip())


def clean(text: str) -> str:
    """Plain text of a reStructuredText or Markdown line: roles, links and HTML tags removed."""
    if ":`" in text:
        text = _ROLE.sub(lambda match: f"`{match[1].split('.')[-1]}`", text)
    if ">`_" in text or "](" in text:
        text = _LINK.sub(lambda match: match[1] or match[2] or "", text)
    if "</" in text or "/>" in text:
        text = _TAG.sub(" ", text)
    return " ".join(text.replace("``", "`").replace("**", "").split())


def _headed(uri: str, text: str) -> Iterator[tuple[str, str]]:
    """A Markdown text by its headings; a `#` in a code block is no heading."""
    heading, lines, fenced = "", [], False
    for line in [*_COMMENT.sub("", text).splitlines(), "# "]:
        fenced ^= line.lstrip().startswith("```")
        if not fenced and re.match(r"#{1,4} ", line):
            slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")[:60].strip("-")
            yield (f"{uri}#{slug}" if slug else uri), "\n".join(lines)
            heading, lines = clean(line.lstrip("# ")), []
        lines.append(line)
