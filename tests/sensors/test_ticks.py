"""Every sensor ticks on a released world: real instance, real MLflow, real tables, a real receiver of messages."""

import os
import threading
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from lifecycle_assets.edges import latest
from lifecycle_assets.records import ChampionRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.review.assets import sessions_of
from resources.delta.table import rows_of_day
from resources.delta.write import append_rows, table_to_write
from resources.feedback import send_feedback
from resources.labeling_desk import MlflowLabelingDesk
from resources.mlflow_store import open_mlflow
from tests.building import World, checks_of, day_of, noon
from tests.resources.test_webhook import Receiver

WEBHOOK = "LIFECYCLE_ALERT_WEBHOOK"


def requests_of(tick: Any) -> list[dg.RunRequest]:
    return list(tick.run_requests or [])


@pytest.fixture
def receiver(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """What people would read, at the address the webhook variable names."""
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv(WEBHOOK, server.url)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def said(receiver: Receiver) -> list[tuple[str, str]]:
    """Kind and id of every message that arrived."""
    return [(body["kind"], body["id"]) for _, _, body in receiver.received]


class TestScorerBackfill:
    CHANGE = ("== spans[0].outputs.lower()", "!= spans[0].outputs.upper()")

    def test_a_changed_scorer_is_registered_and_scores_the_scored_days_once(self, world: World):
        """First the newest day alone, then the other one; what each scored was missing, and nothing is asked twice."""
        before = world.tick("scorer_backfill_sensor")
        assert requests_of(before) == []
        assert "No scorer, no score and no run" in world.tick("scorer_backfill_sensor", before.cursor).skip_message
        world.edit("scorers.py", *self.CHANGE)

        cursor = before.cursor
        for day, is_canary in ((day_of(1), "true"), (day_of(2), "false")):
            tick = world.tick("scorer_backfill_sensor", cursor)
            (request,) = requests_of(tick)
            assert request.partition_key == day
            assert request.run_key.startswith(f"backfill:{day}:")
            assert requests_of(world.tick("scorer_backfill_sensor", cursor))[0].run_key == request.run_key
            assert (request.tags["lifecycle/backfill_canary"], request.tags["lifecycle/backfill_reason"]) == (
                is_canary,
                "code",
            )
            assert requests_of(world.tick("scorer_backfill_sensor", tick.cursor)) == []
            assert world.do(request, "scorer_backfill").success
            assert world.metadata("trace_scores")["written"] == 6, "only the changed scorer's pairs are missing"
            cursor = tick.cursor

        for after in (cursor, None):
            assert requests_of(world.tick("scorer_backfill_sensor", after)) == []
        counted = world.rows(
            "SELECT name, scorer_version AS version, count(*) AS n FROM assessments WHERE valid GROUP BY ALL"
        )
        scores = {(row["name"], row["version"]): row["n"] for row in counted}
        assert (scores["local_tiny_shouted", "1"], scores["local_tiny_shouted", "2"]) == (12, 12)
        assert {version for name, version in scores if name == "local_tiny_length"} == {"1"}

    def test_scores_of_today_are_left_to_the_schedule_and_cost_no_query(self, world: World):
        """Every hour the schedule scores today; what that lacks, it scores itself the next time."""
        cursor = world.tick("scorer_backfill_sensor").cursor
        key = dg.AssetKey(["tiny", "trace_scores"])
        for days_ago, said in ((0, "the schedule scores anyway"), (2, "has the scores of the present sources")):
            world.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=day_of(days_ago)))
            tick = world.tick("scorer_backfill_sensor", cursor)
            assert said in tick.skip_message
            cursor = tick.cursor

    def test_a_comment_is_no_change(self, world: World):
        cursor = world.tick("scorer_backfill_sensor").cursor
        world.edit("scorers.py", "    spans = ", "    # A comment.\n\n    spans = ")
        assert requests_of(world.tick("scorer_backfill_sensor", cursor)) == []

    def test_a_failed_run_is_asked_for_again_within_the_budget_of_the_day(self, world: World):
        """The run that failed was planned for six traces of thirteen, and no lost cursor gives them back."""
        world = world.declared(backfill={"max_traces": 13})
        world.edit("scorers.py", *self.CHANGE)
        (failing,) = requests_of(world.tick("scorer_backfill_sensor"))
        world.edit("scorers.py", "def length(trace):", "def length(trace:")
        assert not world.do(failing, "scorer_backfill").success
        world.edit("scorers.py", "def length(trace:", "def length(trace):")

        (again,) = requests_of(world.tick("scorer_backfill_sensor"))
        assert (again.partition_key, again.run_key != failing.run_key) == (day_of(1), True)
        assert world.do(again, "scorer_backfill").success
        (last,) = requests_of(world.tick("scorer_backfill_sensor"))
        assert (last.partition_key, last.tags["lifecycle/backfill_traces"]) == (day_of(2), "1")
        assert world.do(last, "scorer_backfill").success
        assert world.metadata("trace_scores")["calls"] == 1
        tick = world.tick("scorer_backfill_sensor")
        assert requests_of(tick) == []
        assert f"left are 5 traces of {day_of(2)}" in tick.skip_message

    def test_raising_a_rate_asks_for_the_additional_traces_and_says_so(self, world: World):
        there = world.rows("SELECT count(*) AS n FROM assessments WHERE name = 'local_tiny_length'")[0]["n"]
        scorers = [{"name": name, "source": f"scorers.py:{name}"} for name in ("shouted", "length")]
        (request,) = requests_of(world.declared(scorers=scorers).tick("scorer_backfill_sensor"))
        assert request.tags["lifecycle/backfill_reason"] == "sampling"
        config = request.run_config["ops"]["tiny__trace_scores"]["config"]
        assert (config["scorers"], config["max_traces"] <= 12 - there) == (["length"], True)

    def test_broken_scorers_fail_the_tick_with_one_sentence(self, world: World):
        world.edit("scorers.py", "def length(trace):", "def length(trace:")
        with pytest.raises(Refused, match=r"scorers.py line \d+ is not Python .*; correct the syntax there\.$"):
            world.tick("scorer_backfill_sensor")

    def test_before_any_score_there_is_nothing_to_score_again(self, world: World):
        world.instance.wipe_assets([dg.AssetKey(["tiny", "trace_scores"])])
        assert "run tiny_monitor first" in world.tick("scorer_backfill_sensor").skip_message


class TestReview:
    """One story: three thumbs down, a session, a reviewer who removes one trace and answers two, labels that land."""

    @pytest.fixture
    def disliked(self, world: World) -> list[str]:
        ids = [
            world.ask(f"odd {number}", at=noon(1) + timedelta(minutes=1 + number), answered=answer)
            for number, answer in enumerate(("hello", "hello", "Bye"))
        ]
        for trace_id in ids:
            send_feedback(world.platform, trace_id, up=False, user="ann")
        return ids

    def test_from_thumbs_down_to_a_label_in_the_dataset(self, world: World, disliked: list[str]):
        quiet = world.tick("labeling_session_sensor")
        assert requests_of(quiet) == [], "the thumbs are not archived yet"
        assert world.run("monitor", partition_key=day_of(1)).success

        tick = world.tick("labeling_session_sensor", quiet.cursor)
        (request,) = requests_of(tick)
        assert world.do(request, "labeling").success
        desk, (session,) = MlflowLabelingDesk(world.platform), sessions_of(world.instance, "tiny")
        assert {item.trace_id for item in desk.items(session.session_id)} == set(disliked)

        assert requests_of(world.tick("labeling_session_sensor", tick.cursor)) == []
        assert requests_of(world.tick("labeling_session_sensor")) == [], "also without the cursor"
        assert world.do(request, "labeling").success
        assert world.metadata("labeling_session")["new"] == "nothing to review"

        removed, good, bad = disliked
        queues = open_mlflow(world.platform).genai.review_queues
        queues.remove_items_from_review_queue(session.session_id, item_ids=[removed])
        assert world.run("monitor", partition_key=day_of(1)).success
        assert requests_of(world.tick("labeling_session_sensor", tick.cursor)) == []
        assert world.do(request, "labeling").success
        config = {"name": "another", "trace_ids": [removed]}
        assert world.run(
            "labeling",
            asset_selection=[dg.AssetKey(["tiny", "labeling_session"])],
            run_config={"ops": {"tiny__labeling_session": {"config": config}}},
        ).success
        assert {item.trace_id for item in desk.items(session.session_id)} == {good, bad}
        assert len(queues.list_review_queues(experiment_id=world.experiment)) == 1

        self.labels_land_once(world, desk, session.session_id, good, bad)

    def labels_land_once(self, world: World, desk: MlflowLabelingDesk, session_id: str, good: str, bad: str) -> None:
        before = world.tick("label_sync_sensor")
        assert requests_of(before) == []
        answer = "HELLO ODD 1"
        desk.review(world.agent, session_id, good, {"correct": True, "expected": answer}, reviewer="ann")
        desk.review(world.agent, session_id, bad, {"correct": False}, reviewer="ann")
        tick = world.tick("label_sync_sensor", before.cursor)
        (request,) = requests_of(tick)
        assert world.do(request, "labeling").success

        dataset = open_mlflow(world.platform).genai.datasets.get_dataset(name="tiny_eval").to_df()
        expected = [value.get("expected") for value in dataset["expectations"] if value]
        assert expected.count(answer) == 1
        assert len(dataset) == 4
        agreement = world.metadata("judge_agreement")["agreement"]
        assert "| shouted | correct | 1 |" in agreement, "the judge said what ann said of both: kappa is 1"

        assert requests_of(world.tick("label_sync_sensor", tick.cursor)) == []
        assert world.do(request, "labeling").success
        again = open_mlflow(world.platform).genai.datasets.get_dataset(name="tiny_eval")
        assert len(again.to_df()) == 4, "the label is merged once"
        self.landed_labels_are_evaluated_once(world)

    def landed_labels_are_evaluated_once(self, world: World) -> None:
        evaluated, aliases = world.materialized("eval_results"), world.aliases()
        tick = world.tick("labels_landed_sensor")
        (request,), (again,) = requests_of(tick), requests_of(world.tick("labels_landed_sensor"))
        assert again.run_key == request.run_key, "also without the cursor"
        assert request.run_key.startswith("dataset:")
        assert requests_of(world.tick("labels_landed_sensor", tick.cursor)) == []
        assert world.do(request, "release").success
        assert world.metadata("eval_dataset")["digest"] in request.run_key
        assert world.metadata("eval_results")["dagster/row_count"] == 4
        assert (world.materialized("eval_results"), world.aliases()) == (evaluated + 1, aliases)
        done = world.tick("labels_landed_sensor", tick.cursor)
        assert requests_of(done) == []
        assert requests_of(world.tick("labels_landed_sensor", done.cursor)) == []

    def test_after_a_tick_only_days_that_changed_are_read_again(self, world: World):
        """Files of another day, which nobody could read, keep only a tick that lost its cursor from deciding."""
        cursor = world.tick("labeling_session_sensor").cursor
        for table in ("traces", "assessments"):
            uri = world.platform.table_uri(world.agent.spec.table_prefix + table)
            target = table_to_write(uri, table)
            append_rows(target, rows_of_day(target, table, date.fromisoformat(day_of(1))).slice(0, 1))
            for file in Path(uri).glob(f"trace_date={day_of(2)}/*.parquet"):
                file.write_bytes(b"nobody can read this")
        tick = world.tick("labeling_session_sensor", cursor)
        assert requests_of(tick) == []
        assert tick.cursor not in (None, cursor)
        with pytest.raises(Refused):
            world.tick("labeling_session_sensor")

    def test_a_session_that_grew_is_read_as_it_last_was(self, world: World, disliked: list[str]):
        """Labels of traces added to a session later counted for no judge: only its first record was read."""
        for chosen in (disliked[:1], disliked[1:]):
            config = {"name": "weekly", "trace_ids": chosen}
            assert world.run(
                "labeling",
                asset_selection=[dg.AssetKey(["tiny", "labeling_session"])],
                run_config={"ops": {"tiny__labeling_session": {"config": config}}},
            ).success
        (session,) = sessions_of(world.instance, "tiny")
        assert set(session.trace_ids) == set(disliked)


class TestLabelsLanded:
    SENSOR = "labels_landed_sensor"

    def test_a_dataset_that_goes_back_and_forth_is_news_each_time(self, world: World):
        quiet = world.tick(self.SENSOR)
        assert requests_of(quiet) == []
        dataset = open_mlflow(world.platform).genai.datasets.get_dataset(name="tiny_eval")
        row = {"inputs": {"input": [{"role": "user", "content": "one more"}]}, "expectations": {}}
        dataset.merge_records([row])
        tick = world.tick(self.SENSOR, quiet.cursor)
        (added,) = requests_of(tick)
        record = next(r for r in dataset.to_df().to_dict("records") if "one more" in str(r["inputs"]))
        dataset.delete_records([record["dataset_record_id"]])
        back = world.tick(self.SENSOR, tick.cursor)
        assert requests_of(back) == [], "it is what was evaluated again"
        dataset.merge_records([row])
        (again,) = requests_of(world.tick(self.SENSOR, back.cursor))
        assert again.run_key == added.run_key, "no run came in between: it is the same fact"

    def test_while_a_run_of_the_agent_is_at_work_nothing_is_asked_for(self, world: World):
        quiet = world.tick(self.SENSOR)
        job = world.definitions.resolve_job_def("tiny_release")
        run = world.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        dataset = open_mlflow(world.platform).genai.datasets.get_dataset(name="tiny_eval")
        dataset.merge_records([{"inputs": {"input": [{"role": "user", "content": "more"}]}, "expectations": {}}])
        busy = world.tick(self.SENSOR, quiet.cursor)
        assert "under way" in busy.skip_message
        assert busy.cursor in (None, quiet.cursor)
        world.instance.report_run_failed(run)
        assert len(requests_of(world.tick(self.SENSOR, quiet.cursor))) == 1

    def test_without_a_release_or_a_dataset_the_tick_says_so(self, world: World):
        dataset = open_mlflow(world.platform).genai.datasets.get_dataset(name="tiny_eval")
        open_mlflow(world.platform).genai.datasets.delete_dataset(dataset_id=dataset.dataset_id)
        assert "was deleted: run tiny_release" in world.tick(self.SENSOR).skip_message
        world.instance.wipe_assets([dg.AssetKey(["tiny", "eval_dataset"])])
        assert "run tiny_release first" in world.tick(self.SENSOR).skip_message


def staleness(world: World, *partition: str) -> set[str]:
    """What the UI says of the assets that depend on what a person can change; of a partitioned one, that partition."""
    graph = world.definitions.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(world.instance, graph, LoadingContextForTest(world.instance))
    keys = {name: dg.AssetKey(["tiny", name]) for name in ("champion_alias", "deployment", "registered_scorers")}
    found = {name: resolver.get_status(key).value for name, key in keys.items()}
    days = {day: resolver.get_status(dg.AssetKey(["tiny", "trace_scores"]), day).value for day in partition}
    return {name for name, status in {**found, **days}.items() if status != "FRESH"}


def recorded(world: World, tick: Any) -> dict[str, str]:
    """Asset to data version of the observations of a tick, after the daemon has stored its events."""
    for event in tick.asset_events:
        world.instance.report_runless_asset_event(event)
    seen = [event for event in tick.asset_events if isinstance(event, dg.AssetObservation)]
    return {event.asset_key.path[1]: event.tags["dagster/data_version"] for event in seen}


class TestChampionDrift:
    SENSOR = "champion_drift_sensor"

    def test_an_alias_moved_by_hand_is_told_once_and_makes_stale_what_depends_on_it_until_it_is_back(
        self, world: World, receiver: Receiver
    ):
        name = world.agent.spec.model_name
        quiet = world.tick(self.SENSOR)
        assert quiet.asset_events == []
        assert receiver.received == [], "what the graph moved is no drift"
        assert staleness(world) == set()

        world.client.create_model_version(name, source=f"models:/{world.champion_model_id}")
        world.client.set_registered_model_alias(name, "champion", "2")
        moved = world.tick(self.SENSOR, quiet.cursor)
        assert recorded(world, moved) == {"uc_model_version": "outside 2", "champion_alias": "2"}
        assert staleness(world) == {"champion_alias", "deployment", "registered_scorers"}
        ((_, headers, body),) = receiver.received
        assert body["kind"] == "drift"
        assert "champion is version 2; the graph left it at version 1" in body["text"]
        assert "registered outside the graph, on no evaluation of it: version 2" in body["text"]
        assert headers["Idempotency-Key"] == body["id"]
        record = latest(world.instance, dg.AssetKey(["tiny", "champion_alias"]), ChampionRecord)
        assert record is not None
        assert record.version == "1", "what is handed to the runtime next is still what was gated"

        again = world.tick(self.SENSOR, moved.cursor)
        assert not again.asset_events
        assert not world.tick(self.SENSOR).asset_events, "also without the cursor"
        assert len(receiver.received) == 1

        world.client.set_registered_model_alias(name, "champion", "1")
        back = world.tick(self.SENSOR, moved.cursor)
        assert recorded(world, back) == {"champion_alias": "1"}
        assert staleness(world) == {"champion_alias"}, "there still is a version from outside"
        world.client.delete_model_version(name, "2")
        clean = world.tick(self.SENSOR, back.cursor)
        assert recorded(world, clean) == {"uc_model_version": "1"}
        assert staleness(world) == set()
        assert "again" in clean.skip_message
        assert len(receiver.received) == 1, "what is right again is no alarm"

    def test_a_version_deleted_while_it_is_champion(self, world: World, receiver: Receiver):
        world.client.delete_model_version(world.agent.spec.model_name, "1")
        assert recorded(world, world.tick(self.SENSOR)) == {"uc_model_version": "without 1", "champion_alias": "none"}
        assert staleness(world) == {"champion_alias", "deployment", "registered_scorers"}
        ((_, _, body),) = receiver.received
        assert "version 1 was deleted; the graph left champion at it" in body["text"]

    def test_tags_of_the_evidence_are_compared_and_those_of_an_approval_are_not(self, world: World):
        name = world.agent.spec.model_name
        world.client.set_model_version_tag(name, "1", "lifecycle.approval", "approved")
        quiet = world.tick(self.SENSOR)
        assert quiet.asset_events == []
        held = world.versions()[0].tags["lifecycle.evidence_digest"]
        world.client.set_model_version_tag(name, "1", "lifecycle.evidence_digest", "better evidence" * 20)
        found = world.tick(self.SENSOR, quiet.cursor)
        assert list(recorded(world, found)) == ["uc_model_version"]
        assert f"not {held}" in found.skip_message
        assert len(found.skip_message) < 300, "what anybody can write is shown in part"

    def test_a_scorer_changed_by_hand_makes_its_scores_stale(self, world: World):
        tag = next(t for t in world.client.get_experiment(world.experiment).tags if t.endswith("local_tiny_shouted"))
        text = world.client.get_experiment(world.experiment).tags[tag]
        assert staleness(world, day_of(1)) == set()
        world.client.set_experiment_tag(world.experiment, tag, text.replace('"sample_rate": 1.0', '"sample_rate": 0.0'))
        assert list(recorded(world, world.tick(self.SENSOR))) == ["registered_scorers"]
        assert staleness(world, day_of(1)) == {day_of(1)}

    def test_a_ledger_that_cannot_be_read_is_the_error_of_the_tick_and_no_drift(self, world: World, receiver: Receiver):
        (ledger,) = world.client.search_runs([world.experiment], "tags.`lifecycle.step` = 'ledger'")
        world.client.delete_run(ledger.info.run_id)
        with pytest.raises(Refused, match="no alias is moved without it"):
            world.tick(self.SENSOR)
        assert receiver.received == []

    def test_the_graph_in_the_middle_of_a_move_is_not_reported(self, world: World, receiver: Receiver):
        """The alias moves a moment before the ledger says so: a tick in between called the release foreign."""
        name = world.agent.spec.model_name
        world.client.delete_registered_model_alias(name, "champion")
        job = world.definitions.resolve_job_def("tiny_release")
        run = world.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        tick = world.tick(self.SENSOR)
        assert not tick.asset_events
        assert receiver.received == []
        world.instance.report_run_failed(run)
        assert list(recorded(world, world.tick(self.SENSOR, tick.cursor))) == ["champion_alias"]
        assert len(receiver.received) == 1


RULES = [
    {"name": "short_answers", "metric": "length/mean", "at_most": 1},
    {"name": "not_known", "metric": "positive_rate", "at_least": 1},
]


class TestAlerts:
    def failed_run(self, world: World) -> str:
        """Labels without a session: the step refuses."""
        done = world.run("labeling", asset_selection=[dg.AssetKey(["tiny", "human_labels"])])
        assert not done.success
        return done.run_id

    def test_failed_runs_and_error_checks_are_told_once_each_and_warnings_never(self, world: World, receiver: Receiver):
        world = world.declared(alerts={"rules": RULES})
        start = world.tick("alert_sensor").cursor
        failed = self.failed_run(world)
        monitored = world.run("monitor", partition_key=day_of(1))
        assert monitored.success
        checks = checks_of(monitored)
        assert not checks["quality_metrics:short_answers"].passed
        assert checks["quality_metrics:not_known"].severity == dg.AssetCheckSeverity.WARN

        tick = world.tick("alert_sensor", start)
        check = f"tiny/quality_metrics:short_answers:{day_of(1)}:ERROR:{monitored.run_id}"
        assert said(receiver) == [("run_failed", failed), ("check_failed", check)]
        for cursor in (tick.cursor, world.tick("alert_sensor", tick.cursor).cursor):
            world.tick("alert_sensor", cursor)
        assert len(receiver.received) == 2
        # Killed before the cursor was kept: the same messages under the same ids.
        world.tick("alert_sensor", start)
        assert said(receiver)[2:] == said(receiver)[:2]
        del receiver.received[2:]

        # The daemon tags a failed run that it retries, minutes after people were told of it.
        world.instance.add_run_tags(failed, {"dagster/did_retry": "true"})
        world.tick("alert_sensor", tick.cursor)
        assert len(receiver.received) == 2

    def test_a_rule_that_stays_breached_is_no_news_until_it_was_kept(
        self, world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ):
        strict = world.declared(alerts={"rules": RULES[:1]})
        cursor, up = strict.tick("alert_sensor").cursor, os.environ[WEBHOOK]

        def told(agent: World, day: int) -> list[str]:
            nonlocal cursor
            counted = [dg.AssetKey(["tiny", "quality_metrics"])]
            assert agent.run("monitor", partition_key=day_of(day), asset_selection=counted).success
            before = len(receiver.received)
            cursor = agent.tick("alert_sensor", cursor).cursor
            return [event.split(":")[2] for _, event in said(receiver)[before:]]

        monkeypatch.delenv(WEBHOOK)
        assert told(strict, 1) == []
        monkeypatch.setenv(WEBHOOK, up)
        assert told(strict, 1) == [day_of(1)], "nobody was told before"
        assert told(strict, 1) == []
        assert told(strict, 2) == [day_of(2)]
        kept = strict.declared(alerts={"rules": [{**RULES[0], "at_most": 100}]})
        assert told(kept, 1) == []
        assert told(strict.declared(alerts={"rules": RULES[:1]}), 1) == [day_of(1)]
        assert len({event for _, event in said(receiver)}) == 3

    def test_while_the_receiver_is_down_the_cursor_stays_and_the_message_arrives_later(
        self, world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ):
        start = world.tick("alert_sensor").cursor
        first = self.failed_run(world)
        receiver.statuses = [200, 400]
        second = self.failed_run(world)
        partly = world.tick("alert_sensor", start)
        assert [body["run_id"] for _, _, body in receiver.received] == [first, second]
        assert "webhook" in partly.skip_message, "the tick says that the second was not accepted"

        up = os.environ[WEBHOOK]
        monkeypatch.setenv(WEBHOOK, "http://127.0.0.1:9/nobody")
        with pytest.raises(Refused, match=WEBHOOK):
            world.tick("alert_sensor", partly.cursor)
        monkeypatch.setenv(WEBHOOK, up)
        receiver.statuses, receiver.received = [200], []
        world.tick("alert_sensor", partly.cursor)
        assert [body["run_id"] for _, _, body in receiver.received] == [second], "the first one is not told again"

    def test_a_run_that_ended_a_little_earlier_and_appears_later_is_told(self, world: World, receiver: Receiver):
        """Two processes end a run at once; the one that ended first is written last."""
        start = world.tick("alert_sensor").cursor
        early = world.instance.get_run_record_by_id(self.failed_run(world))
        late = self.failed_run(world)
        assert early is not None
        run_id = early.dagster_run.run_id
        world.instance.delete_run(run_id)
        tick = world.tick("alert_sensor", start)
        assert said(receiver) == [("run_failed", late)]
        world.instance.add_run(early.dagster_run)
        set_end_time(run_id, early.end_time or 0)
        world.tick("alert_sensor", tick.cursor)
        assert said(receiver) == [("run_failed", late), ("run_failed", run_id)]

    def test_without_a_webhook_the_tick_says_what_to_set(self, world: World):
        start = world.tick("alert_sensor").cursor
        self.failed_run(world)
        assert WEBHOOK in world.tick("alert_sensor", start).skip_message


def set_end_time(run_id: str, end_time: float) -> None:
    """Date the end of a run, as its own process did."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(Path(os.environ["DAGSTER_HOME"]) / "history" / "runs.db")) as runs, runs:
        runs.execute("UPDATE runs SET end_time = ? WHERE run_id = ?", (end_time, run_id))
