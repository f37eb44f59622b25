"""`lifecycle backfill`: what scoring days again would take, and with `--run` doing it.

Lives here: the command, and what may be asked of it.
Add here: an option, and the sentence for what it cannot be.
Not here: the estimate (`backfill_estimate.py`), starting runs (`backfill_runs.py`), counting and planning
(`lifecycle_assets/monitoring/backfill_*.py`).
"""

import difflib
from datetime import UTC, date, datetime
from typing import Any

import click

from lifecycle_assets.cli.agents import chosen_agents, known_agents
from lifecycle_assets.cli.backfill_estimate import left_sentence, print_estimate, shown
from lifecycle_assets.cli.backfill_runs import Backfill
from lifecycle_assets.cli.output import Misuse, SaysNo, json_option, print_json, print_line
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.monitoring.backfill_plan import MAX_DAYS, Caps
from lifecycle_assets.refused import Refused
from lifecycle_assets.retention import oldest_scored
from lifecycle_assets.spec_file import Agent
from resources.platform import Platform
from resources.scorer_source import DeclaredScorer, declared_scorers

NEAR = 0.5
"""How alike two names are, 0..1, for one to be offered for the other: two letters exchanged in a name of four are."""


def _agent(name: str) -> Agent:
    """The agent of that name. Raises `Misuse` with the nearest name."""
    names = [agent.name for agent in known_agents()[0]]
    close = difflib.get_close_matches(name, names, n=1, cutoff=NEAR)
    if name not in names and close:
        raise Misuse(f"No agent '{name[:60]}' is declared; did you mean '{close[0]}'?")
    return chosen_agents(name)[0][0]


def _scorers(agent: Agent, environment: str, names: tuple[str, ...]) -> list[DeclaredScorer]:
    """The active scorers of these names, or all of them. Raises `Misuse` for a name that is not one."""
    active = {one.name: one for one in declared_scorers(agent, environment)}
    for name in names:
        spec = next((one for one in agent.spec.scorers if one.name == name), None)
        if spec is None:
            close = difflib.get_close_matches(name, [one.name for one in agent.spec.scorers], n=1, cutoff=NEAR)
            known = ", ".join(one.name for one in agent.spec.scorers) or "none"
            remedy = f"did you mean '{close[0]}'?" if close else f"declared are {known}."
            raise Misuse(f"{agent.name} has no scorer '{name[:60]}'; {remedy}")
        if name not in active:
            raise Misuse(f"{name} is left out here: set the environment variable {spec.requires} to have it score.")
        if spec.sample_rate == 0:
            raise Misuse(f"{name} has sample_rate 0 and owes no score; raise it in defs.yaml.")
    return [active[name] for name in dict.fromkeys(names)] if names else list(active.values())


def _day(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise Misuse(f"{option} is '{text[:40]}', which is no day; write it like 2026-01-31.") from None


def _range(agent: Agent, first: str, last: str) -> tuple[date, date]:
    """The days asked for. Raises `Misuse` for a range that cannot be scored."""
    start, end, today = _day("--from", first), _day("--to", last), datetime.now(UTC).date()
    begin = date.fromisoformat(agent.spec.archive.start_date)
    if end > today:
        raise Misuse(f"--to {end} is in the future; today is {today} (UTC).")
    if start > end:
        raise Misuse(f"--from {start} is after --to {end}; exchange them.")
    if start < begin:
        raise Misuse(f"--from {start} is before {begin}, the first day of {agent.name} (archive.start_date).")
    oldest = oldest_scored(agent.spec.archive, today)
    if start < oldest:
        raise Misuse(
            f"--from {start} is before {oldest}, the oldest day whose traces archive.retention_days and "
            f"archive.store_retention of {agent.name} keep; ask from there on."
        )
    if (end - start).days + 1 > MAX_DAYS:
        raise Misuse(
            f"--from {start} --to {end} are {(end - start).days + 1} days; ask for at most {MAX_DAYS} at once."
        )
    return start, end


@click.command()
@click.argument("agent")
@click.option("--scorer", "names", multiple=True, metavar="NAME", help="A scorer, by its short name; default all.")
@click.option("--from", "first", required=True, metavar="DAY", help="First day, UTC, such as 2026-01-31.")
@click.option("--to", "last", required=True, metavar="DAY", help="Last day, UTC, included.")
@click.option("--run", "does_run", is_flag=True, help="Start the runs; without it, nothing is changed.")
@click.option("--max-usd", type=click.FloatRange(min=0), help="USD at most.")
@click.option("--max-traces", type=click.IntRange(min=1), help="Traces at most; a day may be cut.")
@click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), help="No day is begun after so long.")
@json_option
def backfill(
    agent: str,
    names: tuple[str, ...],
    first: str,
    last: str,
    does_run: bool,
    max_usd: float | None,
    max_traces: int | None,
    max_minutes: float | None,
    as_json: bool,
) -> None:
    """What scoring archived days again would take; with --run, doing it.

    It is said in traces, calls, USD and time, by scorer and day. With --run it is done, a run of scorer_backfill a
    day, which the UI shows by partition: first a few traces of the newest day, and when they went well the rest.
    Interrupted and called again, it goes on where it was.
    """
    chosen = _agent(agent)
    platform = Platform.from_env()
    scorers = _scorers(chosen, platform.environment, names)
    start, end = _range(chosen, first, last)
    sources = Sources(platform)
    if sources.archive.version(chosen.spec.table_prefix, "traces") < 0:
        raise SaysNo(f"{agent} has no archive yet; run {agent}_monitor for a day, or make demo, first.")
    asked = Backfill(chosen, sources, scorers, start, end)
    caps = Caps(max_usd, max_traces, None if max_minutes is None else max_minutes * 60)
    said = shown(asked, caps)
    if not as_json:
        print_estimate(said)
    if not does_run or not said["calls"]:
        if as_json:
            print_json({**said, "runs": []})
        elif said["calls"]:
            print_line("Nothing was started; add --run.")
        return
    if not said["plan"]:
        raise SaysNo(f"Nothing was started: the cap on {said['stopped_by']} takes not one trace; raise it.")
    runs: list[dict[str, Any]] = []
    try:
        after = asked.run(caps, runs)
    except Refused as refusal:
        if as_json:
            print_json({**said, "runs": runs})
        raise SaysNo(str(refusal)) from None
    if as_json:
        print_json({**said, "runs": runs, "stopped_by": after.stopped_by, "left": after.left})
        return
    print_line(f"{len(runs)} run{'s' * (len(runs) != 1)} done.")
    print_line(left_sentence(after) if after.left else "Nothing is left.")
