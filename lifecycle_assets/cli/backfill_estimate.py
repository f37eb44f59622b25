"""The estimate of `lifecycle backfill`, as people and scripts read it.

Lives here: numbers by scorer and day, their sum in words, what a cap leaves.
Add here: a fact of the plan that people or scripts need.
Not here: the command (`backfill.py`), counting and planning (`lifecycle_assets/monitoring/backfill_*.py`).
"""

from typing import Any

from lifecycle_assets.cli.backfill_runs import Backfill
from lifecycle_assets.cli.output import print_line, print_table
from lifecycle_assets.monitoring.backfill_plan import REASONS, Caps, Plan


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
    judges = {one.name for one in backfill.agent.spec.scorers if not isinstance(one.source, str)}
    unpriced = [row["scorer"] for row in scorers if row["scorer"] in judges and row["to_score"] and not row["usd"]]
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
        "unpriced": unpriced,
        "scorers": scorers,
        "days": pairs,
        "plan": [vars(day) for day in plan.days],
        "canary": vars(first) if first else None,
        "stopped_by": plan.stopped_by,
        "left": plan.left,
        "waiting": plan.waiting,
    }


def print_estimate(said: dict[str, Any]) -> None:
    """Print what `shown` says: the pairs that owe something, the scorers, and the sum."""
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
    if said["unpriced"]:
        lines.append(f"Counted as free, for want of a cost_per_call: {', '.join(said['unpriced'])}.")
    if said["canary"]:
        first = said["canary"]
        lines.append(f"First {first['traces']} traces of {first['day']}, then the rest, newest day first.")
    if said["left"]:
        lines.append(left_sentence(Plan((), said["stopped_by"], said["left"], tuple(said["waiting"]))))
    return lines


def left_sentence(plan: Plan) -> str:
    """What a cap leaves undone."""
    days = sorted(plan.left, reverse=True)
    named = ", ".join(days[:5]) + (f" and {len(days) - 5} days more" if len(days) > 5 else "")
    to = f" to {', '.join(plan.waiting)}; scorers that cost nothing go on" if plan.waiting else ""
    return f"The cap on {plan.stopped_by} leaves {sum(plan.left.values())} traces of {named}{to}."


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
