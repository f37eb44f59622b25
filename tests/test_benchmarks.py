"""The benchmarks' corpus is what MLflow would have written, and the runner runs.

Lives here: the generator against MLflow's own store; the runner on a small corpus, by a job that lives here too.
Add here: a rule of the runner. Not here: numbers; speed is measured by `make bench`.
"""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus import EXPERIMENT, start_times, write
from benchmarks.job import Job, Turn
from benchmarks.memory import Peak
from benchmarks.run import groups, jobs, measure
from benchmarks.stores import newest
from benchmarks.traces import MadeTrace, make_trace
from resources.mlflow_store import experiment_id, open_mlflow
from resources.platform import Platform

UNTIL = 1_795_000_000_000
MANY = 30


@pytest.fixture(scope="module")
def corpus(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a platform with 30 traces."""
    home = tmp_path_factory.mktemp("corpus")
    shutil.copy(migrated_store, home / "mlflow.db")
    write(home, MANY, until_ms=UNTIL)
    return home


def _made(number: int) -> list[MadeTrace]:
    return [make_trace(1, mine, at) for mine, at in start_times(number, 0, 30, UNTIL)]


def _log(mlflow: Any, experiment: str, made: MadeTrace) -> None:
    """Write a trace as MLflow's tracing client does: the trace, its spans, then what users said."""
    from mlflow.entities import AssessmentSource, Feedback, Span, TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.client import TracingClient

    from benchmarks.corpus import span_content

    metadata = {**made.metadata, "mlflow.trace.session": made.session}
    if made.tokens:
        metadata |= {"mlflow.trace.tokenUsage": json.dumps(made.tokens), "mlflow.trace.cost": json.dumps(made.cost)}
    client = TracingClient()
    client.start_trace(
        TraceInfo(
            trace_id=made.trace_id,
            trace_location=TraceLocation.from_experiment_id(experiment),
            request_time=made.start_ms,
            execution_duration=made.duration_ms,
            state=TraceState(made.state),
            request_preview=made.request,
            response_preview=made.response,
            trace_metadata=metadata,
            tags=made.tags,
        )
    )
    client.log_spans(experiment, [Span.from_dict(span_content(made, span)) for span in made.spans])
    for found in made.assessments:
        feedback = Feedback(
            name=found.name,
            value=found.value,
            source=AssessmentSource("HUMAN", found.source_id),
            rationale=found.rationale,
            create_time_ms=found.at_ms,
            last_update_time_ms=found.at_ms,
        )
        feedback.assessment_id = found.assessment_id
        client.log_assessment(made.trace_id, feedback)


def test_corpus_rows_are_those_of_mlflows_own_store(corpus: Path, platform: Platform) -> None:
    mlflow, made = open_mlflow(platform), _made(MANY)
    for trace in made:
        _log(mlflow, experiment_id(platform, EXPERIMENT), trace)
    ours, theirs = sqlite3.connect(corpus / "mlflow.db"), sqlite3.connect(platform.home / "mlflow.db")
    for table in ("trace_info", "trace_tags", "trace_request_metadata", "spans", "assessments"):
        found = [_rows(store, table) for store in (ours, theirs)]
        assert found[0], table
        assert found[0] == found[1], table
    ours.close()
    theirs.close()


def _rows(store: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    """A table without what depends on the store's folder, and without the count of calls that wrote spans."""
    store.row_factory = sqlite3.Row
    rows = [dict(row) for row in store.execute(f"SELECT * FROM {table}")]
    beside = [row for row in rows if row.get("key") != "mlflow.artifactLocation"]
    for row in beside:
        row.pop("db_payload_generation", None)
    return sorted(beside, key=lambda row: json.dumps(row, sort_keys=True))


def one_by_one(turn: Turn) -> None:
    """A baseline: every trace by a question of its own, of a sample."""
    store = sqlite3.connect(turn.store)
    ids = [row[0] for row in store.execute("SELECT request_id FROM trace_info LIMIT 10")]
    for _ in range(2):
        with turn.timed(traces=len(ids)):
            for trace_id in ids:
                store.execute("SELECT content FROM spans WHERE trace_id=?", (trace_id,)).fetchall()


def all_at_once(turn: Turn) -> None:
    """Ours: one question; what the preparation left is there."""
    assert turn.shared is not None
    assert (turn.shared / "prepared").read_text() == str(turn.n)
    store = sqlite3.connect(turn.store)
    with turn.timed():
        store.execute("SELECT content FROM spans").fetchall()
    (turn.folder / "mine").touch()
    store.execute("DELETE FROM spans")
    store.commit()


def prepared(turn: Turn) -> None:
    """Preparation."""
    (turn.folder / "prepared").write_text(str(turn.n))


def failing(turn: Turn) -> None:
    """A side that cannot do its work."""
    raise OSError(f"no {turn.n}")


TINY = Job("tiny", "A test.", "", one_by_one, all_at_once, limit=all_at_once, prepare=prepared, writes=True, rounds=2)


def test_a_job_is_measured_on_copies_of_the_corpus(corpus: Path) -> None:
    before = (corpus / "mlflow.db").read_bytes()
    (row,) = measure([TINY], corpus, 0, None)
    assert (corpus / "mlflow.db").read_bytes() == before
    assert (row["job"], row["n"], row["baseline_sample"], row["limit_fraction"]) == ("tiny", MANY, 10, 1.0)
    assert row["ratio"] == pytest.approx(row["baseline_s"] / row["ours_s"], rel=0.02)
    assert row["baseline_rss_mb"] >= 0


def test_a_side_that_fails_says_why(corpus: Path) -> None:
    broken = Job("tiny", "A test.", "", one_by_one, failing)
    with pytest.raises(RuntimeError, match=f"OSError: no {MANY}"):
        list(measure([broken], corpus, 0, 1))


def test_most_cuts_a_corpus_to_its_newest_days(corpus: Path) -> None:
    whole, part = newest(corpus / "mlflow.db", None), newest(corpus / "mlflow.db", 5)
    assert (whole.experiment, whole.n) == (EXPERIMENT, MANY)
    assert 1 <= part.n <= 5
    assert part.last_ms == whole.last_ms > part.since_ms > whole.since_ms


def test_every_job_has_its_sides_where_another_process_finds_them() -> None:
    found = jobs()
    assert {"archive_public", "archive_database", "archive_incremental", "load", "release"} <= {
        job.name for job in found
    }
    assert len({job.name for job in found}) == len(found)
    assert sorted(job.name for members in groups(found) for job in members) == [job.name for job in found]
    for job in found:
        for side in (job.baseline, job.ours, job.limit, job.prepare):
            assert side is None or side.__qualname__ == side.__name__, job.name


def test_memory_of_children_counts() -> None:
    peak = Peak()
    peak.start()
    child = subprocess.Popen(
        [sys.executable, "-c", "held = bytearray(64 << 20); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        assert peak.children_mb() > 64
        peak.look()
        child.communicate(b"\n")
    assert peak.stop() > 64
