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
import sqlite3
import time
from typing import Any

from benchmarks.job import Job, Turn

NEW = 100
"""Traces that came since the last run, in the incremental job."""


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
    shutil.copytree(_held(turn), turn.folder / "held")
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
    """Preparation: the whole corpus, archived by ours; and the ids a user's table would hold."""
    from deltalake import write_deltalake

    _archive(turn, public=False)
    table = _tables(turn)["traces"].select(["trace_id"])
    write_deltalake(str(turn.folder / "held"), table)


def database(turn: Turn) -> None:
    """Ours, reading the tracking database."""
    _archive(turn, public=False)


def public(turn: Turn) -> None:
    """Ours, reading by MLflow's API; over HTTP this is what happens anyway."""
    _archive(turn, public=True)


def incremental(turn: Turn) -> None:
    """Ours, when 100 traces came since the last run: that day's step of the monitoring job."""
    shutil.copytree(turn.shared / "warehouse", turn.folder / "warehouse")
    _add_traces(turn)
    _archive(turn, public=False, newest_only=True)


def again(turn: Turn) -> None:
    """Ours, when nothing came since the last run."""
    shutil.copytree(turn.shared / "warehouse", turn.folder / "warehouse")
    _archive(turn, public=False, newest_only=True)


def parquet(turn: Turn) -> None:
    """The limit: the same rows, in memory, as one zstd Parquet file a table."""
    import pyarrow.parquet as pq

    tables = _tables(turn, turn.shared)
    target = turn.folder / "limit"
    target.mkdir()
    with turn.timed():
        for name, table in tables.items():
            pq.write_table(table, target / f"{name}.parquet", compression="zstd")


def _archive(turn: Turn, *, public: bool, days: int | None = None) -> None:
    from benchmarks.sample import sample_agent
    from resources.delta_archive import DeltaArchive
    from resources.mlflow_store import experiment_id
    from resources.public_reader import PublicReader
    from resources.reading import open_reader

    agent = sample_agent(turn)
    archive = DeltaArchive(turn.platform, read=_by_api if public else open_reader)
    experiment_id(turn.platform, turn.experiment)  # Imports MLflow and opens the store: once a process, not timed.
    first = turn.first_day if days is None else turn.last_day
    last = _day(turn.last_ms + _HOUR_MS)
    with turn.timed():
        archive.archive_days(agent, first, last, settled_before_ms=turn.last_ms + _DAY_MS, progress=_quiet)


def _tables(turn: Turn) -> dict[str, Any]:
    ...
