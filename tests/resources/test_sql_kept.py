"""Answers that a process left on disk are those of the tables as they are, or are not taken."""

import os
import shutil
import threading
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pytest
from deltalake import DeltaTable

from lifecycle_assets.refused import Refused
from resources.platform import Platform
from resources.sql import database, kept
from resources.sql.engine import DuckDbEngine
from resources.sql.views import VIEWS
from tests.resources.archived import upsert_day
from tests.resources.test_archive import DAY, PREFIX, make_rows
from tests.resources.test_sql_engine import filled

COSTS: dict[str, float] = {"prod_tiny_length": 0.25}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """Tables that are worth keeping answers of."""
    monkeypatch.setattr(kept, "WORTH_BYTES", 1)
    monkeypatch.setattr(kept, "LATER_SECONDS", 0)
    return filled(tmp_path / "it's home")


def ask(home: Platform, sql: str = "", costs: Mapping[str, float] | None = None) -> dict[str, Any]:
    """All views, or one question, in a process that has not asked before; ends when it would."""
    database._databases.clear()  # Nothing else of a process is left to another question.
    engine = DuckDbEngine(home)
    found = {one: engine.query(PREFIX, one, costs=costs) for one in ([sql] if sql else [f"FROM {v}" for v in VIEWS])}
    if not sql:
        found |= {f"types of {v}": engine.query(PREFIX, f"DESCRIBE {v}", costs=costs) for v in VIEWS}
    for thread in threading.enumerate():
        if thread.name == "keep-answers":
            thread.join()
    return found


def left(home: Platform) -> list[Path]:
    return sorted(kept.folder_of(home, PREFIX).glob("*"))


def forged(home: Platform) -> None:
    """Another number in what was left, to tell it from what the tables say."""
    for place in left(home):
        file = str(place / "errors").replace("'", "''")
        with duckdb.connect() as con:
            con.execute(f"CREATE TABLE e AS SELECT * REPLACE (777::BIGINT AS traces) FROM read_parquet('{file}')")
            con.execute(f"COPY e TO '{file}' (FORMAT parquet)")


def traces(home: Platform, costs: Mapping[str, float] | None = None) -> int:
    return ask(home, "SELECT sum(traces) FROM errors", costs)["SELECT sum(traces) FROM errors"].rows[0][0]


def test_the_next_process_takes_what_was_left_and_says_the_same(home: Platform) -> None:
    first = ask(home, costs=COSTS)
    assert [one.stat().st_mode & 0o077 for one in left(home)] == [0]
    assert {one.name for one in left(home)[0].iterdir()} == {*VIEWS, *(f"{view}.json" for view in VIEWS), "about.json"}

    assert ask(home, costs=COSTS) == first
    forged(home)
    assert traces(home, COSTS) == 777
    assert traces(home) == 20, "other prices are other answers"
    assert len(left(home)) == 2


def test_nothing_left_is_older_than_the_tables(home: Platform) -> None:
    """New rows, rows that were removed, a file that was touched: what was left is not taken, and is deleted."""
    ask(home)
    forged(home)
    upsert_day(home, date(2026, 11, 21), [make_rows(99, day=date(2026, 11, 21))])
    assert traces(home) == 21
    assert len(left(home)) == 1

    forged(home)
    DeltaTable(home.table_uri(PREFIX + "traces")).delete(f"trace_date = DATE '{DAY}'")
    assert traces(home) == 1

    forged(home)
    file = Path(unquote(DeltaTable(home.table_uri(PREFIX + "traces")).file_uris()[0]))
    os.utime(file)
    assert traces(home) == 1
    assert len(left(home)) == 1

    file.rename(file.with_suffix(".away"))
    with pytest.raises(Refused, match="the file is gone"):
        traces(home)


def test_what_cannot_be_read_or_left_is_worked_out_again(home: Platform) -> None:
    ask(home)
    forged(home)
    (left(home)[0] / "latency").write_bytes(b"PAR1 no more")
    assert traces(home) == 20
    forged(home)
    assert traces(home) == 777, "it was left again"

    folder = kept.folder_of(home, PREFIX)
    shutil.rmtree(folder)
    folder.write_text("a file where a folder should be")
    assert traces(home) == 20


def test_upkeep_and_new_answers_delete_what_was_left(home: Platform) -> None:
    """A folder of a killed process too, once nobody can be at work on it."""
    ask(home)
    folder = kept.folder_of(home, PREFIX)
    for name, at in (("making-dead", 0), ("making-now", None)):
        (folder / name).mkdir()
        if at is not None:
            os.utime(folder / name, (at, at))

    kept.forget(folder)

    assert [one.name for one in left(home)] == ["making-now"]
    kept.forget(folder / "nowhere")


def test_little_is_not_kept_and_what_is_left_is_no_table_of_users(tmp_path: Path, home: Platform) -> None:
    ask(home)
    file = left(home)[0] / "errors"
    with pytest.raises(Refused):
        ask(home, f"SELECT * FROM read_parquet('{str(file).replace(chr(39), chr(39) * 2)}')")

    kept.WORTH_BYTES = 1_000_000  # The fixture puts it back.
    other = filled(tmp_path / "other")
    ask(other)
    assert not left(other)
