"""A local platform's home with N production traces: `python -m benchmarks.corpus HOME N [--start I] [--empty] ...`.

Lives here: rows of MLflow's own store (SQLite, revision `REVISION`), written in bulk into a store MLflow migrated.
Add here: a column of that store. Not here: what a trace holds (`traces.py`).

MLflow's client writes some 40 traces a second, this some 2,000; `tests/test_benchmarks.py` compares what MLflow's
client reads of both. Trace `i` is the same for the same seed; the first N spread evenly over the days before
`LEAD_MS` before `until`, further ones (`--start`) over the hour before `until`: they are newer than all the first.
Nothing is committed before all is in: killed, it leaves the store as it was.
"""

import argparse
import base64
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.traces import TIES, MadeSpan, MadeTrace, make_trace

REVISION = "dc11669786a5"
"""Schema revision of the store of mlflow 3.17.2."""

EXPERIMENT = "/agents/docs_agent"
"""Experiment of the sample agent."""

LEAD_MS = 2 * 3_600_000
_HOUR_MS = 3_600_000
_DAY_MS = 86_400_000
_CHUNK = 1_000


def start_times(number: int, start: int, days: int, until_ms: int) -> Iterator[tuple[int, int]]:
    """Number and start (epoch milliseconds) of traces `start` .. `start + number`; some share a millisecond."""
    first, span = (
        (until_ms - LEAD_MS - days * _DAY_MS, days * _DAY_MS) if start == 0 else (until_ms - _HOUR_MS, _HOUR_MS)
    )
    gap = span / max(number, 1)
    for place in range(number):
        mine = start + place
        tied = place - 1 if mine % TIES == TIES - 1 and place else place
        yield mine, first + int(gap * (tied + (start + tied) % 7 / 8))


def write(
    home: Path,
    number: int,
    *,
    seed: int = 1,
    start: int = 0,
    days: int = 30,
    until_ms: int | None = None,
    experiment: str = EXPERIMENT,
) -> None:
    """Add traces to the store below `home`, which is made when absent. Raises `ValueError` for another revision."""
    found = prepare(home, experiment)
    until_ms = until_ms or int(time.time() * 1000) - 600_000
    with sqlite3.connect(home / "mlflow.db") as store:
        store.execute("PRAGMA synchronous=OFF")
        store.execute("PRAGMA cache_size=-400000")
        (location,) = store.execute(
            "SELECT artifact_location FROM experiments WHERE experiment_id=?", (found,)
        ).fetchone()
        pending = []
        for mine, start_ms in start_times(number, start, days, until_ms):
            pending.append(make_trace(seed, mine, start_ms))
            if len(pending) == _CHUNK:
                insert(store, found, location, pending)
                pending = []
                if (mine + 1 - start) % 10_000 == 0:
                    print(f"{mine + 1 - start:,} of {number:,} traces", flush=True)
        insert(store, found, location, pending)
    store.close()


def prepare(home: Path, experiment: str = EXPERIMENT) -> int:
    """The experiment's id in the store below `home`, both made when absent, by MLflow. Raises as `write` does."""
    from resources.mlflow_store import experiment_id
    from resources.platform import Platform

    home = home.absolute()
    found = int(experiment_id(Platform.from_env({"LIFECYCLE_HOME": str(home)}), experiment))
    with sqlite3.connect(home / "mlflow.db") as store:
        (revision,) = store.execute("SELECT version_num FROM alembic_version").fetchone()
    store.close()
    if revision != REVISION:
        raise ValueError(f"{home}/mlflow.db has revision {revision}; the corpus is written for {REVISION}.")
    return found


def insert(store: sqlite3.Connection, experiment: int, location: str, traces: list[MadeTrace]) -> None:
    """Write traces as rows, in the caller's transaction."""
    infos, tags, metadata, spans, assessments = [], [], [], [], []
    for made in traces:
        infos.append(_info(experiment, made))
        artifacts = {"mlflow.artifactLocation": f"{location}/traces/{made.trace_id}/artifacts"}
        kept = {**made.tags, **artifacts, "mlflow.trace.spansLocation": "TRACKING_STORE"}
        tags += [(key, value, made.trace_id) for key, value in kept.items() if key != "mlflow.traceName"]
        metadata += [(key, value, made.trace_id) for key, value in made.metadata.items()]
        metadata.append(("mlflow.trace.infoFinalized", "true", made.trace_id))
        spans += [_span(experiment, made, span) for span in made.spans]
        assessments += _assessments(experiment, made)
    for table, columns, rows in (
        ("trace_info", _INFO, infos),
        ("trace_tags", "key, value, request_id", tags),
        ("trace_request_metadata", "key, value, request_id", metadata),
        ("spans", _SPAN, spans),
        ("assessments", _ASSESSMENT, assessments),
    ):
        holes = ", ".join("?" * (columns.count(",") + 1))
        store.executemany(f"INSERT INTO {table} ({columns}) VALUES ({holes})", rows)


_INFO = (
    "request_id, experiment_id, timestamp_ms, execution_time_ms, status, request_preview, response_preview, "
    "db_payload_generation, trace_name, session_id, input_tokens, output_tokens, total_tokens, "
    "input_cost, output_cost, total_cost"
)
_SPAN = (
    "trace_id, experiment_id, span_id, parent_span_id, name, type, status, start_time_unix_nano, end_time_unix_nano, "
    "content, input_cost, output_cost, total_cost, model_name, model_provider"
)
_ASSESSMENT = (
    "assessment_id, trace_id, name, assessment_type, value, created_timestamp, last_updated_timestamp, source_type, "
    "source_id, rationale, valid, experiment_id, trace_timestamp_ms, aggregate_value, is_numeric_value"
)
_TOKENS = ("input_tokens", "output_tokens", "total_tokens")
_COSTS = ("input_cost", "output_cost", "total_cost")


def _info(experiment: int, made: MadeTrace) -> tuple[object, ...]:
    fixed = (made.trace_id, experiment, made.start_ms, made.duration_ms, made.state, made.request, made.response)
    usage = (*map(made.tokens.get, _TOKENS), *map(made.cost.get, _COSTS))
    return (*fixed, 1, made.tags["mlflow.traceName"], made.session, *usage)


def span_content(made: MadeTrace, span: MadeSpan) -> dict[str, object]:
    """A span as MLflow writes it in JSON."""
    return {
        "trace_id": _base64(made.trace_id.removeprefix("tr-")),
        "span_id": _base64(span.span_id),
        "parent_span_id": span.parent_id and _base64(span.parent_id),
        "name": span.name,
        "start_time_unix_nano": span.start_ns,
        "end_time_unix_nano": span.end_ns,
        "events": span.events,
        "status": {"code": f"STATUS_CODE_{_state(span)}", "message": span.error},
        "attributes": span.attributes,
        "links": [],
    }


def _span(experiment: int, made: MadeTrace, span: MadeSpan) -> tuple[object, ...]:
    model = span.kind == "CHAT_MODEL"
    cost = map(made.cost.get, _COSTS) if model else (None, None, None)
    served = ("gpt-4o", "openai") if model else (None, None)
    ids = (made.trace_id, experiment, span.span_id, span.parent_id)
    text = json.dumps(span_content(made, span), ensure_ascii=False)
    return (*ids, span.name, span.kind, _state(span), span.start_ns, span.end_ns, text, *cost, *served)


def _state(span: MadeSpan) -> str:
    return "ERROR" if span.error else "OK"


def _assessments(experiment: int, made: MadeTrace) -> Iterator[tuple[object, ...]]:
    for found in made.assessments:
        said = (found.assessment_id, made.trace_id, found.name, "feedback", json.dumps(found.value))
        number = not isinstance(found.value, bool)
        trace = (True, experiment, made.start_ms, float(found.value), number)
        yield (*said, found.at_ms, found.at_ms, "HUMAN", found.source_id, found.rationale, *trace)


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


def main() -> None:
    """Write the corpus the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description=__doc__.splitlines()[0])
    parser.add_argument("home", type=Path, help="the platform's home: mlflow.db is made, or added to, in it")
    parser.add_argument("number", type=int, help="traces to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first trace; above 0 it is newer than all")
    parser.add_argument("--days", type=int, default=30, help="days over which the first traces are spread")
    parser.add_argument("--until", type=int, help="epoch milliseconds of the end of it all (default: 10 minutes ago)")
    parser.add_argument("--experiment", default=EXPERIMENT)
    parser.add_argument("--empty", action="store_true", help="only the store and the experiment")
    asked = parser.parse_args()
    if asked.empty:
        prepare(asked.home, asked.experiment)
        return
    write(
        asked.home,
        asked.number,
        seed=asked.seed,
        start=asked.start,
        days=asked.days,
        until_ms=asked.until,
        experiment=asked.experiment,
    )


if __name__ == "__main__":
    main()
