"""`docs/reference.md`, read off the code: `python -m docs.make_reference`.

Lives here: what the reference shows, and in which order. `tests/test_docs.py` holds the page against the code.
Add here: another thing users look up by name.
Not here: the words themselves; they are in the code (descriptions, docstrings, help).
"""

import inspect
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from lifecycle_assets.cli.main import COMMANDS, main
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.jobs import agent_jobs, agent_schedules
from lifecycle_assets.spec import AgentSpec
from lifecycle_assets.spec_file import Agent, find_agents
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from resources.sql.views import VIEWS
from resources.tables import KEYS, PARTITION, TABLES
from sensors.registry import agent_sensors

PAGE = Path(__file__).resolve().parent / "reference.md"
AGENT = "docs_agent"
GROUPS = ("candidate", "release", "monitoring", "review")
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "maxItems": "at most {}",
    "maxLength": "at most {} characters",
}


def render() -> str:
    """The whole page."""
    agent = next(agent for agent in find_agents() if agent.name == AGENT)
    parts = [
        "# Reference\n\nMade by `python -m docs.make_reference` from the code. Names are those of `docs_agent`.",
        "\n".join(_declaration()),
        "\n".join(_assets(agent)),
        "\n".join(_automation(agent)),
        "\n".join(_tables()),
        "\n".join(_commands()),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _declaration() -> Iterator[str]:
    schema = AgentSpec.model_json_schema()
    yield "## `defs.yaml`\n\n`type: lifecycle_assets.component.AgentLifecycle`. Under `attributes`:\n"
    yield from _fields(schema)
    for name, model in _in_order(schema):
        yield f"\n### {name}\n\n{_line(model.get('description', ''))}\n"
        yield from _fields(model)


def _in_order(schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The models below the declaration, each after the one that first names it."""
    found: dict[str, Mapping[str, Any]] = {}

    def visit(node: Any) -> None:
        if isinstance(node, list):
            for part in node:
                visit(part)
        elif isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found[name] = schema["$defs"][name]
                visit(found[name].get("properties", {}))
            for part in node.values():
                visit(part)

    visit(schema["properties"])
    return list(found.items())


def _fields(model: Mapping[str, Any]) -> Iterator[str]:
    required = set(model.get("required", ()))
    yield "| field | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, field in model["properties"].items():
        default = "required" if name in required else _default(field)
        yield f"| `{name}` | {_kind(field)} | {default} | {_cell(field.get('description', ''))} |"


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field:
        return "empty"
    value = field["default"]
    if isinstance(value, dict):
        return "its own defaults" if value else "empty"
    if isinstance(value, list):
        return ", ".join(f"`{one}`" for one in value)
    return {None: "none", "": "empty"}.get(value, f"`{str(value).lower() if isinstance(value, bool) else value}`")


def _kind(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join("null" if part.get("type") == "null" else _kind(part) for part in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type", "any")
    if kind == "array":
        kind = f"list of {_kind(field['items'])}"
    elif kind == "object" and isinstance(field.get("additionalProperties"), dict):
        kind = f"map to {_kind(field['additionalProperties'])}"
    limits = [text.format(field[key]) for key, text in BOUNDS.items() if key in field]
    if "pattern" in field:
        limits.append(f"`{_cell(field['pattern'])}`")
    return ", ".join([kind, *limits])


def _assets(agent: Agent) -> Iterator[str]:
    graph = agent_definitions(agent).resolve_asset_graph()
    yield "## Assets\n\nA blocking check that fails stops what depends on the asset."
    for group in GROUPS:
        yield f"\n### Group `{group}`"
        for key in graph.toposorted_asset_keys:
            node = graph.get(key)
            if node.group_name != group:
                continue
            yield f"\n#### `{key.to_user_string()}`\n"
            yield f"{inspect.cleandoc(node.description or '')}\n"
            parents = [f"`{parent.path[-1]}`" for parent in sorted(node.parent_keys)]
            yield f"- depends on: {', '.join(parents) or 'nothing'}"
            if node.partitions_def is not None:
                yield f"- partitions: UTC days from {agent.spec.archive.start_date} until today"
            for check in sorted(graph.get_check_keys_for_assets({key})):
                spec = graph.get_check_spec(check)
                blocking = ", blocking" if spec.blocking else ""
                yield f"- check `{check.name}`{blocking}: {_line(spec.description or '')}"


def _automation(agent: Agent) -> Iterator[str]:
    yield "## Jobs\n\n| job | what it does |\n| --- | --- |"
    yield from (f"| `{job.name}` | {_cell(job.description or '')} |" for job in agent_jobs(agent))
    yield "\n## Schedules\n\nUTC; running by default.\n\n| schedule | when | what it asks for |\n| --- | --- | --- |"
    for schedule in agent_schedules(agent):
        yield f"| `{schedule.name}` | `{schedule.cron_schedule}` | {_cell(schedule.description or '')} |"
    yield "\n## Sensors\n\nRunning by default.\n\n| sensor | looks every | what it does |\n| --- | --- | --- |"
    for sensor in agent_sensors(agent):
        yield f"| `{sensor.name}` | {sensor.minimum_interval_seconds} s | {_cell(sensor.description or '')} |"


def _tables() -> Iterator[str]:
    yield (
        "## Tables\n\nDelta, named `<catalog>.<schema>.<table_prefix><table>`; in SQL by the name alone. "
        f"Partitioned by `{PARTITION}` where that is a column."
    )
    for table, columns in TABLES.items():
        held_once = " and ".join(f"`{column}`" for column in KEYS.get(table, ()))
        yield f"\n### `{table}`\n\n{f'One row for each {held_once} of a day.' if held_once else 'Append-only.'}\n"
        yield "| column | type |\n| --- | --- |"
        yield from (f"| `{column}` | {kind} |" for column, kind in columns.items())
    yield "\n## Views\n\n| view | columns |\n| --- | --- |"
    with tempfile.TemporaryDirectory() as home:
        engine = DuckDbEngine(Platform.from_env({"LIFECYCLE_HOME": home}))
        for view in VIEWS:
            columns = engine.query("main.reference.none_", f"SELECT * FROM {view}", []).columns  # noqa: S608 ours
            yield f"| `{view}` | {', '.join(f'`{column}`' for column in columns)} |"


def _commands() -> Iterator[str]:
    yield "## Commands\n\nExit code 0: well. 1: a check or the environment says no. 2: called wrongly."
    with click.Context(main, info_name="lifecycle") as above:
        for name in COMMANDS:
            command = main.get_command(above, name)
            assert command is not None  # It is one of COMMANDS.
            with click.Context(command, info_name=name, parent=above, terminal_width=100) as context:
                yield f"\n### `lifecycle {name}`\n\n```text\n{command.get_help(context)}\n```"


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|").replace("<", "&lt;") if "`" not in text else _line(text).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"{PAGE.name}: {len(PAGE.read_text(encoding='utf-8').splitlines())} lines")
