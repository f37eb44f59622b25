"""The step of `trace_scores`: a day's scores and how complete they are.

Lives here: what the asset does with one day, without Dagster's context.
Add here: something its materialization should say. Not here: scoring (`resources/scoring.py`).
"""

from lifecycle_assets.monitoring.day_step import DayStep
from lifecycle_assets.monitoring.settled import settled_before_ms
from lifecycle_assets.outcome import Check, Outcome
from lifecycle_assets.records import ScorersRecord, ScoresRecord, digest
from lifecycle_assets.text import table
from resources.scoring import Scoring


def trace_scores(step: DayStep) -> Outcome:
    """Close the gaps of the day's scores. Input: the record of `registered_scorers`."""
    scoring: Scoring = step.gateways["scoring"]
    registered = ScorersRecord.from_json(step.inputs["registered_scorers"])
    scores = scoring.score_day(
        step.agent,
        step.day,
        registered.versions,
        settled_before_ms=settled_before_ms(step.agent),
        progress=step.progress,
    )
    record = ScoresRecord(step.day.isoformat(), registered.digest, scores.traces, scores.coverage)
    rows = [
        (name, c["version"], c["sampled"], c["scored"], c["errored"], c["waiting"])
        for name, c in sorted(scores.coverage.items())
    ]
    return Outcome(
        data_version=digest(record.to_json()),
        metadata={
            "traces": scores.traces,
            "written": scores.written,
            "coverage": table(["scorer", "version", "sampled", "scored", "errored", "waiting"], rows),
        },
        checks=[coverage_check(record)],
        record=record.to_json(),
    )


def coverage_check(record: ScoresRecord) -> Check:
    """Passed when nothing sampled is waiting and nothing errored; an error of a scorer is a warning."""
    waiting = {name: c["waiting"] for name, c in record.coverage.items() if c["waiting"]}
    errored = {name: c["errored"] for name, c in record.coverage.items() if c["errored"]}
    sentences = [f"{name} has not scored {n} sampled traces: run the day again." for name, n in sorted(waiting.items())]
    sentences += [f"{name} failed on {n} traces: see the errors in assessments." for name, n in sorted(errored.items())]
    said = " ".join(sentences) or f"Every sampled trace of {record.day} is scored."
    return Check("coverage", not sentences, said, is_error=bool(waiting))
