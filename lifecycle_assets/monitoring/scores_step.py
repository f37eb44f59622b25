"""The step of `trace_scores`: a day's scores and how complete they are.

Lives here: what the asset does with one day, without Dagster's context.
Add here: something its materialization should say.
Not here: scoring (`resources/scoring/scoring.py`), the check's sentence (`coverage.py`).
"""

from collections.abc import Mapping
from dataclasses import replace

import dagster as dg

from lifecycle_assets.monitoring.coverage import covered, with_sampling
from lifecycle_assets.monitoring.day_step import DayStep
from lifecycle_assets.monitoring.settled import settled_before_ms
from lifecycle_assets.outcome import Check, Outcome
from lifecycle_assets.records import ScorersRecord, ScoresRecord, digest
from lifecycle_assets.retention import oldest_scored, today
from lifecycle_assets.text import plain, table
from resources.needs import Scoring
from resources.scoring.scoring import DayScores, ScoreLimits

COUNTS = {"sampled": "sampled", "scored": "scored", "errored": "errored", "waiting": "waiting", "on_time": "in time"}
"""What is counted, and the column it has in the table of coverage."""


def trace_scores(step: DayStep) -> Outcome:
    """Close the gaps of the day's scores. Inputs: the record of `registered_scorers`, and `limits` of this run.

    A day that is older than what is kept is left alone, and so is what was recorded of it.
    """
    oldest = oldest_scored(step.agent.spec.archive, today())
    if step.day < oldest:
        why = f"Before {oldest}, the oldest day archive.retention_days and archive.store_retention keep: not scored."
        return Outcome(digest([step.day.isoformat(), "not kept"]), {}, [Check("coverage", True, why)])
    scoring: Scoring = step.gateways["scoring"]
    registered = ScorersRecord.from_json(step.inputs["registered_scorers"])
    limits = ScoreLimits.from_json(step.inputs["limits"])
    scores = scoring.score_day(
        step.agent,
        step.day,
        registered.versions,
        settled_before_ms=settled_before_ms(step.agent),
        progress=step.progress,
        limits=limits,
    )
    coverage = with_sampling(scores.coverage, registered.versions)
    record = ScoresRecord(step.day.isoformat(), registered.digest, scores.traces, coverage)
    return Outcome(
        data_version=digest(record.to_json()),
        metadata={
            "traces": scores.traces,
            "written": scores.written,
            "calls": scores.calls,
            "seconds": round(scores.seconds, 3),
            "left": sum(scores.left.values()),
            "pending": scores.pending,
            "oldest_pending_minutes": round(scores.pending_minutes, 1),
            "coverage": _coverage(scores, {one.registered_name: one.name for one in registered.versions}),
        },
        checks=[_with_lag(covered(record.coverage, step.agent.spec.monitoring.coverage), scores)],
        record=record.to_json(),
    )


def _coverage(scores: DayScores, names: Mapping[str, str]) -> dg.MarkdownMetadataValue:
    """A row a scorer, under its declared name: registered ones begin all alike. What a cap left is shown where it did.

    `names` are declared names by registered ones.
    """
    rows = [
        [f"{names.get(name, name)} v{c['version']}", *(c.get(count, 0) for count in COUNTS), scores.left.get(name, 0)]
        for name, c in sorted(scores.coverage.items())
    ]
    shown = len(COUNTS) + 1 + any(scores.left.values())
    return table(["scorer", *COUNTS.values(), "left"][:shown], [row[:shown] for row in rows])


def _with_lag(check: Check, scores: DayScores) -> Check:
    """The check, failed with a warning while scores are in the tables only."""
    if not scores.unpublished:
        return check
    said = f"{check.description} {scores.pending} scores wait to be published: {plain(scores.unpublished, 300)}"
    return replace(check, passed=False, description=said, is_error=check.is_error and not check.passed)
