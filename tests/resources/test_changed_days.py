"""Which days the log of a real table says were written, and when it cannot tell."""

import json
import os
from datetime import date, timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from resources.delta.changed_days import COMMIT_BYTES, changed_days
from resources.delta.compaction import rewritten
from resources.file_facts import commit_file, newest_commit
from resources.platform import Platform
from resources.store_glance import StoreGlance
from tests.resources.archived import DAY, PREFIX, append_traces

NEXT = DAY + timedelta(days=1)
TABLE = f"{PREFIX}traces"


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Platform, Path]:
    """A platform with traces of two days, and their log."""
    platform = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path)})
    for number, day in enumerate((DAY, NEXT)):
        append_traces(platform, [number], day)
    return platform, Path(platform.table_uri(TABLE)) / "_delta_log"


def since(filled: tuple[Platform, Path], before: str) -> frozenset[date] | None:
    return StoreGlance(filled[0]).days_changed(TABLE, before, newest_commit(filled[1]))


def test_days_with_rows_that_came_changed_or_went_and_no_others(filled: tuple[Platform, Path]):
    platform, log = filled
    uri, begun = platform.table_uri(TABLE), newest_commit(log)
    assert since(filled, begun) == frozenset()
    append_traces(platform, [7], NEXT)
    assert since(filled, begun) == {NEXT}
    appended = newest_commit(log)
    for act in (
        lambda: DeltaTable(uri).update(updates={"state": "'ERROR'"}, predicate=f"trace_date = '{DAY}'"),
        lambda: DeltaTable(uri).delete(f"trace_date = '{DAY}' AND trace_id = 'tr-000000'"),
    ):
        before = newest_commit(log)
        act()
        assert since(filled, before) == {DAY}
    assert since(filled, appended) == {DAY}
    assert since(filled, begun) == {DAY, NEXT}
    before = newest_commit(log)
    assert rewritten(DeltaTable(uri), NEXT)
    assert newest_commit(log) != before
    assert since(filled, before) == frozenset(), "the rows are those that were there"


def test_any_day_may_have_changed_where_the_log_does_not_say(filled: tuple[Platform, Path]):
    platform, log = filled
    begun, first = newest_commit(log), commit_file(log, 0).stat()
    for other in ("", "none", "x", "-1.2", begun + "0", f"0.{first.st_ino}", "99999.1.1.1.1"):
        assert since(filled, other) is None, other
    assert changed_days(log, begun, "none") is None
    append_traces(platform, [3], NEXT)
    before = newest_commit(log)
    DeltaTable(platform.table_uri(TABLE)).alter.set_table_properties({"delta.appendOnly": "false"})
    assert since(filled, before) is None, "with another schema or setting nothing is known"
    held, last = newest_commit(log), int(newest_commit(log).partition(".")[0])
    append_traces(platform, [4], NEXT)
    assert since(filled, held) == {NEXT}
    written = commit_file(log, last + 1)
    text = written.read_text()
    for strange in (
        text.replace('"partitionValues"', '"other"'),
        text.replace(f'"{NEXT}"', "null"),
        text.replace(f'"{NEXT}"', '"some day"'),
        text.replace('"dataChange"', '"other"'),
        text[: len(text) // 2],
        "7\n",
        text + json.dumps({"txn": {"appId": "x" * COMMIT_BYTES}}),
    ):
        written.write_text(strange)
        assert since(filled, held) is None, strange[:200]
    written.write_text(text)
    assert since(filled, held) == {NEXT}
    os.utime(commit_file(log, last))
    assert since(filled, held) is None, "that may be another table"
    held = newest_commit(log)
    append_traces(platform, [5], DAY)
    append_traces(platform, [6], DAY)
    until = newest_commit(log)
    commit_file(log, last + 2).unlink()
    assert changed_days(log, held, until) is None
