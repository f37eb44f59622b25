"""A day of production traces: scored once, archived once, redacted, counted, and whole after every kill."""

import json
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest

from resources.feedback import send_feedback
from resources.trace_rows import SCORER_VERSION
from tests.building import World, checks_of, day_of, noon
from tests.lifecycle.dying import killer

YESTERDAY = day_of(1)


def counts(world: World, day: str = YESTERDAY) -> dict[str, int]:
    """Rows of a day and distinct keys of them, as `table` and `table/keys`."""
    keys = {"traces": "trace_id", "spans": "(trace_id, span_id)", "assessments": "(trace_id, assessment_id)"}
    found = {}
    for table, key in keys.items():
        (row,) = world.rows(f"SELECT count(*) AS n, count(DISTINCT {key}) AS k FROM {table} WHERE trace_date = ?", day)
        found[table], found[f"{table}/keys"] = row["n"], row["k"]
    return found


def assessments(world: World, trace_id: str) -> list[Any]:
    return world.client.get_trace(trace_id).info.assessments


def trace_ids(world: World, day: str = YESTERDAY) -> list[str]:
    rows = world.rows("SELECT trace_id FROM traces WHERE trace_date = ? ORDER BY request_time", day)
    return [row["trace_id"] for row in rows]


def test_a_day_that_is_monitored_again_gets_no_score_no_row_and_no_commit(world: World):
    before = {trace_id: {a.assessment_id for a in assessments(world, trace_id)} for trace_id in trace_ids(world)}
    rows = counts(world)
    assert rows["traces"] == 6
    assert rows["spans"] == 12
    assert rows["assessments"] == sum(map(len, before.values()))
    assert world.run("monitor", partition_key=YESTERDAY).success
    assert {t: {a.assessment_id for a in assessments(world, t)} for t in trace_ids(world)} == before
    assert counts(world) == rows
    assert world.metadata("trace_scores")["written"] == 0
    assert world.metadata("quality_metrics")["written"] == 0
    assert "| traces | 0 | 0 |" in world.metadata("archived_traces")["written"]


def test_a_late_thumb_is_upserted_by_the_next_run(world: World):
    trace_id, rows = trace_ids(world)[0], counts(world)
    send_feedback(world.platform, trace_id, up=False, user="ann", comment="wrong")
    done = world.run("monitor", partition_key=YESTERDAY)
    assert done.success
    assert counts(world) == {
        **rows,
        "assessments": rows["assessments"] + 1,
        "assessments/keys": rows["assessments"] + 1,
    }
    (row,) = world.rows("SELECT value_number, rationale FROM assessments WHERE name = 'user_feedback'")
    assert (row["value_number"], row["rationale"]) == (0.0, "wrong")
    (metric,) = world.rows("SELECT value, n FROM quality_metrics WHERE metric = 'negative_feedback_rate'")
    assert (metric["value"], metric["n"]) == (1.0, 1)


def test_the_day_has_its_numbers_by_version_and_a_picture(world: World):
    rows = world.rows("SELECT * FROM quality_metrics WHERE trace_date = ? ORDER BY metric", YESTERDAY)
    metrics = {row["metric"]: row for row in rows}
    assert {row["version"] for row in rows} == {"1"}
    assert {row["model_id"] for row in rows} == {world.champion_model_id}
    assert (metrics["shouted/mean"]["value"], metrics["shouted/mean"]["n"]) == (1.0, 6)
    assert 0 < metrics["shouted/mean"]["ci_low"] <= 1 == metrics["shouted/mean"]["ci_high"]
    assert (metrics["error_rate"]["value"], metrics["traces"]["value"]) == (0.0, 6.0)
    assert metrics["latency/p50"]["value"] == pytest.approx(0.2)
    metadata = world.metadata("quality_metrics")
    assert metadata["plot"].startswith(f"![tiny, 30 days to {YESTERDAY}](data:image/png;base64,")
    assert metadata["dagster/row_count"] == len(rows)


def test_only_production_is_archived_and_secrets_never_reach_a_table(world: World):
    """Evaluations have their own traces in the same experiment; a card number is in input, span and comment."""
    redact = [{"pattern": r"\b\d{4}-\d{4}\b", "replacement": "[card]"}]
    world = world.declared(archive={"settle_minutes": 0, "redact": redact})
    secret = world.ask("my card is 1234-5678", at=noon(3))
    world.ask("of an evaluation", at=noon(3), **{"mlflow.sourceRun": "r-1"})
    send_feedback(world.platform, secret, up=True, user="ann", comment="yes, 1234-5678 is mine")
    done = world.run("monitor", partition_key=day_of(3))
    assert done.success
    checks = checks_of(done)
    assert checks["archived_traces:complete"].passed
    assert checks["archived_traces:no_duplicates"].passed
    assert trace_ids(world, day_of(3)) == [secret]
    everything = json.dumps(
        [
            world.rows(f"SELECT * FROM {name} WHERE trace_date = ?", day_of(3))
            for name in ("traces", "spans", "assessments")
        ],
        default=str,
    )
    assert "1234-5678" not in everything
    assert everything.count("[card]") >= 3


RAISING = """

@scorer
def moody(trace):
    if "4" in trace.search_spans(name="answer")[0].outputs:
        raise RuntimeError("not this one")
    return True
"""


def test_a_scorer_that_raises_is_seen_in_coverage_and_on_the_trace(world: World):
    """What raised was lost: the trace looked as if nobody had scored it, and was scored again every hour."""
    path = world.agent.path("scorers.py")
    path.write_text(path.read_text() + RAISING)
    scorers = [
        {"name": "shouted", "source": "scorers.py:shouted"},
        {"name": "moody", "source": "scorers.py:moody"},
    ]
    world = world.declared(scorers=scorers)
    done = world.run("monitor", partition_key=YESTERDAY)
    assert done.success
    check = checks_of(done)["trace_scores:coverage"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.description is not None
    assert check.description.endswith("local\\_tiny\\_moody failed on 1 traces: see the errors in assessments.")
    record = world.metadata("trace_scores")["lifecycle/record"]["coverage"]["local_tiny_moody"]
    counted = {name: record[name] for name in ("version", "sampled", "scored", "errored", "waiting")}
    assert counted == {"version": "1", "sampled": 6, "scored": 5, "errored": 1, "waiting": 0}

    (failed,) = world.rows("SELECT * FROM assessments WHERE name = 'local_tiny_moody' AND error <> ''")
    assert "not this one" in failed["error"]
    assert failed["value_number"] is None
    (error,) = [a for a in assessments(world, failed["trace_id"]) if a.name == "local_tiny_moody"]
    assert "not this one" in error.feedback.error.error_message
    (rate,) = world.rows("SELECT value FROM quality_metrics WHERE metric = 'moody/error_rate'")
    assert rate["value"] == pytest.approx(1 / 6)
    assert world.run("monitor", partition_key=YESTERDAY).success
    assert world.metadata("trace_scores")["written"] == 0


ARCHIVE = "resources.archive.delta_archive:DeltaArchive"


def test_killed_while_scoring_and_while_archiving_each_row_is_there_once(world: World):
    """kill -9 after some scores, between the second and the third table, and before the numbers."""
    day = day_of(4)
    asked = [world.ask(f"question {number}", at=noon(4) + timedelta(seconds=number)) for number in range(20)]
    with killer(world) as killing:
        killing.kill("monitor", "resources.scoring.score_table:ScoreTable.land", "return", day=day)
        assert not any(assessments(world, trace_id) for trace_id in asked), "scores have landed, and MLflow has none"
        killing.kill("monitor", "resources.archive.append:stamped", "call", day=day)
        assert trace_ids(world, day) == [], "spans and assessments are there, their traces are not"
        killing.kill("monitor", f"{ARCHIVE}.replace_day", "call", day=day)
        killing.settle()
    done = world.run("monitor", partition_key=day)
    assert done.success
    assert all(check.passed for check in checks_of(done).values())
    scores = [(a.name, a.metadata[SCORER_VERSION]) for t in asked for a in assessments(world, t)]
    assert scores.count(("local_tiny_shouted", "1")) == 20
    assert set(trace_ids(world, day)) == set(asked)
    found = counts(world, day)
    assert found["traces"] == found["traces/keys"] == 20
    assert found["spans"] == found["spans/keys"] == 40
    assert found["assessments"] == found["assessments/keys"] == len(scores)
    (metric,) = world.rows("SELECT count(*) AS n FROM quality_metrics WHERE metric = 'traces' AND trace_date = ?", day)
    assert metric["n"] == 1
