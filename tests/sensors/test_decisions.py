"""What sensors decide, held against days, records and cursors made by hand."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from lifecycle_assets.jobs import days_due
from lifecycle_assets.records import AliasMove, ScorersRecord, ScorerVersion, SessionRecord, VersionRecord
from lifecycle_assets.release.drift import find_drift
from lifecycle_assets.review.labels import completions
from resources.alias_ledger import Entry
from resources.model_registry import RegisteredVersion
from sensors.alerts import messages_of
from sensors.labeling import decide_opening
from sensors.watermark import AlertCursor, BackfillCursor, Cursor, DriftCursor, LabelingCursor, SyncCursor, Watermark


def version(name: str = "shouted", number: str = "1", digest: str = "d1") -> ScorerVersion:
    return ScorerVersion(name, f"local_tiny_{name}", number, digest, 1.0, "", "trace", 0.01)


def session(*trace_ids: str, champion: str = "1", name: str = "s") -> SessionRecord:
    return SessionRecord(name, name, list(trace_ids), champion, "", "2026-11-20T00:00:00+00:00")


class TestDecideOpening:
    @staticmethod
    def decide(**changes: Any) -> Any:
        facts = {"negative": [], "threshold": 2, "sessions": [session()], "champion": "1", "choosable": lambda: True}
        return decide_opening("tiny", **{**facts, **changes})

    def test_below_the_threshold_nothing_opens_and_on_it_a_session_does(self):
        assert self.decide(negative=["a"]) is None
        opening = self.decide(negative=["b", "a"])
        assert (opening.trace_ids, opening.reason) == (("b", "a"), "2 traces with negative feedback")

    def test_the_same_traces_have_the_same_session_whatever_their_order(self):
        names = {self.decide(negative=order).name for order in (["a", "b"], ["b", "a"])}
        assert len(names) == 1
        assert self.decide(negative=["a", "b", "c"]).name not in names

    def test_traces_of_an_earlier_session_do_not_count_again(self):
        assert self.decide(negative=["a", "b"], sessions=[session("a")]) is None
        assert self.decide(negative=["a", "b", "c"], sessions=[session("a")]).trace_ids == ("b", "c")

    def test_a_threshold_of_zero_is_never(self):
        assert self.decide(negative=list("abcdef"), threshold=0) is None

    def test_a_new_champion_opens_one_session_once_it_has_traces(self):
        assert self.decide(champion="2", choosable=lambda: False) is None
        assert self.decide(champion="2").name == "tiny-champion-v2"
        assert self.decide(champion="2", sessions=[session(champion="2"), session(champion="1")]) is None

    def test_without_a_champion_nothing_opens(self):
        assert self.decide(champion="", sessions=[]) is None

    def test_feedback_comes_before_a_new_champion(self):
        assert self.decide(champion="2", negative=["a", "b"]).name.startswith("tiny-feedback-")


def test_completions_name_complete_items_whatever_their_order():
    from resources.labeling_desk import Item

    done, pending = Item("t-1", "complete", "ann", 5), Item("t-2", "pending", "", 6)
    declined, other = Item("t-3", "declined", "ann", 7), Item("t-0", "complete", "bob", 8)
    named = completions({"s-2": [done, pending], "s-1": [declined, other]})
    assert named == completions({"s-1": [other], "s-2": [done]})
    assert named != completions({"s-2": [done]})
    assert completions({"s-1": [pending, declined]}) == ""


EVIDENCE = {"lifecycle.model_id": "m-1", "lifecycle.eval_run_id": "r", "lifecycle.evidence_digest": "e"}
TAGS = {**EVIDENCE, "lifecycle.verdict": "passed"}


def registered_version(number: str, tags: dict[str, str] | None = None) -> RegisteredVersion:
    return RegisteredVersion("m", number, "m-1", TAGS if tags is None else tags, 0)


def entry(number: int, decision: str = "passed", *, done: bool = True, **after: str) -> Entry:
    """A move to these aliases, on the evidence that `TAGS` name."""
    at = f"2026-11-20T00:00:{number:02}+00:00"
    return Entry(number, AliasMove(at, decision, {}, after, "m-1", "r", "e", "d", "dagster", "", ""), done)


class TestFindDrift:
    @staticmethod
    def drift(**changes: Any) -> list[Any]:
        facts = {
            "aliases": {"champion": "1"},
            "entries": [entry(1, champion="1")],
            "versions": [registered_version("1")],
            "recorded_versions": list,
            "recorded": [version()],
            "registered": {"local_tiny_shouted": version()},
        }
        return find_drift(**{**facts, **changes})

    def test_what_the_graph_left_is_no_drift(self):
        assert self.drift() == []
        assert self.drift(aliases={}, entries=[], versions=[], recorded=[], registered={}) == []
        assert self.drift(aliases={"champion": "1", "theirs": "7"}) == []

    @pytest.mark.parametrize(
        ("champion", "left", "says"), [("2", "1", "version 2"), ("", "1", "nobody"), ("1", "", "nobody")]
    )
    def test_an_alias_that_is_elsewhere(self, champion: str, left: str, says: str):
        aliases = {"champion": champion} if champion else {}
        entries, versions = [entry(1, champion=left)] if left else [], [registered_version(n) for n in "12"]
        (found,) = [
            d for d in self.drift(aliases=aliases, entries=entries, versions=versions) if d.asset == "champion_alias"
        ]
        assert found.state == (champion or "none")
        assert says in found.sentence

    def test_previous_and_challenger_count_and_have_a_state_of_their_own(self):
        entries = [entry(1, champion="2"), entry(2, champion="1", previous="2", challenger="3")]
        versions = [registered_version(number) for number in "123"]
        (found,) = self.drift(aliases={"champion": "1", "challenger": "2"}, entries=entries, versions=versions)
        assert found.state == "1, previous=none, challenger=2"
        assert "previous is nobody; the graph left it at version 2." in found.sentence

    @pytest.mark.parametrize("aliases", [{"champion": "1"}, {"champion": "2"}, {"champion": "2", "previous": "1"}])
    def test_a_move_that_was_begun_and_not_finished_is_none_at_any_point(self, aliases: dict[str, str]):
        entries = [entry(1, champion="1"), entry(2, champion="2", previous="1", done=False)]
        assert self.drift(aliases=aliases, entries=entries, versions=[registered_version(n) for n in "12"]) == []

    def test_an_alias_to_a_version_that_is_gone_is_not_taken_for_nobody(self):
        gone, moved = self.drift(aliases={"champion": "2"}, versions=[])
        assert (gone.asset, gone.state) == ("uc_model_version", "without 1")
        assert "version 2, which does not exist; the graph left it at version 1" in moved.sentence
        (kept,) = self.drift(versions=[])
        assert "version 1 was deleted; the graph left champion at it." in kept.sentence

    def test_a_version_without_an_evaluation(self):
        (found,) = self.drift(versions=[registered_version("1"), registered_version("3", {})])
        assert (found.asset, found.state) == ("uc_model_version", "outside 3")

    def test_a_version_with_copied_tags_is_not_the_graphs(self):
        versions = [registered_version("1"), registered_version("2", {**TAGS, "lifecycle.evidence_digest": "x"})]
        found = self.drift(aliases={"champion": "2"}, versions=versions)
        assert [(one.asset, one.state) for one in found] == [("uc_model_version", "outside 2"), ("champion_alias", "2")]

    @pytest.mark.parametrize("tag", sorted(TAGS))
    def test_a_tag_of_the_evidence_that_says_something_else(self, tag: str):
        (found,) = self.drift(
            versions=[registered_version("1", {**TAGS, tag: "other", "lifecycle.approval": "approved"})]
        )
        assert found.asset == "uc_model_version"
        assert f"{tag} is 'other'" in found.sentence

    def test_a_version_that_was_evaluated_again_says_so_before_an_alias_moves(self):
        again = {**TAGS, "lifecycle.eval_run_id": "r2", "lifecycle.evidence_digest": "e2"}
        recorded = [VersionRecord("m", "1", "m-1", "r2", "x", "e2")]
        assert self.drift(versions=[registered_version("1", again)], recorded_versions=lambda: recorded) == []
        failed = {**again, "lifecycle.verdict": "failed"}
        assert self.drift(versions=[registered_version("1", failed)], recorded_versions=lambda: recorded) != []

    @pytest.mark.parametrize("registered", [{}, {"local_tiny_shouted": replace(version(), sample_rate=0.1)}])
    def test_a_scorer_that_was_removed_or_changed(self, registered: dict[str, ScorerVersion]):
        (found,) = self.drift(registered=registered)
        assert found.asset == "registered_scorers"
        assert "local_tiny_shouted" in found.sentence

    def test_a_scorer_of_somebody_else_is_none_of_ours(self):
        assert self.drift(registered={"local_tiny_shouted": version(), "theirs": version("theirs")}) == []


def run_of(job: str, status: dg.DagsterRunStatus = dg.DagsterRunStatus.FAILURE, **options: Any) -> dg.DagsterRun:
    return dg.DagsterRun(job_name=job, **{"run_id": "r-1", "status": status, **options})


def evaluation(
    agent: str = "tiny", *, asset: str = "trace_scores", passed: bool = False, severity: str = "ERROR"
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey([agent, asset]),
        check_name="coverage",
        passed=passed,
        metadata={},
        severity=dg.AssetCheckSeverity(severity),
        description="3 wait.",
    )


class TestMessages:
    def test_a_failed_run_is_one_message_under_its_id(self):
        (message,) = messages_of("tiny", run_of("tiny_release"), [])
        assert (message["id"], message["kind"], message["run_id"]) == ("r-1", "run_failed", "r-1")

    def test_a_successful_run_is_none(self):
        assert messages_of("tiny", run_of("tiny_release", dg.DagsterRunStatus.SUCCESS), []) == []

    def test_an_agent_whose_name_begins_like_ours_is_not_ours(self):
        assert messages_of("tiny", run_of("tiny_two_release"), []) == []
        assert messages_of("tiny_two", run_of("tiny_two_release"), []) != []

    def test_a_run_that_materializes_assets_belongs_to_their_agent(self):
        chosen = frozenset([dg.AssetKey(["tiny", "logged_model"])])
        assert messages_of("tiny", run_of("__ASSET_JOB", asset_selection=chosen), []) != []
        assert messages_of("other", run_of("__ASSET_JOB", asset_selection=chosen), []) == []

    def test_a_check_that_failed_with_error_is_told_also_of_a_run_that_succeeded(self):
        (message,) = messages_of("tiny", run_of("tiny_monitor", dg.DagsterRunStatus.SUCCESS), [evaluation()])
        assert (message["id"], message["kind"]) == ("tiny/trace_scores:coverage:ERROR:r-1", "check_failed")
        assert message["text"].endswith("3 wait.")

    @pytest.mark.parametrize("silent", [{"passed": True}, {"severity": "WARN"}, {"agent": "other"}])
    def test_passed_checks_warnings_and_checks_of_others_are_silent(self, silent: dict[str, Any]):
        run = run_of("tiny_monitor", dg.DagsterRunStatus.SUCCESS)
        assert messages_of("tiny", run, [evaluation(**silent)]) == []

    def test_a_check_of_a_day_is_told_when_it_begins_to_fail_and_again_once_it_passed(self):
        known: dict[str, None] = {}

        def told(run_id: str, day: str, **found: Any) -> list[str]:
            tags = {"dagster/partition": day}
            run = run_of("tiny_monitor", dg.DagsterRunStatus.SUCCESS, run_id=run_id, tags=tags)
            return [message["id"] for message in messages_of("tiny", run, [evaluation(**found)], known)]

        assert told("r-1", "2026-11-20") == ["tiny/trace_scores:coverage:2026-11-20:ERROR:r-1"]
        assert told("r-2", "2026-11-20") == []
        assert told("r-3", "2026-11-19") == ["tiny/trace_scores:coverage:2026-11-19:ERROR:r-3"]
        assert told("r-4", "2026-11-20", severity="WARN") == told("r-5", "2026-11-20") == []
        assert told("r-6", "2026-11-19", passed=True) == told("r-7", "2026-11-20") == []
        assert told("r-8", "2026-11-20", passed=True) == []
        assert told("r-9", "2026-11-20") == ["tiny/trace_scores:coverage:2026-11-20:ERROR:r-9"]

    def test_what_is_judged_as_it_is_now_is_one_thing_whatever_the_day(self):
        known: dict[str, None] = {}
        found = evaluation(asset="deployment")
        counts = []
        for tags in ({"dagster/partition": "2026-11-20"}, {"dagster/partition": "2026-11-19"}, {}, {}):
            run = run_of("tiny_monitor", dg.DagsterRunStatus.SUCCESS, tags=tags)
            counts.append(len(messages_of("tiny", run, [found], known)))
        assert counts == [1, 0, 1, 1], "a run somebody asked for, such as a release with its gate, is always told"


CURSORS: list[Cursor] = [
    AlertCursor("2026-11-20T10:00:00+00:00", ("a", "b"), ("c",)),
    Watermark("2026-11-20T10:00:00+00:00", ("a", "b")),
    BackfillCursor("digest", 7, "2026-11-20T10:00:00", "2026-11-20"),
    LabelingCursor("3:4", "2", ("2026-11-20 1763600000000000 tr-1",), True, ("asked", "3.1.2.3.4", "none")),
    SyncCursor("digest"),
    DriftCursor("digest"),
]


@pytest.mark.parametrize("cursor", CURSORS, ids=lambda cursor: type(cursor).__name__)
class TestCursors:
    def test_comes_back_from_json_as_it_went(self, cursor: Cursor):
        assert type(cursor).from_json(cursor.to_json()) == cursor

    @pytest.mark.parametrize("garbage", [None, "", "{", "null", "[]", "7", '"text"', "🤷", "{}", '{"unknown": 1}'])
    def test_text_of_another_shape_is_the_beginning(self, cursor: Cursor, garbage: str | None):
        assert type(cursor).from_json(garbage) == type(cursor)()

    def test_values_of_another_kind_are_the_beginning_and_not_a_tick_that_fails_for_ever(self, cursor: Cursor):
        import json

        for wrong in ({}, [1], 1.5, None, True):
            for name in json.loads(cursor.to_json()):
                found = type(cursor).from_json(json.dumps({**json.loads(cursor.to_json()), name: wrong}))
                assert found == type(cursor)() or (name, wrong) == ("whole", True)

    def test_a_field_of_a_later_release_is_left_out(self, cursor: Cursor):
        import json

        text = json.dumps({**json.loads(cursor.to_json()), "since": "later"})
        assert type(cursor).from_json(text) == cursor


@pytest.mark.parametrize("trace", ["", "tr-1", "2026-11-20 tr-1", "yesterday 7 tr-1", "2026-11-20 7.5 tr-1"])
def test_what_is_no_trace_with_its_day_and_time_is_the_beginning(trace: str):
    cursor = LabelingCursor("", "2", ("2026-11-20 7 tr-1", trace))
    assert LabelingCursor.from_json(cursor.to_json()) == LabelingCursor()


class TestWatermark:
    AT = "2026-11-20T10:00:00+00:00"

    def test_of_one_instant_each_is_seen_once(self):
        seen = Watermark().advance({"a": self.AT}, timedelta(0))
        assert not seen.is_new(self.AT, "a")
        assert seen.is_new(self.AT, "b")

    def test_what_is_committed_late_within_the_lookback_is_still_new(self):
        seen = Watermark().advance({"a": self.AT}, timedelta(minutes=2))
        assert seen.is_new("2026-11-20T09:58:30+00:00", "late")
        assert not seen.is_new("2026-11-20T09:57:59+00:00", "too late")

    def test_what_lies_before_the_lookback_is_forgotten_and_not_new(self):
        later = "2026-11-20T11:00:00+00:00"
        seen = Watermark().advance({"a": self.AT, "b": later}, timedelta(minutes=2))
        assert seen.ids == ("b",)
        assert not seen.is_new(self.AT, "a")

    def test_it_never_goes_back(self):
        seen = Watermark(self.AT, ("a",))
        assert seen.advance({}, timedelta(0)) == seen
        assert seen.advance({"b": "2026-11-20T10:00:01+00:00"}, timedelta(hours=1)).at == self.AT

    @pytest.mark.parametrize("at", ["yesterday", "2026-11-20T10:00:00"])
    def test_a_time_without_meaning_or_zone_is_the_beginning(self, at: str):
        assert Watermark.from_json(f'{{"at": "{at}"}}') == Watermark()


class TestDaysDue:
    SETTLE = timedelta(minutes=5)

    @pytest.mark.parametrize(
        ("hour", "minute", "days"),
        [(0, 5, 2), (1, 5, 2), (1, 6, 1), (12, 5, 1), (23, 59, 1), (3, 5, 4), (4, 5, 1), (2, 5, 1)],
    )
    def test_yesterday_until_it_has_settled_and_late_days_once(self, hour: int, minute: int, days: int):
        now = datetime(2026, 3, 1, hour, minute, tzinfo=UTC)
        due = days_due(now, late_days=3, settle=self.SETTLE)
        assert due == ["2026-02-26", "2026-02-27", "2026-02-28", "2026-03-01"][-days:]

    def test_a_long_settling_time_keeps_yesterday_due(self):
        now = datetime(2026, 3, 1, 5, 5, tzinfo=UTC)
        assert days_due(now, late_days=0, settle=timedelta(hours=5)) == ["2026-02-28", "2026-03-01"]

    def test_no_late_days_still_is_today(self):
        assert days_due(datetime(2026, 3, 1, 3, 5, tzinfo=UTC), 0, self.SETTLE) == ["2026-03-01"]

    def test_days_are_utc_wherever_the_clock_is(self):
        from datetime import timezone

        tokyo = datetime(2026, 3, 2, 8, 5, tzinfo=timezone(timedelta(hours=9)))
        assert days_due(tokyo, 0, self.SETTLE) == ["2026-03-01"]

    def test_every_trace_of_a_day_is_covered_by_some_tick_after_it_settled(self):
        """A trace of 23:59:59 settles at 00:04:59 of the next day; a tick that looks at its day must come later."""
        settles = datetime(2026, 3, 2, 0, 4, 59, tzinfo=UTC)
        ticks = [datetime(2026, 3, 2, hour, 5, tzinfo=UTC) for hour in range(24)]
        assert [tick for tick in ticks if tick > settles and "2026-03-01" in days_due(tick, 0, self.SETTLE)]


def test_the_registered_set_is_readable_as_versions():
    record = ScorersRecord("d", "m-1", [version().to_json()])
    assert record.versions == [version()]
