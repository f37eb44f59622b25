"""The last complete hours of a day against the same hours of earlier weeks: the four checks.

Lives here: what each check says, and the traces to look at when one alarms.
Add here: a fifth thing to compare.
Not here: the statistics (`anomalies.py`), SQL (`anomaly_sql.py`), the daily numbers (`quality_step.py`).

The hours are windows of `anomalies.HOURS`, aligned with the day. One is complete when the archive was brought up to
date after its end. While there is too little to judge a check passes and says so: a quiet start is no alarm.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import quote

from lifecycle_assets.monitoring.anomalies import (
    CHECKS,
    FEWEST,
    FEWEST_P95,
    HOURS,
    Finding,
    judge_count,
    judge_level,
    judge_share,
    judged_from,
    level_of,
)
from lifecycle_assets.monitoring.anomaly_sql import WORST_SQL, Hours, Read, last_hours, read_hours, start_of
from lifecycle_assets.outcome import Check
from lifecycle_assets.spec_monitoring import Anomalies
from lifecycle_assets.text import Point, lines_plot, plain, with_gaps
from resources.platform import Platform
from resources.run_marks import page
from resources.sql.engine import SqlEngine

SHOWN = 5
"""Traces an alarm names to look at."""


@dataclass
class Compared:
    """One number of one check: its name, how a value reads, what came of it, and what finds the worst traces."""

    name: str
    shown: Callable[[float], str]
    finding: Finding
    about: tuple[Any, ...] = ()


def anomaly_checks(
    sql: SqlEngine,
    prefix: str,
    day: date,
    *,
    until: datetime,
    declared: Anomalies,
    scorers: Mapping[str, str],
    awaited: Mapping[str, str],
) -> tuple[list[Check], dict[str, Any]]:
    """The four checks, and metadata for the page: a picture of what was compared, and links to the traces to look at.

    `until` is the moment up to which the archive is complete. `scorers` maps declared names to registered ones;
    `awaited` says for which of them scores are still to come.
    """
    hours = last_hours(day, until)
    if hours is None:
        why = f"Not judged yet: no {HOURS} hours of {day} are complete in the archive; the next run looks again."
        return [Check(name, True, why, is_error=False) for name in CHECKS], {}
    found = read_hours(sql, prefix, hours, declared.weeks, sorted(scorers.values()))
    first = min(found.traces, default=hours.place)
    if hours.place < judged_from(first, declared.weeks):
        begin = start_of(judged_from(first, declared.weeks))
        why = (
            f"Not judged yet: {declared.weeks + 1} weeks of traces are needed, and the archive has them from "
            f"{start_of(first):%Y-%m-%d} on; judged from {begin:%Y-%m-%d %H:%M} UTC on."
        )
        return [Check(name, True, why, is_error=False) for name in CHECKS], {}
    compared = dict(_compared(found, hours.place, declared, scorers, awaited))
    checks, links = [], {}
    for name, numbers in compared.items():
        ids = _to_look_at(sql, prefix, name, hours, numbers)
        links.update({f"{name}/trace_{n}": page_of(*one) for n, one in enumerate(ids, start=1)})
        checks.append(_check(name, hours, declared.weeks, numbers, [trace_id for trace_id, _ in ids]))
    series = {one.name: _series(hours, one.finding) for numbers in compared.values() for one in numbers}
    drawn = {name: points for name, points in series.items() if points}
    plot = {"same_hours": lines_plot(f"{hours} and the same hours before", drawn, unit="value")} if drawn else {}
    return checks, {**plot, **{name: link for name, link in links.items() if link}}


def never_judged(declared: Anomalies, retention_days: int | None) -> str:
    """Why the tables can never hold enough weeks, in one sentence; empty when they can."""
    needed = 7 * (declared.weeks + 1)
    if retention_days is None or retention_days >= needed:
        return ""
    return (
        f"Never judged: anomalies.weeks ({declared.weeks}) needs {needed} days of traces, and archive.retention_days "
        f"({retention_days}) keeps fewer; raise that, lower anomalies.weeks, or set anomalies.enabled: false."
    )


def page_of(trace_id: str, experiment_id: str) -> str:
    """The trace's page in MLflow; empty where MLflow has no pages."""
    path = f"experiments/{quote(experiment_id or '', safe='')}/traces?selectedEvaluationId={quote(trace_id, safe='')}"
    return page(Platform.from_env(), path)


def _compared(
    read: Read, now: int, declared: Anomalies, scorers: Mapping[str, str], awaited: Mapping[str, str]
) -> Iterator[tuple[str, list[Compared]]]:
    weeks, one = declared.weeks, level_of(declared.false_alarms_per_year)
    n = {place: int(row["n"]) for place, row in read.traces.items()}
    yield "volume_anomaly", [Compared("traces", "{:.0f}".format, judge_count(n, now, weeks, one))]
    errors = {place: int(row["errors"]) for place, row in read.traces.items()}
    yield "error_rate_anomaly", [Compared("error rate", "{:.2%}".format, judge_share(errors, n, now, weeks, one))]
    timed = {place: int(row["timed"]) for place, row in read.traces.items()}
    slow, half = [], level_of(declared.false_alarms_per_year, 2)
    for percentile, fewest in (("p50", FEWEST), ("p95", FEWEST_P95)):
        # As logarithms: durations spread by factors.
        logs = {p: math.log(max(row[percentile], 0.5) / 1000) for p, row in read.traces.items() if row["timed"]}
        finding = judge_level(logs, timed, now, weeks, half, sign=1, fewest=fewest)
        slow.append(Compared(f"latency {percentile}", "{:.3g} s".format, _unlogged(finding)))
    yield "latency_anomaly", slow
    level = level_of(declared.false_alarms_per_year, max(len(scorers), 1))
    yield (
        "score_anomaly",
        [_score(read, now, weeks, level, name, scorers[name], awaited.get(name, "")) for name in sorted(scorers)],
    )


def _score(read: Read, now: int, weeks: int, level: float, name: str, registered: str, awaited: str) -> Compared:
    """One scorer's mean by its newest version in these hours: scores of different versions cannot be compared."""
    versions = [version for one, version in read.scores if one == registered and now in read.scores[one, version]]
    if awaited:
        return Compared(name, "{:.3g}".format, Finding(why_not=awaited))
    if not versions:
        return Compared(name, "{:.3g}".format, Finding(why_not="nothing was scored in these hours"))
    version = max(versions, key=lambda one: (int(one) if one.isdigit() else -1, one))
    rows = read.scores[registered, version]
    n = {place: int(row["n"]) for place, row in rows.items()}
    if all(row["passes"] for row in rows.values()):
        failed = {place: n[place] - round(row["total"]) for place, row in rows.items()}
        bad = judge_share(failed, n, now, weeks, level)
        finding = Finding(
            None if bad.value is None else 1 - bad.value,
            None if bad.high is None else 1 - bad.high,
            None,
            tuple(None if one is None else 1 - one for one in bad.before),
            bad.why_not,
        )
    else:
        means = {place: row["total"] / row["n"] for place, row in rows.items()}
        finding = judge_level(means, n, now, weeks, level, sign=-1)
    return Compared(name, "{:.3g}".format, finding, (registered, version))


def _unlogged(found: Finding) -> Finding:
    value, low, high, *before = (
        None if one is None else math.exp(one) for one in (found.value, found.low, found.high, *found.before)
    )
    return Finding(value, low, high, tuple(before), found.why_not)


def _to_look_at(
    sql: SqlEngine, prefix: str, check: str, hours: Hours, numbers: list[Compared]
) -> list[tuple[str, str]]:
    """Ids and experiments of the worst traces of these hours, when the check alarms."""
    alarming = [one for one in numbers if one.finding.is_anomaly]
    if not alarming:
        return []
    end = hours.start + timedelta(hours=HOURS)
    values = [hours.start.date(), hours.start, end, *alarming[0].about, SHOWN]
    return [(row["trace_id"], row["experiment_id"]) for row in sql.query(prefix, WORST_SQL[check], values).dicts()]


def _check(name: str, hours: Hours, weeks: int, numbers: list[Compared], ids: list[str]) -> Check:

    judged = [one for one in numbers if not one.finding.why_not]
    alarming = [one for one in judged if one.finding.is_anomaly]
    said = [f"{plain(one.name)} {one.shown(one.finding.value or 0)} ({_range(one)})" for one in alarming or judged]
    waiting = [f"{plain(one.name)}: {plain(one.finding.why_not)}" for one in numbers if one.finding.why_not]
    sentences = [f"{hours}: {', '.join(said)}; expected from the same hours of {weeks} weeks before."] if said else []
    sentences += [f"Not judged in these hours: {'; '.join(waiting)}."] if waiting else []
    sentences += [f"Look at {', '.join(map(plain, ids))}."] if ids else []
    return Check(name, not alarming, " ".join(sentences) or "No scorer is declared.", is_error=False)


def _range(one: Compared) -> str:
    low, high = one.finding.low, one.finding.high
    if low is not None and high is not None:
        return f"{one.shown(low)} to {one.shown(high)}"
    return f"at least {one.shown(low)}" if low is not None else f"at most {one.shown(high or 0)}"


def _series(hours: Hours, finding: Finding) -> list[Point]:
    """Points of a picture: the same hours of the earlier weeks, and these with the range that was expected."""
    if finding.why_not or finding.value is None:
        return []
    earlier: list[Point] = [
        (f"{hours.start - timedelta(weeks=week):%Y-%m-%d}", one, None, None)
        for week, one in enumerate(finding.before, start=1)
        if one is not None
    ]
    low, high = (finding.value if end is None else end for end in (finding.low, finding.high))
    return with_gaps([*earlier[::-1], (f"{hours.start:%Y-%m-%d}", finding.value, low, high)], days=7)
