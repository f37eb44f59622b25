"""Queries see the tables and nothing else, and cannot write, however they are dressed."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable, write_deltalake

from lifecycle_assets.refused import Refused
from resources.archive.delta_archive import DeltaArchive
from resources.delta.write import append_rows, table_to_write
from resources.platform import Platform
from resources.sql import files as sql_files
from resources.sql.database import names_in
from resources.sql.engine import DuckDbEngine
from resources.sql.views import VIEWS
from resources.tables import TABLES, arrow_table
from tests.resources.archived import upsert_day
from tests.resources.test_archive import DAY, PREFIX, make_rows


@pytest.fixture
def home(tmp_path: Path) -> Platform:
    """A platform with 20 traces of one day and a promotion."""
    return filled(tmp_path / "home")


def filled(folder: Path) -> Platform:
    platform = Platform.from_env({"LIFECYCLE_HOME": str(folder)})
    archive = DeltaArchive(platform)
    upsert_day(platform, DAY, [make_rows(i) for i in range(20)])
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


@pytest.mark.parametrize("name", ["with space", "gl*b {?}", "quote's", "ümläut"])
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

    upsert_day(home, date(2026, 11, 21), [make_rows(99, day=date(2026, 11, 21))])

    assert engine.query(PREFIX, "SELECT trace_date, count(*) FROM traces GROUP BY 1 ORDER BY 1").rows == (
        (DAY, 20),
        (date(2026, 11, 21), 1),
    )


def appended(home: Platform, numbers: range) -> None:
    """One commit a trace to each table, as an archive that is brought up to date all day."""
    for i in numbers:
        rows = make_rows(i)
        for table, of_table in (("assessments", rows.assessments), ("traces", [rows.trace])):
            append_rows(table_to_write(home.table_uri(PREFIX + table), table), arrow_table(table, of_table))


def answers(home: Platform) -> dict[str, Any]:
    return {view: DuckDbEngine(home).query(PREFIX, f"FROM {view}") for view in VIEWS}


def test_views_read_the_files_of_a_version_once(home: Platform) -> None:
    """Its files are moved away, and every view still answers; the next version is read from files again."""
    appended(home, range(100, 112))
    first = answers(home)
    assert first["errors"].dicts()[0]["traces"] == 32
    place = Path(home.table_uri(PREFIX + "traces"))
    place.rename(place.with_name("away"))
    (place / "_delta_log").mkdir(parents=True)
    for file in (place.with_name("away") / "_delta_log").iterdir():
        file.rename(place / "_delta_log" / file.name)

    assert answers(home) == first

    (place / "_delta_log" / f"{DeltaTable(place).version():020d}.json").touch()
    with pytest.raises(Refused):
        answers(home)


@pytest.mark.parametrize("rows", [0, 25])
def test_a_table_beyond_what_may_be_held_is_read_from_its_files(
    home: Platform, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended(home, range(100, 110))
    whole = answers(home)
    monkeypatch.setattr(sql_files, "HELD_ROWS", rows)
    appended(home, range(110, 111))

    found = answers(home)

    assert found["errors"].dicts()[0]["traces"] == whole["errors"].dicts()[0]["traces"] + 1 == 31
    assert found["feedback"].dicts()[0]["n"] == 31
    monkeypatch.undo()
    shutil.copytree(home.home, home.home.with_name("other"))
    assert answers(Platform.from_env({"LIFECYCLE_HOME": str(home.home.with_name("other"))})) == found


def test_another_table_in_the_same_place_is_another_table(home: Platform) -> None:
    before = answers(home)
    shutil.rmtree(home.home)
    assert answers(home)["errors"].rows == ()
    filled(home.home)
    upsert_day(home, DAY, [make_rows(50)])

    assert answers(home)["errors"].dicts()[0]["traces"] == 21
    assert before["errors"].dicts()[0]["traces"] == 20


def test_files_from_before_a_table_had_its_newest_columns_are_read(home: Platform) -> None:
    """Older files lack the column: it is null there, whichever file comes first."""
    kept = {name: kind for name, kind in TABLES["assessments"].items() if name != "updated_at"}
    uri = home.table_uri(PREFIX + "assessments")
    shutil.rmtree(uri)
    old = arrow_table("assessments", make_rows(1).assessments).select(list(kept))
    write_deltalake(uri, old, partition_by=["trace_date"])
    write_deltalake(uri, arrow_table("assessments", make_rows(2).assessments), mode="append", schema_mode="merge")

    engine = DuckDbEngine(home)
    found = engine.query(PREFIX, "SELECT count(*), count(updated_at) FROM assessments").rows
    assert found == ((4, 2),)
    assert engine.query(PREFIX, "SELECT sum(calls) FROM judge_cost").rows == ((2,),)


def test_threads_share_a_database_and_each_sees_what_is_newest(home: Platform) -> None:
    engine = DuckDbEngine(home)

    def ask(i: int) -> int:
        if i % 10 == 9:
            appended(home, range(1000 + i, 1001 + i))
        costs = {"prod_tiny_length": 1.0} if i % 2 else None
        cost = engine.query(PREFIX, "SELECT sum(cost_usd), sum(calls) FROM judge_cost", costs=costs).rows[0]
        assert cost[0] == (cost[1] if i % 2 else 0)
        return engine.query(PREFIX, "SELECT sum(traces) FROM errors").rows[0][0]

    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(ask, range(30)))
    assert set(seen) <= {20, 21, 22, 23}
    assert ask(0) == 23


def test_only_what_a_query_can_mean_is_read() -> None:
    """A kind of assessment or a column called like a view is no view; whatever else is called so, is."""
    nothing: frozenset[str] = frozenset()
    asked = "SELECT count(*) AS errors FROM assessments WHERE kind = 'feedback'"
    assert names_in(asked) == ({"assessments"}, nothing)
    for sql in ("FROM Errors", 'SELECT * FROM "errors" AS e', f"FROM {PREFIX}errors", "WITH a AS (FROM errors) FROM a"):
        assert names_in(sql) == (nothing, {"errors"})
    assert names_in("SHOW TABLES") == (set(TABLES), set(VIEWS))


def test_tables_asked_after_views_are_there_and_views_stay(home: Platform) -> None:
    engine = DuckDbEngine(home)

    assert engine.query(PREFIX, "SELECT sum(traces) FROM errors").rows == ((20,),)
    assert engine.query(PREFIX, "SELECT count(*) FROM traces").rows == ((20,),)
    assert engine.query(PREFIX, "SELECT count(*) FROM spans JOIN errors USING (trace_date)").rows == ((40,),)
    appended(home, range(100, 101))
    assert engine.query(PREFIX, "SELECT count(*), any_value(e.traces) FROM traces, errors e").rows == ((21, 21),)


def test_a_version_that_was_refused_is_refused_again(home: Platform) -> None:
    """Looking found new traces before it found that assessments must not be read."""
    engine, asked = DuckDbEngine(home), "SELECT sum(n) FROM quality_by_version"
    engine.query(PREFIX, asked)
    appended(home, range(100, 101))
    log = Path(home.table_uri(PREFIX + "assessments")) / "_delta_log"
    last = sorted(log.glob("*.json"))[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:100])

    for _ in range(2):
        with pytest.raises(Refused, match="log is damaged"):
            engine.query(PREFIX, asked)

    last.write_bytes(whole)
    assert engine.query(PREFIX, asked).rows == ((21,),)


def test_times_read_quickly_are_the_times(home: Platform) -> None:
    """Read with parameters, times come one by one; both ways say the same."""
    engine = DuckDbEngine(home)
    for columns in ('started_at, session_id AS "a ""b"', "started_at, started_at", "NULL::TIMESTAMPTZ AS n, last_at"):
        slow = engine.query(PREFIX, f"SELECT {columns} FROM sessions WHERE ? ORDER BY started_at", [True])
        quick = engine.query(PREFIX, f"SELECT {columns} FROM sessions ORDER BY started_at")
        assert quick == slow
        assert quick.rows[0][-1] is None or quick.rows
    assert engine.query(PREFIX, "SELECT started_at FROM sessions", limit=2).truncated
