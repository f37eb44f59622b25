"""`lifecycle backfill`: what scoring days again would take, and with `--run` doing it.

Lives here: the command: what may be asked, the estimate as people and scripts read it.
Add here: a fact of the plan that people or scripts need.
Not here: counting and planning (`monitoring/backfill_*.py`), starting runs (`backfill_runs.py`).
"""

import difflib
from datetime import UTC, date, datetime
from typing import Any

import click

from lifecycle_assets.cli.agents import chosen_agents, known_agents
from lifecycle_assets.cli.backfill_runs import Backfill
from lifecycle_assets.cli.output import Misuse, SaysNo, json_option, print_json, print_line, print_table
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.monitoring.backfill_plan import MAX_DAYS, REASONS, Caps, Plan
from lifecycle_assets.refused import Refused
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
    if (end - start).days + 1 > MAX_DAYS:
        raise Misuse(
            f"--from {start} --to {end} are {(end - start).days + 1} days; ask for at most {MAX_DAYS} at once."
        )
    return start, end


def shown(backfill: Backfill, caps: Caps) -> dict[str, Any]:
    """The estimate as scripts read it."""
    plan = backfill.planned(caps)
    first = backfill.canary(plan)
    pairs = backfill.pairs()
    scorers: list[dict[str, Any]] = []
    for one in backfill.scorers:
        mine = [row for row in pairs if row["scorer"] == one.name]
        facts = {"scorer": one.name, "registered_name": one.registered_name, "version": one.version}
        sums = {key: sum(row[key] for row in mine) for key in ("matching", "sampled", "scored", "errored", "to_score")}
        price = {"cost_per_call": one.cost_per_call, "usd": sums["to_score"] * one.cost_per_call}
        scorers.append({**facts, "rate": one.sample_rate, "filter": one.filter, "level": one.level, **sums, **price})
    calls = sum(row["to_score"] for row in scorers)
    per_call = backfill.seconds_per_call
    return {
        "agent": backfill.agent.name,
        "from": backfill.first,
        "to": backfill.last,
        "traces": sum(backfill.counted.traces.values()),
        "traces_to_score": sum(backfill.counted.to_score.values()),
        "calls": calls,
        "usd": sum(row["usd"] for row in scorers),
        "seconds_per_call": per_call,
        "seconds": None if per_call is None else per_call * calls,
        "scorers": scorers,
        "days": pairs,
        "plan": [vars(day) for day in plan.days],
        "canary": vars(first) if first else None,
        "stopped_by": plan.stopped_by,
        "left": plan.left,
    }


def _print(said: dict[str, Any]) -> None:
    columns = ["day", "scorer", "traces", "matching", "sampled", "scored", "errored", "to score", "USD", "why"]
    owing = [row for row in said["days"] if row["to_score"]]
    if owing:
        print_table(
            columns,
            [
                (row["day"], row["scorer"], row["traces"], row["matching"], row["sampled"], row["scored"],
                 row["errored"], row["to_score"], f"{row['usd']:.4f}", REASONS[row["reason"]])
                for row in owing
            ],
        )  # fmt: skip
    print_table(
        ["scorer", "version", "rate", "sampled", "scored", "errored", "to score", "USD"],
        [
            (row["scorer"], row["version"] or "not registered yet", row["rate"], row["sampled"], row["scored"],
             row["errored"], row["to_score"], f"{row['usd']:.4f}")
            for row in said["scorers"]
        ],
    )  # fmt: skip
    for line in sentences(said):
        print_line(line)


def sentences(said: dict[str, Any]) -> list[str]:
    """The estimate in words."""
    where = f"from {said['from']} to {said['to']}"
    if not said["traces"]:
        return [f"The archive holds no trace {where}: there is nothing to score."]
    if not said["calls"]:
        return [f"Every sampled trace {where} is scored by the present version: there is nothing to do."]
    time = "time unknown, no run has measured it yet"
    if said["seconds"] is not None:
        time = f"about {duration(said['seconds'])} ({said['seconds_per_call']:.3g} s a call in the last runs)"
    lines = [
        f"{said['calls']} calls on {said['traces_to_score']} of {said['traces']} traces {where}, "
        f"{said['usd']:.4f} USD, {time}."
    ]
    if said["canary"]:
        first = said["canary"]
        lines.append(f"First {first['traces']} traces of {first['day']}, then the rest, newest day first.")
    if said["left"]:
        lines.append(left_sentence(Plan((), said["stopped_by"], said["left"])))
    return lines


def left_sentence(plan: Plan) -> str:
    """What a cap leaves undone."""
    days = sorted(plan.left, reverse=True)
    named = ", ".join(days[:5]) + (f" and {len(days) - 5} days more" if len(days) > 5 else "")
    return f"The cap on {plan.stopped_by} leaves {sum(plan.left.values())} traces of {named}."


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


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
    """What scoring archived days again would take: traces, calls, USD and time, by scorer and day.

    With --run it does so, a run of scorer_backfill a day, which the UI shows by partition: first a few traces of the
    newest day, and when they went well the rest. Interrupted and called again, it goes on where it was.
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
        _print(said)
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
    print_line(f"{len(runs)} runs done.")
    print_line(left_sentence(after) if after.left else "Nothing is left.")
