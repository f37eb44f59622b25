"""Daily numbers: what SQL counts is what a loop over the rows counts; rules wait; rows of a day are steady."""

import math
import random
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from lifecycle_assets.monitoring import quality_sql, quality_step
from lifecycle_assets.monitoring.alert_rules import hold, scorer_of, waiting_for
from lifecycle_assets.monitoring.day_step import DayStep
from lifecycle_assets.monitoring.intervals import mean_interval, share_interval
from lifecycle_assets.monitoring.quality import VALUE_CHARACTERS, daily_rows, slice_name
from lifecycle_assets.records import ScoresRecord
from lifecycle_assets.spec import AlertRule
from lifecycle_assets.text import lines_plot, with_gaps
from resources.archive.delta_archive import DeltaArchive
from resources.archive.row_changes import Written
from resources.delta.write import append_rows, table_to_write
from resources.feedback import FEEDBACK_NAME
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from resources.tables import arrow_table
from tests.building import make_agent
from tests.resources.archived import upsert_day
from tests.resources.test_archive import DAY, PREFIX, make_rows

RULE = AlertRule(name="grounded_high", metric="grounded/mean", at_least=0.8, k=2, n=3)
DAYS = [("2026-11-18", 0.9), ("2026-11-19", 0.7), ("2026-11-20", 0.6)]


def test_k_of_the_last_n_days_with_the_newest_among_them():
    assert hold(RULE, DAYS, "2026-11-20").breached
    assert not hold(RULE, DAYS[:2], "2026-11-19").breached
    assert not hold(RULE, [*DAYS, ("2026-11-21", 0.9)], "2026-11-21").breached


@pytest.mark.parametrize("days", [[], DAYS])
def test_a_day_without_a_value_is_unknown_however_well_earlier_days_were(days: list[tuple[str, float]]):
    breach = hold(RULE, days, "2026-11-22")
    assert breach.unknown
    assert breach.breached
    assert "has no value on 2026-11-22" in breach.sentence


@pytest.mark.parametrize("value", [0.1, 0.95])
def test_a_rule_that_waits_neither_passes_nor_alarms(value: float):
    breach = hold(RULE, [("2026-11-20", value)], "2026-11-20", awaited="30 of 100 sampled traces wait")
    assert breach.unknown
    assert breach.breached
    assert breach.sentence == "grounded/mean is not judged on 2026-11-20 yet: 30 of 100 sampled traces wait."


def test_only_rules_on_a_scorer_wait_for_it():
    awaited = {"grounded": "wait", "length": ""}
    assert waiting_for("grounded/mean", awaited) == "wait"
    assert waiting_for("grounded/error_rate{tenant=a/mean}", awaited) == "wait"
    assert waiting_for("length/mean", awaited) == waiting_for("latency/p95", awaited) == ""
    assert [scorer_of(name) for name in ("error_rate", "cost_usd/mean", "latency/p50", "a/mean")] == ["", "", "", "a"]


def test_a_day_of_equal_numbers_is_drawn() -> None:
    """Their mean and its bounds differ in the last digit, on either side."""
    value, bound = 0.20000000000000004, 0.2
    for low, high in ((value, bound), (bound, value), (value + 1e-16, bound)):
        lines_plot("a day", {"latency": [("2026-11-20", value, low, high)]}, unit="s")


def test_a_day_without_traces_leaves_a_gap() -> None:
    points = [("2026-10-30", 1.0, 0.5, 1.5), ("2026-11-02", 2.0, None, None), ("2026-11-03", 3.0, 2.0, 4.0)]
    found = with_gaps(points)
    assert [(day, math.isnan(value)) for day, value, _, _ in found] == [
        ("2026-10-30", False), ("2026-10-31", True), ("2026-11-01", True), ("2026-11-02", False), ("2026-11-03", False)
    ]  # fmt: skip
    assert [one for one in found if not math.isnan(one[1])] == points
    assert with_gaps([("2026-10-01", 1.0, None, None), ("2026-10-15", 1.0, None, None)], days=7)[1][0] == "2026-10-08"
    lines_plot("days", {"latency": found}, unit="s")


TENANTS = ["acme", "", "other", "a}b,c=d", "ümläut 🙂 " * 20, "'; DROP TABLE traces; --", None]


def fill(platform: Platform, **tables: Sequence[dict[str, Any]]) -> None:
    """Append rows to tables, one commit each."""
    for table, rows in tables.items():
        append_rows(table_to_write(platform.table_uri(PREFIX + table), table), arrow_table(table, rows))


def generated(count: int) -> list[Any]:
    """Traces of a day with two models, hostile tenants, scores of two versions, errors and thumbs."""
    rng, found = random.Random(5), []
    for i in range(count):
        rows, tenant = make_rows(i), TENANTS[min(rng.randrange(9), 6)]
        rows.trace.update(
            model_id=f"m-{i % 2}",
            execution_ms=None if i % 11 == 0 else rng.randrange(10, 5000),
            input_tokens=rng.randrange(1, 900),
            output_tokens=None if i % 3 else rng.randrange(1, 90),
            cost_usd=rng.random(),
            tags={"tenant": tenant} if tenant is not None else {},
        )
        score, thumb = rows.assessments
        score.update(value_number=rng.random() * 4)
        thumb.update(name=FEEDBACK_NAME, value_number=float(rng.random() < 0.7), value_text=None)
        newer = score | {"assessment_id": f"b-{i}", "scorer_version": "10", "value_number": float(i % 5)}
        passed = score | {"assessment_id": f"c-{i}", "name": "prod_tiny_passes", "value_number": float(i % 4 > 0)}
        broken = score | {"assessment_id": f"d-{i}", "name": "prod_tiny_breaks", "value_number": None, "error": "no"}
        rows.assessments[:] = [score, *([newer] if i % 2 else []), passed, *([broken] if i % 7 == 0 else [])]
        rows.assessments.extend([thumb] if i % 4 == 0 else [])
        found.append(rows)
    return found


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> tuple[DuckDbEngine, list[Any]]:
    platform = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path_factory.mktemp("home"))})
    rows = generated(300)
    said = [said for one in rows for said in one.assessments]
    fill(platform, traces=[one.trace for one in rows], assessments=said)
    return DuckDbEngine(platform), rows


def numbers(engine: DuckDbEngine, day: date = DAY, **options: Any) -> dict[tuple[str, str], dict[str, Any]]:
    options = {"scorer_prefix": "prod_tiny_", "versions": {"m-1": "3"}, **options}
    found = daily_rows(engine, PREFIX, day, **options)
    assert len({(row["model_id"], row["metric"]) for row in found}) == len(found)
    return {(row["model_id"], row["metric"]): row for row in found}


def counted(rows: list[Any]) -> dict[str, tuple[float, int]]:
    """The numbers of some traces by a loop over them: metric to value and n."""
    found: dict[str, tuple[float, int]] = {"traces": (len(rows), len(rows))}

    def mean(name: str, values: list[float]) -> None:
        if values:
            found[name] = (math.fsum(values) / len(values), len(values))

    mean("error_rate", [float(one.trace["state"] != "OK") for one in rows])
    for column, name, unit in (
        ("execution_ms", "latency", 1000),
        ("input_tokens", "input_tokens", 1),
        ("output_tokens", "output_tokens", 1),
        ("cost_usd", "cost_usd", 1),
    ):
        values = [one.trace[column] / unit for one in rows if one.trace[column] is not None]
        for share in (50, 95, 99) if values else ():
            found[f"{name}/p{share}"] = (float(np.percentile(values, share)), len(values))
        if name != "latency" and values:
            mean(f"{name}/mean", values)
            found[f"{name}/sum"] = (math.fsum(values), len(values))
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for said in (said for one in rows for said in one.assessments if said["source_type"] != "HUMAN"):
        key = (said["trace_id"], said["name"])
        newest[key] = max(newest.get(key, said), said, key=lambda one: int(one["scorer_version"]))
    for name in {name for _, name in newest}:
        ours = [said for (_, one), said in newest.items() if one == name]
        mean(f"{name[10:]}/error_rate", [float(bool(said.get("error"))) for said in ours])
        mean(f"{name[10:]}/mean", [said["value_number"] for said in ours if said["value_number"] is not None])
    thumbs = [said["value_number"] for one in rows for said in one.assessments if said["name"] == FEEDBACK_NAME]
    if thumbs:
        found["feedback"] = (len(thumbs), len(thumbs))
        mean("positive_rate", thumbs)
        mean("negative_feedback_rate", [1 - thumb for thumb in thumbs])
    return found


def test_numbers_are_those_of_a_loop_over_the_rows(day: tuple[DuckDbEngine, list[Any]]) -> None:
    engine, rows = day
    found = numbers(engine, slices=["tenant"], max_slice_values=3)
    tenants = [one.trace["tags"]["tenant"] for one in rows if "tenant" in one.trace["tags"]]
    named = sorted(set(tenants), key=lambda one: (-tenants.count(one), one))[:3]
    wanted: dict[tuple[str, str], tuple[float, int]] = {}
    for model in ("m-0", "m-1"):
        ours = [one for one in rows if one.trace["model_id"] == model]
        tagged = [one for one in ours if "tenant" in one.trace["tags"]]
        cohorts = {"": ours}
        cohorts |= {slice_name("tenant", v): [r for r in tagged if r.trace["tags"]["tenant"] == v] for v in named}
        cohorts[slice_name("tenant", None)] = [r for r in tagged if r.trace["tags"]["tenant"] not in named]
        for name, cohort in cohorts.items():
            wanted |= {(model, metric + name): value for metric, value in counted(cohort).items() if cohort}
    assert set(found) == set(wanted)
    for key, (value, n) in wanted.items():
        assert found[key]["n"] == n, key
        assert found[key]["value"] == pytest.approx(value, rel=1e-9), key
        low, high = found[key]["ci_low"], found[key]["ci_high"]
        assert low is None or low <= value + 1e-9, key
        assert high is None or high >= value - 1e-9, key
    assert {row["version"] for (model, _), row in found.items() if model == "m-1"} == {"3"}


def test_the_same_rows_have_the_same_numbers_and_a_day_without_traces_none(
    day: tuple[DuckDbEngine, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = day
    monkeypatch.setattr(quality_sql, "SAMPLE", 40)  # A part of the scores is resampled.
    first = numbers(engine, slices=["tenant"])
    assert numbers(engine, slices=["tenant"]) == first
    assert numbers(engine, date(2026, 11, 21)) == {}
    whole = first["m-0", "length/mean"]
    assert whole["n"] == 150
    assert whole["ci_low"] < whole["value"] < whole["ci_high"]


@pytest.mark.parametrize("tenant", [one for one in TENANTS if one is not None])
def test_a_hostile_value_makes_a_bounded_name_of_its_own(tenant: str) -> None:
    name = slice_name("tenant", tenant)
    assert name.startswith("{tenant=")
    assert name.endswith("}")
    assert len(name) <= len("{tenant=}") + VALUE_CHARACTERS
    assert set(name[8:-1]).isdisjoint("{}=, '\"|<>\n")
    names = {slice_name("tenant", one) for one in (*TENANTS, tenant + " ")}
    assert len(names) == len(TENANTS) + 1
    assert slice_name("", None) == ""


def test_no_tenant_can_name_itself_as_anothers_shortened_name() -> None:
    victim = "v" * 100
    shown = slice_name("tenant", victim).removeprefix("{tenant=").removesuffix("}")
    assert slice_name("tenant", shown) != slice_name("tenant", victim)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (3, 7), (0, 50), (499, 500), (12_345, 99_999)])
def test_wilsons_interval_is_scipys(hits: int, n: int) -> None:
    known = binomtest(hits, n).proportion_ci(method="wilson")
    assert share_interval(hits, n) == pytest.approx((known.low, known.high), abs=1e-12)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    """120 samples of a skewed number: 95 of 100 intervals hold the true mean, give or take; of a part as of all."""
    rng, held = np.random.default_rng(3), {60: 0, 200: 0}
    for trial in range(120):
        values = rng.exponential(2.0, 200)
        for part in held:
            bounds = mean_interval(values[:part].tolist(), 200, float(values.mean()), f"{trial}")
            assert bounds is not None
            held[part] += bounds[0] <= 2.0 <= bounds[1]
    assert all(106 <= count <= 119 for count in held.values()), held
    assert mean_interval([1.0], 1, 1.0, "one") is None
    assert mean_interval([2.0, 2.0], 2, 2.0, "equal") == (2.0, 2.0)


def test_a_late_assessment_corrects_its_day_and_no_other(tmp_path: Path) -> None:
    """A week later a thumb comes to one trace: rows of that day change in one commit, the other day gets none."""
    platform = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path)})
    archive, engine, other = DeltaArchive(platform), DuckDbEngine(platform), date(2026, 11, 21)
    first = [make_rows(i) for i in range(12)]
    upsert_day(platform, DAY, first)
    upsert_day(platform, other, [make_rows(100 + i, day=other) for i in range(12)])

    def count(of: date) -> Written:
        rows = list(numbers(engine, of).values())
        return archive.replace_day(PREFIX, "quality_metrics", of, rows)

    assert count(DAY).inserted > 10
    assert count(other).inserted > 10
    version = archive.version(PREFIX, "quality_metrics")
    thumb = first[3].assessments[1] | {"assessment_id": "late", "name": FEEDBACK_NAME, "value_number": 0.0}
    first[3].assessments.append(thumb | {"value_text": None})
    upsert_day(platform, DAY, [first[3]])

    assert count(other) == Written(0, 0)
    assert archive.version(PREFIX, "quality_metrics") == version
    assert count(DAY) == Written(3, 0)
    assert archive.version(PREFIX, "quality_metrics") == version + 1
    assert numbers(engine)["m-1", "negative_feedback_rate"]["value"] == 1.0
    assert count(DAY) == Written(0, 0)


def test_what_a_scorers_numbers_wait_for(tmp_path: Path) -> None:
    """Its coverage of the day decides; nobody counted is not covered."""
    covered = {"version": "1", "sampled": 100, "scored": 96, "errored": 0, "waiting": 4, "on_time": 96}
    short = {**covered, "scored": 70, "waiting": 30}
    record = ScoresRecord("2026-11-20", "d", 100, {"p_shouted": covered, "p_length": short})
    agent = make_agent(tmp_path)

    def waits(inputs: dict[str, Any]) -> dict[str, str]:
        return quality_step.waits(DayStep(agent, DAY, inputs, {}, print), "p_")

    found = waits({"trace_scores": record.to_json()})
    assert found["shouted"] == ""
    assert found["length"].startswith("30 of 100 sampled traces wait for their score (70.0 % are there")
    assert all("run tiny_monitor for the day" in said for said in waits({}).values())


def test_history_adds_counts_and_averages_the_rest(tmp_path: Path) -> None:
    platform = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path)})
    rows = [
        {"trace_date": DAY, "model_id": m, "version": "", "metric": metric, "value": value, "n": n}
        for m, n in (("a", 10), ("b", 30))
        for metric, value in (("traces", float(n)), ("traces{t=x}", 1.0), ("x/mean", n / 10), ("cost_usd/sum", 2.0))
    ]
    fill(platform, quality_metrics=rows)
    rules = [AlertRule(name="many", metric="traces{t=x}", at_least=1)]
    found = quality_step.history(DuckDbEngine(platform), PREFIX, DAY, rules)
    assert {metric: point[1] for metric, (point,) in found.items()} == {
        "traces": 40.0,
        "traces{t=x}": 2.0,
        "x/mean": 2.5,
        "cost_usd/sum": 4.0,
    }
    assert "traces{t=x}" not in quality_step.history(DuckDbEngine(platform), PREFIX, DAY, []), "there may be thousands"


def test_a_rule_over_ninety_days_has_ninety_days(tmp_path: Path) -> None:
    platform = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path)})
    row = {"model_id": "a", "version": "", "metric": "error_rate", "value": 0.5, "n": 9}
    fill(platform, quality_metrics=[row | {"trace_date": DAY - timedelta(days=n)} for n in range(100)])
    rule = AlertRule(name="few_errors", metric="error_rate", at_most=0.1, k=60, n=90)
    found = quality_step.history(DuckDbEngine(platform), PREFIX, DAY, [rule])["error_rate"]
    assert len(found) == 90
    assert hold(rule, [point[:2] for point in found], DAY.isoformat()).breached
