"""The last hours against the same hours of earlier weeks: quiet traffic seldom alarms, faults are found and named."""

import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from scipy.stats import nbinom

from benchmarks.quiet_year import CHECKS, power, quiet
from lifecycle_assets.monitoring.anomalies import WEEK, judge_count, judge_level, judge_share, level_of
from lifecycle_assets.monitoring.anomaly_sql import last_hours
from lifecycle_assets.monitoring.anomaly_step import anomaly_checks, never_judged, page_of
from lifecycle_assets.outcome import Check
from lifecycle_assets.spec_monitoring import Anomalies
from resources.delta.write import append_rows, table_to_write
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from resources.tables import arrow_table

PREFIX = "main.agents.tiny_"
WEEKS = 3
END = datetime(2026, 11, 20, 16, tzinfo=UTC)
"""A Friday; 12:00 to 16:00 is judged."""

DECLARED = Anomalies(weeks=WEEKS)
ENOUGH = (WEEKS + 1) * WEEK + 2
"""Windows with which the last one can be judged."""


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow leaves the store it was opened with last in the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_quiet_traffic_alarms_about_as_often_as_declared() -> None:
    """Of 8 weeks with 40 traces a window at 20 a year, three alarms a check are expected; 12 come once in 10 000."""
    found = quiet(seed=11, mean=40, windows=8 * WEEK, per_year=20)
    assert set(found) == set(CHECKS)
    assert all(count <= 11 for count in found.values()), found
    assert sum(found.values()) >= 1, "a check that never alarms in noise is not at its level"


@pytest.mark.parametrize(
    ("fault", "size", "least"), [("volume", 0.1, 0.8), ("error_rate", 5, 0.8), ("latency", 2, 0.8), ("score", 0.5, 0.8)]
)
def test_a_large_fault_is_found(fault: str, size: float, least: float) -> None:
    assert power(5, 400, fault, size, WEEK) >= least


def test_the_range_of_counts_is_as_wide_as_they_spread() -> None:
    """Counts of a known spread: 20 000 further ones lie outside as often as the level says, within a factor."""
    rng, mean, spread = np.random.default_rng(1), 120.0, 0.02
    drawn = nbinom(1 / spread, 1 / (1 + spread * mean)).rvs(size=9 * WEEK, random_state=rng)
    counts = {place: int(count) for place, count in enumerate(drawn)}
    found = judge_count(counts, 8 * WEEK, 4, 0.05)
    assert found.low is not None
    assert found.high is not None
    more = nbinom(1 / spread, 1 / (1 + spread * mean)).rvs(size=20_000, random_state=rng)
    outside = float(np.mean((more < found.low) | (more > found.high)))
    assert 0.01 < outside < 0.12


def test_growth_is_no_anomaly_and_a_standstill_is() -> None:
    counts = {place: round(100 * 1.2 ** (place / WEEK)) for place in range(6 * WEEK + 1)}
    assert not judge_count(counts, 6 * WEEK, 4, level_of(2)).is_anomaly
    assert judge_count({**counts, 6 * WEEK: 0}, 6 * WEEK, 4, level_of(2)).is_anomaly


def test_too_little_is_not_judged() -> None:
    assert judge_share({}, {}, 500, 4, 0.01).why_not == "nothing happened in these hours"
    assert "week without any trace" in judge_count({500: 3}, 500, 4, 0.01).why_not
    assert "too few" in judge_level({500: 1.0}, {500: 2}, 500, 4, 0.01, sign=1).why_not
    once = {500: 1.0, 500 - WEEK: 1.0}
    assert "fewer than three" in judge_level(once, dict.fromkeys(once, 9), 500, 4, 0.01, sign=1).why_not


def test_equal_numbers_everywhere_are_no_anomaly() -> None:
    """No spread at all: the range is a point, and the number is in it."""
    places = range(6 * WEEK)
    n, now = dict.fromkeys(places, 10), 6 * WEEK - 1
    for sign in (1, -1):
        assert not judge_level(dict.fromkeys(places, 0.7), n, now, 4, 0.001, sign=sign).is_anomaly
    assert not judge_share(dict.fromkeys(places, 0), n, now, 4, 0.001).is_anomaly
    assert not judge_share(n, n, now, 4, 0.001).is_anomaly


def test_the_last_hours_of_a_day_are_those_that_ended() -> None:
    day = END.date()
    assert last_hours(day, END - timedelta(hours=12, seconds=1)) is None
    assert str(last_hours(day, END + timedelta(minutes=10))) == "2026-11-20, 12:00 to 16:00 UTC"
    assert str(last_hours(day, END + timedelta(days=3))) == "2026-11-20, 20:00 to 00:00 UTC"


def rows_of(windows: int, *, last: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Traces of some windows; in the last window `last` replaces columns of all."""
    rng, traces, assessments = random.Random(9), [], []
    start = END - timedelta(hours=4 * windows)
    for window in range(windows):
        begin = start + timedelta(hours=4 * window)
        is_last = window == windows - 1
        for n in range(last.get("n", 10) if is_last else rng.randrange(8, 12)):
            at = begin + timedelta(minutes=15 * n % 240, seconds=window % 60)
            trace_id = f"tr-{window}-{n}"
            key = {"trace_id": trace_id, "trace_date": at.date()}
            state = "ERROR" if rng.random() < 0.05 else "OK"
            ms = round(math.exp(6 + rng.gauss(0, 0.4)))
            trace = key | {"experiment_id": "7", "request_time": at, "state": state, "execution_ms": ms}
            traces.append(trace | ({k: v for k, v in last.items() if k in trace} if is_last else {}))
            said = key | {"kind": "feedback", "source_type": "CODE", "valid": True, "updated_at": at}
            said |= {"scorer_version": "1", "assessment_id": f"a-{trace_id}"}
            kind = last.get("kind", 4.0) if is_last else 4.0
            assessments.append(said | {"name": "p_kind", "value_number": kind + rng.gauss(0, 0.3)})
            passed = last.get("passes", 0.95) if is_last else 0.95
            assessments.append(
                said
                | {"name": "p_passes", "assessment_id": f"b-{trace_id}", "value_number": float(rng.random() < passed)}
            )
    return {"traces": traces, "assessments": assessments}


def checks(home: Any, tables: Mapping[str, list[dict[str, Any]]], **awaited: str) -> dict[str, Check]:
    platform = Platform.from_env({"LIFECYCLE_HOME": str(home)})
    for table, rows in tables.items():
        append_rows(table_to_write(platform.table_uri(PREFIX + table), table), arrow_table(table, rows))
    found, page = anomaly_checks(
        DuckDbEngine(platform),
        PREFIX,
        END.date(),
        until=END + timedelta(minutes=5),
        declared=DECLARED,
        scorers={"kind": "p_kind", "passes": "p_passes"},
        awaited=awaited,
    )
    assert list(CHECKS) == [check.name for check in found]
    assert not any(check.is_error for check in found)
    assert set(page) <= {"same_hours"}, "no server, no pages of traces"
    return {check.name: check for check in found}


def test_each_fault_fails_its_check_and_names_what_to_look_at(tmp_path: Any) -> None:
    fine = checks(tmp_path / "fine", rows_of(ENOUGH, last={}))
    assert [name for name, check in fine.items() if not check.passed] == []
    assert fine["volume_anomaly"].description.startswith("2026-11-20, 12:00 to 16:00 UTC: traces 10 (")
    assert "Look at" not in fine["volume_anomaly"].description

    bad = checks(tmp_path / "bad", rows_of(ENOUGH, last={"n": 40, "state": "ERROR", "kind": 2.0, "passes": 0.2}))
    assert [name for name, check in bad.items() if check.passed] == ["latency_anomaly"]
    assert "latency p50: 0 in these hours are too few" in bad["latency_anomaly"].description
    for name in ("volume_anomaly", "error_rate_anomaly", "score_anomaly"):
        assert bad[name].description.count(f"tr-{ENOUGH - 1}-") == 5, bad[name].description
    assert "kind 1." in bad["score_anomaly"].description
    assert "passes 0." in bad["score_anomaly"].description

    slow = checks(tmp_path / "slow", rows_of(ENOUGH, last={"execution_ms": 9000, "state": "OK"}), kind="30 of 40 wait")
    assert [name for name, check in slow.items() if not check.passed] == ["latency_anomaly"]
    assert "latency p50 9 s (at most" in slow["latency_anomaly"].description
    assert "Not judged in these hours: kind: 30 of 40 wait." in slow["score_anomaly"].description


def test_with_too_little_history_it_is_said_from_when_on(tmp_path: Any) -> None:
    found = checks(tmp_path, rows_of(2 * WEEK, last={"n": 40}))
    first = END - timedelta(weeks=2)
    begin = first + timedelta(weeks=WEEKS + 1, hours=4)
    for check in found.values():
        assert check.passed
        assert f"from {first:%Y-%m-%d} on; judged from {begin:%Y-%m-%d %H:%M} UTC on." in check.description


def test_tables_that_never_hold_enough_weeks_say_so() -> None:
    declared = Anomalies(weeks=4)
    assert never_judged(declared, None) == never_judged(declared, 35) == ""
    assert "needs 35 days of traces, and archive.retention_days (34) keeps fewer" in never_judged(declared, 34)


def test_a_trace_is_linked_where_there_is_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert page_of("tr-1", "7") == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert page_of("tr 1&x", "7") == "http://host:5000/#/experiments/7/traces?selectedEvaluationId=tr%201%26x"
