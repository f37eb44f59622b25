"""From a `defs.yaml` to an agent, or to one sentence about what is wrong with it.

Lives here: `Agent` (a spec and its folder), reading it, checking it against the files beside it.
Add here: a check of the declaration that needs the file system but runs none of the agent's code.
Not here: the fields themselves (`spec.py`); running the agent's code (`resources/`).
"""

import difflib
import json
import re
import types
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import AgentSpec
from lifecycle_assets.spec_yaml import KeyTwiceError, load_yaml

COMPONENT_TYPE = "lifecycle_assets.component.AgentLifecycle"
DEFS_FOLDER = Path(__file__).parent / "defs"


@dataclass(frozen=True)
class Agent:
    """One declared agent: its spec and the folder its files are in."""

    spec: AgentSpec
    folder: Path

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.spec.name

    @property
    def redactions(self) -> list[tuple[re.Pattern[str], str]]:
        """The declared redaction rules, compiled."""
        return [(re.compile(rule.pattern), rule.replacement) for rule in self.spec.archive.redact]

    def path(self, relative: str) -> Path:
        """A file named in the declaration."""
        return self.folder / relative


def parse_agent(attributes: Mapping[str, Any] | None, file: Path) -> Agent:
    """The agent of `attributes`, as read from `file`. Raises `Refused` with file, field and remedy."""
    try:
        spec = AgentSpec.model_validate(attributes or {})
    except ValidationError as error:
        # An unknown field is often the misspelling of one that is then missing: it comes first.
        found = sorted(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
        first, *others = found
        more = f" ({len(others)} more after this one.)" if others else ""
        raise Refused(f"{_shown(file)}: {_sentence(first, attributes or {})}{more}") from None
    agent = Agent(spec, file.parent)
    for field, relative in _declared_files(spec):
        _require_file(agent, file, field, relative)
    for index, rule in enumerate(spec.archive.redact):
        try:
            re.compile(rule.pattern)
        except re.error as error:
            raise Refused(
                f"{_shown(file)}: attributes.archive.redact[{index}].pattern is not a regular expression ({error}); "
                "correct it."
            ) from None
    for index, scorer in enumerate(spec.scorers):
        if scorer.filter.strip():
            _require_filter(file, f"scorers[{index}].filter", scorer.filter)
    return agent


def read_agent(file: Path) -> Agent:
    """The agent declared in `file`. Raises `Refused` when it is not YAML or not a valid declaration."""
    try:
        document = load_yaml(file.read_text(encoding="utf-8"))
    except KeyTwiceError as twice:
        raise Refused(f"{_shown(file)} {twice}; write it once, with all that stands below it.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise Refused(f"{_shown(file)}{line}: is not YAML; correct the syntax there.") from None
    if not isinstance(document, dict):
        raise Refused(f"{_shown(file)}: is empty; declare type and attributes.")
    return parse_agent(document.get("attributes"), file)


def find_agents(root: Path = DEFS_FOLDER) -> list[Agent]:
    """Every agent declared below `root`, by name. Raises `Refused` for a bad file, or a name or tables used twice."""
    agents: dict[str, Agent] = {}
    for file in sorted(root.glob("**/defs.yaml")):
        if COMPONENT_TYPE not in file.read_text(encoding="utf-8", errors="replace"):
            continue
        agent = read_agent(file)
        if agent.name in agents:
            raise Refused(
                f"{_shown(file)}: name '{agent.name}' is taken by {_shown(agents[agent.name].folder / 'defs.yaml')}; "
                "give each agent its own name."
            )
        other = next((one for one in agents.values() if one.spec.table_prefix == agent.spec.table_prefix), None)
        if other:
            raise Refused(
                f"{_shown(file)}: the tables {agent.spec.table_prefix}… are those of {other.name}; set "
                "archive.table_prefix to a prefix no other agent has."
            )
        agents[agent.name] = agent
    return [agents[name] for name in sorted(agents)]


def only_agents(agents: Sequence[Agent], root: Path = DEFS_FOLDER) -> bool:
    """Whether `root` declares nothing but these agents: no Python, no other component, no post-processing.

    Files inside an agent's folder are the agent's own.
    """
    for agent in agents:
        declared = (agent.folder / "defs.yaml").read_text(encoding="utf-8")
        if set(re.findall(r"^([^\s#].*?)\s*(?::|$)", declared, re.MULTILINE)) != {"type", "attributes"}:
            return False
    folders = {agent.folder for agent in agents}
    return all(_is_agents_only(folder, folders) for folder in root.iterdir())


def _is_agents_only(path: Path, folders: Set[Path]) -> bool:
    if path in folders or path.name == "__pycache__" or path.name.startswith("."):
        return True
    if path.is_dir():
        return all(_is_agents_only(inside, folders) for inside in path.iterdir())
    return path.name == "__init__.py" and not path.read_text(encoding="utf-8").strip()


def dataset_rows(path: Path) -> list[dict[str, Any]]:
    """The records of an evaluation dataset file: `inputs` (object) and `expectations` (object, may be empty).

    Raises `Refused` naming file and line for anything that is not such a record, and for a file without any.
    """
    rows = []
    seen: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise Refused(f"{_shown(path)} line {number}: is not JSON ({error.msg}); correct the line.") from None
        if not isinstance(row, dict) or not isinstance(row.get("inputs"), dict) or not row["inputs"]:
            raise Refused(
                f'{_shown(path)} line {number}: has no "inputs" object; '
                'write {"inputs": {...}, "expectations": {...}}.'
            )
        if not isinstance(row.get("expectations", {}), dict) or set(row) - {"inputs", "expectations"}:
            raise Refused(
                f'{_shown(path)} line {number}: only "inputs" and "expectations", both objects, may stand there; '
                "remove the rest."
            )
        key = json.dumps(row["inputs"], sort_keys=True)
        if key in seen:
            raise Refused(f"{_shown(path)} line {number}: asks the same as line {seen[key]}; remove one of them.")
        seen[key] = number
        rows.append({"inputs": row["inputs"], "expectations": row.get("expectations", {})})
    if not rows:
        raise Refused(f"{_shown(path)}: holds no record; add at least one line.")
    return rows


def _declared_files(spec: AgentSpec) -> list[tuple[str, str]]:
    files = [("agent.path", spec.agent.path)]
    files += [(f"agent.code_paths[{i}]", path) for i, path in enumerate(spec.agent.code_paths)]
    if spec.eval.dataset.endswith(".jsonl"):
        files.append(("eval.dataset", spec.eval.dataset))
    for index, scorer in enumerate(spec.scorers):
        if isinstance(scorer.source, str):
            module, separator, function = scorer.source.partition(":")
            files.append((f"scorers[{index}].source", module if separator and function else scorer.source + ":"))
    return files


def _require_file(agent: Agent, file: Path, field: str, relative: str) -> None:
    if relative.endswith(":"):
        raise Refused(f"{_shown(file)}: attributes.{field} '{relative[:-1]}' must be written file.py:function.")
    inside = agent.path(relative).resolve()
    if not inside.is_relative_to(agent.folder.resolve()):
        raise Refused(
            f"{_shown(file)}: attributes.{field} '{relative}' leaves the agent's folder; move the file into it."
        )
    if not inside.exists():
        raise Refused(
            f"{_shown(file)}: attributes.{field} names '{relative}', which is not there; "
            "create the file or correct the name."
        )


def _require_filter(file: Path, field: str, text: str) -> None:
    """Refuse a filter no day could be scored or counted by: it would stop the day's other scorers with it."""
    from resources.sql.filters import condition_of

    try:
        condition_of(text)
    except Refused as refusal:
        raise Refused(f"{_shown(file)}: attributes.{field}: {refusal}") from None


def _sentence(error: Mapping[str, Any], attributes: Mapping[str, Any]) -> str:
    """One pydantic error as field, fault and remedy."""
    location = [part for part in error["loc"] if not (isinstance(part, str) and part[:1].isupper())]
    location = [part for part in location if part != "str"]
    field = "attributes" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = _fields_at(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        remedy = f"did you mean '{close[0]}'?" if close else f"known here are {', '.join(known)}."
        elsewhere = _place_of(str(location[-1]))
        if elsewhere and (not close or close[0] != location[-1]):
            remedy = f"it stands in {elsewhere}."
        return f"{field} is not a known field; {remedy}"
    if kind == "missing":
        return f"{field} is missing; add it ({_description_at(location)})."
    if kind in ("value_error", "assertion_error"):
        return f"{field}: {message}." if field != "attributes" else f"attributes.{message}."
    if kind == "model_type":
        message = f"write fields below it ({', '.join(_fields_at(location))})"
    shown = json.dumps(error["input"], default=str)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    description = _description_at(location)
    return f"{field} is {shown}: {message[0].lower()}{message[1:]}. {description}".strip()


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every pydantic model inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, list, dict):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _models_at(location: Sequence[Any]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [AgentSpec]
    for part in location:
        if isinstance(part, int):
            continue
        annotations = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        models = [found for annotation in annotations for found in _models(annotation)]
    return models


def _fields_at(location: Sequence[Any]) -> list[str]:
    return [name for model in _models_at(location) for name in model.model_fields]


def _place_of(name: str) -> str:
    """Where the field of that name stands, when it is in one place of the declaration; else empty."""
    sections: dict[str, list[type[BaseModel]]] = {"attributes": [AgentSpec]}
    places = []
    while sections:
        places += [place for place, models in sections.items() for model in models if name in model.model_fields]
        sections = {
            f"{place}.{key}": _models(field.annotation)
            for place, models in sections.items()
            for model in models
            for key, field in model.model_fields.items()
        }
    return places[0] if len(places) == 1 else ""


def _description_at(location: Sequence[Any]) -> str:
    if not location:
        return ""
    for model in _models_at(location[:-1]):
        field = model.model_fields.get(str(location[-1]))
        if field and field.description:
            return field.description
    return ""


def _shown(file: Path) -> str:
    """The path as a person would write it: relative to here when it is below."""
    try:
        return str(file.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(file)
