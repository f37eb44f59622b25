"""The text `docs_agent` answers from: documentation that the installed packages carry.

Here lives finding and reading that text: docstrings by `ast` (nothing is imported), bundled
Markdown, the long descriptions of distributions. Add to it when another installed package or
another kind of file should be answerable. Cutting text into passages (`docs_agent_passages`) and
ranking them (`docs_agent_search`) do not belong here.
"""

import ast
import gc
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

Documentable = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Text = tuple[str, str]  # the name of a documented object or file, and its documentation

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

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


@lru_cache(maxsize=1)
def load_texts() -> tuple[Text, ...]:
    """Every `(name, documentation)` of the installed packages, always in the same order.

    Read once a process: about two seconds. Public names come before internal ones.
    """
    collecting = gc.isenabled()
    gc.disable()  # millions of short-lived syntax nodes: collecting while parsing doubles the time
    try:
        return (*_docstrings(), *_descriptions(), *_markdown())
    finally:
        if collecting:
            gc.enable()


def _docstrings() -> Iterator[Text]:
    """`(public name, docstring)` of every public module, class and function in `SOURCES`."""
    found: list[tuple[str, str]] = []
    exported: dict[str, str] = {}
    for _, module, path in _files(".py"):
        source = path.read_bytes()
        if b'"""' not in source and path.name != "__init__.py":
            continue
        tree = ast.parse(source)
        if path.name == "__init__.py":
            for internal, public in _exports(tree, module):
                best = exported.get(internal)
                if best is None or (public.count("."), public) < (best.count("."), best):
                    exported[internal] = public
        found.extend((module + name, text) for name, text in _documented(tree.body, tree))
    named = [(_public_name(name, exported), text) for name, text in found]
    # Internal names last: of two equal texts the first one stays.
    yield from sorted(named, key=lambda both: "._" in both[0])


def _documented(body: list[ast.stmt], owner: Documentable, prefix: str = "") -> Iterator[Text]:
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


def _markdown() -> Iterator[Text]:
    """`(file, text)` of the Markdown files bundled with the packages."""
    for package, module, path in _files(".md"):
        text = _FRONT_MATTER.sub("", path.read_text(encoding="utf-8"))
        uri = "/".join([package, *module.split(".")[1:]]) + ".md"
        yield uri, text


def _descriptions() -> Iterator[Text]:
    """`(distribution description, text)` of the packages' distributions."""
    for package in SOURCES:
        try:
            text = importlib.metadata.metadata(package.replace("_", "-")).json.get("description", "")
        except importlib.metadata.PackageNotFoundError:
            continue
        yield f"{package}/README", str(text)
