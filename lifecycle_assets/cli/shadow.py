"""`lifecycle shadow`: a version against the champion on the champion's recorded requests, by the same job as in the UI.

Lives here: the command: it runs the job in this process and says what came out.
Add here: a fact of the comparison that people or scripts need.
Not here: the comparison (`lifecycle_assets/release/shadow.py`).
"""

import math
import re

import click
import dagster as dg

from lifecycle_assets.cli.agents import one_agent
from lifecycle_assets.cli.output import Misuse, SaysNo, clean, json_option, print_json, print_line, print_table
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.edges import RECORD_KEY
from lifecycle_assets.home import open_instance
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.shadow import ShadowRecord
from lifecycle_assets.release.shadow_check import SHADOW, ShadowConfig
from lifecycle_assets.runner import Runner, why_failed
from lifecycle_assets.spec_file import Agent
from resources.platform import Platform


def compare(agent: Agent, config: ShadowConfig) -> ShadowRecord:
    """Run the agent's job `shadow`; returns its record. Raises `Refused` with the sentence of the step that refused."""
    with open_instance(Platform.from_env()) as instance:
        runner = Runner(agent_definitions(agent), instance, lambda line: click.echo(clean(line), err=True))
        runner.settle_interrupted()
        asked = {name: value for name, value in config.model_dump().items() if value is not None}
        run_config = {"ops": {f"{agent.name}__{SHADOW}": {"config": asked}}}
        done = runner.ended(f"{agent.name}_{SHADOW}", run_config=run_config)
    if not done.success:
        raise Refused(why_failed(done))
    return record_of(done)


def record_of(done: dg.ExecuteInProcessResult) -> ShadowRecord:
    """The record of the check a run evaluated."""
    (evaluation,) = done.get_asset_check_evaluations()
    return ShadowRecord.from_json(evaluation.metadata[RECORD_KEY].value)  # ty: ignore[invalid-argument-type]


@click.command()
@click.argument("agent")
@click.argument("version")
@click.option("--traces", type=click.IntRange(min=1), help="Requests at most; default shadow.max_traces of defs.yaml.")
@click.option(
    "--max-cost", type=click.FloatRange(min=0), metavar="USD", help="What the scorers may cost; default of defs.yaml."
)
@json_option
def shadow(agent: str, version: str, traces: int | None, max_cost: float | None, as_json: bool) -> int:
    """Compare VERSION (a number, or an alias such as challenger) with the champion on recorded requests.

    Nothing is moved. The exit code is 0 when the version is better or not worse, 1 when it is worse, when nobody can
    tell, or when there is nothing to compare.
    """
    chosen = one_agent(agent)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", version):
        raise Misuse(f"'{version[:40]}' is no version: give a number or an alias, such as challenger.")
    if max_cost is not None and not math.isfinite(max_cost):
        raise Misuse(f"--max-cost takes a number of USD, not {max_cost}.")
    try:
        record = compare(chosen, ShadowConfig(version=version, traces=traces, max_cost_usd=max_cost))
    except Refused as refusal:
        raise SaysNo(str(refusal)) from None
    if as_json:
        print_json({"agent": agent, **record.to_json()})
    else:
        _print(record)
    return 0 if record.is_well else 1


def _print(record: ShadowRecord) -> None:
    print_line(record.headline)
    for sentence in record.sentences:
        print_line(sentence)
    columns = ("metric", "outcome", "champion", "version", "difference", "low", "high", "pairs")
    print_table(columns, [[one[column] for column in columns] for one in record.metrics])
    if record.losses:
        print_line("Largest losses: look at these traces.")
        columns = ("metric", "request", "answer", "champion", "version")
        print_table(columns, [[one[column] for column in columns] for one in record.losses])
    for reason, number in sorted(record.skipped.items()):
        print_line(f"{number} requests were left out: {reason}.")
    for scorer, reason in sorted(record.left_out.items()):
        print_line(f"{scorer} does not count: it {reason}.")
    cost = "read back, no cost" if record.reused else f"{record.cost_usd:.4g} USD for scorers"
    print_line(f"MLflow run {record.run_id} ({cost}). {record.url}".rstrip())
