"""A day of scores on the local platform: each owed score once, in the table and in MLflow, whatever happens."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from benchmarks.corpus import LEAD_MS, write
from lifecycle_assets.monitoring.day_step import DayStep
from lifecycle_assets.monitoring.scores_step import trace_scores
from lifecycle_assets.records import ScorersRecord, ScorerVersion
from lifecycle_assets.retention import today
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_monitoring import ArchivePolicy
from resources import claimant
from resources.delta.write import append_rows, table_to_write
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.platform import Platform
from resources.scorer_registry import MlflowScorerRegistry
from resources.scoring.call import code_of
from resources.scoring.local_scoring import LocalScoring
from resources.scoring.sampling import is_sampled
from resources.scoring.score_claims import PARTS, STALE_SECONDS, Claims, part_of
from resources.scoring.scoring import NO_LIMITS, DayScores, ScoreLimits
from resources.scoring.trace_scores import Answer, error_text, feedback_of, id_of, is_transient
from resources.sql.engine import DuckDbEngine
from resources.tables import arrow_schema
from resources.trace_rows import trace_rows
from tests.building import make_agent
from tests.resources.dying_scoring import Scorers, scorers

DAY = date(2026, 11, 19)
MIDNIGHT_MS = int(datetime(2026, 11, 19, tzinfo=UTC).timestamp() * 1000)
DAY_MS = 86_400_000
FOREVER = 2**53
TRACES = 60

SCORERS_PY = """
from mlflow.genai.scorers import scorer


@scorer
def spans(trace):
    return float(len(trace.data.spans))


@scorer
def answered(outputs):
    return bool(outputs)


@scorer
def moody(trace):
    import json, os, time
    from pathlib import Path
    noted = Path(os.environ["LIFECYCLE_HOME"]) / "moods.json"
    moods = json.loads(noted.read_text()) if noted.exists() else {}
    with (noted.parent / "calls").open("a") as calls:
        calls.write(trace.info.trace_id + chr(10))
    mood = moods.get(trace.info.trace_id, moods.get("all", ""))
    if mood == "away":
        raise ConnectionError("the judge is away")
    if mood == "wrong":
        raise RuntimeError("not this one")
    if mood == "hangs":
        while True:
            pass
    if mood == "sleeps":
        time.sleep(60)
    if mood == "dies":
        os._exit(7)
    if mood == "silent":
        return None
    if mood == "slow":
        time.sleep(0.02)
    return 1.0


@scorer
def talk(session):
    return float(len(session))
"""


def declaration(*names: str, **changes: Any) -> dict[str, Any]:
    """Attributes of an agent with these scorers; `changes` are fields of all of them."""
    schema = {"name": "correct", "type": "feedback", "input": "pass_fail", "instruction": "Is it correct?"}
    session = {"level": "session"}
    return {
        "scorers": [
            {"name": n, "source": f"scorers.py:{n}", **(session if n == "talk" else {}), **changes} for n in names
        ],
        "eval": {"dataset": "eval_dataset.jsonl", "gate": {"thresholds": [{"metric": "spans/mean", "at_least": 0}]}},
        "labeling": {"schemas": [schema]},
    }


class Place:
    """An agent and its traces of one day."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self.platform, self.folder = platform, folder
        self.registered: list[ScorerVersion] = []
        self.lines: list[str] = []

    def declare(self, *names: str, **changes: Any) -> Agent:
        """Declare and register these scorers."""
        declared = declaration("spans", *(name for name in names if name != "spans"), **changes)
        if "spans" not in names:
            declared["scorers"][0]["sample_rate"] = 0.0
        self.agent = make_agent(self.folder, attributes=declared, scorers_py=SCORERS_PY)
        self.registered = MlflowScorerRegistry(self.platform).register(self.agent)
        return self.agent

    def score(self, limits: ScoreLimits = NO_LIMITS, platform: Platform | None = None) -> DayScores:
        """Score the day in this process."""
        scoring = LocalScoring(platform or self.platform)
        return scoring.score_day(
            self.agent, DAY, self.registered, settled_before_ms=FOREVER, progress=self.lines.append, limits=limits
        )

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Rows of the tables."""
        return DuckDbEngine(self.platform).query(self.agent.spec.table_prefix, sql).dicts()

    def scores(self) -> list[dict[str, Any]]:
        """Scores in the table."""
        return self.rows("SELECT * FROM assessments WHERE scorer_version IS NOT NULL ORDER BY assessment_id")

    def in_mlflow(self) -> list[dict[str, Any]]:
        """Scores in MLflow, as the archive would write them."""
        open_mlflow(self.platform)
        place = experiment_id(self.platform, "/agents/tiny")
        traces = open_client(self.platform).search_traces(locations=[place], max_results=500, include_spans=False)
        said = [row for trace in traces for row in trace_rows(trace).assessments]
        return sorted((row for row in said if row["scorer_version"]), key=lambda row: row["assessment_id"])

    def mood(self, **moods: str) -> None:
        """How `moody` feels about traces; `all` is about all others."""
        (self.platform.home / "moods.json").write_text(json.dumps(moods))

    def calls(self) -> list[str]:
        """Traces `moody` was called with, since this was asked last."""
        noted = self.platform.home / "calls"
        found = noted.read_text().splitlines() if noted.exists() else []
        noted.unlink(missing_ok=True)
        return found

    def ids(self) -> list[str]:
        """All traces of the day, oldest first."""
        place = experiment_id(self.platform, "/agents/tiny")
        found = open_client(self.platform).search_traces(
            locations=[place], max_results=500, include_spans=False, order_by=["timestamp_ms ASC"]
        )
        return [trace.info.trace_id for trace in found]

    def whole(self, expected: int) -> None:
        """Everything is there once, and the same on both sides; MLflow stamps an update itself."""
        rows, said = self.scores(), self.in_mlflow()
        assert len({row["assessment_id"] for row in rows}) == len(rows) == expected
        for ours, theirs in zip(rows, said, strict=True):
            updated = ours["updated_at"] != ours["created_at"]
            assert {**theirs, **({"updated_at": ours["updated_at"]} if updated else {})} == ours
        noted = self.rows("SELECT trace_id, assessment_id FROM publications")
        assert len({tuple(row.values()) for row in noted}) == len(noted) == expected


@pytest.fixture(scope="module")
def filled(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with traces of one day."""
    home = tmp_path_factory.mktemp("filled")
    shutil.copy(migrated_store, home / "mlflow.db")
    write(home, TRACES, days=1, until_ms=MIDNIGHT_MS + DAY_MS + LEAD_MS, experiment="/agents/tiny")
    return home / "mlflow.db"


@pytest.fixture
def place(filled: Path, platform: Platform, tmp_path: Path) -> Place:
    """A place of its own."""
    shutil.copy(filled, platform.home / "mlflow.db")
    return Place(platform, tmp_path / "agents")


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorers]:
    """Processes that score."""
    with scorers(tmp_path_factory.mktemp("processes")) as found:
        yield found


def versions(place: Place) -> list[int]:
    """Versions of the tables of scores: they change with every commit."""
    uris = (place.platform.table_uri(place.agent.spec.table_prefix + name) for name in ("assessments", "publications"))
    return [DeltaTable(uri).version() for uri in uris]


def test_a_day_is_scored_once_and_mlflow_says_the_same_as_the_table(place: Place) -> None:
    place.declare("spans", "answered")
    found = place.score()

    assert (found.traces, found.written, found.calls, found.pending) == (TRACES, 2 * TRACES, 2 * TRACES, 0)
    place.whole(2 * TRACES)
    covered = found.coverage["local_tiny_spans"]
    assert (covered["sampled"], covered["scored"], covered["waiting"]) == (TRACES, TRACES, 0)
    experiment = experiment_id(place.platform, "/agents/tiny")
    assert not open_client(place.platform).search_runs([experiment]), "no run is left behind"
    before = versions(place)
    assert before == [1, 1], "one commit each"

    again = place.score()

    assert (again.traces, again.written, again.calls, again.pending) == (TRACES, 0, 0, 0)
    assert again.coverage == found.coverage
    assert versions(place) == before, "nothing to say is no commit"


def test_a_batch_writes_what_mlflow_itself_would(place: Place) -> None:
    """Every column of the store's own table, of scores written in a batch and of the same written by MLflow."""
    import sqlite3

    place.declare("spans", "moody")
    some = place.ids()[:6]
    wrong, silent, wrong_too, silent_too = some[:4]
    place.mood(**{wrong: "wrong", silent: "silent", wrong_too: "wrong", silent_too: "silent"})
    place.score()
    from mlflow.tracing.client import TracingClient

    store, digests = TracingClient(place.platform.tracking_uri).store, {s.registered_name: s for s in place.registered}
    rows = [row for row in place.scores() if row["trace_id"] in some]
    assert {(row["value_number"], row["error"] is None) for row in rows} > {(None, True), (None, False), (1.0, True)}
    for row in rows:
        again = {**row, "assessment_id": f"by-mlflow-{row['assessment_id'][:30]}"}
        store.create_assessment(feedback_of(again, digest=digests[row["name"]].digest))
    with sqlite3.connect(place.platform.home / "mlflow.db") as opened:
        opened.row_factory = sqlite3.Row
        asked = (
            "SELECT * FROM assessments WHERE assessment_id LIKE ? AND trace_id IN (SELECT trace_id FROM assessments "
        )
        asked += "WHERE assessment_id LIKE 'by-mlflow-%') AND assessment_metadata LIKE ? ORDER BY trace_id, name"
        one, two = ([{**row} for row in opened.execute(asked, [start, "%digest%"])] for start in ("a-%", "by-mlflow-%"))
    assert {row.pop("assessment_id")[:2] for row in (*one, *two)} == {"a-", "by"}
    assert (len(one), one) == (2 * len(some), two)
    assert {type(row["trace_timestamp_ms"]) for row in one} == {int}


def test_raising_a_rate_or_widening_a_filter_only_adds(place: Place) -> None:
    place.declare("moody", sample_rate=0.3)
    first = {row["trace_id"] for row in (place.score(), place.scores())[1]}
    assert first == {one for one in place.ids() if is_sampled(one, "local_tiny_moody", 0.3)}
    assert len(place.calls()) == len(first)

    place.declare("moody", sample_rate=0.6)
    place.score()
    assert {row["trace_id"] for row in place.scores()} == {
        one for one in place.ids() if is_sampled(one, "local_tiny_moody", 0.6)
    }
    assert not set(place.calls()) & first, "what was scored is not scored again"

    place.declare("moody", filter="attributes.status = 'ERROR'")
    assert place.score().coverage["local_tiny_moody"]["sampled"] < 10
    assert {row["scorer_version"] for row in place.scores()} == {"1"}


def test_an_error_has_its_cause_and_only_one_that_may_pass_is_tried_again(place: Place) -> None:
    place.declare("moody")
    away, wrong, silent = place.ids()[:3]
    place.mood(**{away: "away", wrong: "wrong", silent: "silent"})
    found = place.score()
    errors = {row["trace_id"]: row["error"] for row in place.scores() if row["error"]}
    assert errors == {
        away: "SCORER_UNAVAILABLE: ConnectionError: the judge is away",
        wrong: "SCORER_ERROR: RuntimeError: not this one",
    }
    covered = found.coverage["local_tiny_moody"]
    assert (covered["scored"], covered["errored"], covered["waiting"]) == (TRACES - 2, 1, 1)
    assert place.calls().count(away) == 3, "two more times within the run"
    place.whole(TRACES)

    place.score()
    assert set(place.calls()) == {away}
    (row,) = [row for row in place.scores() if row["trace_id"] == away]
    assert row["error"].endswith("(try 2)")
    place.mood()
    place.score()
    assert set(place.calls()) == {away}
    (row,) = [row for row in place.in_mlflow() if row["trace_id"] == away]
    assert (row["value_number"], row["error"]) == (1.0, None), "in place, under the same id"
    assert place.score().coverage["local_tiny_moody"]["errored"] == 1
    assert place.calls() == []
    assert len(place.in_mlflow()) == TRACES


def test_what_is_away_for_long_is_given_up() -> None:
    error, tried = None, []
    for _ in range(5):
        error = error_text(Answer(code="SCORER_UNAVAILABLE", message="the judge is away"), error)
        tried.append(error)
        assert is_transient(error) == (len(tried) < 5)
    assert tried[1] == "SCORER_UNAVAILABLE: the judge is away (try 2)"
    assert tried[4] == "SCORER_ERROR: given up after 5 tries: the judge is away"
    assert len(error_text(Answer(code="SCORER_ERROR", message="x\ud800\x00" * 900)) or "") < 600


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TimeoutError("late"), "SCORER_TIMEOUT"),
        (ConnectionResetError("away"), "SCORER_UNAVAILABLE"),
        (type("RateLimitError", (Exception,), {})("slow down"), "SCORER_UNAVAILABLE"),
        (type("HTTPError", (Exception,), {"status_code": 503})("busy"), "SCORER_UNAVAILABLE"),
        (type("HTTPError", (Exception,), {"status_code": 401})("who are you"), "SCORER_ERROR"),
        (KeyError("answer"), "SCORER_ERROR"),
    ],
    ids=["timeout", "connection", "rate", "503", "401", "fault"],
)
def test_which_errors_may_pass(error: Exception, code: str) -> None:
    wrapped = RuntimeError("the judge failed")
    wrapped.__cause__ = error
    assert (code_of(error), code_of(wrapped)) == (code, code)


def test_a_call_that_hangs_or_ends_its_process_does_not_stop_the_day(place: Place) -> None:
    place.declare("moody", "spans", timeout_seconds=0.4)
    hangs, dies = place.ids()[10], place.ids()[40]
    place.mood(**{hangs: "hangs", dies: "dies"})
    began = time.monotonic()
    found = place.score()
    assert time.monotonic() - began < 30
    errors = {row["trace_id"]: row["error"] for row in place.scores() if row["error"]}
    assert errors == {
        hangs: "SCORER_TIMEOUT: no answer within 0.4 s",
        dies: "SCORER_ERROR: its process ended with code 7",
    }
    assert found.coverage["local_tiny_spans"]["scored"] == TRACES
    place.whole(2 * TRACES)


def test_a_scorer_that_never_answers_is_left_for_the_next_run(place: Place) -> None:
    place.declare("moody", timeout_seconds=0.2)
    place.mood(all="hangs")
    found = place.score()
    assert found.calls == 5
    assert found.coverage["local_tiny_moody"]["waiting"] == TRACES
    assert any("moody gave no answer several times" in line for line in place.lines)


def test_what_has_a_price_is_called_on_threads_and_never_beyond_the_cap(place: Place) -> None:
    place.declare("moody", cost_per_call=0.01, timeout_seconds=0.5)
    newest = place.ids()[::-1]
    place.mood(**{newest[3]: "sleeps", "all": "slow"})
    began = time.monotonic()
    found = place.score(ScoreLimits(max_cost_usd=0.1))
    assert time.monotonic() - began < 30, "nobody waits for the one that sleeps"
    assert (found.calls, found.left) == (10, {"local_tiny_moody": TRACES - 10})
    assert sorted(place.calls()) == sorted(newest[:10])
    assert [row["error"] for row in place.scores() if row["error"]] == ["SCORER_TIMEOUT: no answer within 0.5 s"]
    found = place.score(ScoreLimits(max_traces=7, scorers=["moody"]))
    assert (found.calls, found.left) == (7, {"local_tiny_moody": TRACES - 9 - 7})
    assert place.score(ScoreLimits(scorers=["spans"])).calls == 0
    place.mood()
    assert place.score().left == {}
    place.whole(TRACES)


def test_a_day_that_is_not_kept_is_left_alone(place: Place) -> None:
    """Scores would bring back a day that was removed from the tables."""
    place.declare("spans")
    spec = place.agent.spec.model_copy(update={"archive": ArchivePolicy(retention_days=1)})
    given = {
        "registered_scorers": ScorersRecord("d", "m-1", [one.to_json() for one in place.registered]).to_json(),
        "limits": NO_LIMITS.to_json(),
    }
    gateways = {"scoring": LocalScoring(place.platform)}
    agent, days = Agent(spec, place.folder), [today() - timedelta(days=n) for n in (1, 2)]
    kept, gone = (trace_scores(DayStep(agent, day, given, gateways, place.lines.append)) for day in days)
    assert kept.record is not None
    assert (
        kept.metadata["coverage"].value.splitlines()[0] == "| scorer | sampled | scored | errored | waiting | in time |"
    )
    assert kept.metadata["coverage"].value.splitlines()[2] == "| spans v1 | 0 | 0 | 0 | 0 | 0 |"
    limits = {**given, "limits": ScoreLimits(max_traces=TRACES - 7).to_json()}
    capped = trace_scores(DayStep(place.agent, DAY, limits, gateways, place.lines.append))
    assert capped.metadata["coverage"].value.splitlines()[0].endswith(" in time | left |")
    assert (
        capped.metadata["coverage"].value.splitlines()[2] == f"| spans v1 | {TRACES} | {TRACES - 7} | 0 | 7 | 0 | 7 |"
    )
    assert gone.record is None, "what was recorded of the day stays"
    assert "the oldest day archive.retention_days" in gone.checks[0].description


def test_a_lost_warehouse_costs_no_call(place: Place) -> None:
    """What MLflow holds under our ids, as an earlier release wrote it, is not scored again."""
    place.declare("moody")
    place.score()
    shutil.rmtree(place.platform.home / "warehouse")
    place.calls()
    found = place.score()
    assert (place.calls(), found.calls, found.written) == ([], 0, 0)
    assert found.coverage["local_tiny_moody"]["scored"] == TRACES
    assert len(place.in_mlflow()) == TRACES


TABLE, WRITER = "resources.scoring.score_table:ScoreTable", "resources.scoring.publishing:_Batched"


@pytest.mark.parametrize(
    ("function", "event", "times", "landed", "said"),
    [
        (f"{TABLE}.land", "call", 1, 0, 0),
        (f"{TABLE}.land", "return", 1, 2 * TRACES, 0),
        (f"{WRITER}._insert", "return", 1, 2 * TRACES, 2 * TRACES),
        (f"{TABLE}.note", "return", 1, 2 * TRACES, 2 * TRACES),
    ],
    ids=["before the commit", "after the commit", "before it is noted", "after it is noted"],
)
def test_killed_anywhere_and_run_again_each_score_is_there_once(
    place: Place, processes: Scorers, function: str, event: str, times: int, landed: int, said: int
) -> None:
    place.declare("moody", "spans")
    file = place.agent.path("defs.yaml")
    assert processes.score(place.platform.home, file, str(DAY), function, event=event, times=times) == [-9]
    assert (len(place.scores()), len(place.in_mlflow())) == (landed, said)
    called = len(place.calls())
    found = place.score()
    assert (found.written, found.pending) == (2 * TRACES - landed, 0)
    assert len(place.calls()) == (0 if landed else called), "what has landed is not paid for again"
    place.whole(2 * TRACES)


def test_killed_with_a_part_of_the_day_claimed_the_rerun_takes_it_over(place: Place, processes: Scorers) -> None:
    place.declare("moody", cost_per_call=0.01)
    file = place.agent.path("defs.yaml")
    claimed = "resources.scoring.score_claims:Claims.claim"
    assert processes.score(place.platform.home, file, str(DAY), claimed, times=8) == [-9]
    landed = len(place.scores())
    found = place.score()
    assert (found.calls, found.pending) == (TRACES - landed, 0)
    place.whole(TRACES)


def test_a_claim_is_believed_while_its_process_is_heard_of(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another machine until it is stale; of this one only while that very process runs."""
    place.declare("spans")
    now, elsewhere = time.time(), claimant.this_host() + 1
    asked = (place.platform, place.agent.spec.table_prefix, DAY)
    where = place.platform.table_uri(place.agent.spec.table_prefix + "assessments")
    with subprocess.Popen(["sleep", "60"]) as other, subprocess.Popen(["true"]) as dead:
        dead.wait()
        held = {
            1: claimant.signed(7, host=elsewhere, at=now),
            2: claimant.signed(os.getpid(), host=elsewhere, at=now - STALE_SECONDS + 60),
            3: claimant.signed(7, host=elsewhere, at=now - STALE_SECONDS - 1),
            4: claimant.signed(other.pid),
            5: claimant.signed(other.pid, at=now - STALE_SECONDS / 2),
            6: claimant.signed(dead.pid),
            7: claimant.signed(),
            8: claimant.signed(7, host=elsewhere, at=now + 2 * STALE_SECONDS),
            9: int(now) << 22 | other.pid,
        }
        target = table_to_write(where, "assessments")
        nothing = arrow_schema("assessments").empty_table()
        append_rows(target, nothing, {f"claim:{DAY}:{part}": number for part, number in held.items()})
        mine = Claims(*asked)
        got = {part for part in held if mine.claim(part)}
        other.kill()
    assert got == {3, 5, 6, 7, 8, 9}, "5 is a number used again, 8 of a wrong clock, 9 of an earlier release"
    assert Claims(*asked).claim(4), "its process is gone"

    monkeypatch.setattr("resources.scoring.score_claims.RENEW_SECONDS", 0)
    append_rows(table_to_write(where, "assessments"), nothing, {f"claim:{DAY}:3": held[1], f"claim:{DAY}:5": 1})
    mine.renew()
    assert not mine.holds(3), "another has it now"
    assert mine.holds(6)
    mine.release()
    noted = table_to_write(where, "assessments")
    assert [noted.transaction_version(f"claim:{DAY}:{part}") for part in (3, 6)] == [held[1], 0]


def test_claims_are_renewed_while_calls_are_made(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.declare("moody", cost_per_call=0.01)
    place.mood(all="slow")
    where = place.platform.table_uri(place.agent.spec.table_prefix + "assessments")
    monkeypatch.setattr("resources.scoring.score_claims.RENEW_SECONDS", 0.1)
    place.score()
    written = [one["operationMetrics"] for one in DeltaTable(where).history() if one["operation"] == "WRITE"]
    claimed = sum(1 for one in written if not int(one["num_added_rows"]))
    parts = {part_of(one) for one in place.ids()}
    assert claimed > len(parts) + 1, "a commit a part, one to let go, and those that renew"
    place.whole(TRACES)


def test_an_interrupted_step_keeps_what_was_answered_and_lets_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.declare("moody", cost_per_call=0.01)
    place.mood(all="slow")
    monkeypatch.setattr("resources.scoring.run.REPORT_SECONDS", 0)

    def interrupted(line: str) -> None:
        if f"5 of {TRACES}" in line:
            raise KeyboardInterrupt

    scoring, asked = LocalScoring(place.platform), (place.agent, DAY, place.registered)
    with pytest.raises(KeyboardInterrupt):
        scoring.score_day(*asked, settled_before_ms=FOREVER, progress=interrupted, limits=NO_LIMITS)
    landed = len(place.scores())
    assert landed >= 5
    table = DeltaTable(place.platform.table_uri(place.agent.spec.table_prefix + "assessments"))
    assert not any(table.transaction_version(f"claim:{DAY}:{part}") for part in range(PARTS))
    assert place.score().calls == TRACES - landed
    place.whole(TRACES)


def test_two_processes_at_once_double_nothing(place: Place, processes: Scorers) -> None:
    place.declare("moody", "spans", "answered", cost_per_call=0.01)
    place.mood(all="slow")
    ended = processes.score(place.platform.home, place.agent.path("defs.yaml"), str(DAY), of=2)
    assert ended == [0, 0], processes.errors
    place.whole(3 * TRACES)
    assert len(place.calls()) == TRACES, "each call is paid for once"
    assert place.score().calls == 0


def add_session(place: Place, session: str, *starts_ms: int) -> list[str]:
    """Traces of a session that start then."""
    mlflow = open_mlflow(place.platform)
    made = []
    for at_ms in starts_ms:
        span = mlflow.start_span_no_context(
            "ask",
            inputs={"q": 1},
            experiment_id=experiment_id(place.platform, "/agents/tiny"),
            start_time_ns=at_ms * 10**6,
            metadata={"mlflow.trace.session": session},
        )
        span.set_outputs("fine")
        span.end(end_time_ns=at_ms * 10**6 + 10**9)
        made.append(span.trace_id)
    return made


def test_a_session_is_scored_whole_on_its_first_trace_and_again_when_it_has_grown(place: Place) -> None:
    place.declare("talk")
    noon, midnight = MIDNIGHT_MS + DAY_MS // 2, MIDNIGHT_MS + DAY_MS
    first, _, _ = add_session(place, "night", midnight - 1000, midnight - 500, midnight + 2000)
    add_session(place, "earlier", MIDNIGHT_MS - 1000, MIDNIGHT_MS + 1000)
    (alone,) = add_session(place, "alone", noon)

    def said() -> dict[str, tuple[float, str]]:
        return {row["trace_id"]: (row["value_number"], row["rationale"]) for row in place.scores()}

    found = place.score()
    assert (said()[first], said()[alone]) == ((3.0, "3 traces"), (1.0, "1 trace"))
    assert found.coverage["local_tiny_talk"]["sampled"] == len(said()) == TRACES // 5 + 2, "not the one that is older"
    (assessment,) = open_client(place.platform).get_trace(first).info.assessments
    assert assessment.metadata["mlflow.trace.session"] == "night"
    assert assessment.assessment_id == id_of(first, "local_tiny_talk", "1")
    place.whole(TRACES // 5 + 2)

    add_session(place, "alone", noon + 60_000)
    again = place.score()
    assert (again.calls, said()[alone]) == (1, (2.0, "2 traces"))
    (assessment,) = open_client(place.platform).get_trace(alone).info.assessments
    assert (assessment.feedback.value, assessment.rationale) == (2.0, "2 traces")
    assert place.score().calls == 0


def test_an_open_session_waits(place: Place) -> None:
    place.declare("talk")
    add_session(place, "now", int(time.time() * 1000) - 3000)
    add_session(place, "done", MIDNIGHT_MS + 1)
    today = datetime.now(UTC).date()
    scoring = LocalScoring(place.platform)
    found = scoring.score_day(
        place.agent, today, place.registered, settled_before_ms=FOREVER, progress=place.lines.append
    )
    assert found.coverage["local_tiny_talk"]["sampled"] == 0


def test_a_name_is_all_that_a_limit_takes(place: Place) -> None:
    place.declare("spans", "answered")
    found = place.score(ScoreLimits(scorers=["answered"]))
    assert {row["name"] for row in place.scores()} == {"local_tiny_answered"}
    assert found.coverage["local_tiny_spans"]["waiting"] == TRACES
    assert replace(found, seconds=0).left == {}


def test_the_environment_of_a_child_is_the_step_s(place: Place) -> None:
    """Registered copies see the variables of the process that scores."""
    place.declare("moody")
    assert os.environ["LIFECYCLE_HOME"] == str(place.platform.home)
    place.mood(all="silent")
    place.score()
    assert {row["value_text"] for row in place.scores()} == {"not applicable"}
    place.whole(TRACES)
