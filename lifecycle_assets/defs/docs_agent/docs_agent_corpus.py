"""The text `docs_agent` answers from: documentation that the installed packages carry.

Here lives reading that text (docstrings by `ast`, so nothing is imported; bundled Markdown; the
long descriptions of distributions) and cutting it into bounded, de-duplicated passages in a
stable order. Add to it when another installed package or another kind of file should be
answerable. Ranking passages and choosing sentences does not belong here: `docs_agent_search`.
"""

import ast
import gc
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_PASSAGE_CHARS = 1000
MIN_PASSAGE_CHARS = 40

# Packages and the folders (relative to the package) that hold what its users call. Folders of
# servers, protocol buffers, stores and vendored code only cost time. `.` is the package's own
# top-level files. A package that is not installed contributes nothing.
SOURCES = {
    "mlflow": (
        ". artifacts assistant data deployments entities evaluation gateway genai langchain "
        "metrics models openai projects prompt pyfunc sklearn tracing tracking types"
    ),
    "dagster": ". _config _core components",
    "dagster_databricks": ". components",
    "dagster_pipes": ".",
    "dagster_dg_cli": ". cli",
}
_SKIPPED_FOLDERS = {"tests", "_vendored", "alembic", "migrations", "proto", "snap", "test_utils"}

_ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`[~!]?([^`<]+?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_+|!?\[([^\]]*)\]\([^)\s]*\)")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,300}>")
_BULLET = re.compile(r"(?:[-*+•]|\d{1,2}[.)])\s+")
_SECTION = re.compile(
    r"(Args|Arguments|Parameters|Params|Attributes|Returns?|Yields|Raises|Examples?|Notes?)\s*:?"
)
_DIRECTIVE = re.compile(r"\.\. ([\w-]+)::\s*(.*)")
_CODE_DIRECTIVES = {"code-block", "code", "testcode", "testoutput", "sourcecode", "literalinclude"}


@dataclass(frozen=True)
class Passage:
    """A citable piece of documentation.

    `uri` names the documented object or file (`#2` for its second passage), `title` is the same
    for people, `text` holds a paragraph, list entry or argument a line, headings after `#`, code in fences.
    """

    uri: str
    title: str
    text: str


def load_passages() -> list[Passage]:
    """Every passage of the installed documentation, de-duplicated, always in the same order."""
    collecting = gc.isenabled()
    gc.disable()  # millions of short-lived syntax nodes: collecting while parsing doubles the time
    try:
        documents = [*_docstrings(), *_descriptions(), *_markdown()]
    finally:
        if collecting:
            gc.enable()
    seen: set[str] = set()
    passages = []
    for uri, text in documents:
        for number, chunk in enumerate(split(text), start=1):
            if chunk in seen:
                continue
            seen.add(chunk)
            passages.append(Passage(uri if number == 1 else f"{uri}#{number}", uri, chunk))
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
        elif not line or set(line) <= set("=-~*^_+|# :"):
            yield from _flush(words)
        elif _SECTION.fullmatch(line):
            yield from _flush(words)
            entry_indent = _indent_of_next(lines, position)
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
        cut = max(text.rfind(". ", 0, MAX_PASSAGE_CHARS), text.rfind(" ", 0, MAX_PASSAGE_CHARS // 2))
        cut = cut + 1 if cut > 0 else MAX_PASSAGE_CHARS
        yield text[:cut].strip()
        text = text[cut:].strip()
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
    code = inspect.cleandoc("\n".join(["", *body]))[: MAX_PASSAGE_CHARS - 10].replace("`" * 3, "'''")
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


def _docstrings() -> Iterator[tuple[str, str]]:
    """`(public name, docstring)` of every public module, class and function in `SOURCES`."""
    found: list[tuple[str, str, str]] = []
    exported: dict[str, str] = {}
    for package, module, path in _files(".py"):
        source = path.read_bytes()
        if b'"""' not in source and path.name != "__init__.py":
            continue
        tree = ast.parse(source)
        if path.name == "__init__.py":
            for internal, public in _exports(tree, module):
                best = exported.get(internal)
                if best is None or (public.count("."), public) < (best.count("."), best):
                    exported[internal] = public
        found.extend((package, module + name, text) for name, text in _documented(tree.body, tree))
    for _, name, text in found:
        yield _public_name(name, exported), text


def _documented(body: list[ast.stmt], owner: ast.AST, prefix: str = "") -> Iterator[tuple[str, str]]:
    """`(".Class.method", docstring)` for `owner` and the public definitions in its body."""
    text = ast.get_docstring(owner)
    if text:
        yield prefix, text
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            yield from _documented([], node, f"{prefix}.{node.name}")
        elif isinstance(node, ast.ClassDef) and node.name[0] != "_":
            yield from _documented(node.body, node, f"{prefix}.{node.name}")


def _exports(tree: ast.Module, package: str) -> Iterator[tuple[str, str]]:
    """`(defining name, exported name)` of what a package's `__init__` exports from inside it."""
    for node in ast.walk(tree):
        inside = isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package + ".")
        if inside:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", f"{package}.{alias.asname or alias.name}"


def _public_name(name: str, exported: dict[str, str]) -> str:
    """The name an object is used by, following re-exports of it or of its class."""
    for _ in range(6):  # re-exports chain; the bound ends a circle
        owner, _, member = name.rpartition(".")
        if name in exported:
            name = exported[name]
        elif owner in exported:
            name = f"{exported[owner]}.{member}"
    return name


def _files(suffix: str) -> Iterator[tuple[str, str, Path]]:
    """`(package, dotted module, path)` of the source files in `SOURCES`, sorted by path."""
    for package, folders in SOURCES.items():
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            for folder in folders.split():
                base = Path(root)
                paths = base.glob(f"*{suffix}") if folder == "." else _tree(base / folder, suffix)
                for path in sorted(paths):
                    parts = path.relative_to(base.parent).with_suffix("").parts
                    yield package, ".".join(p for p in parts if p != "__init__"), path


def _tree(folder: Path, suffix: str) -> Iterable[Path]:
    """Files below `folder`, without the folders that document nothing."""
    for path in folder.rglob(f"*{suffix}"):
        if _SKIPPED_FOLDERS.isdisjoint(path.relative_to(folder).parts):
            yield path


def _markdown() -> Iterator[tuple[str, str]]:
    """`(file#heading, text)` of the Markdown files bundled with the packages."""
    for package, module, path in _files(".md"):
        text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        uri = "/".join([package, *module.split(".")[1:]]) + ".md"
        yield from _headed(uri, text)


def _descriptions() -> Iterator[tuple[str, str]]:
    """`(distribution description, text)` of the packages' distributions."""
    for package in SOURCES:
        try:
            text = importlib.metadata.metadata(package.replace("_", "-")).get_payload()
        except importlib.metadata.PackageNotFoundError:
            continue
        yield from _headed(f"{package}/README", str(text))


def _headed(uri: str, text: str) -> Iterator[tuple[str, str]]:
    """A Markdown text by its headings."""
    for section in re.split(r"^(?=#{1,4} )", text, flags=re.MULTILINE):
        heading = clean(section.partition("\n")[0].lstrip("# ")) if section[:1] == "#" else ""
        slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")[:60]
        yield (f"{uri}#{slug}" if slug else uri), section
