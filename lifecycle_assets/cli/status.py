"""`lifecycle status`: where each stage of each agent stands.

Lives here: the command, and a line a stage.
Add here: a form of output.
Not here: reading facts (`stages.py`), why something happened (`lineage.py`, `history.py`).

A stage nothing is known of is "not yet"; one that could not be read says why and is never shown as empty.
"""

from typing import Any

import click

from lifecycle_assets.cli.agents import chosen_agents
from lifecycle_assets.cli.output import clean, json_option, mark, print_json, print_line, print_table
from lifecycle_assets.cli.sources import Sources, shown_uri
from lifecycle_assets.cli.stages import agent_status
from lifecycle_assets.cli.stages_release import Facts
from resources.platform import Platform
from resources.trace_store import MOST_COUNTED


def is_nothing(stages: Facts) -> bool:
    """Whether nothing but the source exists."""
    return all(stage["state"] == "not yet" for name, stage in stages.items() if name != "agent_source")


@click.command()
@click.argument("agent", required=False)
@json_option
def status(agent: str | None, as_json: bool) -> int:
    """Where each stage of each agent stands."""
    agents, broken = chosen_agents(agent)
    platform = Platform.from_env()
    sources = Sources(platform)
    found = {one.name: agent_status(one, sources) for one in agents}
    if as_json:
        answer = [
            {"agent": name, "nothing_yet": is_nothing(stages), "stages": stages} for name, stages in found.items()
        ]
        print_json({"platform": platform.name, "tracking_uri": shown_uri(platform), "agents": answer, "broken": broken})
    else:
        for name, stages in found.items():
            _print(name, stages)
    unread = any(stage["state"] == "could not read" for stages in found.values() for stage in stages.values())
    return 1 if unread or (broken and agent is None) else 0


def _print(name: str, stages: Facts) -> None:
    if is_nothing(stages):
        print_line(f"{name}: nothing yet; run make demo, or make ui and materialize {name}/eval_results.")
        return
    print_line(f"{name}")
    for stage, facts in stages.items():
        words = ", ".join(_words(facts))
        click.echo(f"  {stage:<20}{mark(facts['state'])}" + (f"  {clean(words)}" if words else ""))
    coverage = stages["trace_scores"].get("coverage", {})
    versions = {s["registered_name"]: s for s in stages["registered_scorers"].get("scorers", [])}
    rows = [
        (_named(one, versions.get(one)), versions.get(one, {}).get("sample_rate", ""), *_counts(coverage.get(one)))
        for one in sorted({*versions, *coverage})
    ]
    if rows:
        print_table(["scorer", "rate", "sampled", "scored", "errored", "waiting"], rows)
    if stages["labeling_session"].get("sessions"):
        shown = stages["labeling_session"]["sessions"]
        print_table(
            ["labeling session", "items", "completed", "opened"],
            [(s["name"], s["items"], s["completed"], s["opened_at"]) for s in shown],
        )
    waiting = stages["champion_alias"].get("waiting")
    if waiting:
        print_line(f"  waiting: version {waiting['version']} since {waiting['since']}: {waiting['approve']}")
    if ahead := stages["archived_traces"].get("dated_ahead"):
        more = " or more" if ahead >= MOST_COUNTED else ""
        print_line(
            f"  dated ahead: {ahead}{more} traces say they started later than now; they are archived when that time "
            "has come: see the clock of the machine that wrote them"
        )
    for one in stages["champion_alias"].get("barred", []):
        print_line(f"  barred: version {one['version']} was taken back at {one['since']}: {one['why']}")
    for one in stages["checks"].get("failed", []):
        print_line(f"  failed: {one['asset']} {one['check']} ({one['severity']}): {one['why']}")


def _named(registered_name: str, scorer: Facts | None) -> str:
    """A scorer by its declared name and version; registered names begin all alike."""
    return f"{scorer['name']} v{scorer['version']}" if scorer else registered_name


def _counts(coverage: Facts | None) -> tuple[Any, ...]:
    return (
        tuple(coverage.get(name, "") for name in ("sampled", "scored", "errored", "waiting")) if coverage else ("",) * 4
    )


def _words(facts: Facts) -> list[str]:
    """The facts of a stage that fit on its line."""
    words = [f"{key.replace('_', ' ')} {clean(value)}" for key, value in facts.items() if _is_short(key, value)]
    words += (
        [f"{table} {n}" for table, n in facts.get("rows", {}).items()] if isinstance(facts.get("rows"), dict) else []
    )
    words += [" ".join(facts["reasons"])] if facts.get("reasons") else []
    words += [f"{len(facts['failed'])} failed"] if "failed" in facts else []
    words += [facts["why"]] if facts.get("why") else []
    return words


def _is_short(key: str, value: object) -> bool:
    return key not in ("state", "why", "dated_ahead") and value not in ("", None) and not isinstance(value, dict | list)
