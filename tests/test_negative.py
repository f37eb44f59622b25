"""What is known of negative feedback, kept up by the days that changed: always what asking all days finds."""

import random
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.review.choosing import can_choose, choose_traces
from lifecycle_assets.review.negative import KEPT_BYTES, Known, negative_traces, unite
from lifecycle_assets.spec import Labeling
from resources.feedback import FEEDBACK_NAME
from resources.labeling_desk import QUEUED_TAG
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from resources.store_glance import StoreGlance
from resources.trace_rows import TraceRows
from tests.resources.archived import PREFIX, trace_rows, upsert_day

DAYS = [date(2026, 11, 1) + timedelta(days=number) for number in range(6)]

LABELING = {"schemas": [{"name": "correct", "type": "feedback", "input": "pass_fail", "instruction": "Is it correct?"}]}


def text(day: date, number: int) -> str:
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(seconds=number // 2)  # Some at one time.
    return f"{day} {int(moment.timestamp() * 10**6)} tr {number:03}"


def newest(stored: dict[date, set[int]], days: Sequence[date], limit: int) -> list[str]:
    """What the SQL answers of some days."""
    found = [text(day, number) for day in days for number in stored[day]]
    return sorted(found, key=lambda one: (-int(one.split(" ")[1]), one.split(" ", 2)[2]))[:limit]


def test_an_answer_brought_up_to_date_is_the_whole_answer():
    """A model of a store in which days change at random, with more or fewer than the limit."""
    chance, told = random.Random(7), 0
    for _ in range(300):
        limit, most = chance.randint(1, 6), chance.choice([1, 3, 9])
        stored = {day: set[int]() for day in DAYS}
        known = Known(whole=True)
        for _ in range(8):
            changed = chance.sample(DAYS, chance.randint(0, 3))
            for day in changed:
                stored[day] = set(chance.sample(range(20), chance.randint(0, most)))
            united = unite(known, changed, newest(stored, changed, limit), limit)
            whole = newest(stored, DAYS, limit + 1)
            if united is None:
                assert not known.whole
                united = Known(tuple(whole[:limit]), len(whole) < limit)
            else:
                told += 1
            assert list(united.traces) == whole[:limit]
            assert not united.whole or len(whole) <= limit
            known = Known(united.traces[: chance.randint(0, limit)]) if chance.random() < 0.1 else united
    assert told > 1500


def test_a_cursor_holds_the_newest_few():
    many = Known(tuple(text(DAYS[0], number) for number in range(999, 0, -1)), whole=True)
    kept = many.kept()
    assert kept.traces == many.traces[: len(kept.traces)]
    assert len(kept.traces) > 100
    assert sum(map(len, kept.traces)) <= KEPT_BYTES
    assert not kept.whole
    few = Known(many.traces[:5], whole=True)
    assert few.kept() == few
    assert Known(("2026-11-01 7 " + "x" * KEPT_BYTES,), whole=True).kept() == Known()


class Archived:
    """An archive in a folder, asked by a sensor that remembers, and by one that does not."""

    def __init__(self, folder: Path) -> None:
        self.platform = Platform.from_env({"LIFECYCLE_HOME": str(folder)})
        self.glance, self.engine = StoreGlance(self.platform), DuckDbEngine(self.platform)
        self.known, self.commits = Known(), self.looked()

    def looked(self) -> list[str]:
        return [self.glance.table(PREFIX + table) for table in ("traces", "assessments")]

    def archive(self, day: date, number: int, value: float | None, **tags: str) -> None:
        """A trace as it is now: with what people think of it, if anything, and its tags."""
        trace, spans, _ = trace_rows(number, day)
        said: dict[str, Any] = {"trace_id": trace["trace_id"], "trace_date": day, "name": FEEDBACK_NAME, "valid": True}
        said |= {"assessment_id": f"f-{number}", "kind": "feedback", "source_type": "HUMAN", "value_number": value}
        said |= {"created_at": trace["request_time"], "updated_at": datetime.now(UTC)}
        upsert_day(self.platform, day, [TraceRows(trace | {"tags": tags}, spans, [said] if value is not None else [])])

    def ask(self, limit: int) -> list[str]:
        """The answer from what is kept and the days that changed, as a tick asks."""
        now = self.looked()
        each = [
            self.glance.days_changed(PREFIX + table, *pair)
            for table, *pair in zip(("traces", "assessments"), self.commits, now, strict=True)
        ]
        self.changed = None if None in each else frozenset[date]().union(*(days for days in each if days is not None))
        found = negative_traces(self.engine, PREFIX, limit, known=self.known, changed=self.changed)
        self.known, self.commits = found.kept(), now
        return found.trace_ids

    def ask_all(self, limit: int) -> list[str]:
        return negative_traces(self.engine, PREFIX, limit).trace_ids


@pytest.fixture
def archived(tmp_path: Path) -> Archived:
    return Archived(tmp_path)


def test_late_feedback_of_an_old_day_is_found_as_by_who_asks_anew(archived: Archived):
    assert archived.ask(3) == archived.ask_all(3) == []
    for number, day in enumerate(DAYS):
        archived.archive(day, number, 0.0 if number % 3 == 1 else None)
    assert archived.ask(3) == archived.ask_all(3) == ["tr-000004", "tr-000001"]
    assert archived.known.whole
    for day, number, value, tags, expected in (
        (DAYS[0], 0, 0.0, {}, ["tr-000004", "tr-000001", "tr-000000"]),  # Late feedback of the first day.
        (DAYS[5], 7, 1.0, {}, ["tr-000004", "tr-000001", "tr-000000"]),
        (DAYS[5], 8, 0.0, {}, ["tr-000008", "tr-000004", "tr-000001"]),
        (DAYS[3], 3, 0.0, {}, ["tr-000008", "tr-000004", "tr-000003"]),
        (DAYS[4], 4, 0.0, {QUEUED_TAG: "s-1"}, ["tr-000008", "tr-000003", "tr-000001"]),  # Now it was in a session.
        (DAYS[5], 8, 1.0, {}, ["tr-000003", "tr-000001", "tr-000000"]),  # Somebody thinks better of it.
    ):
        archived.archive(day, number, value, **tags)
        assert archived.ask(3) == archived.ask_all(3) == expected
        assert archived.changed == {day}


def test_files_of_days_that_did_not_change_are_not_opened(archived: Archived):
    for number, day in enumerate(DAYS):
        archived.archive(day, number, 0.0)
    assert archived.ask(9) == archived.ask_all(9)
    archived.archive(DAYS[-1], 9, 0.0)
    for table, old in product(("traces", "assessments"), DAYS[:-1]):
        for file in Path(archived.platform.table_uri(PREFIX + table)).glob(f"trace_date={old}/*.parquet"):
            file.write_bytes(b"nobody can read this")
    assert archived.ask(9) == [f"tr-{number:06}" for number in (9, 5, 4, 3, 2, 1, 0)]
    with pytest.raises(Refused):
        archived.ask_all(9)


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [({"random": 2}, True), ({"negative_feedback": 2}, False), ({"low_scores": {"short": 0.5}}, False), ({}, False)],
)
def test_whether_there_is_something_to_choose_is_told_as_by_choosing(
    archived: Archived, rules: dict[str, Any], chosen: bool
):
    labeling = Labeling.model_validate({**LABELING, "rules": {"negative_feedback": 0, "random": 0, **rules}})

    def told() -> bool:
        negative = archived.ask_all(5)
        found = can_choose(archived.engine, PREFIX, labeling, "local_tiny_", negative)
        assert found == bool(choose_traces(archived.engine, PREFIX, labeling, scorer_prefix="local_tiny_"))
        return found

    assert not told(), "nothing is archived"
    archived.archive(DAYS[0], 1, 1.0)
    assert told() == chosen
    archived.archive(DAYS[0], 1, 0.0, **{QUEUED_TAG: "s-1"})
    assert not told(), "it was in a session"
    archived.archive(DAYS[1], 2, 0.0)
    assert told() == (chosen or "negative_feedback" in rules)
