"""What the tests of the two readers share: making traces nobody would think of, and comparing rows.

Lives here: strategies for traces, and writing them by MLflow's own client.
Add here: a further thing a trace may hold.
Not here: what is claimed (`test_readers.py`, `test_readers_postgres.py`).
"""

import os
import random
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from resources.mlflow_store import open_mlflow
from resources.platform import Platform
from resources.reading.trace_reader import Batch, TraceReader
from resources.redaction import Redaction
from resources.tables import KEYS

START_MS = 1_795_132_800_000
FOREVER = 10**15

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12) | st.sampled_from(
    ["NaN", "nan", "-Infinity", "a, inf]", "[1,]", '{"a": nan}', '"', "\\", "\\u0000", "\\ud83d", "</script>", "'; --"]
)
number = st.integers(-(2**60), 2**60) | st.floats()
value = st.recursive(
    st.none() | st.booleans() | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
key = st.sampled_from(["a", "plain", "mlflow.x", 'quoted"', "dot.ted", "ü", "gen_ai.operation.name"]) | text.filter(
    bool
)
raw = st.booleans() | st.integers(-(2**40), 2**40) | text | st.lists(st.integers(0, 9), max_size=3)
span = st.fixed_dictionaries(
    {
        "name": text.filter(bool),
        "span_type": st.sampled_from(["AGENT", "UNKNOWN", "LLM", "of my own", 'q"']),
        "inputs": value,
        "outputs": value,
        "attributes": st.dictionaries(key, value, max_size=3),
        "raw": st.dictionaries(key, raw, max_size=2),
        "error": st.none() | text,
        "took_ms": st.integers(0, 10_000),
    }
)
assessment = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["feedback", "expectation"]),
        "name": text.filter(bool),
        "value": value.filter(lambda said: said is not None),
        "rationale": st.none() | text,
        "metadata": st.none() | st.dictionaries(key, text, max_size=2),
        "error": st.none() | text.filter(bool),
    }
)
trace = st.fixed_dictionaries(
    {
        "at_ms": st.integers(0, 3),
        "spans": st.lists(span, min_size=1, max_size=3),
        "tags": st.dictionaries(key, text, max_size=2),
        "metadata": st.dictionaries(key, text, max_size=2),
        "session": st.none() | text.filter(bool),
        "assessments": st.lists(assessment, max_size=2),
    }
)


def write(platform: Platform, experiment: str, made: dict[str, Any]) -> str:
    """A trace by MLflow's client; what MLflow refuses to keep of it is left out."""
    mlflow = open_mlflow(platform)
    from mlflow.entities import AssessmentError, AssessmentSource, Expectation, Feedback
    from mlflow.exceptions import MlflowException
    from mlflow.tracing.client import TracingClient

    random.seed(os.urandom(8))  # Ids come from there, and Hypothesis begins each example with the same ones.
    parent, started = None, (START_MS + made["at_ms"]) * 10**6
    spans = []
    for nth, one in enumerate(made["spans"]):
        head = {"tags": made["tags"], "experiment_id": experiment} if parent is None else {"parent_span": parent}
        if parent is None:
            session = {} if made["session"] is None else {"mlflow.trace.session": made["session"]}
            head["metadata"] = {**made["metadata"], **session}
        span = mlflow.start_span_no_context(
            one["name"],
            span_type=one["span_type"],
            inputs=one["inputs"],
            attributes=one["attributes"],
            start_time_ns=started + nth,
            **head,
        )
        for name, said in one["raw"].items():
            span._span.set_attribute(name, said)  # As an instrumentation by OpenTelemetry does: no JSON.
        span.set_outputs(one["outputs"])
        if one["error"] is not None:
            span.record_exception(ValueError(one["error"]))
        spans.append((span, one))
        parent = parent or span
    for span, one in reversed(spans):
        span.end(status="OK" if one["error"] is None else "ERROR", end_time_ns=started + one["took_ms"] * 10**6)
    source = AssessmentSource("HUMAN", "ann@example.org")
    for said in made["assessments"]:
        shared = {"name": said["name"], "source": source, "metadata": said["metadata"]}
        if said["kind"] == "expectation":
            entity = Expectation(value=said["value"], **shared)
        else:
            failed = said["error"] and AssessmentError("CODE", said["error"])
            entity = Feedback(value=said["value"], error=failed or None, rationale=said["rationale"], **shared)
        try:
            TracingClient(platform.tracking_uri).log_assessment(parent.trace_id, entity)
        except (MlflowException, ValueError):
            continue
    return parent.trace_id


def rows(reader: TraceReader, redact: Redaction = (), *, spans: bool = True) -> dict[str, Any]:
    """All rows of all production traces, by table, in the order of their keys; and who is quarantined."""
    listing = reader.list(0, FOREVER, settled_before_ms=FOREVER).traces
    read = reader.batches if spans else reader.heads
    return tables(read(listing, redact=redact))


def tables(batches: Iterable[Batch]) -> dict[str, Any]:
    """Batches as rows by table, in the order of their keys; and who is quarantined."""
    listed = list(batches)
    found: dict[str, Any] = {"quarantined": sorted((q.trace_id, q.request_ms) for b in listed for q in b.quarantined)}
    for table in ("traces", "assessments", "spans"):
        parts = [part for batch in listed if (part := getattr(batch, table)) is not None]
        whole = pa.concat_tables(parts).to_pylist() if parts else []
        found[table] = sorted(whole, key=lambda row: tuple(row[name] for name in KEYS[table]))
    return found


def in_database(file: Path, sql: str, *values: Any) -> None:
    """A change that MLflow's client would not make."""
    with sqlite3.connect(file) as con:
        con.execute(sql, values)
    con.close()
