"""A day's scores in a workspace: counted by SQL, closed by one backfill, never asked for twice."""

import json
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.scoring.backfill import Backfill, Backfills
from resources.databricks.scoring.backfill_steps import ask_backfill
from resources.databricks.scoring.coverage_sql import Counted
from resources.databricks.scoring.scorer_registry import DatabricksScorerRegistry
from resources.databricks.scoring.scoring import DatabricksScoring
from resources.databricks.workspace import open_workspace
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from resources.scoring.sampling import least_expected
from resources.scoring.scoring import DayScores
from resources.sql.filters import condition_of
from tests.building import make_agent
from tests.databricks.seeding import link, put_trace
from tests.databricks.test_scorers import BARE, register
from tests.workspace.app import Workspace
from tests.workspace.archival import Archival
from tests.workspace.lake import Lake
from tests.workspace.monitoring_job import MonitoringJob
from tests.workspace.otel_tables import create_tables, store_trace
from tests.workspace.scorers import BASE, Scorers
from tests.workspace.traces import Traces
from tests.workspace.tracking import Tracking

DAY = (datetime.now(UTC) - timedelta(days=3)).date()
NOT_DUE = {"on_time": 0, "due": 0}
"""Of traces that ended before their scorers were registered: a backfill's."""
START_MS = int(datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC).timestamp() * 1000)
BACKFILL = f"POST {BASE}/scheduled-scorers/.*/backfill"
NAME = "dev_tiny_said"
SAID = {"name": "said", "source": "scorers.py:said", "cost_per_call": 0.001}
DEAR = {"name": "dear", "cost_per_call": 6.0}
SCORERS_PY = """
from mlflow.genai.scorers import scorer


@scorer
def said(outputs):
    if outputs == "odd":
        raise ValueError("odd")
    return None if outputs == "nothing" else outputs == "fine"


@scorer
def patient(session):
    return len(session) < 3
"""


class Place:
    """An agent whose traces are in Unity Catalog, with its scorers registered."""

    def __init__(
        self,
        workspace: Workspace,
        platform: Platform,
        tmp_path: Path,
        scorers: list[dict[str, Any]],
        *,
        location: str = "unity_catalog",
    ) -> None:
        self.workspace, self.platform = workspace, platform
        tracing = {"location": location}
        attributes = {**BARE, "scorers": scorers, "tracing": tracing}
        self.agent: Agent = make_agent(tmp_path, attributes=attributes, scorers_py=SCORERS_PY)
        self.experiment = experiment_id(platform, self.agent.spec.experiment)
        if location == "unity_catalog":
            link(workspace, self.experiment)
            create_tables(workspace, "main.agents", "tiny")
        self.told: list[str] = []
        versions = register(platform, self.agent)
        tags = workspace[Tracking].experiments[self.experiment]["tags"]
        for name, held in versions.items():
            spec = next(s for s in self.agent.spec.scorers if name.endswith(f"_{s.name}"))
            owner = {"agent": "tiny", "environment": "dev", "stopped": False, "name": spec.name, "digest": "d"}
            sampling = {"sample_rate": spec.sample_rate, "filter": spec.filter, "level": spec.level}
            state = {**owner, **sampling, **held, "cost_per_call": spec.cost_per_call}
            tags[f"lifecycle.scorer.{name}"] = json.dumps(state)
        self.versions = DatabricksScorerRegistry(platform).registered(self.agent)

    def put(self, number: int, answer: str = "fine", *, hour: float = 12, **said: Any) -> str:
        trace_id = put_trace(
            self.workspace, self.experiment, number, START_MS + int(hour * 3_600_000), answer=answer, **said
        )
        if trace_id.startswith("trace:/"):
            store_trace(self.workspace, "main.agents", "tiny", self.workspace[Traces].get(trace_id))
        return trace_id

    def stored(self) -> None:
        """What the workspace holds is in its tables."""
        for trace in self.workspace[Traces].all(self.experiment):
            store_trace(self.workspace, "main.agents", "tiny", trace)

    def score(self, day: date = DAY, **bounds: float) -> DayScores:
        scoring = DatabricksScoring(self.platform, **{"poll_seconds": 0.05, "job_seconds": 120, **bounds})
        now_ms = int(time.time() * 1000)
        return scoring.score_day(
            self.agent, day, self.versions, settled_before_ms=now_ms, progress=lambda line: self.told.append(line)
        )

    def backfill_of_others(self, start_ms: int = 0, end_ms: int = 1) -> str:
        """A backfill somebody else asked for; returns the id of its job."""
        body: dict[str, Any] = {"experiment_id": self.experiment, "endpoint_name": "monitor", "trace_ids": None}
        body |= {"start_timestamp_ms": start_ms, "end_timestamp_ms": end_ms}
        body |= {"scorer_sample_rates": [{"name": NAME, "sample_rate": 1.0}]}
        path = f"{BASE}/scheduled-scorers/{self.experiment}/backfill"
        answer: Any = open_workspace(self.platform).api_client.do("POST", path, body=body)
        return answer["job_id"]

    def remember(self, state: str, job_id: str, *, day: date = DAY) -> None:
        """What a process noted before it was killed."""
        now_ms = int(time.time() * 1000)
        held = Backfill(state, job_id, START_MS, now_ms, {NAME: 1.0}, {NAME: "1"}, now_ms, now_ms, {})
        Backfills(self.platform, self.experiment, ask_seconds=1, job_seconds=1, poll_seconds=1).note(
            f"dev_tiny.{day}", held
        )

    def asked(self) -> list[Any]:
        return [entry.json for entry in self.workspace.calls(BACKFILL)]


def test_the_gap_of_a_day_is_one_backfill_of_exactly_that_day(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    """With answers, an error, silence, a filter, an evaluation's trace, days before and after, and a dear scorer."""
    patient = {"name": "patient", "source": "scorers.py:patient", "level": "session"}
    filtered = {**SAID, "name": "of_prod", "filter": "tags.environment = 'prod' AND attributes.status = 'OK'"}
    place = Place(workspace, databricks, tmp_path, [SAID, filtered, patient, {**SAID, **DEAR}])
    for number, answer in enumerate(["fine", "poor", "odd", "nothing"]):
        place.put(number, answer, tags={"environment": "prod"} if number < 2 else {})
    for number in (10, 11):
        place.put(number, metadata={"mlflow.trace.session": "s-1"})
    place.put(20, metadata={"mlflow.sourceRun": "r-1"})
    place.put(21, hour=-0.5)
    place.put(22, hour=24)
    workspace.slow_states = 1
    workspace.log.clear()
    scores = place.score()
    made = [f"{one.method} {one.path.rpartition('/')[2]}" for one in workspace.log]
    reads, notes = made.index(f"GET {place.experiment}"), made.index("POST set-experiment-tag")
    assert reads < notes < made.index("POST backfill"), "noted by the worker, when all that remains is to send"
    assert scores.coverage == {
        "dev_tiny_dear": {"version": "1", "sampled": 6, "scored": 0, "errored": 0, "waiting": 6, **NOT_DUE},
        NAME: {"version": "1", "sampled": 6, "scored": 5, "errored": 1, "waiting": 0, **NOT_DUE},
        "dev_tiny_of_prod": {"version": "1", "sampled": 2, "scored": 2, "errored": 0, "waiting": 0, **NOT_DUE},
        "dev_tiny_patient": {"version": "1", "sampled": 1, "scored": 1, "errored": 0, "waiting": 0, **NOT_DUE},
    }
    assert (scores.traces, scores.written) == (6, 8)
    (request,) = place.asked()
    asked = ("dev_tiny_of_prod", "dev_tiny_patient", NAME)
    assert request["scorer_sample_rates"] == [{"name": name, "sample_rate": 1.0} for name in asked]
    assert (request["start_timestamp_ms"], request["end_timestamp_ms"]) == (START_MS, START_MS + 86_400_000)
    assert any("dear: 6 calls for 36.00 USD are over the budget" in line for line in place.told)
    assert any("said nothing of 1 traces" in line for line in place.told)
    assert any(line.startswith("waiting for backfill job ") for line in place.told)

    again = place.score()
    assert (again.coverage, again.written) == (scores.coverage, 0)
    assert len(place.asked()) == 1, "silence is an answer: nothing is asked for again"


@pytest.mark.parametrize("location", ["unity_catalog", "experiment"])
def test_a_filter_on_expectations_counts_the_traces_that_have_one(
    workspace: Workspace, databricks: Platform, tmp_path: Path, location: str
):
    facts = {**SAID, "filter": "expectation.facts IS NOT NULL"}
    place = Place(workspace, databricks, tmp_path, [facts], location=location)
    if location == "experiment":
        workspace[Lake].create_schema("main.agents")
        table = "main.agents.tiny_native_traces"
        workspace[Tracking].experiments[place.experiment]["tags"]["lifecycle.archival"] = table
        workspace[Archival].tables[place.experiment] = table
    said = {"assessment_name": "facts", "expectation": {"value": ["a"]}, "valid": True}
    for number in range(3):
        trace_id = place.put(number)
        if number == 1:
            workspace[Traces].add_assessment(trace_id, {**said, "source": {"source_type": "HUMAN", "source_id": "ann"}})
    workspace.tick(2)
    if location == "unity_catalog":
        place.stored()
    coverage = place.score().coverage[NAME]
    assert (coverage["sampled"], coverage["scored"], coverage["waiting"]) == (1, 1, 0)
    assert not place.asked(), "the monitoring scored it, and that was counted"


def test_a_lost_answer_is_one_job_and_a_running_one_is_awaited(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    place = Place(workspace, databricks, tmp_path, [SAID])
    place.put(1)
    workspace.slow_states = 1
    workspace.fail(BACKFILL, kind="lost")
    assert place.score().coverage[NAME]["scored"] == 1
    assert len(place.asked()) == 1

    place.put(2, hour=36)
    workspace[Scorers].tells_backfill_job = False
    place.backfill_of_others()
    scores = place.score(DAY + timedelta(days=1))
    assert scores.coverage[NAME] == {"version": "1", "sampled": 1, "scored": 1, "errored": 0, "waiting": 0, **NOT_DUE}
    assert [entry.status for entry in workspace.calls(BACKFILL)] == [0, 200, 409, 200]
    assert any("another backfill runs" in line for line in place.told)


def test_a_request_that_hangs_is_stopped_and_remembered(workspace: Workspace, databricks: Platform, tmp_path: Path):
    place = Place(workspace, databricks, tmp_path, [SAID])
    place.put(1)
    workspace.fail(BACKFILL, kind="hang", seconds=60)
    with pytest.raises(Refused, match=r"The answer to the backfill of dev_tiny_said was lost"):
        place.score(ask_seconds=9)
    last = Backfills(databricks, place.experiment, ask_seconds=1, job_seconds=1, poll_seconds=1).last(f"dev_tiny.{DAY}")
    assert last is not None
    assert (last.state, last.rates) == ("asking", {NAME: 1.0})


def test_a_failed_job_says_its_message_and_page(workspace: Workspace, databricks: Platform, tmp_path: Path):
    place = Place(workspace, databricks, tmp_path, [SAID])
    place.put(1)
    workspace[MonitoringJob].job_error = "the judge endpoint is gone"
    place.remember("running", place.backfill_of_others())
    with pytest.raises(Refused, match=r"backfill of dev_tiny_said failed .*\(the judge endpoint is gone\); see http"):
        place.score()


def test_a_backfill_nobody_saw_end_is_found_and_followed_before_another_is_asked_for(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    """Killed while it ran, and killed between the request and its answer."""
    place = Place(workspace, databricks, tmp_path, [SAID])
    place.put(1)
    place.put(2, "nothing")
    workspace.slow_states = 10**6
    place.remember("running", place.backfill_of_others(START_MS, START_MS + 86_400_000))
    with pytest.raises(Refused, match=r"backfill job \d+ is not done after 0.3 s; it goes on there"):
        place.score(job_seconds=0.3)
    workspace.slow_states = 0
    assert place.score().coverage[NAME] == {
        "version": "1",
        "sampled": 2,
        "scored": 2,
        "errored": 0,
        "waiting": 0,
        **NOT_DUE,
    }

    place.put(3, hour=36)
    place.remember("asking", "", day=DAY + timedelta(days=1))
    with pytest.raises(Refused, match=r"answer to the backfill of dev_tiny_said was lost.* in 30 minutes"):
        place.score(DAY + timedelta(days=1))
    workspace.slow_states = 1
    place.backfill_of_others(START_MS + 86_400_000, START_MS + 2 * 86_400_000)
    assert place.score(DAY + timedelta(days=1)).coverage[NAME]["scored"] == 1
    assert len(place.asked()) == 2


def test_what_production_monitoring_scored_is_counted_with_and_without_versions(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    half = {**SAID, "name": "half", "sample_rate": 0.5}
    place = Place(workspace, databricks, tmp_path, [SAID, half])
    for number in range(40):
        place.put(number)
    workspace.tick()
    first = place.score().coverage
    assert first[NAME] == {"version": "1", "sampled": 40, "scored": 40, "errored": 0, "waiting": 0, **NOT_DUE}
    assert 9 <= first["dev_tiny_half"]["sampled"] < 40
    assert first["dev_tiny_half"]["waiting"] == 0

    older = {**workspace[Tracking].experiments[place.experiment]["tags"]}
    for trace in workspace[Traces].all(place.experiment):
        for one in trace["info"]["assessments"]:
            one["metadata"] = {}
    workspace[Lake].drop("main.agents.tiny_otel_annotations")
    place.stored()
    assert place.score().coverage == first, "made after the version was registered"
    tag = f"lifecycle.scorer.{NAME}"
    later = {**json.loads(older[tag]), "registered_at_ms": int(time.time() * 1000) + 60_000}
    workspace[Tracking].experiments[place.experiment]["tags"][tag] = json.dumps(later)
    place.remember("failed", "1")
    place.agent = make_agent(
        tmp_path,
        attributes={**BARE, "scorers": [SAID, half], "backfill": {"max_cost_usd": 0.0}},
        scorers_py=SCORERS_PY,
    )
    assert place.score().coverage[NAME]["waiting"] == 40, "an earlier version said it"
    assert not place.asked(), "the budget is nothing"


def test_where_the_experiment_keeps_traces_mlflow_is_asked_until_the_archive_has_them(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    place = Place(workspace, databricks, tmp_path, [SAID], location="experiment")
    table = "main.agents.tiny_native_traces"
    workspace[Lake].create_schema("main.agents")
    workspace[Tracking].experiments[place.experiment]["tags"]["lifecycle.archival"] = table
    place.put(1)
    workspace.tick()
    whole = {"version": "1", "sampled": 1, "scored": 1, "errored": 0, "waiting": 0, **NOT_DUE}
    assert place.score().coverage[NAME] == whole, "the archive has no table yet"
    workspace[Archival].tables[place.experiment] = table
    workspace.tick()
    workspace.log.clear()
    assert place.score().coverage[NAME] == whole
    assert not workspace.calls("/traces/search"), "SQL said it"
    place.put(2)
    workspace[Archival].work()
    workspace[MonitoringJob].tick()
    assert place.score().coverage[NAME]["waiting"] == 0, "the archive lags: MLflow knows the score"
    assert not place.asked()


def test_traces_the_monitoring_may_still_reach_are_left_to_it(
    workspace: Workspace, databricks: Platform, tmp_path: Path
):
    place = Place(workspace, databricks, tmp_path, [SAID])
    now = datetime.now(UTC)
    place.put(1, hour=(now.timestamp() * 1000 - START_MS) / 3_600_000 - 0.2)
    nothing = {"version": "1", "sampled": 0, "scored": 0, "errored": 0, "waiting": 0, **NOT_DUE}
    assert place.score(now.date()).coverage[NAME] == nothing
    assert not place.asked()


def test_what_is_asked_for_is_verified_and_a_broken_scorer_of_others_stops_nothing(
    workspace: Workspace, databricks: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    place = Place(workspace, databricks, tmp_path, [SAID])
    request = {"experiment_id": place.experiment, "start_ms": START_MS, "end_ms": START_MS + 1000}
    for rates in ({"dev_tiny_gone": 1.0}, {NAME: 0.0}, {NAME: 1.5}):
        with pytest.raises(Refused, match=r"does not run in the workspace"):
            ask_backfill({**request, "rates": rates})
    with pytest.raises(Refused, match=r"nothing to backfill"):
        ask_backfill({**request, "rates": {NAME: 1.0}, "end_ms": START_MS})
    assert not place.asked()
    scheduled = workspace[Scorers].scheduled(place.experiment)
    broken = {"name": "of_others", "serialized_scorer": "{}", "custom": {}, "sample_rate": 1.0}
    workspace[Scorers].put(place.experiment, [*scheduled, broken])
    workspace[MonitoringJob].says_version = True
    answer = ask_backfill({**request, "rates": {NAME: 0.5}})
    assert answer["job_id"].isdigit()
    (body,) = place.asked()
    assert body["scorer_sample_rates"] == [{"name": NAME, "sample_rate": 0.5}]
    assert "scorer 'of_others' of experiment" in capsys.readouterr().out
    assert ask_backfill({**request, "rates": {NAME: 0.5}}) == {"running": True}
    workspace.fail(BACKFILL, kind="truncated")
    workspace[Scorers].backfill_jobs.clear()
    assert ask_backfill({**request, "rates": {NAME: 0.5}}) == {"lost": True}
    workspace.fail(BACKFILL, status=500, message="no capacity")
    assert "no capacity" in ask_backfill({**request, "rates": {NAME: 0.5}})["impossible"]


def test_a_sample_is_short_below_its_binomial_bound_only():
    """Bounds as `scipy.stats.binom.ppf(0.001, n, rate)` gives them."""
    cases = {(10, 0.5): 1, (100, 0.5): 35, (1000, 0.1): 72, (10_000, 0.01): 71, (5, 1.0): 5}
    assert {case: least_expected(*case) for case in cases} == cases
    assert Counted(0.5, 100, 35, 0, 100, 35).waiting == 0
    assert Counted(0.5, 100, 34, 0, 100, 34).waiting == 16
    assert Counted(0.5, 4, 0, 0, 4, 0).waiting == 2, "none at all: asked once"
    assert Counted(0.5, 4, 0, 0, 0, 0).waiting == 0, "seen by a finished backfill"
    assert Counted(1.0, 5, 3, 1, 1, 0).coverage("1")["waiting"] == 1


def test_due_is_what_was_answered_and_what_is_overdue_and_missing():
    found = Counted(1.0, 10, 5, 1, 4, 0, on_time=4, after_time=2, overdue=3).coverage("1")
    assert (found["waiting"], found["on_time"], found["due"]) == (4, 4, 9)
    sample = Counted(0.5, 100, 34, 0, 100, 34, on_time=30, after_time=4, overdue=66).coverage("1")
    assert (sample["waiting"], sample["due"]) == (16, 50), "of the unsampled, only as many as are missing"


@pytest.mark.parametrize("location", ["unity_catalog", "experiment"])
def test_scores_of_live_traces_are_counted_by_when_they_came(
    workspace: Workspace, databricks: Platform, tmp_path: Path, location: str
):
    """The version has been there for days; the backfill answers now, three days after the traces ended."""
    place = Place(workspace, databricks, tmp_path, [SAID], location=location)
    tags = workspace[Tracking].experiments[place.experiment]["tags"]
    held = json.loads(tags[f"lifecycle.scorer.{NAME}"])
    tags[f"lifecycle.scorer.{NAME}"] = json.dumps({**held, "registered_at_ms": START_MS})
    for number in range(3):
        place.put(number)
    late = place.score().coverage[NAME]
    assert (late["scored"], late["on_time"], late["due"]) == (3, 0, 3)
    target = {"coverage": {"within_minutes": 60 * 24 * 4}}
    spec = type(place.agent.spec).model_validate(
        {**place.agent.spec.model_dump(exclude_unset=True), "monitoring": target}
    )
    place.agent = Agent(spec, place.agent.folder)
    assert place.score().coverage[NAME]["on_time"] == 3


def test_filters_become_conditions_with_parameters():
    filter_string = (
        "tags.environment = 'prod' AND metadata.`mlflow.trace.user` != \"o'neill\" and trace.status = 'OK' "
        "AND execution_time_ms >= 250 AND name LIKE 'pre%' AND tags.`a.b` IS NOT NULL AND expectation.facts IS NOT NULL"
    )
    condition = condition_of(filter_string)
    assert condition.sql == (
        "tags[:f0k] = :f0v AND metadata[:f1k] <> :f1v AND state = :f2v AND execution_ms >= :f3v "
        "AND tags[:f4k] LIKE :f4v AND tags[:f5k] IS NOT NULL AND judged[:f6k] IS NOT NULL"
    )
    assert condition.parameters == {
        "f0k": "environment",
        "f0v": "prod",
        "f1k": "mlflow.trace.user",
        "f1v": "o'neill",
        "f2v": "OK",
        "f3v": 250.0,
        "f4k": "mlflow.traceName",
        "f4v": "pre%",
        "f5k": "a.b",
        "f6k": "expectation.facts",
    }
    assert condition_of("  ").sql == "TRUE"


@pytest.mark.parametrize(
    "clause",
    [
        "span.name = 'x'",
        "tags.a = 'x' OR tags.b = 'y'",
        "tags.a = 1",
        "status > 'OK'",
        "timestamp_ms = '5'",
        "tags.a RLIKE '.*'",
        "tags.a = 'x' AND",
        "'; DROP TABLE x --",
        "nonsense = 'x'",
        "feedback.good = 'yes'",
    ],
)
def test_a_filter_that_cannot_be_counted_is_refused_by_its_clause(clause: str):
    with pytest.raises(Refused, match=r"^The scorer filter's clause .* cannot be counted by SQL; write"):
        condition_of(f"tags.fine = 'x' AND {clause}")
