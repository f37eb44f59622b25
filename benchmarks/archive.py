"""Archiving production traces: by the database, by MLflow's API, over HTTP, and 100 new ones.

Lives here: the script a user writes for it today, and our archive.
Add here: another way traces reach the tables. Not here: readers and tables (`resources/`), running (`run.py`).

The script reads all with `mlflow.search_traces()` into pandas and writes three Delta tables with `write_deltalake`:
traces, spans with inputs and outputs in columns of their own, assessments. It redacts nothing and guards against
nothing. Opening the store, the libraries and the first search are outside of the clock, on both sides.
The limit writes what our archive holds, already in memory, as Parquet compressed by zstd, one file a table.
"""

import json
import shutil
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.job import Job, Turn

NEW = 100
"""Traces that came since the last run, in the incremental job."""

_HOUR_MS = 3_600_000
_DAY_MS = 86_400_000


def users_script(turn: Turn) -> None:
    """Everything, as a user archives it the first time."""
    mlflow, where = _opened(turn)
    with turn.timed():
        frame = mlflow.search_traces(locations=[where], filter_string=f"timestamp_ms >= {turn.since_ms}")
        _write(turn, frame)


def users_script_again(turn: Turn) -> None:
    """100 new traces, as a user finds them: everything is read, and what the table holds already is left out."""
    from deltalake import DeltaTable

    mlflow, where = _opened(turn)
    _take(turn, "held")
    _add_traces(turn)
    with turn.timed():
        frame = mlflow.search_traces(locations=[where], filter_string=f"timestamp_ms >= {turn.since_ms}")
        held = DeltaTable(str(turn.folder / "held")).to_pandas(columns=["trace_id"])
        _write(turn, frame[~frame.trace_id.isin(held.trace_id)])


def _opened(turn: Turn) -> tuple[Any, str]:
    import deltalake  # noqa: F401 not timed
    import mlflow
    import pandas  # noqa: F401 not timed
    import pyarrow  # noqa: F401 not timed

    mlflow.set_tracking_uri(turn.uri)
    found = mlflow.get_experiment_by_name(turn.experiment)
    assert found is not None, turn.experiment
    mlflow.search_traces(locations=[found.experiment_id], max_results=1)
    return mlflow, found.experiment_id


def _write(turn: Turn, frame: Any) -> None:
    import pandas as pd
    from deltalake import write_deltalake

    spans, assessments = [], []
    for trace_id, listed, said in zip(frame.trace_id, frame.spans, frame.assessments, strict=True):
        for span in listed:
            attributes = dict(span["attributes"])
            inputs, outputs = attributes.pop("mlflow.spanInputs", None), attributes.pop("mlflow.spanOutputs", None)
            spans.append(
                {
                    "trace_id": trace_id,
                    "span_id": span["span_id"],
                    "parent_span_id": span.get("parent_span_id"),
                    "name": span["name"],
                    "start_ns": int(span["start_time_unix_nano"]),
                    "end_ns": int(span["end_time_unix_nano"]),
                    "status": json.dumps(span["status"]),
                    "inputs": inputs if isinstance(inputs, str) else json.dumps(inputs),
                    "outputs": outputs if isinstance(outputs, str) else json.dumps(outputs),
                    "attributes": json.dumps(attributes),
                }
            )
        for found in said:
            assessments.append({"trace_id": trace_id, "name": found["assessment_name"], "body": json.dumps(found)})
    traces = frame.drop(columns=["spans", "assessments", "trace", "request", "response"])
    for column in ("tags", "trace_metadata"):
        traces[column] = traces[column].map(json.dumps)
    traces["request"], traces["response"] = frame.request.map(json.dumps), frame.response.map(json.dumps)
    traces = traces.drop(columns=[name for name in traces if traces[name].isna().all()])
    for name, rows in (("traces", traces), ("spans", pd.DataFrame(spans)), ("assessments", pd.DataFrame(assessments))):
        if len(rows):
            write_deltalake(str(turn.folder / "warehouse" / name), rows, mode="append")


def archived(turn: Turn) -> None:
    """Preparation: all archived by ours, the newest day once more by itself, as in production; and a user's ids."""
    from deltalake import write_deltalake

    _archive(turn)
    _archive(turn, newest_only=True)
    write_deltalake(str(turn.folder / "held"), _tables(turn, turn.folder)["traces"].select(["trace_id"]))


def database(turn: Turn) -> None:
    """Ours, reading the tracking database."""
    _archive(turn)


def public(turn: Turn) -> None:
    """Ours, reading by MLflow's API; over HTTP that is what it does anyway."""
    _archive(turn, public=True)


def incremental(turn: Turn) -> None:
    """Ours, when 100 traces came since the last run: the step of the newest day."""
    _take(turn, "warehouse")
    _add_traces(turn)
    _archive(turn, newest_only=True)


def nothing_new(turn: Turn) -> None:
    """Ours, when nothing came since the last run."""
    _take(turn, "warehouse")
    _archive(turn, newest_only=True)
    _archive(turn, newest_only=True)
    turn.found = turn.found[1:]


def parquet(turn: Turn) -> None:
    """The limit: the same rows, in memory, as one zstd Parquet file a table."""
    import pyarrow.parquet as pq

    assert turn.shared is not None
    tables = _tables(turn, turn.shared)
    target = turn.folder / "limit"
    target.mkdir()
    with turn.timed():
        for name, table in tables.items():
            pq.write_table(table, target / f"{name}.parquet", compression="zstd")


def _archive(turn: Turn, *, public: bool = False, newest_only: bool = False) -> None:
    import deltalake  # noqa: F401 not timed
    import pandas  # noqa: F401 not timed: Arrow imports it when it is there

    from benchmarks.sample import sample_agent
    from resources.archive.marks import Days
    from resources.archive.run import ArchiveRun, Asked
    from resources.mlflow_store import experiment_id
    from resources.reading.public_reader import PublicReader
    from resources.reading.reading import open_reader

    agent, where = sample_agent(turn), experiment_id(turn.platform, turn.experiment)
    make = PublicReader if public else partial(open_reader, progress=_quiet)
    first = turn.last_day if newest_only else turn.first_day
    days = Days(first, _day(turn.last_ms + _HOUR_MS))
    asked = Asked(agent.spec.table_prefix, turn.experiment, where, days, turn.last_ms + _DAY_MS, agent.redactions)
    make(turn.platform, where).list(turn.last_ms, turn.last_ms + 1, settled_before_ms=0)  # Opens the store.
    with turn.timed():
        ArchiveRun(turn.platform, make(turn.platform, where), asked, _quiet).run()


def _add_traces(turn: Turn) -> None:
    """100 traces newer than all others, as if they came while the last run was writing."""
    from benchmarks.corpus import write

    until = turn.last_ms + _HOUR_MS
    write(turn.store.parent, NEW, seed=7_919, start=turn.n, until_ms=until, experiment=turn.experiment)


def _take(turn: Turn, name: str) -> None:
    assert turn.shared is not None
    shutil.copytree(turn.shared / name, turn.folder / name)


def _tables(turn: Turn, home: Path) -> dict[str, Any]:
    from deltalake import DeltaTable

    from benchmarks.sample import sample_agent

    folder = home / "warehouse"
    prefix = sample_agent(turn).spec.table_prefix.split(".")
    names = ("traces", "spans", "assessments")
    return {
        name: DeltaTable(str(folder.joinpath(*prefix[:-1], prefix[-1] + name))).to_pyarrow_table() for name in names
    }


def _day(moment_ms: int) -> date:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).date()


def _quiet(line: str) -> None:
    """Progress nobody reads."""


_ALL = {"baseline": users_script, "prepare": archived, "limit": parquet}
_SERVED = {"baseline": users_script, "ours": public, "most": 3_000}
_AGAIN = {"baseline": users_script_again, "prepare": archived, "writes": True}
JOBS = (
    Job(
        name="archive_database",
        meaning="Archiving everything from the tracking database (SQLite), against the script users write.",
        goal="at least 30 times as fast, and half the rate of writing Parquet",
        ours=database,
        **_ALL,
    ),
    Job(
        name="archive_public",
        meaning="The same by MLflow's API on the same SQLite store.",
        goal="at least 4 times as fast",
        ours=public,
        **_ALL,
    ),
    Job(
        name="archive_public_http1",
        meaning="The same from an `mlflow server` with one worker.",
        goal="at least 1.7 times as fast",
        workers=1,
        **_SERVED,
    ),
    Job(
        name="archive_public_http2",
        meaning="The same from an `mlflow server` with two workers.",
        goal="at least 2.3 times as fast",
        workers=2,
        **_SERVED,
    ),
    Job(
        name="archive_incremental",
        meaning="100 new traces after everything was archived; the script reads all again and leaves out what is held.",
        goal="at most 150 ms, whatever is stored",
        ours=incremental,
        **_AGAIN,
    ),
    Job(
        name="archive_again",
        meaning="Nothing new; the script does as before.",
        goal="at most 20 ms",
        ours=nothing_new,
        **_AGAIN,
    ),
)
