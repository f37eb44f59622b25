"""The benchmarks' corpus is what MLflow would have written, and the runner runs.

Lives here: the generator against MLflow's own store; a cheap job on a small corpus.
Add here: a job's own rules. Not here: numbers; speed is measured by `make bench`.
"""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus import EXPERIMENT, start_times, write
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
