"""Scorers as declared: which are active, what each is made of, and loading one from its declaration.

Lives here: reading a scorer's source as text (digest, free names) and turning a declaration into an MLflow scorer.
Add here: a further kind of `source` in `lifecycle_assets/spec.py`.
Not here: registered copies (`scorer_registry.py`), trying a scorer in a process of its own (`scorer_steps.py`).

Only `load_declared` imports MLflow and runs the agent's file; everything else takes milliseconds, because
sensors call it every tick.
"""

import ast
import builtins
import importlib.util
import os
import re
import symtable
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from lifecycle_assets.records import digest
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import Builtin, Judge, Scorer
from lifecycle_assets.spec_file import Agent

if TYPE_CHECKING:
    import mlflow.genai.scorers

JUDGE_MODEL = "LIFECYCLE_JUDGE_MODEL"
"""Environment variable with the model of every judge, such as `openai:/gpt-5-mini`."""

INJECTED = frozenset(
    {
        "mlflow",
        "Assessment",
        "AssessmentError",
        "AssessmentSource",
        "AssessmentSourceType",
        "CategoricalRating",
        "Feedback",
        "Trace",
    }
)
"""Names MLflow gives a registered copy besides the builtins (`recreate_function` in mlflow 3.17)."""


WITH_EXPECTATIONS = frozenset({"Correctness", "Equivalence", "ExpectationsGuidelines", "RetrievalSufficiency"})
"""Built-in scorers of MLflow 3.17 that fail without expectations (`validate_columns` in `builtin_scorers.py`)."""


@dataclass(frozen=True)
class DeclaredScorer:
    """An active scorer: declared short name, the name it is registered under, digest of its source, declaration."""

    name: str
    registered_name: str
    digest: str
    spec: Scorer


def needs_expectations(scorer: Scorer) -> bool:
    """Whether a built-in or a judge can say nothing without expectations; a function is asked, and may answer None."""
    if isinstance(scorer.source, Judge):
        return bool(re.search(r"{{\s*expectations\b", scorer.source.judge))
    if isinstance(scorer.source, Builtin):
        exactly = scorer.source.builtin == "ToolCallCorrectness" and scorer.source.arguments.get("should_exact_match")
        return bool(exactly) or scorer.source.builtin in WITH_EXPECTATIONS
    return False


def registered_name(agent: Agent, environment: str, name: str) -> str:
    """`<environment>_<agent>_<scorer>`: the name a scorer is registered under."""
    return f"{environment}_{agent.name}_{name}"


def declared_scorers(agent: Agent, environment: str) -> list[DeclaredScorer]:
    """The active scorers, as declared: those whose `requires` is empty or names a variable that is set.

    The digest of a function covers its code and decorators, not comments, layout or docstring; that of a judge covers
    its words and the judge model. Runs none of the agent's code. Raises `Refused` with file, field and remedy for a
    source that cannot be used.
    """
    return [
        DeclaredScorer(
            scorer.name, registered_name(agent, environment, scorer.name), _source_digest(agent, index, scorer), scorer
        )
        for index, scorer in enumerate(agent.spec.scorers)
        if not scorer.requires or os.environ.get(scorer.requires)
    ]


def free_names(source_file: Path, function: str) -> list[str]:
    """Names the body of `function` takes from its module, sorted: a registered copy will not find them.

    A static look: nothing is run. Decorators, parameter defaults and annotations do not count, because MLflow stores
    only the body and the signature; the names in `INJECTED` do not count either. The function's own name counts:
    a registered copy cannot call itself. Raises `Refused` when the file or the function cannot be read.
    """
    node = _function(source_file, function, source_file.name)
    arguments = node.args
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [default and ast.Constant(None) for default in arguments.kw_defaults]
    node.decorator_list = []
    _WithoutAnnotations().visit(node)
    table = symtable.symtable(ast.unparse(node), source_file.name, "exec").get_children()[0]
    return sorted(set(_module_names(table)) - set(dir(builtins)) - INJECTED)


def is_stored_whole(source_file: Path, function: str) -> bool:
    """Whether MLflow stores the whole body of `function`.

    It stores whole lines: of `def f(outputs): return 1` it keeps the line as a nested function that is never called,
    and the registered copy returns None for ever. A function that is a docstring and nothing else is not stored either.
    """
    node = _function(source_file, function, source_file.name)
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return False
    line = source_file.read_bytes().splitlines()[body[0].lineno - 1]
    return not line[: body[0].col_offset].strip()


def load_declared(agent: Agent, declared: DeclaredScorer) -> "mlflow.genai.scorers.Scorer":
    """The MLflow scorer of a declaration, under its declared short name.

    Imports MLflow and, for a function, runs the agent's file under a module name of its own, so that two agents'
    `scorers.py` do not meet. Raises `Refused` for an unknown built-in, and for a file that raises when it is run.
    """
    import mlflow.genai
    import mlflow.genai.scorers
    from mlflow.exceptions import MlflowException

    source, where = declared.spec.source, f"{_file(agent)}: scorer '{declared.name}'"
    if isinstance(source, Judge):
        try:
            return mlflow.genai.make_judge(
                name=declared.name, instructions=source.judge, model=_judge_model(where), feedback_value_type=bool
            )
        except MlflowException as error:
            raise Refused(f"{where}: MLflow refuses source.judge ({error!s:.300}); correct the words.") from error
    if isinstance(source, Builtin):
        made = getattr(mlflow.genai.scorers, source.builtin, None)
        if not (isinstance(made, type) and issubclass(made, mlflow.genai.scorers.Scorer)):
            raise Refused(f"{where}: mlflow.genai.scorers has no scorer '{source.builtin}'; correct source.builtin.")
        try:
            return made(**{**source.arguments, "name": declared.name})
        except (TypeError, ValueError, MlflowException) as error:
            raise Refused(
                f"{where}: {source.builtin} refuses source.arguments ({error!s:.300}); correct them."
            ) from error
    relative, _, function = source.partition(":")
    module_name = f"lifecycle_scorers_{uuid4().hex}"
    spec = importlib.util.spec_from_file_location(module_name, agent.path(relative))
    assert spec is not None and spec.loader is not None  # noqa: PT018 - a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # Dataclasses look their module up there.
    try:
        spec.loader.exec_module(module)
        loaded = getattr(module, function)
        if not isinstance(loaded, mlflow.genai.scorers.Scorer):
            raise Refused(f"{where}: '{source}' is a {type(loaded).__name__}; decorate it with mlflow's @scorer.")
        loaded.name = declared.name
        loaded.model_dump()  # Reads the function's source while the file is what was just run.
    except Refused:
        raise
    except Exception as error:
        raise Refused(
            f"{where}: {relative} does not run ({type(error).__name__}: {error!s:.300}); correct it."
        ) from error
    finally:
        del sys.modules[module_name]
    return loaded


def _source_digest(agent: Agent, index: int, scorer: Scorer) -> str:
    field = f"attributes.scorers[{index}].source"
    if isinstance(scorer.source, Judge):
        model = _judge_model(f"{_file(agent)}: {field}")
        return digest({"judge": scorer.source.judge, "model": model})
    if isinstance(scorer.source, Builtin):
        return digest(scorer.source.model_dump(mode="json"))
    relative, _, function = scorer.source.partition(":")
    node = _function(agent.path(relative), function, f"{_file(agent)}: {field} '{scorer.source}'", decorated=True)
    if ast.get_docstring(node) is not None:
        node.body = node.body[1:]
    return digest(ast.dump(node))


def _judge_model(where: str) -> str:
    model = os.environ.get(JUDGE_MODEL, "")
    if not model:
        raise Refused(
            f"{where}: a judge needs a model; set {JUDGE_MODEL} (such as openai:/gpt-5-mini), "
            f"or leave the scorer out without one by requires: {JUDGE_MODEL}."
        )
    return model


def _function(file: Path, function: str, where: str, *, decorated: bool = False) -> ast.FunctionDef:
    """The last top-level definition of `function`. Raises `Refused`, `where` first, when it cannot be used."""
    try:
        tree = ast.parse(file.read_bytes(), filename=file.name)
    except FileNotFoundError:
        raise Refused(f"{where}: {file.name} is not there; create the file or correct the name.") from None
    except SyntaxError as error:
        raise Refused(
            f"{where}: {file.name} line {error.lineno or 1} is not Python ({error.msg}); correct the syntax there."
        ) from None
    except ValueError as error:
        raise Refused(f"{where}: {file.name} is not Python ({error}); correct the file.") from None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = [node for node in functions if node.name == function]
    if not found:
        there = ", ".join(node.name for node in functions) or "none"
        raise Refused(f"{where}: {file.name} defines no function '{function}' (it defines {there}); correct the name.")
    node = found[-1]
    if isinstance(node, ast.AsyncFunctionDef):
        raise Refused(f"{where}: {file.name} line {node.lineno}: scorers are not async; write def, not async def.")
    if decorated and not any(_is_scorer(decorator, tree) for decorator in node.decorator_list):
        raise Refused(
            f"{where}: {file.name} line {node.lineno}: '{function}' lacks the decorator @scorer; "
            "add it (from mlflow.genai.scorers import scorer)."
        )
    return node


def _is_scorer(decorator: ast.expr, tree: ast.Module) -> bool:
    """Whether a decorator is MLflow's `scorer`, called or not, under its own name or another it was imported as."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(called, ast.Attribute):
        return called.attr == "scorer"
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlflow.genai")
        for alias in node.names
        if alias.name == "scorer"
    }
    return isinstance(called, ast.Name) and called.id in names | {"scorer"}


def _module_names(table: symtable.SymbolTable) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_global() and symbol.is_referenced() and not symbol.is_assigned():
            yield symbol.get_name()
    for child in table.get_children():
        yield from _module_names(child)


class _WithoutAnnotations(ast.NodeTransformer):
    """Takes annotations away: a registered copy never evaluates them."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """`x: T = v` becomes `x = v`, and `x: T` becomes `pass`."""
        self.generic_visit(node)
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign(targets=[node.target], value=node.value, lineno=node.lineno), node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """Of a parameter only the name stays."""
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """A nested function keeps decorators and defaults: they run with the body."""
        self.generic_visit(node)
        node.returns = None
        return node


def _file(agent: Agent) -> str:
    return f"{agent.folder.name}/defs.yaml"
