"""The views that dashboards ask, over an archive, and again after 500 small appends.

Lives here: each view, and the pandas that answers the same question today.
Add here: a view that was added.
Not here: the views (`resources/sql/views.py`), how they are asked (`resources/sql/engine.py`).

The script reads the traces once with `mlflow.search_traces()` and answers all questions from that frame by groupby;
reading takes nearly all of its time, so the same time stands beside each view. Imports are outside of the clock. A
view's time is the median of nine queries in one process, the first one included; the other jobs are all views once, in
a process that has not asked anything yet. Answers are left on disk for the next process, and whole views are read from
them without DuckDB: `query_all` and `query_after_appends` find those of an earlier process in two rounds of three at
least, so their medians are of processes that do; for `query_first` and `query_first_after_appends` they are deleted
before.
"""

import shutil
from pathlib import Path
from typing import Any

from benchmarks.archive import archived
from benchmarks.job import Job, Turn

APPENDS = 500
"""Small commits to each table, five traces each."""

_REPEATS = 9


def users_script(turn: Turn) -> None:
    """All questions, from one reading."""
    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(turn.uri)
    found = mlflow.get_experiment_by_name(turn.experiment)
    assert found is not None, turn.experiment
    mlflow.search_traces(locations=[found.experiment_id], max_results=1)
    with turn.timed():
        frame = mlflow.search_traces(
            locations=[found.experiment_id], filter_string=f"timestamp_ms >= {turn.since_ms}", include_spans=False
        )
        frame["day"] = pd.to_datetime(frame.request_time, unit="ms").dt.date
        frame["model"] = frame.trace_metadata.map(lambda one: one.get("mlflow.modelId", ""))
        frame["session"] = frame.trace_metadata.map(lambda one: one.get("mlflow.trace.session", ""))
        frame["failed"] = frame.state.map(str).str.contains("ERROR")
        said = pd.DataFrame(
            [
                {"day": day, "model": model, "name": one["assessment_name"], "source": one["source"]["source_type"]}
                | {"value": one.get("feedback", {}).get("value"), "failed": "error" in one.get("feedback", {})}
                for day, model, listed in zip(frame.day, frame.model, frame.assessments, strict=True)
                for one in listed
            ]
        )
        by_day = frame.groupby(["day", "model"])
        by_day.execution_duration.quantile([0.5, 0.9, 0.95, 0.99])
        by_day.failed.agg(["size", "sum", "mean"])
        frame[frame.session != ""].groupby("session").agg({"trace_id": "size", "request_time": ["min", "max"]})
        said["value"] = pd.to_numeric(said.value, errors="coerce")
        said.groupby(["model", "name"]).value.agg(["size", "mean", "min", "max"])
        said[said.source == "HUMAN"].groupby(["day", "model", "name"]).value.agg(["size", "mean"])
        said[said.source != "HUMAN"].groupby(["day", "name"]).failed.agg(["size", "sum"])


def fragmented(turn: Turn) -> None:
    """Preparation: the archive as `before`, and the same after many small appends as `warehouse`."""
    from datetime import timedelta

    import pyarrow as pa
    from deltalake import DeltaTable

    from resources.delta.write import append_rows, table_to_write

    archived(turn)
    shutil.copytree(turn.folder / "warehouse", turn.folder / "before" / "warehouse")
    for place in _tables_of(turn.folder):
        name = place.name.rpartition("_")[2]
        day = turn.last_day - timedelta(days=1)
        of_day = DeltaTable(str(place)).to_pyarrow_table(partitions=[("trace_date", "=", str(day))])
        step = max(of_day.num_rows // APPENDS, 1)
        for number in range(APPENDS):
            rows = of_day.slice(number * step % max(of_day.num_rows, 1), step)
            again = pa.array([f"{one}-{number}" for one in rows.column("trace_id").to_pylist()])
            rows = rows.set_column(rows.column_names.index("trace_id"), "trace_id", again)
            append_rows(table_to_write(str(place), name), rows)


def quality_by_version(turn: Turn) -> None:
    """Scores by model version."""
    _ask(turn, "quality_by_version")


def latency(turn: Turn) -> None:
    """Percentiles of latency by day."""
    _ask(turn, "latency")


def errors(turn: Turn) -> None:
    """Error rate by day."""
    _ask(turn, "errors")


def feedback(turn: Turn) -> None:
    """Thumbs by day."""
    _ask(turn, "feedback")


def scorer_coverage(turn: Turn) -> None:
    """Scored traces by day and scorer."""
    _ask(turn, "scorer_coverage")


def sessions(turn: Turn) -> None:
    """Sessions, newest last."""
    _ask(turn, "sessions")


def judge_cost(turn: Turn) -> None:
    """Calls and cost by day and scorer."""
    _ask(turn, "judge_cost")


def every_view(turn: Turn) -> None:
    """All views once, with the tables opened for the first time."""
    assert turn.shared is not None
    _all(turn, turn.shared)


def every_view_before(turn: Turn) -> None:
    """The same, before the small appends."""
    assert turn.shared is not None
    _all(turn, turn.shared / "before")


def every_view_first(turn: Turn) -> None:
    """All views once, and no process has asked before."""
    assert turn.shared is not None
    shutil.rmtree(turn.shared / "answers", ignore_errors=True)
    every_view(turn)


def every_view_first_before(turn: Turn) -> None:
    """The same, before the small appends."""
    assert turn.shared is not None
    shutil.rmtree(turn.shared / "before" / "answers", ignore_errors=True)
    every_view_before(turn)


def _ask(turn: Turn, view: str) -> None:
    assert turn.shared is not None
    engine, prefix = _engine(turn, turn.shared)
    for _ in range(_REPEATS):
        with turn.timed():
            engine.query(prefix, f"SELECT * FROM {view}")


def _all(turn: Turn, home: Path) -> None:
    from resources.sql.views import VIEWS

    engine, prefix = _engine(turn, home)
    with turn.timed():
        for view in VIEWS:
            engine.query(prefix, f"SELECT * FROM {view}")


def _engine(turn: Turn, home: Path) -> tuple[Any, str]:
    import deltalake  # noqa: F401 not timed
    import duckdb  # noqa: F401 not timed

    from benchmarks.sample import sample_agent
    from resources.platform import Platform
    from resources.sql.engine import DuckDbEngine

    return DuckDbEngine(Platform.from_env({"LIFECYCLE_HOME": str(home)})), sample_agent(turn).spec.table_prefix


def _tables_of(home: Path) -> list[Path]:
    return sorted(log.parent for log in (home / "warehouse").rglob("_delta_log"))


JOBS = (
    *(
        Job(
            name=f"query_{side.__name__}",
            meaning=f"{side.__doc__} The view, against the script that answers all seven questions from one reading.",
            goal="all views together at most 100 ms",
            baseline=users_script,
            ours=side,
            prepare=archived,
        )
        for side in (quality_by_version, latency, errors, feedback, scorer_coverage, sessions, judge_cost)
    ),
    Job(
        name="query_all",
        meaning="All seven views, the tables opened for the first time in the process; against the same script.",
        goal="at most 100 ms",
        baseline=users_script,
        ours=every_view,
        prepare=archived,
    ),
    Job(
        name="query_first",
        meaning="The same, when no process has asked for these traces before; against the same script.",
        goal="at most 100 ms",
        baseline=users_script,
        ours=every_view_first,
        prepare=archived,
    ),
    Job(
        name="query_after_appends",
        meaning=f"All seven views after {APPENDS} small appends a table, without compaction; before against after.",
        goal="at most twice as slow: a ratio of 0.5 or more",
        baseline=every_view_before,
        ours=every_view,
        prepare=fragmented,
    ),
    Job(
        name="query_first_after_appends",
        meaning="The same, when no process has asked for these traces before.",
        goal="at most twice as slow: a ratio of 0.5 or more",
        baseline=every_view_first_before,
        ours=every_view_first,
        prepare=fragmented,
    ),
)
