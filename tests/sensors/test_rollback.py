"""When a champion is taken back without being asked: the decision alone, and the numbers it is taken on."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from deltalake import write_deltalake

from lifecycle_assets.monitoring.windows import (
    Compared,
    Reading,
    archived_until,
    compare_windows,
    complete_windows,
    window_of,
)
from lifecycle_assets.records import AliasMove
from lifecycle_assets.spec_release import Rollback
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from resources.tables import arrow_table
from resources.trace_rows import TraceRows
from sensors.alerts import messages_of
from sensors.rollback import Fresh, breaches, directions, find_breach, fresh_champion
from tests.building import ATTRIBUTES, make_agent
from tests.resources.test_archive import PREFIX, make_rows

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)  # a Friday


def move(number: int, before: str, after: str, decision: str = "passed", **changes: Any) -> AliasMove:
    """The `number`th move, an hour after the one before, of champion from one version to another."""
    fields: dict[str, Any] = {
        "at": (NOW - timedelta(hours=10 - number)).isoformat(),
        "decision": decision,
        "before": {"champion": before},
        "after": {"champion": after, "previous": before},
        "model_id": f"m-{after}",
        "eval_run_id": f"r-{after}",
        "evidence_digest": f"e-{after}",
        "decision_digest": f"d-{after}",
        "actor": "ann",
        "reason": "",
        "dagster_run_id": f"run-{number}",
    }
    return AliasMove(**{**fields, **changes})


def compared(*pairs: tuple[float, float] | None, n: int = 50) -> list[Compared]:
    """One window an hour with the champion's value and the former one's; None: nobody asked anything."""
    start = NOW - timedelta(hours=len(pairs))
    windows = [window_of(start + timedelta(hours=number), 1) for number in range(len(pairs))]
    return [
        Compared(window, Reading(pair[0], n) if pair else None, Reading(pair[1], n) if pair else None)
        for window, pair in zip(windows, pairs, strict=True)
    ]


def rules(**changes: Any) -> Rollback:
    declared: dict[str, Any] = {
        "automatic": True,
        "rules": [{"metric": "shouted/mean", "max_drop": 0.1}],
        "k": 3,
        "n": 4,
        **changes,
    }
    return Rollback.model_validate(declared)


@pytest.mark.parametrize(
    ("drops", "found"),
    [
        ([0.1, 0.11, 0.1, 0.06, 0.05, 0.06], [False, True, True, True, False, False]),
        ([0.2, None, 0.06], [True, False, True]),  # nobody asked anything: no breach, and no recovery either
        ([None, 0.06], [False, False]),
    ],
)
def test_a_breach_ends_when_the_number_has_come_back_and_not_at_the_line(
    drops: Sequence[float | None], found: list[bool]
):
    assert breaches(drops, max_drop=0.1, recovered_at=0.5) == found


@pytest.mark.parametrize(
    ("values", "fires"),
    [
        ([0.7, 0.7, 0.9, 0.7], True),
        ([0.7, 0.7, 0.7, 0.9], False),  # the newest is well
        ([0.7, 0.9, 0.9, 0.7], False),  # two of four
        ([0.7, 0.7, 0.9, 0.9, 0.9, 0.7], False),  # older than the last n
        ([0.7, 0.7], False),
        ([0.7, 0.82, 0.82, 0.82], True),  # within the line, but not recovered from the first
        ([0.7, 0.7, 0.7], True),
    ],
)
def test_k_of_the_last_n_windows_breach_the_newest_included(values: list[float], fires: bool):
    rows = compared(*[(value, 0.9) for value in values])
    sentence = find_breach(rules(), {"shouted/mean": rows}, {"shouted/mean": True})
    assert bool(sentence) == fires
    if fires:
        assert sentence.startswith(f"shouted/mean is {values[-1]:g} from 2026-11-20 11:00 to 12:00 UTC (50 traces)")
        assert "was 0.9 before at the same hours" in sentence


def test_what_is_better_is_declared_and_what_rests_on_few_traces_is_not_judged(tmp_path: Any):
    metrics = ["shouted/mean", "length/mean", "error_rate", "latency/p95"]
    gate = {"thresholds": [{"metric": "length/mean", "at_most": 100}]}
    agent = make_agent(
        tmp_path,
        attributes={
            "eval": {**ATTRIBUTES["eval"], "gate": gate},
            "rollback": {"rules": [{"metric": metric, "max_drop": 0.1} for metric in metrics]},
        },
    )
    higher = directions(agent.spec)
    assert higher == {"shouted/mean": True, "length/mean": False, "error_rate": False, "latency/p95": False}
    slower, faster = compared(*[(3.0, 1.0)] * 4), compared(*[(1.0, 3.0)] * 4)
    for metric in metrics[1:]:
        declared = rules(rules=[{"metric": metric, "max_drop": 0.1}])
        assert find_breach(declared, {metric: slower}, higher)
        assert not find_breach(declared, {metric: faster}, higher)
        assert not find_breach(declared, {metric: compared(*[(3.0, 1.0)] * 4, n=19)}, higher)


class TestFresh:
    def test_the_newest_champion_is_held_against_the_one_before_it(self):
        moves = [move(1, "", "1"), move(2, "1", "2")]
        fresh = fresh_champion(moves, "2", now=NOW, days=7)
        assert fresh == Fresh("2", "m-2", "1", "m-1", NOW - timedelta(hours=8))
        assert isinstance(fresh, Fresh)
        again = fresh_champion([*moves, move(3, "2", "3"), move(4, "3", "2")], "2", now=NOW, days=7)
        assert isinstance(again, Fresh)
        assert fresh.run_key != again.run_key, "another promotion of the same version is another fact"

    @pytest.mark.parametrize(
        ("moves", "champion", "sentence"),
        [
            ([], "", "Nobody is champion"),
            ([move(1, "", "1")], "1", "follows nobody"),
            ([move(1, "", "1"), move(2, "1", "2"), move(3, "2", "1", "rolled_back")], "1", "champion by a rollback"),
            ([move(1, "", "1"), move(2, "1", "2")], "1", "moved outside Dagster"),
            (
                [move(1, "", "1"), move(2, "1", "2", at=(NOW - timedelta(days=8)).isoformat())],
                "2",
                "no longer fresh, by fresh_days: 7",
            ),
        ],
    )
    def test_nobody_else_is_judged(self, moves: list[AliasMove], champion: str, sentence: str):
        found = fresh_champion(moves, champion, now=NOW, days=7)
        assert isinstance(found, str)
        assert sentence in found


class TestWindows:
    def test_every_week_has_the_same_windows_whatever_their_length(self):
        for hours in (1, 5, 24):
            window = window_of(NOW, hours)
            assert window.start <= NOW < window.end
            before = window_of(NOW - timedelta(weeks=3), hours)
            assert (before.slot, before.start) == (window.slot, window.start - timedelta(weeks=3))
        last = window_of(datetime(2026, 11, 22, 23, 59, tzinfo=UTC), 5)
        assert (last.slot, last.end - last.start) == (33, timedelta(hours=3))
        assert window_of(last.end, 5).slot == 0

    def test_only_windows_that_began_under_the_champion_and_are_archived_to_their_end(self):
        since, until = NOW - timedelta(hours=3, minutes=30), NOW + timedelta(minutes=59)
        windows = complete_windows(since=since, until=until, hours=1, at_most=9)
        assert [window.start for window in windows] == [NOW - timedelta(hours=hour) for hour in (3, 2, 1)]
        assert complete_windows(since=since, until=until, hours=1, at_most=2) == windows[1:]
        assert complete_windows(since=NOW, until=until, hours=1, at_most=9) == []


def asked(number: int, at: datetime, model: str, value: float, version: str = "1", **changes: Any) -> TraceRows:
    """A production trace with a score of the scorer `shouted` and one of people, which counts for nothing."""
    rows = make_rows(number, at.date())
    rows.trace.update({"request_time": at, "model_id": model, "state": "OK", "execution_ms": 1000 * number, **changes})
    score = {**rows.assessments[0], "name": "local_tiny_shouted", "value_number": value, "scorer_version": version}
    human = {**score, "assessment_id": f"h-{number}", "source_type": "HUMAN", "value_number": 0.0}
    return replace(rows, assessments=[score, human])


def test_the_former_champions_figures_are_those_of_the_same_hours_of_the_week(tmp_path: Any):
    """And of the version of the scorer that judged the champion."""
    platform = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path)})
    sql = DuckDbEngine(platform)
    hour = NOW - timedelta(hours=1)
    week = timedelta(weeks=1)
    traces = [
        asked(1, hour, "m-2", 0.0, state="ERROR"),
        asked(2, hour + timedelta(minutes=59), "m-2", 1.0),
        asked(3, NOW, "m-2", 0.0),  # the hour that still runs
        asked(4, hour - week, "m-1", 1.0),
        asked(5, hour - 2 * week, "m-1", 0.5),
        asked(6, hour - 2 * week, "m-1", 0.0, version="0"),  # an older version of the scorer
        asked(7, hour - week - timedelta(hours=1), "m-1", 0.0),  # another hour
        asked(8, hour - week + timedelta(days=1), "m-1", 0.0),  # another day of the week
        asked(9, hour - 9 * week, "m-1", 0.0),  # longer ago than is looked at
        asked(10, hour - week, "m-3", 0.0),  # somebody else
    ]
    stamp = datetime.now(UTC)
    for table, rows in (
        ("traces", [{**one.trace, "archived_at": stamp} for one in traces]),
        ("assessments", [row for one in traces for row in one.assessments]),
    ):
        write_deltalake(platform.table_uri(PREFIX + table), arrow_table(table, rows), partition_by=["trace_date"])
    until = archived_until(sql, PREFIX, since=NOW.date(), settle=timedelta(minutes=5))
    assert until is not None
    assert until == stamp - timedelta(minutes=5)
    assert archived_until(sql, PREFIX, since=(NOW + week).date(), settle=timedelta()) is None

    windows = complete_windows(since=hour - timedelta(hours=1), until=NOW, hours=1, at_most=2)
    found = compare_windows(
        sql,
        PREFIX,
        windows=windows,
        hours=1,
        model_id="m-2",
        other_model_id="m-1",
        metrics=["shouted/mean", "error_rate", "latency/p50"],
        scorer_names={"shouted": "local_tiny_shouted"},
    )
    assert {metric: (rows[1].ours, rows[1].theirs) for metric, rows in found.items()} == {
        "shouted/mean": (Reading(0.5, 2), Reading(0.75, 2)),
        "error_rate": (Reading(0.5, 2), Reading(0.0, 3)),
        "latency/p50": (Reading(1.5, 2), Reading(5.0, 3)),
    }
    assert {metric: rows[0] for metric, rows in found.items()} == {
        "shouted/mean": Compared(windows[0], None, Reading(0.0, 1)),
        "error_rate": Compared(windows[0], None, Reading(0.0, 1)),
        "latency/p50": Compared(windows[0], None, Reading(7.0, 1)),
    }


def test_a_rollback_is_told_of_once_with_its_reason():
    config = {"ops": {"tiny__champion_alias": {"config": {"rollback": True, "reason": "worse"}}}}
    done = dg.DagsterRun(
        "tiny_rollback", run_id="r", run_config=config, status=dg.DagsterRunStatus.SUCCESS, tags={"user": "ann"}
    )
    (message,) = messages_of("tiny", done, [])
    assert (message["id"], message["kind"]) == ("r", "rolled_back")
    assert message["text"] == "tiny: champion was taken back by ann: worse"
    (failed,) = messages_of("tiny", done.with_status(dg.DagsterRunStatus.FAILURE), [])
    assert failed["kind"] == "run_failed"
