"""Queries see the tables and nothing else, and cannot write, however they are dressed."""

import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from lifecycle_assets.refused import Refused
from resources.delta_archive import DeltaArchive
from resources.platform import Platform
from resources.sql_engine import DuckDbEngine
from resources.tables import TABLES
from resources.views import VIEWS
from tests.resources.test_archive import DAY, PREFIX, make_rows


@pytest.fixture
def home(tmp_path: Path) -> Platform:
    """A platform with 20 traces of one day and a promotion."""
    return filled(tmp_path / "home")


def filled(folder: Path) -> Platform:
    platform = Platform.from_env({"LIFECYCLE_HOME": str(folder)})
    archive = DeltaArchive(platform)
    archive.upsert_day(PREFIX, DAY, [make_rows(i) for i in range(20)])
    promotion = {"at": datetime(2026, 11, 1, tzinfo=UTC), "alias": "champion", "to_version": "3", "model_id": "m-1"}
    archive.append_once(PREFIX, "promotions", promotion, key=["alias", "to_version"])
    return platform


def test_tables_have_the_columns_of_the_contract_before_anything_is_written(tmp_path: Path) -> None:
    engine = DuckDbEngine(Platform.from_env({"LIFECYCLE_HOME": str(tmp_path)}))

    for table, columns in TABLES.items():
        found = engine.query(PREFIX, f"SELECT * FROM {table}")
        assert found.columns == tuple(columns)
        assert found.rows == ()
    for view in VIEWS:
        assert engine.query(PREFIX, f"SELECT * FROM {view}").rows == ()
    assert engine.tables(PREFIX) == dict.fromkeys(TABLES, 0)
    assert list(tmp_path.iterdir()) == []


def test_types_are_the_same_empty_and_filled(tmp_path: Path, home: Platform) -> None:
    empty = DuckDbEngine(Platform.from_env({"LIFECYCLE_HOME": str(tmp_path / "empty")}))
    full = DuckDbEngine(home)

    for name in (*TABLES, *VIEWS):
        assert empty.query(PREFIX, f"DESCRIBE {name}").rows == full.query(PREFIX, f"DESCRIBE {name}").rows
    described = dict(row[:2] for row in full.query(PREFIX, "DESCRIBE traces").rows)
    assert described == TABLES["traces"] | {
        name: "TIMESTAMP WITH TIME ZONE" for name, kind in TABLES["traces"].items() if kind == "TIMESTAMPTZ"
    }


def test_values_come_back_as_python_values(home: Platform) -> None:
    row = DuckDbEngine(home).query(PREFIX, "FROM traces ORDER BY trace_id LIMIT 1").dicts()[0]

    assert row["trace_date"] == DAY
    assert row["request_time"] == datetime(2026, 11, 20, tzinfo=UTC)
    assert row["request_time"].tzinfo is UTC
    assert row["tags"] == {"environment": "prod"}
    assert row["cost_usd"] == 0.5


def test_parameters_are_bound_and_rows_are_limited(home: Platform) -> None:
    engine = DuckDbEngine(home)

    found = engine.query(PREFIX, "SELECT trace_id FROM traces WHERE trace_date = ? ORDER BY 1", [DAY], limit=3)
    assert found.rows == (("tr-0",), ("tr-1",), ("tr-10",))
    assert found.truncated
    assert not engine.query(PREFIX, "FROM traces", limit=20).truncated
    hostile = "tr-0'; DROP TABLE traces; --"
    assert engine.query(PREFIX, "SELECT count(*) FROM traces WHERE trace_id = ?", [hostile]).rows == ((0,),)


def test_views_say_what_the_rows_say(home: Platform) -> None:
    engine = DuckDbEngine(home)

    def one(view: str) -> dict:
        return engine.query(PREFIX, f"FROM {view}", costs={"prod_tiny_length": 0.25}).dicts()[0]

    quality = one("quality_by_version")
    assert (quality["version"], quality["name"], quality["n"], quality["mean"]) == ("3", "prod_tiny_length", 20, 9.5)
    assert one("latency")["p50_ms"] == 100.0
    assert one("errors") == {"trace_date": DAY, "model_id": "m-1", "traces": 20, "errors": 2, "error_rate": 0.1}
    assert one("feedback")["positive_rate"] == 0.5
    assert one("scorer_coverage")["coverage"] == 1.0
    assert one("sessions")["traces"] == 5
    assert one("judge_cost")["cost_usd"] == 5.0
    assert engine.query(PREFIX, "SELECT cost_usd FROM judge_cost").rows == ((0.0,),)


def test_full_and_prefixed_names_are_understood(home: Platform) -> None:
    engine = DuckDbEngine(home)

    assert engine.query(PREFIX, f'SELECT count(*) FROM "{PREFIX}traces"').rows == ((20,),)
    assert engine.query(PREFIX, "SELECT count(*) FROM tiny_spans").rows == ((40,),)


@pytest.mark.parametrize(
    "sql",
    [
        "WITH t AS (SELECT 1 AS a) SELECT a FROM t UNION ALL VALUES (2)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT * FROM n",
        "FROM traces SELECT count(*)",
        "DESCRIBE traces",
        "SHOW TABLES",
        "SUMMARIZE traces",
        "EXPLAIN SELECT 1",
        "/* why */ EXPLAIN /* it */ ANALYZE -- is slow\n SELECT count(*) FROM spans",
        "SELECT json_extract_string(request, '$.q') FROM traces -- a comment; with a semicolon",
        "SELECT tags['environment'] FROM traces;",
        "FROM traces PIVOT (count(*) FOR state IN ('OK', 'ERROR'))",
        "SELECT date_trunc('hour', request_time), quantile_cont(execution_ms, 0.5) FROM traces GROUP BY 1",
    ],
)
def test_queries_are_answered(home: Platform, sql: str) -> None:
    assert DuckDbEngine(home).query(PREFIX, sql).rows


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/proc/self/environ')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM read_parquet('https://example.org/x.parquet')",
        "SELECT getenv('HOME')",
        "SELECT * FROM query('COPY (SELECT 1) TO ''/tmp/never''')",
        "SELECT * FROM secret_of_python",
        "COPY traces TO '/tmp/never.csv'",
        "COPY traces FROM '/etc/passwd'",
        "EXPORT DATABASE '/tmp/never'",
        "ATTACH '/tmp/never.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "CALL pragma_version()",
        "CREATE TABLE mine (a INTEGER)",
        "INSERT INTO scorer_costs VALUES ('a', 1)",
        "DELETE FROM scorer_costs",
        "DROP VIEW traces",
        "BEGIN",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY traces TO '/tmp/never.csv'",
        "",
        "-- nothing",
        "SELEC 1",
        "SELECT nothing FROM traces",
        "SELECT * FROM nowhere",
        "SELECT ?",
        "WITH x AS (INSERT INTO scorer_costs VALUES ('a', 1) RETURNING 1) SELECT * FROM x",
        "SELECT (WITH x AS (DELETE FROM scorer_costs RETURNING 1) SELECT count(*) FROM x)",
        "EXPLAIN ANALYZE CREATE TABLE mine (a INTEGER)",
        "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '/tmp/never') SELECT * FROM x",
        "EXPLAIN EXPLAIN ANALYZE COPY traces TO '/tmp/never.csv'",
        "SELECT cast('x' AS INTEGER)",
    ],
)
def test_everything_else_is_refused_in_one_line(home: Platform, sql: str) -> None:
    secret_of_python = [{"a": 1}]

    with pytest.raises(Refused) as refusal:
        DuckDbEngine(home).query(PREFIX, sql)

    assert "\n" not in str(refusal.value)
    assert secret_of_python
    assert not list(Path("/tmp").glob("never*"))


@pytest.mark.parametrize("copy", ["COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)"])
@pytest.mark.parametrize("around", ["{copy}", "EXPLAIN ANALYZE {copy}", "WITH x AS ({copy}) SELECT * FROM x"])
def test_not_even_the_files_of_the_tables_can_be_overwritten(home: Platform, copy: str, around: str) -> None:
    """DuckDB's allowed_paths allows writing too, and a CTE that copies is a SELECT to DuckDB 2."""
    engine = DuckDbEngine(home)
    file = next(Path(home.table_uri(PREFIX + "traces")).rglob("*.parquet"))
    before = file.read_bytes()

    with pytest.raises(Refused):
        engine.query(PREFIX, around.format(copy=copy.format(file=file)))

    assert file.read_bytes() == before


def test_wrong_sql_names_what_is_there(home: Platform) -> None:
    with pytest.raises(Refused, match="quality_by_version"):
        DuckDbEngine(home).query(PREFIX, "SELECT * FROM trace")
    with pytest.raises(Refused, match=re.escape('write "at"')):
        DuckDbEngine(home).query(PREFIX, "SELECT * FROM promotions ORDER BY at")


def test_a_query_without_end_is_stopped(home: Platform) -> None:
    with pytest.raises(Refused, match="took longer than"):
        DuckDbEngine(home, timeout_seconds=0.5).query(
            PREFIX, "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE a.range * b.range = 7"
        )


@pytest.mark.parametrize("name", ["with space", "gl*b [1]", "quote's", "ümläut"])
def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    """A folder named like a pattern goes through delta-rs and Arrow, as object stores do."""
    engine = DuckDbEngine(filled(tmp_path / name))

    assert engine.tables(PREFIX)["traces"] == 20
    assert engine.query(PREFIX, "SELECT p95_ms FROM latency WHERE trace_date = ?", [DAY]).rows
    assert engine.query(PREFIX, "SELECT typeof(trace_date), typeof(tags) FROM traces LIMIT 1").rows == (
        ("DATE", "MAP(VARCHAR, VARCHAR)"),
    )
    with pytest.raises(Refused):
        engine.query(PREFIX, "SELECT * FROM read_csv('/etc/passwd')")


def test_queries_see_the_newest_version(home: Platform) -> None:
    engine = DuckDbEngine(home)
    assert engine.tables(PREFIX)["traces"] == 20

    DeltaArchive(home).upsert_day(PREFIX, date(2026, 11, 21), [make_rows(99, day=date(2026, 11, 21))])

    assert engine.query(PREFIX, "SELECT trace_date, count(*) FROM traces GROUP BY 1 ORDER BY 1").rows == (
        (DAY, 20),
        (date(2026, 11, 21), 1),
    )
