"""Real traces in real MLflow, on SQLite and behind a server, come out as the same rows; scores go in once."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from resources.mlflow_store import experiment_id, open_mlflow
from resources.platform import Platform
from resources.reading.reading import open_reader
from resources.redaction import NESTED
from resources.sql.engine import DuckDbEngine
from resources.tables import TABLES
from resources.trace_rows import trace_rows
from resources.trace_store import MlflowTraceStore
from tests.resources.archived import upsert_day
from tests.resources.readers import rows

EXPERIMENT = "/agents/tiny"
PREFIX = "main.agents.tiny_"
DAY = date(2026, 11, 20)
MIDNIGHT_MS = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp() * 1000)
DAY_MS = 86_400_000
FOREVER = 10**15


def make_trace(
    platform: Platform,
    at_ms: int,
    *,
    took_ms: int = 500,
    inputs: Any = None,
    outputs: Any = "fine",
    error: bool = False,
    model_id: str = "m-1",
    tags: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> str:
    """A real trace with a root and a model call, at a time of our choosing."""
    mlflow = open_mlflow(platform)
    start, end = at_ms * 10**6, (at_ms + took_ms) * 10**6
    known = {"mlflow.modelId": model_id, "mlflow.trace.session": "s-1", "mlflow.trace.user": "ann@example.org"}
    root = mlflow.start_span_no_context(
        "root",
        span_type="AGENT",
        inputs={"q": "why?"} if inputs is None else inputs,
        experiment_id=experiment_id(platform, EXPERIMENT),
        start_time_ns=start,
        tags=tags,
        metadata=known | (metadata or {}),
    )
    call = mlflow.start_span_no_context("call", parent_span=root, span_type="LLM", inputs=[1, 2.5], start_time_ns=start)
    call.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7})
    call.end(end_time_ns=end)
    root.set_outputs(outputs)
    if error:
        root.record_exception(ValueError("boom"))
    root.end(status="ERROR" if error else "OK", end_time_ns=end)
    return root.trace_id


def make_bare_trace(platform: Platform, trace_id: str, at_ms: int, state: str = "ERROR") -> str:
    """A trace of which only the start was recorded: the process died."""
    open_mlflow(platform)
    from mlflow.entities import TraceInfo, TraceState
    from mlflow.entities.trace_location import TraceLocation
    from mlflow.tracing.client import TracingClient

    where = TraceLocation.from_experiment_id(experiment_id(platform, EXPERIMENT))
    info = TraceInfo(trace_id, where, at_ms, TraceState(state), request_preview='{"q": "lost')
    TracingClient(platform.tracking_uri).start_trace(info)
    return trace_id


def assess(platform: Platform, trace_id: str, **said: Any) -> Any:
    """What a person or a foreign scorer says of a trace."""
    open_mlflow(platform)
    from mlflow.entities import AssessmentSource, Expectation, Feedback
    from mlflow.tracing.client import TracingClient

    kind, source = said.pop("kind", "feedback"), said.pop("source", "HUMAN")
    made = (Feedback if kind == "feedback" else Expectation)(source=AssessmentSource(source, "ann@example.org"), **said)
    return TracingClient(platform.tracking_uri).log_assessment(trace_id, made)


def infos(platform: Platform, day: date = DAY, settled: int = FOREVER, filter_string: str = "") -> list[str]:
    found = MlflowTraceStore(platform).infos(EXPERIMENT, day, settled_before_ms=settled, filter_string=filter_string)
    return [info.trace_id for info in found]


def assessments(platform: Platform, trace_id: str) -> list[Any]:
    return next(MlflowTraceStore(platform).read([trace_id])).info.assessments


def test_a_day_is_utc_and_its_edges_belong_to_one_day_each(platform: Platform) -> None:
    before, first, last, after = (make_trace(platform, MIDNIGHT_MS + ms) for ms in (-1, 0, DAY_MS - 1, DAY_MS))

    assert infos(platform, date(2026, 11, 19)) == [before]
    assert infos(platform) == [first, last]
    assert infos(platform, date(2026, 11, 21)) == [after]


def test_production_traces_only_and_only_settled_ones(platform: Platform) -> None:
    """A trace counts after its end, and evaluations are not production."""
    done = make_trace(platform, MIDNIGHT_MS, took_ms=1000)
    make_trace(platform, MIDNIGHT_MS, metadata={"mlflow.sourceRun": "r-1"})
    make_bare_trace(platform, "tr-" + "a" * 32, MIDNIGHT_MS, "IN_PROGRESS")

    assert infos(platform, settled=MIDNIGHT_MS + 1000) == []
    assert infos(platform, settled=MIDNIGHT_MS + 1001) == [done]
    info = MlflowTraceStore(platform).infos(EXPERIMENT, DAY, settled_before_ms=FOREVER)[0]
    assert (info.request_ms, info.ended_ms, info.state) == (MIDNIGHT_MS, MIDNIGHT_MS + 1000, "OK")
    assert (info.model_id, info.session_id) == ("m-1", "s-1")


def test_pages_lose_and_repeat_nothing_even_when_a_page_is_one_instant(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.trace_store._SEARCH_PAGE", 3)
    times = [0, 1, 1, 2, 5, 5, 5, 5, 5, 5, 5, 6, 7, 7, 7]
    made = [make_bare_trace(platform, f"tr-{i:032x}", MIDNIGHT_MS + ms) for i, ms in enumerate(times)]

    found = MlflowTraceStore(platform).infos(EXPERIMENT, DAY, settled_before_ms=FOREVER)

    assert sorted(info.trace_id for info in found) == made
    assert [info.request_ms - MIDNIGHT_MS for info in found] == times


def test_a_filter_is_joined_and_a_wrong_one_is_named(platform: Platform) -> None:
    make_trace(platform, MIDNIGHT_MS)
    vip = make_trace(platform, MIDNIGHT_MS + 1, tags={"tier": "vip"})

    assert infos(platform, filter_string="tags.tier = 'vip'") == [vip]
    assert len(infos(platform, filter_string="  ")) == 2
    for wrong in ("tier is vip", "tags.tier = 'vip' OR tags.tier = 'x'", "trace.colour = 'x'", "tags.tier > 'a'", "';"):
        with pytest.raises(Refused, match=re.escape(repr(wrong))):
            infos(platform, filter_string=wrong)


def test_traces_are_read_in_the_order_asked_for(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resources.trace_store._READ_PAGE", 2)
    made = [make_trace(platform, MIDNIGHT_MS + i) for i in range(5)]
    made.insert(2, make_bare_trace(platform, "tr-" + "b" * 32, MIDNIGHT_MS))
    asked = [made[i] for i in (4, 2, 0, 5, 1, 3)]

    read = list(MlflowTraceStore(platform).read(asked))

    assert [trace.info.trace_id for trace in read] == asked
    assert [len(trace.data.spans) for trace in read] == [2, 0, 2, 2, 2, 2]
    assert list(MlflowTraceStore(platform).read([])) == []
    with pytest.raises(Refused, match="tr-gone is gone"):
        list(MlflowTraceStore(platform).read([made[0], "tr-gone"]))


def test_the_newest_trace_of_any_model_and_of_one(platform: Platform) -> None:
    store = MlflowTraceStore(platform)
    assert store.newest(EXPERIMENT) is None

    old = make_trace(platform, MIDNIGHT_MS, model_id="m-old")
    new = make_trace(platform, MIDNIGHT_MS + 1, model_id="m-new")
    otlp = make_trace(platform, MIDNIGHT_MS + 2, model_id="", tags={"mlflow.modelId": "m-otlp"})
    make_trace(platform, MIDNIGHT_MS + 3, metadata={"mlflow.sourceRun": "r-1"})

    newest = store.newest(EXPERIMENT)
    assert newest
    assert newest.trace_id == otlp
    for model_id, trace_id in {"m-old": old, "m-new": new, "m-otlp": otlp}.items():
        found = store.newest(EXPERIMENT, model_id=model_id)
        assert found
        assert (found.trace_id, found.model_id) == (trace_id, model_id)
    assert store.newest(EXPERIMENT, model_id="m-none") is None


def test_the_newest_that_had_ended_by_a_moment_and_how_many_are_dated_later(platform: Platform) -> None:
    store = MlflowTraceStore(platform)
    first, second, third = (make_trace(platform, MIDNIGHT_MS + ms) for ms in (0, 60_000, 120_000))
    infos = {one.trace_id: one for one in store.infos(EXPERIMENT, DAY, settled_before_ms=2**53)}
    for until, found in (
        (MIDNIGHT_MS, None),
        (infos[first].ended_ms + 1, first),
        (MIDNIGHT_MS + 60_001, first),
        (infos[second].ended_ms + 1, second),
        (2**53, third),
    ):
        newest = store.newest(EXPERIMENT, settled_before_ms=until)
        assert (newest.trace_id if newest else None) == found
    make_trace(platform, MIDNIGHT_MS + 180_000, metadata={"mlflow.sourceRun": "r-1"})
    assert [store.dated_from(EXPERIMENT, MIDNIGHT_MS + ms) for ms in (0, 1, 120_000, 120_001)] == [3, 2, 1, 0]


def test_a_tag_is_written_once(platform: Platform) -> None:
    trace_id, store = make_trace(platform, MIDNIGHT_MS), MlflowTraceStore(platform)

    store.tag(trace_id, "lifecycle.labeling_session", "s-1")
    store.tag(trace_id, "lifecycle.labeling_session", "s-1")

    assert next(store.read([trace_id])).info.tags["lifecycle.labeling_session"] == "s-1"
    with pytest.raises(Refused, match="is gone"):
        store.tag("tr-gone", "a", "b")


def test_a_trace_becomes_rows_with_exactly_the_columns_of_the_tables(platform: Platform) -> None:
    trace_id = make_trace(
        platform,
        MIDNIGHT_MS,
        inputs={"q": "wärum?"},
        error=True,
        tags={"environment": "prod"},
        metadata={"mlflow.trace.cost": '{"total_cost": 0.5}'},
    )
    assess(platform, trace_id, name="good", value=True, rationale="it is")
    assess(platform, trace_id, name="fits", value="yes")
    assess(platform, trace_id, name="parts", value={"a": 1})
    assess(platform, trace_id, kind="expectation", name="expected", value=["42"])
    store = MlflowTraceStore(platform)

    rows = store.rows(next(store.read([trace_id])))

    assert [*rows.trace, "archived_at"] == list(TABLES["traces"])
    assert all(list(row) == list(TABLES["spans"]) for row in rows.spans)
    assert all(list(row) == list(TABLES["assessments"]) for row in rows.assessments)
    trace = rows.trace
    assert trace["request"] == '{"q": "wärum?"}'
    assert trace["response"] == '"fine"'
    assert (trace["state"], trace["execution_ms"], trace["trace_date"]) == ("ERROR", 500, DAY)
    assert (trace["model_id"], trace["session_id"], trace["user_id"]) == ("m-1", "s-1", "ann@example.org")
    assert (trace["environment"], trace["input_tokens"], trace["output_tokens"], trace["cost_usd"]) == (
        "prod",
        3,
        4,
        0.5,
    )
    root = next(span for span in rows.spans if span["parent_span_id"] is None)
    call = next(span for span in rows.spans if span["parent_span_id"] == root["span_id"])
    assert (root["type"], root["status"], call["name"], call["inputs"]) == ("AGENT", "ERROR", "call", "[1, 2.5]")
    assert re.fullmatch("[0-9a-f]{16}", root["span_id"])
    assert json.loads(root["attributes"])["events"][0]["attributes"]["exception.message"] == "boom"
    said = {row["name"]: (row["kind"], row["value_number"], row["value_text"]) for row in rows.assessments}
    assert said == {
        "good": ("feedback", 1.0, None),
        "fits": ("feedback", None, "yes"),
        "parts": ("feedback", None, '{"a": 1}'),
        "expected": ("expectation", None, '["42"]'),
    }


def test_a_trace_without_spans_has_what_mlflow_kept_of_it(platform: Platform) -> None:
    trace_id, store = make_bare_trace(platform, "tr-" + "c" * 32, MIDNIGHT_MS), MlflowTraceStore(platform)

    rows = store.rows(next(store.read([trace_id])))

    assert (rows.trace["request"], rows.trace["response"], rows.trace["model_id"]) == ('{"q": "lost', None, "")
    assert rows.spans == []


SECRETS = {
    "plain": "mail ann@example.org now",
    "key ann@example.org": 1,
    "escaped": json.dumps({"to": "ann@example.org", "umlaut": "Müller"}),
    "in json in json": json.dumps({"arguments": json.dumps({"to": "ann@example.org", "who": "Müller"})}),
    "number": 4111111111111111,
    "password": "hunter2",
}
RULES = (
    (re.compile(r"[\w.]+@example\.org"), "[mail]"),
    (re.compile("Müller"), "[name]"),
    (re.compile(r"4\d{15}"), "[card]"),
    (re.compile(r'"password": "[^"]*"'), '"password": "[gone]"'),
)


HOSTILE = {
    "nan": float("nan"),
    "endless": [float("inf"), -float("inf")],
    "nul": "a\x00b",
    "sql": "'; DROP TABLE traces; --",
    "html": "<script>alert(1)</script>",
    "marks": "\u202e\u2028",
    "long": "x" * 300_000,
    "deep": json.loads("[" * 400 + "]" * 400),
    "big": 10**400,
}


@pytest.mark.parametrize(
    "redact", [(), ((re.compile("secret"), "***"), (re.compile('"x"'), "y"))], ids=["", "redacted"]
)
def test_hostile_text_reaches_the_tables(platform: Platform, redact: Any) -> None:
    store = MlflowTraceStore(platform)
    trace_ids = [
        make_trace(platform, MIDNIGHT_MS + i, inputs={k: v}, outputs=v) for i, (k, v) in enumerate(HOSTILE.items())
    ]
    traces = list(store.read(trace_ids))

    written = upsert_day(platform, DAY, [store.rows(trace, redact=redact) for trace in traces])

    assert written["traces"].inserted == len(HOSTILE)
    again = upsert_day(platform, DAY, [store.rows(trace, redact=redact) for trace in store.read(trace_ids)])
    assert not any(w.inserted or w.updated for w in again.values())
    found = DuckDbEngine(platform).query(
        PREFIX, "SELECT json_valid(response) AND json_valid(request) FROM traces ORDER BY request_time"
    )
    assert [row[0] for row in found.rows] == [True] * len(HOSTILE)
    response = dict(DuckDbEngine(platform).query(PREFIX, "SELECT trace_id, response FROM traces").rows)
    assert response[trace_ids[0]] == '"NaN"'
    assert json.loads(response[trace_ids[2]]) == "a\x00b"
    assert json.loads(response[trace_ids[6]]) == "x" * 300_000


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("[" * 100_000 + "]" * 100_000, json.dumps(NESTED)),
        ('"half \\ud83d"', '"half \ufffd"'),
        ("not json", '"not json"'),
        ('{"a": 1e999}', '{"a": "Infinity"}'),
        ("9" * 5000, json.dumps("9" * 5000)),
    ],
)
@pytest.mark.parametrize("redact", [(), RULES], ids=["", "redacted"])
def test_attributes_no_json_reader_likes_are_kept(platform: Platform, raw: str, kept: str, redact: Any) -> None:
    """OTLP brings what MLflow's own client would not write."""
    trace = next(MlflowTraceStore(platform).read([make_trace(platform, MIDNIGHT_MS)]))
    from mlflow.entities import Span, Trace, TraceData

    span = trace.data.spans[0].to_dict()
    span["attributes"]["mlflow.spanInputs"] = raw
    rows = trace_rows(Trace(trace.info, TraceData(spans=[Span.from_dict(span)])), redact)

    assert rows.trace["request"] == kept
    assert upsert_day(platform, DAY, [rows])["spans"].inserted == 1


def test_redaction_leaves_nothing_behind(platform: Platform) -> None:
    """Whatever way the text is escaped or nested, and wherever it stands."""
    trace_id = make_trace(
        platform,
        MIDNIGHT_MS,
        inputs=SECRETS,
        outputs=SECRETS,
        error=True,
        tags={"from": "ann@example.org", "who": "M\u00fcller", "raw": '{"who": "M\\u00fcller", "cut'},
        metadata={"card": "4111111111111111"},
    )
    assess(platform, trace_id, name="good", value="said ann@example.org", rationale="Müller said so")
    assess(platform, trace_id, name="bad", error="for ann@example.org")
    assess(platform, trace_id, kind="expectation", name="expected", value=SECRETS)
    store = MlflowTraceStore(platform)
    trace = next(store.read([trace_id]))

    plain = json.dumps(vars(store.rows(trace)), default=str, ensure_ascii=False)
    redacted = json.dumps(vars(store.rows(trace, redact=RULES)), default=str, ensure_ascii=False)

    for secret in ("ann@example.org", "Müller", "4111111111111111", "hunter2"):
        assert secret in plain
        assert secret not in redacted
    assert "00fc" not in redacted
    rows = store.rows(trace, redact=RULES)
    assert rows.trace["user_id"] == "[mail]"
    assert json.loads(rows.trace["request"])["number"] == "[card]"
    assert json.loads(json.loads(json.loads(rows.trace["request"])["in json in json"])["arguments"])["who"] == "[name]"
    assert rows.trace["trace_id"] == trace_id


@pytest.fixture(scope="module")
def server(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, Platform]]:
    """The same store twice: through SQLite and through a real server on the loopback interface."""
    home = tmp_path_factory.mktemp("server")
    shutil.copy(migrated_store, home / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sqlite = Platform.from_env({"LIFECYCLE_HOME": str(home)})
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", sqlite.tracking_uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(home / "served")]
    log = (home / "server.log").open("wb")
    process = subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=log)
    uri = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 90
    try:
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, (home / "server.log").read_text()[-2000:]
                assert time.monotonic() < until, (home / "server.log").read_text()[-2000:]
                time.sleep(0.2)
        yield sqlite, Platform.from_env({"LIFECYCLE_HOME": str(home), "MLFLOW_TRACKING_URI": uri})
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def test_a_server_gives_the_same_infos_rows_and_scores(server: tuple[Platform, Platform]) -> None:
    sqlite, http = server
    given = {"q": "é", "n": 1, "f": 1.0, "m": "x" * 20_000, "nan": float("nan")}
    made = [
        make_trace(sqlite, MIDNIGHT_MS, inputs=given, outputs=[given], tags={"environment": "prod"}),
        make_trace(sqlite, MIDNIGHT_MS + 1, error=True, metadata={"mlflow.trace.cost": '{"total_cost": 0.5}'}),
        make_bare_trace(sqlite, "tr-" + "d" * 32, MIDNIGHT_MS + 2),
        make_trace(http, MIDNIGHT_MS + 3, inputs=given),
    ]
    for value in (True, 1, 0.5, "yes", {"a": 1}, None):
        assess(sqlite, made[0], name="good", value=value)
    assess(http, made[0], name="bad", error="oh")
    assess(http, made[0], kind="expectation", name="expected", value={"a": [1]})
    over, under = MlflowTraceStore(http), MlflowTraceStore(sqlite)

    version = {"mlflow.assessment.scorerVersion": "2"}
    for place, trace_id in zip((http, http, sqlite, http), made, strict=True):
        assess(place, trace_id, name="local_tiny_length", value=0.5, source="CODE", metadata=version)
    list(over.read(made))
    over.tag(made[2], "seen", "1")

    pair = ("local_tiny_length", "2")
    found = over.infos(EXPERIMENT, DAY, settled_before_ms=FOREVER)
    assert found == under.infos(EXPERIMENT, DAY, settled_before_ms=FOREVER)
    assert [(info.trace_id, info.scored) for info in found] == [(trace_id, {pair}) for trace_id in made]
    assert over.newest(EXPERIMENT) == under.newest(EXPERIMENT)
    assert over.newest(EXPERIMENT, model_id="m-1") == under.newest(EXPERIMENT, model_id="m-1")
    for a, b in zip(over.read(made), under.read(made), strict=True):
        assert over.rows(a, redact=RULES) == under.rows(b, redact=RULES)
    with pytest.raises(Refused, match="not understood"):
        over.infos(EXPERIMENT, DAY, settled_before_ms=FOREVER, filter_string="tier is vip")
    with pytest.raises(Refused, match="is gone"):
        list(over.read([made[0], "tr-" + "e" * 32]))
    by_http, by_file = (open_reader(one, experiment_id(one, EXPERIMENT), pytest.fail) for one in (http, sqlite))
    for rules in ((), RULES):
        assert rows(by_http, rules) == rows(by_file, rules)
    assert rows(by_http, spans=False) == rows(by_file, spans=False)
    assert (by_http.state(), by_file.state() > 0) == (0, True)
    asked = [made[3], "tr-" + "e" * 32, made[0]]
    assert [one.info.trace_id for one in by_http.traces(asked)] == [made[3], made[0]]


def test_a_server_that_is_not_there_is_explained(platform: Platform) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    away = Platform.from_env({"LIFECYCLE_HOME": str(platform.home), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"})

    with pytest.raises(Refused, match="does not answer"):
        MlflowTraceStore(away).newest(EXPERIMENT)


def test_a_trace_ingested_by_otlp_has_rows_like_any_other(server: tuple[Platform, Platform]) -> None:
    """It comes without a name and a model id; the model is known by a tag when the sender set one."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    sqlite, http = server
    request = ExportTraceServiceRequest()
    at = (MIDNIGHT_MS - DAY_MS) * 10**6
    span = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            trace_id=b"\x07" * 16,
            span_id=b"\x08" * 8,
            name="ask",
            start_time_unix_nano=at,
            end_time_unix_nano=at + 10**9,
        )
    )
    for key, value in {"session.id": "s-9", "mlflow.traceTag.mlflow.modelId": "m-9", "plain": "not json"}.items():
        span.attributes.add(key=key).value.string_value = value
    sent = urllib.request.Request(
        f"{http.tracking_uri}/v1/traces",
        data=request.SerializeToString(),
        headers={
            "Content-Type": "application/x-protobuf",
            "x-mlflow-experiment-id": experiment_id(sqlite, EXPERIMENT),
        },
    )
    urllib.request.urlopen(sent, timeout=10)

    for platform in (sqlite, http):
        store = MlflowTraceStore(platform)
        (info,) = store.infos(EXPERIMENT, date(2026, 11, 19), settled_before_ms=FOREVER)
        rows = store.rows(next(store.read([info.trace_id])))
        assert (info.model_id, info.session_id, info.ended_ms - info.request_ms) == ("m-9", "s-9", 1000)
        assert (rows.trace["state"], rows.trace["request"], rows.spans[0]["span_id"]) == (info.state, None, "08" * 8)
        assert json.loads(rows.spans[0]["attributes"])["plain"] == "not json"
