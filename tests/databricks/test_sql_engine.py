"""The warehouse answers what DuckDB answers, and fails in one sentence."""

import signal
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import pytest

from lifecycle_assets.cli import history, lineage_traces
from lifecycle_assets.monitoring import anomaly_sql, archive_step, quality_sql, windows
from lifecycle_assets.refused import Refused
from lifecycle_assets.review import assets as review
from lifecycle_assets.review import choosing, negative
from resources.archive.delta_archive import DeltaArchive
from resources.databricks.sql.dialect import TYPES
from resources.databricks.sql.sql_engine import WarehouseSqlEngine
from resources.databricks.sql.statements import StatementFailed, run_statement
from resources.feedback import FEEDBACK_NAME
from resources.labeling_desk import QUEUED_TAG
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from resources.sql.views import VIEWS
from resources.tables import TABLES
from resources.trace_rows import TraceRows
from tests.resources.archived import upsert_day
from tests.resources.test_archive import DAY, PREFIX, make_rows
from tests.workspace.app import Workspace
from tests.workspace.lake import Lake
from tests.workspace.statements import Statements
from tests.workspace.unity import Unity

HOSTILE = 'it\'s \\ "x" `y` %s :p1 ? ${z}\n; DROP TABLE traces; -- ünï 🙂'
MICROSECOND = datetime(2026, 11, 20, 0, 0, 9, 123456, tzinfo=UTC)
DAYS = [date(2026, 11, 1), DAY]
SCORE = "prod_tiny_length"
NIGHT, LATER = datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC)
CUT, WITHIN = ["m-1", 5, windows.MONDAY], [DAYS, "m-1", NIGHT, LATER, "m-2", NIGHT]
SLOTS = list(range(40))
SLICES = {"environment": ["prod"], "k'": [], HOSTILE: ["x"]}

QUESTIONS: dict[str, tuple[str, Sequence[Any]]] = {
    **{name: (f"SELECT * FROM {name}", ()) for name in VIEWS},
    **{f"table {name}": (f"SELECT * FROM {name} ORDER BY ALL", ()) for name in ("spans", "assessments", "promotions")},
    "table traces": ("FROM traces ORDER BY trace_id", ()),
    "table quality_metrics": ("FROM quality_metrics ORDER BY metric", ()),
    "values of a tag": (quality_sql.VALUES_SQL, ["k'", DAY, 3]),
    **{f"{name} of a day": asked for name, asked in quality_sql.statements(DAY, {}).items()},
    **{f"{name} of slices": asked for name, asked in quality_sql.statements(DAY, SLICES).items()},
    "history": (quality_sql.HISTORY_SQL, [*DAYS, ["traces{k=x}"]]),
    "traces by hours": (anomaly_sql.TRACES_SQL, [windows.MONDAY, *DAYS, 10**6]),
    "scores by hours": (anomaly_sql.SCORES_SQL, [windows.MONDAY, *DAYS, *DAYS, [SCORE, HOSTILE], 10**6]),
    **{
        f"worst of {check}": (sql, [DAY, NIGHT, LATER, *([SCORE, "1"] if check.startswith("score") else []), 5])
        for check, sql in anomaly_sql.WORST_SQL.items()
    },
    "archived until": (windows.ARCHIVED_SQL, [DAY]),
    "traces of windows": (windows.TRACES_SQL, [*CUT, *WITHIN, SLOTS]),
    "scores of windows": (windows.SCORES_SQL, [*CUT, *WITHIN, [SCORE, HOSTILE], SLOTS]),
    "counts of a day": (archive_step.COUNTS_SQL, [DAY, DAY, DAY]),
    "negative": (negative.NEGATIVE_SQL, [FEEDBACK_NAME, QUEUED_TAG, 5]),
    "low": (choosing.LOW_SQL, [SCORE, 7.5, QUEUED_TAG, 5]),
    "random": (choosing.RANDOM_SQL, [QUEUED_TAG, 5]),
    "any": (choosing.ANY_SQL, [QUEUED_TAG]),
    "scores of a version": (review.SCORE_SQL, [SCORE, "1"]),
    "moves": (history.MOVES_SQL, ()),
    "counts by model": (lineage_traces.COUNTS_SQL, ()),
    "newest": (lineage_traces.NEWEST_SQL, ["environment", [], True, [], 3]),
    "wanted": (lineage_traces.NEWEST_SQL, ["environment", ["tr-3", HOSTILE], False, ["tr-3", HOSTILE], 0]),
    "said": (lineage_traces.SAID_SQL, [["tr-1", "tr-2", HOSTILE]]),
    "newest of all": ("SELECT max(request_time) AS newest FROM traces", ()),
    "hostile": ("SELECT ? AS said, count(*) AS n FROM traces WHERE response = ?", [HOSTILE, HOSTILE]),
    "a time": ("SELECT trace_id FROM traces WHERE request_time = ?", [MICROSECOND]),
    "nothing": ("SELECT ? IS NULL AS a, ? AS b, ? AS c, ? AS d", [None, True, 2**40, 0.1]),
    "own names": (
        "WITH traces AS (SELECT * FROM traces WHERE state = 'OK'), days AS (SELECT 1 AS one) "
        "SELECT traces.model_id, s.name, count(*) AS n FROM traces JOIN spans s USING (trace_id), days "
        "WHERE trace_id NOT IN (SELECT trace_id FROM tiny_assessments WHERE value_number > 12) "
        "GROUP BY ALL ORDER BY ALL",
        (),
    ),
    "view in a view's name": ("WITH latency AS (SELECT * FROM latency) SELECT n FROM latency", ()),
    "full name": (f'SELECT count(*) AS n FROM "{PREFIX}traces" t JOIN tiny_spans USING (trace_id)', ()),
    "percentiles": ("SELECT median(execution_ms) AS a, quantile_cont(execution_ms, 0.25) AS b FROM traces", ()),
    "json": ("SELECT json_extract_string(request, '$.q') AS q FROM traces ORDER BY trace_id LIMIT ?", [3]),
    "order": ("SELECT DISTINCT output_tokens AS o FROM traces ORDER BY o", ()),
    "union": ("(SELECT 'a' AS x) UNION ALL (SELECT name FROM spans LIMIT 1)", ()),
}
"""Every query of the product and of a curious user."""


def rows_of(i: int) -> TraceRows:
    """Rows that differ in what matters to the queries."""
    rows = make_rows(i)
    rows.trace.update(
        execution_ms=None if i == 7 else 100 + 13 * i,
        user_id=("", "ann", "bob")[i % 3],
        model_id="m-2" if i % 4 == 0 else "m-1",
        response=HOSTILE if i == 3 else "x",
        output_tokens=None if i % 2 else i,
        tags={"environment": "prod", **({QUEUED_TAG: "s"} if i == 2 else {}), "k'": HOSTILE},
    )
    if i == 9:
        rows.trace["request_time"] = MICROSECOND
    said = rows.assessments[1]
    said.update(name=FEEDBACK_NAME, value_number=float(i % 2), value_text=None)
    rows.assessments.append(rows.assessments[0] | {"assessment_id": f"b-{i}", "scorer_version": "10", "error": "late"})
    return rows


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """The local platform with 16 traces of a day, a promotion and a day's numbers."""
    platform = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path_factory.mktemp("home"))})
    archive = DeltaArchive(platform)
    upsert_day(platform, DAY, [rows_of(i) for i in range(16)])
    promotion = {"at": datetime(2026, 11, 1, tzinfo=UTC), "alias": "champion", "to_version": "3", "model_id": "m-1"}
    archive.append_once(PREFIX, "promotions", promotion, key=["alias", "to_version"])
    number = {"model_id": "m-1", "version": "3", "value": 0.5, "n": 4, "ci_low": 0.1, "ci_high": None}
    archive.replace_day(PREFIX, "quality_metrics", DAY, [number | {"metric": f"{name}/mean"} for name in "ab"])
    return platform


@pytest.fixture
def engine(workspace: Workspace, databricks: Platform, local: Platform) -> WarehouseSqlEngine:
    """The warehouse with the rows of `local`."""
    for table in TABLES:
        make_table(workspace[Lake], table)
        workspace[Lake].insert(PREFIX + table, DuckDbEngine(local).query(PREFIX, f"FROM {table}").dicts())
    return WarehouseSqlEngine(databricks)


def make_table(lake: Lake, table: str) -> None:
    lake.create_table(PREFIX + table, {name: TYPES[kind] for name, kind in TABLES[table].items()})


def test_the_same_rows_give_the_same_answers(engine: WarehouseSqlEngine, local: Platform) -> None:
    costs = {SCORE: 0.25, "other": 1}
    for name, (sql, params) in QUESTIONS.items():
        here = DuckDbEngine(local).query(PREFIX, sql, params, costs=costs)
        there = engine.query(PREFIX, sql, params, costs=costs)
        assert there == here, name
        kinds = [[type(value) for value in row] for row in here.rows]
        assert [[type(value) for value in row] for row in there.rows] == kinds, name
        assert here.rows, name
    assert engine.tables(PREFIX) == DuckDbEngine(local).tables(PREFIX)


def test_a_table_never_written_is_there_without_rows_and_one_request_counts_all(
    workspace: Workspace, databricks: Platform, local: Platform
) -> None:
    engine = WarehouseSqlEngine(databricks)
    nowhere = DuckDbEngine(Platform.from_env({"LIFECYCLE_HOME": str(local.home / "empty")}))

    for name in (*TABLES, *VIEWS):
        assert engine.query(PREFIX, f"SELECT * FROM {name}") == nowhere.query(PREFIX, f"SELECT * FROM {name}")
    assert engine.tables(PREFIX) == dict.fromkeys(TABLES, 0)
    for table in TABLES:
        make_table(workspace[Lake], table)
    workspace.log.clear()
    assert engine.tables(PREFIX) == dict.fromkeys(TABLES, 0)
    assert len(workspace.log) == 1


def test_descriptions_are_of_what_can_be_asked(engine: WarehouseSqlEngine) -> None:
    described = engine.query(PREFIX, "DESCRIBE traces")

    assert described.columns == ("column_name", "column_type")
    assert described.rows == tuple((name, TYPES[kind]) for name, kind in TABLES["traces"].items())
    assert ("p50_ms", "DOUBLE") in engine.query(PREFIX, "DESCRIBE latency").rows
    assert {name for (name,) in engine.query(PREFIX, "SHOW TABLES").rows} == {*TABLES, *VIEWS, "scorer_costs"}


def test_long_answers_come_in_pieces_and_slow_ones_are_awaited(
    engine: WarehouseSqlEngine, workspace: Workspace
) -> None:
    workspace.page_size, workspace.slow_states = 3, 2

    found = engine.query(PREFIX, "SELECT trace_id FROM traces ORDER BY request_time")

    assert len(found.rows) == 16
    assert len(workspace.calls("result/chunks")) == 5
    limited = engine.query(PREFIX, "SELECT trace_id FROM traces ORDER BY request_time", limit=4)
    assert limited.rows == found.rows[:4]
    assert limited.truncated
    assert not engine.query(PREFIX, "SELECT trace_id FROM traces", limit=16).truncated


def test_an_answer_too_large_for_a_reply_comes_as_files(engine: WarehouseSqlEngine, workspace: Workspace) -> None:
    workspace[Statements].inline_bytes, workspace.page_size = 100, 5

    found = engine.query(PREFIX, "SELECT trace_id, tags FROM traces ORDER BY request_time")

    assert len({row[0] for row in found.rows}) == 16
    assert found.rows[2][1]["k'"] == HOSTILE
    assert [call.status for call in workspace.calls("GET /storage/results")] == [200] * 4


@pytest.mark.parametrize("kind", ["reset", "lost", "truncated"])
def test_a_lost_answer_is_asked_for_again(engine: WarehouseSqlEngine, workspace: Workspace, kind: str) -> None:
    workspace.fail("POST /api/2.0/sql/statements", kind=kind)

    assert engine.query(PREFIX, "SELECT count(*) FROM traces").rows == ((16,),)


def test_a_statement_that_takes_too_long_is_cancelled(databricks: Platform, workspace: Workspace) -> None:
    workspace.slow_states = 1000

    with pytest.raises(Refused, match=r"took longer than 0\.5 s and was cancelled"):
        WarehouseSqlEngine(databricks, timeout_seconds=0.5).query(PREFIX, "SELECT 1")

    assert len(workspace.calls("POST .*/cancel$")) == 1


def test_an_interrupt_cancels_the_statement(databricks: Platform, workspace: Workspace) -> None:
    import _thread

    workspace.slow_states = 1000
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background jobs ignore it.
    try:
        threading.Timer(0.6, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            run_statement(databricks, "SELECT 1", timeout_seconds=30)
    finally:
        signal.signal(signal.SIGINT, former)

    assert len(workspace.calls("POST .*/cancel$")) == 1


def test_failures_are_sentences_with_a_remedy(engine: WarehouseSqlEngine, workspace: Workspace) -> None:
    lake, unity = workspace[Lake], workspace[Unity]

    def refusal(prefix: str = PREFIX, sql: str = "SELECT count(*) FROM traces") -> str:
        with pytest.raises(Refused) as refused:
            engine.query(prefix, sql)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "CREATE SCHEMA `main`.`nowhere`" in refusal("main.nowhere.tiny_")
    assert "CREATE CATALOG `nowhere`" in refusal("nowhere.agents.tiny_")
    assert "nothing" in refusal(sql="SELECT nothing FROM traces")
    workspace.fail("POST .*statements", status=400, error_code="BAD_REQUEST", message="[CAST_INVALID_INPUT] The 'x'")
    assert "CAST_INVALID_INPUT" in refusal()
    lake.privileges.unrestricted = False
    assert f"GRANT USE CATALOG ON CATALOG `main` TO `{lake.privileges.me}`" in refusal()
    lake.privileges.add("CATALOG", "main", "users", ["USE CATALOG"])
    lake.privileges.add("SCHEMA", "main.agents", "users", ["USE SCHEMA"])
    assert "GRANT SELECT ON TABLE `main`.`agents`.`tiny_traces`" in refusal()
    unity.warehouse_denied.add("wh-1")
    assert "CAN USE" in refusal()
    del unity.warehouses["wh-1"]
    assert "DATABRICKS_WAREHOUSE_ID is 'wh-1'" in refusal()


def test_without_a_warehouse_nothing_is_asked(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_WAREHOUSE_ID")

    with pytest.raises(Refused, match="DATABRICKS_WAREHOUSE_ID is not set"):
        WarehouseSqlEngine(Platform.from_env()).query(PREFIX, "SELECT 1")
    assert not workspace.log


def test_a_schema_that_may_not_be_looked_into_is_not_empty(workspace: Workspace, databricks: Platform) -> None:
    workspace.fail("GET /api/2.1/unity-catalog/schemas", status=403, error_code="PERMISSION_DENIED", message="no")

    with pytest.raises(Refused, match="denies permission"):
        WarehouseSqlEngine(databricks).query(PREFIX, "SELECT count(*) FROM traces")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM other.agents.tiny_traces",
        "SELECT * FROM system.information_schema.tables",
        "SELECT * FROM read_files('/Volumes/main/agents/x')",
        "SELECT * FROM delta.`/tmp/table`",
        "SELECT * FROM IDENTIFIER('main.agents.secret')",
        "SELECT secret('scope', 'key')",
        "SELECT ai_query('model', request) FROM traces",
        "SELECT http_request(conn => 'c', method => 'GET')",
        "SELECT system.ai.python_exec('1')",
        "SELECT * FROM traces WHERE trace_id = (SELECT secret('a', 'b'))",
        "WITH x AS (SELECT * FROM other.a.b) SELECT 1",
        "DELETE FROM traces",
        "MERGE INTO traces USING spans ON true WHEN MATCHED THEN DELETE",
        "CREATE TABLE mine AS SELECT 1",
        "DROP VIEW latency",
        "GRANT SELECT ON TABLE traces TO `account users`",
        "SET a = 1",
        "USE CATALOG other",
        "COPY INTO traces FROM '/x'",
        "CALL x()",
        "SELECT 1; SELECT 2",
        "EXPLAIN DELETE FROM traces",
        "WITH x AS (DELETE FROM traces RETURNING 1) SELECT * FROM x",
        "SELECT * INTO mine FROM traces",
        "",
        "SELEC 1",
        "SELECT ?",
        "SELECT :name",
        "SELECT * FROM promotions ORDER BY at at",
    ],
)
def test_what_only_reads_the_agents_tables_is_asked_and_nothing_else(
    databricks: Platform, workspace: Workspace, sql: str
) -> None:
    with pytest.raises(Refused) as refusal:
        WarehouseSqlEngine(databricks).query(PREFIX, sql)

    assert "\n" not in str(refusal.value)
    assert not workspace.calls("sql/statements")


def test_databricks_sql_of_a_user_is_taken_as_it_is(engine: WarehouseSqlEngine) -> None:
    sql = "SELECT `t`.`tags`['k\\''] AS said FROM `traces` AS `t` WHERE trace_id = 'tr-3' -- `why`"

    assert engine.query(PREFIX, sql).rows == ((HOSTILE,),)


def test_a_write_tells_what_it_did_and_may_be_repeated(databricks: Platform, workspace: Workspace) -> None:
    workspace[Lake].create_table("main.agents.t", {"id": "STRING", "n": "BIGINT"})
    merge = (
        "MERGE INTO `main`.`agents`.`t` AS t USING (SELECT :id AS id, :n AS n) AS s ON t.id = s.id "
        "WHEN MATCHED AND NOT (t.n <=> s.n) THEN UPDATE SET t.n = s.n WHEN NOT MATCHED THEN INSERT (id, n) "
        "VALUES (s.id, s.n)"
    )
    values: Mapping[str, Any] = {"id": HOSTILE, "n": 1}
    workspace.fail("POST /api/2.0/sql/statements", kind="lost")

    assert run_statement(databricks, merge, values).dicts()[0]["num_affected_rows"] == 0
    assert workspace[Lake].rows("main.agents.t") == [{"id": HOSTILE, "n": 1}]
    with pytest.raises(StatementFailed) as failure:
        run_statement(databricks, "SELECT * FROM main.agents.absent")
    assert failure.value.condition == "TABLE_OR_VIEW_NOT_FOUND"
