"""Counting what a range owes, held against counting trace by trace, over hostile names, ids and tags."""

import random
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.monitoring.backfill_counts import DayCount, counts
from lifecycle_assets.records import ScorerVersion
from lifecycle_assets.refused import Refused
from resources.platform import Platform
from resources.scoring.sampling import is_sampled
from resources.sql.engine import DuckDbEngine
from resources.tables import KEYS, PARTITION, arrow_table

FIRST = date(2026, 11, 1)
DAYS = [FIRST + timedelta(days=number) for number in range(5)]
PREFIX = "main.agents.tiny_"
HOSTILE = ["'; DROP TABLE traces; --", "a\x00b", "é\U0001f600", "%_\\", ":f0k ? {key}", "", "\u202eabc"]
IDS = [f"tr-{number:032x}{HOSTILE[number % 7] if number % 5 == 0 else ''}" for number in range(300)]


def scorer(
    name: str, *, version: str = "2", rate: float = 1.0, filter_string: str = "", level: str = "trace"
) -> ScorerVersion:
    return ScorerVersion(name, f"local_tiny_{name}", version, "d", rate, filter_string, level, 0.01)


SCORERS = [
    scorer("all"),
    scorer("half", rate=0.5),
    scorer("it's; -- é\U0001f600", rate=0.37),
    scorer("prod", rate=0.8, filter_string="tags.environment = 'prod' AND attributes.status = 'OK'"),
    scorer("hostile", filter_string="tags.`a b` = '\\'; DROP TABLE traces; --'"),
    scorer("slow", filter_string="execution_time_ms > 50 AND timestamp_ms >= 1762041600000"),
    scorer("liked", filter_string="feedback.thumb IS NOT NULL AND metadata.`mlflow.modelId` != 'm-2'"),
    scorer("unlabeled", filter_string="expectation.answer IS NULL"),
    scorer("new", version="", rate=0.25),
    scorer("off", rate=0.0),
    scorer("talk", rate=0.6, level="session"),
]


def make_traces(seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    rows = []
    for number, trace_id in enumerate(IDS):
        day = DAYS[number % 3 if number % 10 else 4]  # The third of them has none.
        moment = datetime.combine(day, datetime.min.time(), UTC) + timedelta(milliseconds=chance.randrange(86_400_000))
        tags = {"environment": chance.choice(["prod", "staging"])} if chance.random() < 0.8 else {}
        if chance.random() < 0.3:
            tags["a b"] = chance.choice(["'; DROP TABLE traces; --", "other"])
        rows.append(
            {
                "trace_id": trace_id,
                "request_time": moment,
                "trace_date": day,
                "state": chance.choice(["OK", "OK", "ERROR"]),
                "execution_ms": chance.choice([None, 10, 51, 200]),
                "session_id": chance.choice([None, "", *(f"s'{n}" for n in range(40))]),
                "tags": tags,
                "metadata": {"mlflow.modelId": chance.choice(["m-1", "m-2"])},
            }
        )
    return rows


def make_assessments(seed: int, traces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    chance, rows = random.Random(seed), []

    def say(trace: dict[str, Any], name: str, **fields: Any) -> None:
        at = {"trace_id": trace["trace_id"], "trace_date": trace["trace_date"], "name": name, "valid": True}
        rows.append({**at, "kind": "feedback", "source_type": "CODE", "assessment_id": f"a-{len(rows)}", **fields})

    for trace in traces:
        for one in SCORERS:
            if chance.random() < 0.5:
                version = chance.choice(["1", "2", "2", "2"])
                error = chance.choice([None, None, "ValueError: no", "SCORER_TIMEOUT: 60 s"])
                say(trace, one.registered_name, scorer_version=version, error=error)
            if chance.random() < 0.05:
                say(trace, one.registered_name, scorer_version="2", valid=False)
        if chance.random() < 0.3:
            say(trace, "thumb", source_type="HUMAN")
        if chance.random() < 0.3:
            say(trace, "answer", kind="expectation", source_type="HUMAN")
    return rows


def write(platform: Platform, table: str, rows: list[dict[str, Any]]) -> None:
    from deltalake import write_deltalake

    uri = platform.table_uri(PREFIX + table)
    write_deltalake(uri, arrow_table(table, rows), mode="overwrite", partition_by=[PARTITION])
    assert KEYS[table]


def by_hand(one: ScorerVersion, day: date, traces: list[dict[str, Any]], said: list[dict[str, Any]]) -> DayCount:
    """The same numbers, trace by trace in Python, with filters written out."""
    names = {(a["trace_id"], a["kind"], a["name"]) for a in said if a["valid"]}
    takes = {
        "prod": lambda t: t["tags"].get("environment") == "prod" and t["state"] == "OK",
        "hostile": lambda t: t["tags"].get("a b") == "'; DROP TABLE traces; --",
        "slow": lambda t: (t["execution_ms"] or 0) > 50 and t["request_time"].timestamp() * 1000 >= 1762041600000,
        "liked": lambda t: (t["trace_id"], "feedback", "thumb") in names and t["metadata"]["mlflow.modelId"] != "m-2",
        "unlabeled": lambda t: (t["trace_id"], "expectation", "answer") not in names,
    }.get(one.name, lambda t: True)
    units = {t["trace_id"]: t["trace_id"] for t in traces if t["trace_date"] == day and takes(t)}
    if one.level == "session":
        units = {t["trace_id"]: t["session_id"] for t in firsts(traces, day) if takes(t)}
    mine = [a for a in said if a["valid"] and (a["name"], a["scorer_version"]) == (one.registered_name, one.version)]
    scored = {a["trace_id"] for a in mine if a["error"] is None}
    errored = {a["trace_id"] for a in mine if a["error"] == "ValueError: no"} - scored
    sampled = {t for t, unit in units.items() if is_sampled(unit, one.registered_name, one.sample_rate)}
    return DayCount(
        len(units), len(sampled), len(sampled & scored), len(sampled & errored), len(sampled - scored - errored)
    )


def firsts(traces: list[dict[str, Any]], day: date) -> list[dict[str, Any]]:
    """The first traces of the sessions that begin on a day: no trace of the session on the day before."""
    of_day = sorted((t for t in traces if t["trace_date"] == day), key=lambda t: (t["request_time"], t["trace_id"]))
    before = {t["session_id"] for t in traces if t["trace_date"] == day - timedelta(days=1)}
    found: dict[str, dict[str, Any]] = {}
    for trace in of_day:
        if trace["session_id"] and trace["session_id"] not in before:
            found.setdefault(trace["session_id"], trace)
    return list(found.values())


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[DuckDbEngine, list[Any], list[Any]]:
    platform = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path_factory.mktemp("home"))})
    traces = make_traces(7)
    said = [{"scorer_version": None, "error": None, **a} for a in make_assessments(8, traces)]
    write(platform, "traces", traces)
    write(platform, "assessments", said)
    return DuckDbEngine(platform), traces, said


def asked(
    engine: DuckDbEngine, scorers: list[ScorerVersion], first: date = DAYS[0], last: date = DAYS[-1], **how: Any
) -> Any:
    def query(sql: str, parameters: Any) -> list[dict[str, Any]]:
        return engine.query(PREFIX, sql, parameters, limit=100_000).dicts()

    return counts(query, scorers, first, last, **{"by_hash": True, **how})


def test_every_number_is_that_of_counting_by_hand(held: Any):
    engine, traces, said = held
    found = asked(engine, SCORERS)
    for day in DAYS:
        for one in SCORERS:
            assert found.of(str(day), one) == by_hand(one, day, traces, said), (day, one.name)
    assert found.traces == {str(day): sum(t["trace_date"] == day for t in traces) for day in DAYS if day != DAYS[3]}


def test_the_distinct_traces_to_score_are_counted_once_for_all_scorers(held: Any):
    engine, *_ = held
    scorers = [SCORERS[1], SCORERS[4], SCORERS[8]]
    found = asked(engine, scorers)
    for day in DAYS[:2]:
        one_by_one = [asked(engine, [one], day, day).to_score.get(str(day), 0) for one in scorers]
        assert one_by_one == [found.of(str(day), one).to_score for one in scorers]
        assert max(one_by_one) <= found.to_score[str(day)] <= min(sum(one_by_one), found.traces[str(day)])
    assert found.to_score.get(str(DAYS[3])) is None


def test_the_range_bounds_what_is_counted(held: Any):
    engine, *_ = held
    found = asked(engine, SCORERS, DAYS[1], DAYS[1])
    assert set(found.traces) == {str(DAYS[1])}
    assert {day for day, _ in found.by_scorer} == {str(DAYS[1])}
    assert asked(engine, SCORERS, DAYS[3], DAYS[3]).traces == {}


def test_raising_the_rate_only_adds_to_what_is_owed(held: Any):
    engine, *_ = held
    low, high = scorer("all", rate=0.3), scorer("all", rate=0.6)
    for day in map(str, DAYS[:3]):
        before, after = asked(engine, [low]).of(day, low), asked(engine, [high]).of(day, high)
        assert before.sampled < after.sampled
        assert before.scored <= after.scored


def test_where_the_workspace_samples_the_sample_is_what_its_rate_makes_expected(held: Any):
    engine, *_ = held
    half, new = scorer("half", rate=0.5), scorer("new", version="", rate=0.25)
    found = asked(engine, [half, new], by_hash=False)
    day = str(DAYS[0])
    assert (found.of(day, new).sampled, found.of(day, new).to_score) == (22, 22)
    assert found.of(day, half).to_score in (0, 45)
    assert found.to_score[day] >= 22


def test_a_filter_that_cannot_be_counted_is_one_sentence(held: Any):
    engine, *_ = held
    with pytest.raises(Refused, match=r"clause .* cannot be counted by SQL; write comparisons such as"):
        asked(engine, [replace(SCORERS[0], filter="feedback.thumb > 0.5")])


def test_one_query_answers_whatever_the_range_and_an_empty_archive_has_nothing(tmp_path: Path):
    engine = DuckDbEngine(Platform.from_env({"LIFECYCLE_HOME": str(tmp_path)}))
    asked_for: list[str] = []

    def query(sql: str, parameters: Any) -> list[dict[str, Any]]:
        asked_for.append(sql)
        return engine.query(PREFIX, sql, parameters).dicts()

    found = counts(query, SCORERS, date(2025, 1, 1), date(2026, 12, 31), by_hash=True)
    assert (found.traces, found.to_score, found.by_scorer, len(asked_for)) == ({}, {}, {}, 1)
