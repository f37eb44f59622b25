"""How complete and how soon scores are there, held against the declared target.

Lives here: what coverage counts, the verdict of the check `coverage`, and why an alert rule has to wait; pure.
Add here: another thing coverage decides.
Not here: counting in a store (`resources/scoring/scoring.py`, `resources/databricks/scoring/`), scoring, alert rules.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from lifecycle_assets.outcome import Check
from lifecycle_assets.records import ScorerVersion, ScoresRecord
from lifecycle_assets.spec_monitoring import CoverageTarget
from lifecycle_assets.text import plain

NAMED = 3
"""Scorers one sentence names."""


def tally(
    version: str,
    units: Iterable[tuple[int, int | None, bool]],
    target: CoverageTarget,
    *,
    now_ms: int,
    since_ms: int = 0,
) -> dict[str, Any]:
    """Coverage of one scorer's version: `{version, sampled, scored, errored, waiting, on_time, due}`.

    `units` are the sampled traces (of a session scorer: sessions): when each ended, when this version answered for
    good (None: it has not), and whether that answer is an error; times in epoch milliseconds. `on_time` are answers
    at most `target.within_minutes` after the end. `due` are those whose time is up or that were answered in time. What
    ended before `since_ms`, when the version began, is a backfill's: it is never late.
    """
    found = dict.fromkeys(("sampled", "scored", "errored", "waiting", "on_time", "due"), 0)
    within = target.within_minutes * 60_000
    for ended, answered, is_error in units:
        found["sampled"] += 1
        found["waiting" if answered is None else "errored" if is_error else "scored"] += 1
        in_time = answered is not None and answered - ended <= within
        found["on_time"] += in_time
        found["due"] += in_time or since_ms <= ended <= now_ms - within
    return {"version": version, **found}


def covered(coverage: Mapping[str, Mapping[str, Any]], target: CoverageTarget) -> Check:
    """The check `coverage` of a day: coverage by registered scorer name, held against the declared target.

    Fails with ERROR when the share of any scorer's due traces that were scored in time is below `target.share`: the
    worst scorer decides, so that many that are well do not hide one that stands still. With a warning when a scorer
    failed on traces. Nothing sampled and nothing due are said as such, never as 100 %.
    """
    sampled = sum(int(c["sampled"]) for c in coverage.values())
    due = {name: _due(c) for name, c in coverage.items() if _due(c)}
    errored = {name: int(c["errored"]) for name, c in coverage.items() if c["errored"]}
    waiting = {name: int(c["waiting"]) for name, c in coverage.items() if c["waiting"]}
    if not sampled:
        return Check("coverage", passed=True, description="No trace was sampled.")
    shares = {name: int(coverage[name].get("on_time", 0)) / due[name] for name in due}
    worst = min(shares, key=lambda name: (shares[name], name), default="")
    short = bool(due) and shares[worst] < target.share
    if due:
        on_time = sum(int(coverage[name].get("on_time", 0)) for name in due)
        said = [
            f"{percent(on_time, sum(due.values()))} of sampled traces scored within {target.within_minutes} minutes "
            f"({on_time} of {sum(due.values())} due; target {target.share:.4g})."
        ]
        if len(coverage) > 1 or short:
            count = int(coverage[worst].get("on_time", 0))
            said += [f"Worst is {plain(worst)}: {percent(count, due[worst])} ({count} of {due[worst]})."]
    else:
        answered = sampled - sum(waiting.values())
        said = [f"Nothing is due yet: {answered} of {sampled} sampled traces have their answer."]
    if waiting:
        said += [f"Waiting: {_listed(waiting, 'on')}."]
    if errored:
        said += [f"{_listed(errored, 'failed on', ' traces')}: see the errors in assessments."]
    if short:
        said += ["Run the day again, or see why scoring is late."]
    return Check("coverage", not short and not errored, " ".join(said), is_error=short)


def awaited(coverage: Mapping[str, Any], target: CoverageTarget) -> str:
    """Why an alert rule on one scorer's metric has to wait; empty when enough sampled traces have their answer.

    `coverage` is that scorer's. An error that stays counts as answered: no score will come, and the rule would wait
    for ever.
    """
    sampled, waiting = int(coverage["sampled"]), int(coverage["waiting"])
    if not waiting or (sampled - waiting) / sampled >= target.share:
        return ""
    return (
        f"{waiting} of {sampled} sampled traces wait for their score "
        f"({percent(sampled - waiting, sampled)} are there, target {target.share:.4g})"
    )


def with_sampling(
    coverage: Mapping[str, Mapping[str, Any]], scorers: Iterable[ScorerVersion]
) -> dict[str, dict[str, Any]]:
    """Coverage with each scorer's `rate` and `filter`, which tell a change of sampling from a change of code."""
    held = {one.registered_name: {"rate": one.sample_rate, "filter": one.filter} for one in scorers}
    return {name: {**covered_by, **held.get(name, {})} for name, covered_by in coverage.items()}


def coverage_rows(record: ScoresRecord | None, day: date) -> list[dict[str, Any]]:
    """Rows of the table `scorer_days`, what only who scored the day knows; empty without a record."""
    numbers = ("sampled", "waiting", "on_time", "due")
    return [
        {"trace_date": day, "name": name, "scorer_version": str(found["version"])}
        | {number: int(found.get(number, 0)) for number in numbers}
        for name, found in sorted(record.coverage.items() if record else ())
    ]


def percent(part: int, whole: int) -> str:
    """A share as `97.2 %`, rounded down: 100 % is said only of all."""
    tenths = part * 1000 // whole
    return "100 %" if part == whole else f"{tenths // 10}.{tenths % 10} %"


def _due(covered_by: Mapping[str, Any]) -> int:
    """Traces that count; where nobody told, all that were sampled."""
    return int(covered_by.get("due", covered_by["sampled"]))


def _listed(numbers: Mapping[str, int], verb: str, what: str = "") -> str:
    """The largest numbers with their names."""
    named = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(named) - NAMED} scorers more" if len(named) > NAMED else ""
    return ", ".join(f"{plain(name)} {verb} {number}{what}" for name, number in named[:NAMED]) + more
