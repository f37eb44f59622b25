"""Rows of views that lie beside the answers are those the tables say, or are not taken."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, date
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from deltalake import DeltaTable

from lifecycle_assets.refused import Refused
from resources.delta.write import append_rows, table_to_write
from resources.platform import Platform
from resources.sql import database, kept, kept_rows
from resources.sql.engine import DuckDbEngine, SqlResult
from resources.sql.views import VIEWS
from resources.tables import arrow_table
from tests.resources.archived import upsert_day
from tests.resources.test_archive import DAY, PREFIX, make_rows
from tests.resources.test_sql_engine import filled
from tests.resources.test_sql_kept import ask, left


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """Tables that are worth keeping answers of."""
    monkeypatch.setattr(kept, "WORTH_BYTES", 1)
    monkeypatch.setattr(kept, "LATER_SECONDS", 0)
    return filled(tmp_path / "it's home")


def forged(home: Platform, change: Callable[[Any], Any], name: str = "errors.json") -> None:
    """Something else in what was left, to tell it from what the tables say."""
    for place in left(home):
        said = json.loads((place / name).read_text())
        (place / name).write_text(json.dumps(change(said)))


def many(said: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return said | {"2": [777] * len(said["2"])}


def traces(home: Platform, *, limit: int = 10_000) -> list[int]:
    """What the view says of each day, in a process that has not asked before."""
    ask(home, "FROM latency LIMIT 0")  # Leaves answers where none are, without reading rows.
    database._databases.clear()
    rows = DuckDbEngine(home).query(PREFIX, "select * FROM Errors ;", limit=limit).dicts()
    return [row["traces"] for row in rows]


def traces_file(home: Platform) -> Path:
    return Path(unquote(DeltaTable(home.table_uri(PREFIX + "traces")).file_uris()[0]))


def test_views_as_they_are_are_read_without_a_table_or_duckdb(home: Platform) -> None:
    first = ask(home)
    database._databases.clear()
    engine = DuckDbEngine(home)

    for view in VIEWS:
        found = engine.query(PREFIX, f"SELECT * FROM {view}")
        assert found == first[f"FROM {view}"]
        assert [[type(value) for value in row] for row in found.rows] == [
            [type(value) for value in row] for row in first[f"FROM {view}"].rows
        ]
    (used,) = database._databases.values()
    assert used._con is None
    assert [held.target for held in used._held.values() if held.target] == []
    assert engine.query(PREFIX, "FROM sessions").dicts()[0]["started_at"].tzinfo is UTC

    forged(home, many)
    assert traces(home) == [777]
    assert engine.query(PREFIX, "FROM errors WHERE traces > ?", [0]).dicts()[0]["traces"] == 20
    assert engine.query(PREFIX, "FROM errors", costs={"other": 1.0}).dicts()[0]["traces"] == 20, "other prices"


def test_rows_kept_are_never_older_than_the_tables(home: Platform) -> None:
    """In a process that has read them before, and in one that has not."""
    ask(home)
    forged(home, many)
    engine = DuckDbEngine(home)
    assert engine.query(PREFIX, "FROM errors").rows[0][2] == 777
    upsert_day(home, date(2026, 11, 21), [make_rows(99, day=date(2026, 11, 21))])
    assert [row[2] for row in engine.query(PREFIX, "FROM errors").rows] == [20, 1]
    assert traces(home) == [20, 1]

    forged(home, many)
    DeltaTable(home.table_uri(PREFIX + "traces")).delete(f"trace_date = DATE '{DAY}'")
    assert traces(home) == [1]

    forged(home, many)
    DeltaTable(home.table_uri(PREFIX + "traces")).optimize.z_order(["trace_id"])
    assert traces(home) == [1]

    forged(home, many)
    file = traces_file(home)
    file.touch()
    assert traces(home) == [1]

    file.rename(file.with_suffix(".away"))
    with pytest.raises(Refused, match="the file is gone"):
        traces(home)


def test_commits_that_change_no_file_cost_the_rows_once(home: Platform) -> None:
    ask(home)
    forged(home, many)
    append_rows(table_to_write(home.table_uri(PREFIX + "traces"), "traces"), arrow_table("traces", []), {"noted": 1})

    database._databases.clear()
    assert DuckDbEngine(home).query(PREFIX, "FROM errors").rows[0][2] == 20
    database._databases.clear()
    assert DuckDbEngine(home).query(PREFIX, "FROM errors", costs={"free": 0.0}).rows[0][2] == 777
    assert len(left(home)) == 1


def test_a_table_made_anew_or_lost_is_not_the_one_rows_were_kept_of(home: Platform) -> None:
    ask(home)
    shutil.rmtree(home.table_uri(PREFIX + "promotions"))
    assert ask(home, "FROM quality_by_version")["FROM quality_by_version"].dicts()[0]["version"] == ""

    log = Path(home.table_uri(PREFIX + "traces")) / "_delta_log"
    log.rename(log.with_name("away"))
    with pytest.raises(Refused, match="the log that lists them is gone"):
        traces(home)
    shutil.copytree(log.with_name("away"), log)  # The same entries, written at another time.
    forged(home, many)
    database._databases.clear()
    assert DuckDbEngine(home).query(PREFIX, "FROM errors").rows[0][2] == 20


DAMAGE: list[tuple[str, Callable[[Any], Any]]] = [
    ("errors.json", lambda said: said | {"2": []}),
    ("errors.json", lambda said: said | {"0": ["no day"]}),
    ("errors.json", lambda said: said | {"0": [1]}),
    ("errors.json", lambda said: {name: [] for name in said}),
    ("errors.json", lambda said: [said]),
    ("errors.json", lambda said: said | {"3": [float("nan")]}),
    ("about.json", lambda said: said | {"views": {}}),
    ("about.json", lambda said: said | {"entries": {}}),
    ("about.json", lambda said: said | {"entries": {"traces": ["/nowhere", -1, 3, 4]}}),
    ("about.json", lambda said: said | {"files": list(said["files"])}),
    ("about.json", lambda said: []),
]


def test_what_cannot_be_read_is_asked_of_the_tables(home: Platform) -> None:
    ask(home)
    forged(home, many)
    (place,) = left(home)
    shutil.copytree(place, home.home / "undamaged")
    for name, change in DAMAGE:
        shutil.rmtree(place)
        shutil.copytree(home.home / "undamaged", place)
        assert DuckDbEngine(home).query(PREFIX, "FROM errors").rows[0][2] == 777
        forged(home, change, name)

        database._databases.clear()
        assert [row[2] for row in DuckDbEngine(home).query(PREFIX, "FROM errors").rows] == [20]
        database._databases.clear()


def test_no_more_rows_are_kept_than_are_asked(home: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond them, the tables are asked."""
    monkeypatch.setattr(kept_rows, "FIRST", 2)
    for day in (21, 22):
        upsert_day(home, date(2026, 11, day), [make_rows(day + 90, day=date(2026, 11, day))])
    whole = ask(home, "FROM errors")["FROM errors"]
    assert len(json.loads((left(home)[0] / "errors.json").read_text())["0"]) == 2
    forged(home, many)

    def asked(limit: int) -> SqlResult:
        database._databases.clear()
        return DuckDbEngine(home).query(PREFIX, "FROM errors", limit=limit)

    assert ([row[2] for row in asked(1).rows], asked(1).truncated) == ([777], True)
    assert ([row[2] for row in asked(2).rows], asked(2).truncated) == ([777, 777], True)
    assert asked(3) == asked(10_000) == whole


def test_answers_of_a_version_that_is_no_longer_the_newest_are_not_left(home: Platform) -> None:
    ask(home)
    (place,) = left(home)
    about = json.loads((place / "about.json").read_text())
    upsert_day(home, date(2026, 11, 21), [make_rows(99, day=date(2026, 11, 21))])
    made = place.with_name("making-one")
    made.mkdir()
    late = kept.Place(place.parent, "older", kept.rest_of({}), kept_rows.Follows(about["entries"], about["files"]))

    with database.open_database(home, PREFIX, {}).cursor("FROM errors") as con:
        kept.leave(con, made, late)

    assert not made.exists()
    assert not late.whole.exists()
