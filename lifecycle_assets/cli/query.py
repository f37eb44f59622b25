"""`lifecycle query`: SQL over an agent's tables and views.

Lives here: taking the statement, printing the rows.
Add here: another form of output.
Not here: what may be asked (`resources/sql/engine.py`), the columns (`resources/tables.py`).
"""

import json
import sys
from typing import Any

import click

from lifecycle_assets.cli.agents import one_agent
from lifecycle_assets.cli.output import Misuse, json_option, jsonable, print_json, print_line, print_table
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.spec_file import Agent
from resources.platform import Platform
from resources.scorer_source import registered_name
from resources.sql.engine import SqlResult


def answer(agent: Agent, sources: Sources, sql: str, *, limit: int) -> SqlResult:
    """The rows, with the declared prices for the view `judge_cost`. Raises `Refused` for what is no query."""
    environment = sources.platform.environment
    costs = {registered_name(agent, environment, s.name): s.cost_per_call for s in agent.spec.scorers}
    return sources.sql.query(agent.spec.table_prefix, sql, limit=limit, costs=costs)


def objects(found: SqlResult) -> list[dict[str, Any]]:
    """The rows as JSON objects; of columns with the same name the later ones are numbered."""
    names: list[str] = []
    for name in found.columns:
        number, unique = 1, name
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return [{name: jsonable(value) for name, value in zip(names, row, strict=True)} for row in found.rows]


def _cell(value: object) -> object:
    if isinstance(value, float):
        return value
    plain = jsonable(value)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, dict | list) else plain


@click.command()
@click.argument("agent")
@click.argument("sql")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Rows at most.")
@json_option
def query(agent: str, sql: str, limit: int, as_json: bool) -> None:
    """Read-only SQL over an agent's tables and views.

    Tables and views are named without prefix: traces, spans, assessments, promotions, quality_metrics, scorer_days,
    publications, quarantine; quality_by_version, latency, errors, feedback, scorer_coverage, sessions, judge_cost.
    SQL of - reads standard input.
    """
    statement = sys.stdin.read() if sql == "-" else sql
    if not statement.strip():
        raise Misuse("The SQL is empty; write a query such as: SELECT * FROM latency")
    found = answer(one_agent(agent), Sources(Platform.from_env()), statement, limit=limit)
    if as_json:
        print_json(objects(found))
    else:
        print_table(found.columns, ([_cell(value) for value in row] for row in found.rows))
        print_line(f"{len(found.rows)} rows")
    if found.truncated:
        click.echo(f"Only the first {limit} rows are shown; raise --limit for more.", err=True)
