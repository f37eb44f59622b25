"""From what an agent's code raised to a refusal that names its file and line.

Lives here: walking an exception back to the agent's folder, and the sentences.
Add here: a fault of an agent's code that deserves a sentence of its own.
Not here: faults of the environment (`explain.py`), of the declaration (`lifecycle_assets/spec_file.py`).
"""

import ast
import traceback
from dataclasses import dataclass

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.explain import explain

_LOADING = ("Failed to import code model", "Failed to run user code")
_CONTRACT = ("Invalid input example", "Failed to save")


@dataclass(frozen=True)
class Fault:
    """The innermost exception of a chain that touched the agent's code, and where; `place` is empty if none did."""

    error: BaseException
    place: str

    @property
    def said(self) -> str:
        """Type and message in one line."""
        lines = str(self.error).strip().splitlines()
        return f"{type(self.error).__name__}: {lines[0][:300]}" if lines else type(self.error).__name__


def check_source(agent: Agent) -> None:
    """Refuse an agent file that is not Python or does not call `set_model`. Reads the file, runs nothing."""
    file = agent.path(agent.spec.agent.path)
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except SyntaxError as error:
        raise Refused(f"{file} line {error.lineno or 1}: is not Python ({error.msg}); correct the line.") from None
    except (ValueError, FileNotFoundError) as error:
        raise Refused(f"{file}: cannot be read as Python ({error}); correct the file.") from None
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [getattr(called, "attr", None) or getattr(called, "id", None) for called in calls]
    if "set_model" not in names:
        raise no_set_model(agent)


def no_set_model(agent: Agent) -> Refused:
    """The refusal of a file that leaves MLflow without a model."""
    file = agent.path(agent.spec.agent.path)
    return Refused(
        f"{file}: sets no model; end the file with mlflow.models.set_model(<your agent>).", check="set_model_present"
    )


def fault_of_model(error: BaseException) -> Fault:
    """Where in a loaded model's code `error` comes from: the innermost frame that no installed package owns."""
    fault = Fault(error, "")
    for link in _chain(error):
        for frame in traceback.extract_tb(link.__traceback__):
            if "site-packages" not in frame.filename and "/resources/" not in frame.filename:
                fault = Fault(link, f"{frame.filename.rpartition('/')[2]} line {frame.lineno}")
    return fault


def fault_of(error: BaseException, agent: Agent) -> Fault:
    """Where in the agent's code `error` comes from."""
    own = {path.name: path for path in sorted(agent.folder.rglob("*.py"), reverse=True)}
    fault = Fault(error, "")
    for link in _chain(error):
        if isinstance(link, SyntaxError) and link.filename:
            name = link.filename.rpartition("/")[2]
            if name in own:
                fault = Fault(link, f"{own[name]} line {link.lineno or 1}")
            continue
        for frame in traceback.extract_tb(link.__traceback__):
            name = frame.filename.rpartition("/")[2]
            if name in own and "site-packages" not in frame.filename and "/resources/" not in frame.filename:
                fault = Fault(link, f"{own[name]} line {frame.lineno}")
    return fault


def refusal_when_logging(error: BaseException, agent: Agent) -> Refused | None:
    """What to say of an error while a model was logged; None when it is not about the agent."""
    if explain(error, "MLflow"):
        return None
    fault = fault_of(error, agent)
    texts = [str(link) for link in _chain(error)]
    if any(text.startswith(_LOADING) for text in texts):
        return _refusal_of_import(fault, agent)
    if any("set_model() within the code file" in text for text in texts):
        return no_set_model(agent)
    if fault.place or any(text.startswith(_CONTRACT) for text in texts):
        return refusal_of_prediction(error, agent)
    return None


def refusal_of_prediction(error: BaseException, agent: Agent) -> Refused:
    """The refusal of a model whose prediction on the input example raised."""
    fault = fault_of(error, agent)
    place = fault.place or str(agent.path(agent.spec.agent.path))
    return Refused(
        f"{place}: predict raised {fault.said}; correct the agent, or agent.input_example in defs.yaml.",
        check="smoke_prediction",
    )


def _refusal_of_import(fault: Fault, agent: Agent) -> Refused:
    place = fault.place or str(agent.path(agent.spec.agent.path))
    if isinstance(fault.error, SyntaxError):
        return Refused(f"{place}: is not Python ({fault.error.msg}); correct the line.")
    if isinstance(fault.error, ImportError):
        name = fault.error.name or "a module"
        return Refused(
            f"{place}: cannot import '{name}' ({fault.said}); correct the import, add the package to "
            "agent.pip_requirements and install it, or add the file to agent.code_paths in defs.yaml."
        )
    return Refused(f"{place}: raised {fault.said} when the file was loaded; correct it there.")


def _chain(error: BaseException) -> list[BaseException]:
    """`error` and what caused it, outermost first."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links
