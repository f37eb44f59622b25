"""`lifecycle doctor`: what is there, what is missing, and how to mend it.

Lives here: the order in which places are looked at, and printing what was found.
Add here: a place, once one of the `places` modules can look at it.
Not here: agents' states (`status.py`); making or mending anything.

It works before anything exists, creates nothing, and waits for nobody longer than a few seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click

from lifecycle_assets.cli import places, places_machine, places_store
from lifecycle_assets.cli.agents import known_agents
from lifecycle_assets.cli.output import json_option, mark, print_json, print_line
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.finding import Finding
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.platform import Platform


def examine() -> Iterator[Finding]:
    """Every place, in order; what needs the tracking store is left out when that failed."""
    try:
        platform = Platform.from_env()
    except Refused as refusal:
        yield Finding("platform", "fail", str(refusal), "Correct the variable it names; the rest depends on it.")
        yield from places_machine.versions()
        return
    sources = Sources(platform)
    agents, broken = known_agents()
    yield places_machine.platform_found(platform)
    yield from places_machine.versions()
    yield places_machine.home(platform)
    yield places_machine.disk(platform)
    yield from _workspace(platform, agents) if platform.is_databricks else _store(sources, agents)
    yield from places.declarations(agents, broken)
    yield from places.webhooks(agents)
    yield from places.models(agents)
    yield from places.dagster_instance(sources)
    yield from places.capabilities(platform)


def _store(sources: Sources, agents: Sequence[Agent]) -> Iterator[Finding]:
    """MLflow and tables as a laptop has them."""
    yield places_machine.tables(sources.platform)
    store = list(places_store.tracking_store(sources.platform))
    if not any(one.state == "fail" for one in store):
        store += places_store.trace_reading(sources.platform)
    yield from store
    # A database that is away MLflow waits for, some minutes.
    if not any(one.state == "fail" for one in store):
        yield places_store.registry(sources, agents)
        yield from places_store.archived_store(sources, agents)
    yield places_store.custom_scorers(sources.platform)


def _workspace(platform: Platform, agents: Sequence[Agent]) -> Iterator[Finding]:
    from resources.databricks.inspection import Inspection

    yield from Inspection(platform).findings(agents)


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """What this platform can do, what is missing, and how to mend it."""
    found = list(examine())
    failed = any(one.state == "fail" for one in found)
    if as_json:
        print_json({"ok": not failed, "findings": [asdict(one) for one in found]})
        return int(failed)
    for one in found:
        click.echo(f"{mark(one.state)}{' ' * (5 - len(one.state))}", nl=False)
        print_line(f"{one.name}: {one.text}")
        if one.remedy:
            print_line(f"       {one.remedy}")
    counts = {state: sum(1 for one in found if one.state == state) for state in ("ok", "warn", "fail")}
    print_line(", ".join(f"{n} {state}" for state, n in counts.items()))
    return int(failed)
