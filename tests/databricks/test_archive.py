"""The archive in a workspace says what the local one says, by SQL alone."""

import base64
import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.archive.row_changes import Written
from resources.databricks.archive.archival_steps import enable_archival
from resources.databricks.archive.archive import WarehouseArchive
from resources.databricks.archive.redaction_sql import CONSTANTS, Redactor, java_pattern, java_replacement
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from resources.redaction import Text
from resources.trace_rows import TraceRows, trace_rows
from tests.building import make_agent
from tests.workspace.app import Workspace
from tests.workspace.archival import Archival
from tests.workspace.lake import Lake
from tests.workspace.otel_tables import store_trace
from tests.workspace.traces import Traces
from tests.workspace.tracking import Tracking

PLACE = "main.agents.tiny"
DAY = date(2026, 11, 20)
SETTLED = int(datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp() * 1000)
STATEMENTS = r"POST /api/2.0/sql/statements"
RULES = [
    {"pattern": r"\b\d{3}-\d{2}-\d{4}\b", "replacement": "[ssn]"},
    {"pattern": r"(?P<who>\w)[\w.]*@[\w.]+", "replacement": "[mail]"},
    {"pattern": r"^4111\d{12}$", "replacement": "[card]"},
]


def make_trace(number: int, *, at: int = 0, place: str = PLACE, **info: Any) -> dict[str, Any]:
    """A trace of two spans that started `at` seconds into the day, as the workspace holds it."""
    hex_id = f"{number:032x}"
    start = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC) + timedelta(seconds=at + number)
    nano = int(start.timestamp()) * 10**9
    trace_id = f"trace:/{place}/{hex_id}" if place else f"tr-{hex_id}"
    root, child = (base64.b64encode(bytes.fromhex(f"{number:015x}{k}")).decode() for k in (1, 2))
    inputs, outputs = info.pop("inputs", {"q": f"question {number}"}), info.pop("outputs", "an answer")

    def span(span_id: str, parent: str | None, name: str, **attributes: Any) -> dict[str, Any]:
        said = {"mlflow.traceRequestId": trace_id, **attributes}
        return {
            "trace_id": base64.b64encode(bytes.fromhex(hex_id)).decode(),
            "span_id": span_id,
            "parent_span_id": parent,
            "name": name,
            "start_time_unix_nano": nano,
            "end_time_unix_nano": nano + 2 * 10**8,
            "events": [],
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in said.items()},
        }

    extra = info.pop("attributes", {})
    first = span(root, None, "predict", **{"mlflow.spanType": "AGENT", "mlflow.spanInputs": inputs}, **extra)
    first["attributes"]["mlflow.spanOutputs"] = json.dumps(outputs, ensure_ascii=False)
    second = span(child, root, info.pop("name", "answer"), n=1, nested={"deep": [1.5, None, True]})
    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "1000"}}
    return {
        "experiment_id": "1000",
        "spans": [first, second],
        "info": {
            "trace_id": trace_id,
            "trace_location": location,
            "request_time": start.isoformat().replace("+00:00", "Z"),
            "execution_duration": "0.200s",
            "state": "OK",
            "request_preview": "cut off",
            "response_preview": "cut off",
            "trace_metadata": {
                "mlflow.modelId": "m-1",
                "mlflow.trace.session": "s-1",
                "mlflow.trace.user": "ann",
                "mlflow.trace.tokenUsage": '{"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}',
                "mlflow.trace.cost": '{"total_cost": 0.25}',
                "mlflow.traceInputs": "a copy",
            },
            "tags": {"environment": "prod", "mlflow.traceName": "predict"},
            "assessments": [],
            **info,
        },
    }


def said(assessment_id: str, value: Any, **more: Any) -> dict[str, Any]:
    """An assessment as the workspace holds it."""
    kind = more.pop("kind", "feedback")
    return {
        "assessment_id": assessment_id,
        "assessment_name": "prod_tiny_length",
        "source": {"source_type": "CODE", "source_id": "length"},
        "create_time": "2026-11-20T10:00:00Z",
        "last_update_time": "2026-11-20T10:00:00Z",
        "metadata": {"mlflow.assessment.scorerVersion": "3"},
        "valid": True,
        kind: {"value": value, **({"error": more.pop("error")} if "error" in more else {})},
        **more,
    }


ORDINARY = [
    said("a-number", 0.5, rationale="because"),
    said("a-true", True),
    said("a-yes", "yes", source={"source_type": "HUMAN", "source_id": "ann"}, metadata={}),
    said("a-list", ["x", 1], kind="expectation"),
    said("a-error", None, error={"error_code": "E", "error_message": "it broke"}),
    said("a-none", None, metadata={"mlflow.assessment.scorerVersion": "3", "lifecycle.outcome": "not applicable"}),
    said("a-invalid", "no", valid=False),
]
HOSTILE = "'; DROP TABLE spans; -- \" \\ \\n \u202e 🙂 ${x} :day `t` 123-45-6789 a.b@c.org"


def hostile_trace(place: str, long: int = 50_000) -> dict[str, Any]:
    """A trace whose every text tries something; one has this many characters."""
    trace = make_trace(
        2,
        place=place,
        inputs={HOSTILE: [HOSTILE, 4111111111111111, "\n123-45-6789", "4111111111111111", "x" * long]},
        outputs=f"plain {HOSTILE}",
        name=HOSTILE,
        attributes={HOSTILE: HOSTILE, "empty": ""},
        tags={"": "", "a'b\"c": HOSTILE, "json": '{"m": "a.b@c.org", "broken'},
        assessments=[
            said("a-h", HOSTILE, rationale=HOSTILE, source={"source_type": "HUMAN", "source_id": HOSTILE}, metadata={}),
            said("a-q", '"quoted" and "more"'),
            said("a-e", None, error={"error_code": "", "error_message": HOSTILE}),
        ],
    )
    trace["info"]["trace_metadata"] |= {
        "mlflow.trace.tokenUsage": "not json",
        "mlflow.trace.user": HOSTILE,
        "mlflow.trace.cost": '{"total_cost": "a lot"}',
    }
    trace["spans"][1]["status"] = {"code": "STATUS_CODE_ERROR", "message": HOSTILE}
    trace["spans"][1]["events"] = [
        {"name": "exception", "time_unix_nano": 5, "attributes": {"exception.message": HOSTILE}}
    ]
    return trace


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return make_agent(tmp_path, "tiny")


@pytest.fixture
def archive(databricks: Platform) -> WarehouseArchive:
    return WarehouseArchive(databricks)


@pytest.fixture
def keep(workspace: Workspace, databricks: Platform, agent: Agent) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Puts a trace into the tables of Unity Catalog that the experiment is linked to."""
    tags = workspace[Tracking].experiment(experiment_id(databricks, agent.spec.experiment))["tags"]
    tags["mlflow.experiment.databricksTraceDestinationPath"] = PLACE

    def put(trace: dict[str, Any]) -> dict[str, Any]:
        store_trace(workspace, "main.agents", "tiny", trace)
        return trace

    return put


def run(archive: WarehouseArchive, agent: Agent) -> Any:
    return archive.archive_day(agent, DAY, settled_before_ms=SETTLED, progress=lambda line: None)


def held(workspace: Workspace, table: str) -> dict[str, dict[str, Any]]:
    """Rows by key, JSON as values."""
    key = {"traces": "trace_id", "spans": "span_id", "assessments": "assessment_id"}[table]
    rows = workspace[Lake].rows(f"main.agents.tiny_{table}")
    assert len({row[key] for row in rows}) == len(rows)
    return {row[key]: readable(row) for row in rows}


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its JSON texts as values; what only one side can know is left out."""
    found = {name: value for name, value in row.items() if name not in ("archived_at", "experiment_id")}
    for name in ("request", "response", "inputs", "outputs", "attributes", "value_text"):
        if isinstance(found.get(name), str) and found[name][:1] in ("{[" if name == "value_text" else '{["'):
            try:
                found[name] = json.loads(found[name])
            except ValueError:
                continue
    for event in (found.get("attributes") or {}).get("events", []) if "attributes" in found else []:
        event.pop("dropped_attributes_count", None)
    return found


def local_rows(trace: dict[str, Any], agent: Agent) -> TraceRows:
    from mlflow.entities import Trace

    info = {name: value for name, value in trace["info"].items() if name != "execution_duration"}
    entity = Trace.from_dict({"info": info | {"execution_duration_ms": 200}, "data": {"spans": trace["spans"]}})
    return trace_rows(entity, agent.redactions)


def assert_same(workspace: Workspace, trace: dict[str, Any], agent: Agent) -> None:
    """Column by column the rows of a trace are those the local archive makes of it."""
    expected = local_rows(trace, agent)
    assert held(workspace, "traces")[trace["info"]["trace_id"]] == readable(expected.trace)
    spans, assessments = held(workspace, "spans"), held(workspace, "assessments")
    for row in expected.spans:
        assert spans[row["span_id"]] == readable(row)
    for row in expected.assessments:
        assert assessments[row["assessment_id"]] == readable(row)


def test_the_same_trace_is_the_same_row(
    workspace: Workspace, archive: WarehouseArchive, agent: Agent, keep: Callable[..., Any]
) -> None:
    ordinary, hostile = keep(make_trace(1, assessments=ORDINARY)), keep(hostile_trace(PLACE))
    evaluated = make_trace(3)
    evaluated["info"]["trace_metadata"]["mlflow.sourceRun"] = "r-1"
    keep(evaluated)
    keep(make_trace(4, at=86_400))
    keep(make_trace(5, at=-86_400))
    unfinished = make_trace(6)
    unfinished["spans"] = unfinished["spans"][1:]
    keep(unfinished)

    archived = run(archive, agent)

    assert archived.settled == 2
    assert archived.absent == ()
    assert archived.written == {"spans": Written(4, 0), "assessments": Written(10, 0), "traces": Written(2, 0)}
    assert archived.newest_ms == int(datetime(2026, 11, 20, 0, 0, 2, tzinfo=UTC).timestamp() * 1000)
    assert len(held(workspace, "traces")) == 2
    for trace in (ordinary, hostile):
        assert_same(workspace, trace, agent)


def test_what_changed_late_is_written_and_nothing_else(
    workspace: Workspace, archive: WarehouseArchive, agent: Agent, keep: Callable[..., Any]
) -> None:
    """A label a week later, a changed tag, a withdrawn assessment: one row each; a rerun makes no commit."""
    traces = [keep(make_trace(number, assessments=[said(f"a-{number}", 1.0)])) for number in range(1, 4)]
    assert archive.version("main.agents.tiny_", "traces") == -1
    run(archive, agent)
    before = [archive.version("main.agents.tiny_", table) for table in ("traces", "spans", "assessments")]
    posts = len(workspace.calls(STATEMENTS))

    again = run(archive, agent)
    assert again.written == dict.fromkeys(("spans", "assessments", "traces"), Written(0, 0))
    assert len(workspace.calls(STATEMENTS)) - posts == 3  # Two shapes, one comparison.
    assert [archive.version("main.agents.tiny_", table) for table in ("traces", "spans", "assessments")] == before

    traces[0]["info"]["tags"]["environment"] = "staging"
    late = said("h-1", "yes", create_time="2026-11-27T10:00:00Z", last_update_time="2026-11-27T10:00:00Z")
    traces[1]["info"]["assessments"].append(late)
    withdrawn = traces[2]["info"]["assessments"].pop()
    for trace in traces:
        keep(trace)

    changed = run(archive, agent)
    assert changed.written == {"spans": Written(0, 0), "assessments": Written(1, 1), "traces": Written(0, 1)}
    assert held(workspace, "assessments")[withdrawn["assessment_id"]]["valid"] is False
    assert archive.version("main.agents.tiny_", "spans") == before[1]
    for trace in traces:
        assert_same(workspace, trace, agent)
    assert run(archive, agent).written == dict.fromkeys(("spans", "assessments", "traces"), Written(0, 0))


def test_stopped_between_tables_and_run_again(
    workspace: Workspace, archive: WarehouseArchive, agent: Agent, keep: Callable[..., Any]
) -> None:
    """Children first: what `traces` has is complete, and the next run writes what is missing."""
    for number in range(1, 4):
        keep(make_trace(number, assessments=[said(f"a-{number}", 1.0)]))
    run(archive, agent)
    for number in range(4, 7):
        keep(make_trace(number, assessments=[said(f"a-{number}", 1.0)]))
    workspace.fail(STATEMENTS, kind="hang", seconds=0, times=4)  # Up to the merge of spans.
    workspace.fail(STATEMENTS, kind="status", status=500)

    with pytest.raises(Exception, match="injected"):
        run(archive, agent)
    assert (len(held(workspace, "spans")), len(held(workspace, "traces"))) == (12, 3)

    workspace.fail(STATEMENTS, kind="hang", seconds=0, times=3)
    workspace.fail(STATEMENTS, kind="lost")  # The merge is done, its answer is lost: it is sent again.
    resumed = run(archive, agent)
    assert resumed.written == {"spans": Written(0, 0), "assessments": Written(3, 0), "traces": Written(3, 0)}
    assert resumed.absent == ()
    assert [len(held(workspace, table)) for table in ("spans", "assessments", "traces")] == [12, 6, 6]


def test_text_is_redacted_before_it_is_written(
    workspace: Workspace, archive: WarehouseArchive, tmp_path: Path, keep: Callable[..., Any]
) -> None:
    agent = make_agent(tmp_path / "strict", "tiny", attributes={"archive": {"settle_minutes": 0, "redact": RULES}})
    ordinary, hostile = keep(make_trace(1, assessments=ORDINARY)), keep(hostile_trace(PLACE, long=1000))
    nested = keep(make_trace(3, inputs={"tool": json.dumps({"text": "ssn\n123-45-6789"})}))

    run(archive, agent)

    for trace in (ordinary, hostile):
        assert_same(workspace, trace, agent)
    everything = json.dumps([held(workspace, table) for table in ("traces", "spans", "assessments")], default=str)
    for secret in ("123-45-6789", "a.b@c.org", "4111111111111111"):
        assert secret not in everything
    assert "ssn" in json.dumps(held(workspace, "traces")[nested["info"]["trace_id"]]["request"])
    assert run(archive, agent).written == dict.fromkeys(("spans", "assessments", "traces"), Written(0, 0))
    for logged in workspace.calls(STATEMENTS):
        assert "4111" not in logged.json["statement"], "patterns are parameters"


TEXTS = [
    "hello",
    "ssn\n123-45-6789 bob@x.org",
    '{"a": "ssn:\\n123-45-6789", "b": [1, 4111111111111111, -4.5e3], "card": "4111111111111111", "c": true}',
    '{"path": "C:\\\\new\\\\table", "q": "say \\"hi\\" to bob@x.org"}',
    "{not json, mail bob@x1.org",
    '"quoted é jos\\u00e9@x.org"',
    '{"u": "\\u0031\\u0032\\u0033-45-6789", "smile": "\\ud83d\\ude00 bob@x.org", "half": "x"}',
    '["", {"k\\"ey bob@x.org": null}]',
    "C:\\new 123-45-6789",
    '{"broken": "x\\q 123-45-6789"}',
    "\\u0031\\u0032\\u0033-45-6789",
    "",
]


def test_rules_meet_text_as_it_was_said(workspace: Workspace) -> None:
    """What the warehouse makes of a text is what this process would make of it."""
    rules = [(re.compile(rule["pattern"]), rule["replacement"]) for rule in RULES]
    redactor, names = Redactor(rules), [f"text_{number}" for number in range(len(TEXTS))]
    values = dict(zip(names, TEXTS, strict=True)) | CONSTANTS | redactor.parameters
    query = f"SELECT {redactor.texts(*(f':{name}' for name in names))} AS said"

    found = workspace[Lake].execute(query, values)[1][0][0]

    assert [readable({"request": one}) for one in found] == [
        readable({"request": Text(rules).plain(text)}) for text in TEXTS
    ]


def reshaped(lake: Lake, table: str, **columns: str) -> None:
    """The table again with some columns of another type."""
    names = [column[0] for column in lake.columns(table)]
    listed = ", ".join(f"{columns.get(name, f'`{name}`')} AS `{name}`" for name in names)
    lake.execute(f"CREATE TABLE {table}_other AS SELECT {listed} FROM {table}")
    lake.drop(table)
    lake.execute(f"CREATE TABLE {table} AS SELECT * FROM {table}_other")


def test_columns_may_be_of_another_type(
    workspace: Workspace, archive: WarehouseArchive, agent: Agent, keep: Callable[..., Any]
) -> None:
    """Maps where others have VARIANT, JSON text where others have structures; a missing column is named."""
    trace, lake = keep(make_trace(1, assessments=ORDINARY)), workspace[Lake]
    reshaped(lake, f"{PLACE}_otel_spans", attributes="try_cast(attributes AS MAP<STRING, STRING>)")
    reshaped(lake, f"{PLACE}_otel_annotations", value="to_json(value)", metadata="to_json(metadata)")

    assert run(archive, agent).settled == 1
    assert_same(workspace, trace, agent)
    views = lake.execute("SELECT model_id, n FROM main.agents.tiny_latency")[1]
    assert views == [("m-1", 1)], "the contract's views are there for people"

    lake.execute(f"ALTER TABLE {PLACE}_otel_annotations DROP COLUMN target_id")
    with pytest.raises(Refused, match=r"otel_annotations.* has no column target_id"):
        run(archive, agent)


def test_native_archival_is_switched_on_once(
    workspace: Workspace, databricks: Platform, archive: WarehouseArchive, tmp_path: Path
) -> None:
    """Before its first round what MLflow has is absent; then the rows are the same as from Unity Catalog."""
    agent = make_agent(tmp_path / "e", "tiny", attributes={"tracing": {"location": "experiment"}})
    experiment = experiment_id(databricks, agent.spec.experiment)
    for trace in (make_trace(1, place="", assessments=ORDINARY), hostile_trace("")):
        trace["info"]["trace_location"]["mlflow_experiment"]["experiment_id"] = experiment
        workspace[Traces].add({**trace, "experiment_id": experiment})
    workspace[Archival].tables[experiment] = "main.agents.tiny_native_traces"  # Somebody did: 409 is success.

    early = run(archive, agent)
    assert early.settled == 2
    assert len(early.absent) == 2
    assert [call.status for call in workspace.calls("POST .*/trace-archival")] == [409]

    workspace.tick()
    archived = run(archive, agent)
    assert len(workspace.calls("/trace-archival")) == 1, "a tag remembers it"
    assert archived.absent == ()
    assert archived.written == {"spans": Written(4, 0), "assessments": Written(10, 0), "traces": Written(2, 0)}
    for trace in workspace[Traces].all(experiment):
        assert_same(workspace, trace, agent)
    workspace.tick()
    assert run(archive, agent).written == dict.fromkeys(("spans", "assessments", "traces"), Written(0, 0))


@pytest.mark.usefixtures("as_before")
def test_a_missing_schema_is_called_by_its_name(databricks: Platform) -> None:
    """The client says 'Experiment not found' for it."""
    experiment, table = experiment_id(databricks, "/agents/tiny"), "main.nowhere.tiny_native_traces"
    with pytest.raises(Refused, match=r"CREATE SCHEMA main\.nowhere"):
        enable_archival({"experiment": "/agents/tiny", "experiment_id": experiment, "table": table})


def test_an_experiment_not_linked_says_what_to_do(archive: WarehouseArchive, agent: Agent) -> None:
    with pytest.raises(Refused, match="materialize production_traces"):
        run(archive, agent)


def test_traces_of_the_older_location(
    workspace: Workspace, databricks: Platform, archive: WarehouseArchive, agent: Agent
) -> None:
    tags = workspace[Tracking].experiment(experiment_id(databricks, agent.spec.experiment))["tags"]
    tags["mlflow.experiment.databricksTraceDestinationPath"] = "main.agents"
    trace = make_trace(1, place="main.agents", assessments=ORDINARY)
    store_trace(workspace, "main.agents", "mlflow_experiment_trace", trace)

    assert run(archive, agent).settled == 1
    assert_same(workspace, trace, agent)


def test_a_day_is_replaced_as_a_whole_and_a_promotion_appended_once(
    workspace: Workspace, archive: WarehouseArchive
) -> None:
    prefix = "main.agents.tiny_"
    rows = [{"model_id": "m'", "version": "1", "metric": f"x/{i}", "value": i / 3, "n": 3} for i in range(3)]

    def write(new: list[dict[str, Any]], day: date = DAY) -> Written:
        return archive.replace_day(prefix, "quality_metrics", day, new)

    assert write([]) == Written(0, 0)
    assert write(rows) == Written(3, 0)
    assert write(rows, DAY - timedelta(days=1)) == Written(3, 0)
    version = archive.version(prefix, "quality_metrics")
    assert write(list(reversed(rows))) == Written(0, 0)
    assert archive.version(prefix, "quality_metrics") == version
    assert write([rows[0] | {"value": 9.0}, rows[1], rows[2] | {"metric": "y"}]) == Written(1, 1, 1)
    assert write([]) == Written(0, 0, 3)
    assert len(workspace[Lake].rows(f"{prefix}quality_metrics")) == 3

    at = datetime(2026, 11, 20, 10, 0, 0, 123456, tzinfo=UTC)
    row = {"at": at, "alias": "champion", "from_version": None, "to_version": "1", "reason": HOSTILE, "evidence": "{}"}
    workspace.fail(STATEMENTS, kind="hang", seconds=0, times=2)
    workspace.fail(STATEMENTS, kind="lost")  # The merge: done, its answer lost.
    assert archive.append_once(prefix, "promotions", row, key=("alias", "at"))
    assert not archive.append_once(prefix, "promotions", row, key=("alias", "at"))
    assert archive.append_once(prefix, "promotions", row | {"alias": "previous"}, key=("alias", "at"))
    kept = workspace[Lake].rows(f"{prefix}promotions")
    assert [one["alias"] for one in kept] == ["champion", "previous"]
    assert kept[0]["at"] == at
    assert kept[0]["reason"] == HOSTILE


@pytest.mark.filterwarnings("ignore:Possible")
@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"(?P<a>x)(?P=a)", r"(x)\1"),
        (r"[\w.-]+\s", r"[\p{L}\p{N}_.-]+[\s\p{Z}]"),
        (r"a{2,3}b{,4}{x}", r"a{2,3}b{0,4}\{x\}"),
        ("[[a]é\\u00e9", "[\\[a]é\\x{e9}"),
        ("a.b[]x]", "a[^\\n]b[\\]x]"),
    ],
)
def test_a_pattern_is_said_as_databricks_reads_it(pattern: str, said: str) -> None:
    assert java_pattern(re.compile(pattern)) == said


@pytest.mark.filterwarnings("ignore:Possible")
@pytest.mark.parametrize("pattern", [r"(a)?(?(1)b|c)", "(?x)a b", r"(?a)\w", r"\N{BULLET}", "(?i)é", "[a&&b]"])
def test_a_pattern_databricks_cannot_read_is_refused(pattern: str) -> None:
    with pytest.raises(Refused, match=r"archive\.redact"):
        java_pattern(re.compile(pattern))


def test_a_replacement_is_said_as_databricks_reads_it() -> None:
    assert java_replacement(r"\g<who>…\1 costs $5 \\", re.compile("(?P<who>a)")) == r"$1…$1 costs \$5 \\"
