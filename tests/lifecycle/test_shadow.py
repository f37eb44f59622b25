"""A version on the champion's recorded requests: the sample, its price, what the pairs say, and one real comparison."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from lifecycle_assets.candidate.source import observe_source
from lifecycle_assets.cli.main import main
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.gate import Outcome
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.sample import (
    NOT_INPUT,
    REDACTED,
    REPEATED,
    Sample,
    replayable,
    sample_order,
    take_sample,
    within_budget,
)
from lifecycle_assets.release.shadow import SHADOW_TAG, chosen_scorers
from lifecycle_assets.release.shadow_check import is_asked_for, shadow_key
from lifecycle_assets.release.shadow_pairs import ANSWERED, compare_pairs, doubts_about, largest_losses, silent_scorers
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_release import Gate
from resources.archive.delta_archive import DeltaArchive
from resources.gateways import open_gateway
from resources.platform import Platform
from resources.replayer import STEP, Pair, RecordedRequest
from resources.sql.engine import DuckDbEngine
from resources.trace_store import MlflowTraceStore
from tests.building import ATTRIBUTES, TODAY, World, make_agent, noon

CHAMPION = "m-champion"
EXAMPLE = ATTRIBUTES["agent"]["input_example"]
HOSTILE = "'); DROP TABLE traces; -- ![x](http://evil/p.png) \x1b[2J {{secrets/a/b}} \u202e"


def request_of(content: str, **further: Any) -> str:
    """The request of a trace, as a ResponsesAgent's root span holds it."""
    asked = {"input": [{"role": "user", "content": content}], "context": {"conversation_id": "s-1", "user_id": "u-1"}}
    return json.dumps({"request": {**asked, **further}})


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    archive = {"settle_minutes": 0, "redact": [{"pattern": r"\S+@\S+", "replacement": "[email]"}]}
    scorers = [{**one, "cost_per_call": 0.01} for one in ATTRIBUTES["scorers"]]
    return make_agent(tmp_path, attributes={"archive": archive, "scorers": scorers})


def archived(platform: Platform, agent: Agent, requests: Mapping[str, str], **columns: Any) -> None:
    """Archive requests by trace id, as yesterday's; all scored by `local_tiny_shouted` version 1."""
    archive, day = DeltaArchive(platform), noon(1).date()
    traces = [
        {
            "trace_id": trace_id,
            "trace_date": day,
            "request_time": noon(1),
            "state": "OK",
            "model_id": CHAMPION,
            "request": request,
            **columns,
        }
        for trace_id, request in requests.items()
    ]
    said = [
        {
            "trace_id": trace_id,
            "trace_date": day,
            "assessment_id": f"a-{trace_id}-{version}",
            "name": "local_tiny_shouted",
            "kind": "feedback",
            "value_number": 1.0,
            "scorer_version": version,
            "valid": True,
        }
        for trace_id in requests
        for version in ("1", "2")
        if version == "1" or trace_id.endswith("0")
    ]
    archive.replace_day(agent.spec.table_prefix, "traces", day, traces)
    archive.replace_day(agent.spec.table_prefix, "assessments", day, said)


def sampled(platform: Platform, agent: Agent, size: int, *, budget: float = 5.0, price: float = 0.0) -> Sample:
    return take_sample(
        agent,
        DuckDbEngine(platform),
        CHAMPION,
        {("local_tiny_shouted", "2"): "shouted"},
        {"shouted": price},
        size=size,
        max_cost_usd=budget,
        now=noon(0),
    )


class TestSample:
    def test_a_larger_sample_only_adds_and_the_same_size_is_the_same_sample(self, platform: Platform, agent: Agent):
        archived(platform, agent, {f"tr-{n:03}": request_of(f"question {n}") for n in range(250)})
        all_of_them = sampled(platform, agent, 1000).requests
        assert [one.trace_id for one in all_of_them] == sample_order([f"tr-{n:03}" for n in reversed(range(250))])
        for size in (1, 7, 120):
            assert sampled(platform, agent, size).requests == all_of_them[:size]

    def test_what_cannot_be_replayed_is_counted_and_hostile_text_stays_text(self, platform: Platform, agent: Agent):
        requests = {
            "tr-0": request_of("what is a span?", custom_inputs={"tenant": 7}),
            "tr-hostile": request_of(HOSTILE),
            "tr-email": request_of("write to [email]"),
            "tr-cut": request_of("a question that was cut off")[:60],
            "tr-other": json.dumps({"question": "of another agent"}),
            "tr-list": json.dumps(["input"]),
            "tr-deep": '{"input": ' + "[" * 500 + "]" * 500 + "}",
            "tr-again": request_of("what is a span?", custom_inputs={"tenant": 7}),
        }
        archived(platform, agent, requests)
        sample = sampled(platform, agent, 100)
        assert sample.recorded == len(requests)
        assert {reason: sample.skipped[reason] for reason in (REDACTED, REPEATED)} == {REDACTED: 1, REPEATED: 1}
        assert sample.skipped[NOT_INPUT] in (3, 4)  # How deep is too deep is Python's to say.
        found = [one.inputs for one in sample.requests]
        assert {"input": [{"role": "user", "content": HOSTILE}]} in found
        question = [{"role": "user", "content": "what is a span?"}]
        assert {"input": question, "custom_inputs": {"tenant": 7}} in found, "no session and no user"

    def test_only_scores_of_this_very_version_are_taken_from_the_archive(self, platform: Platform, agent: Agent):
        archived(platform, agent, {f"tr-{n}": request_of(f"question {n}") for n in range(3)}, state="ERROR")
        found = {one.trace_id: (one.scores, one.failed) for one in sampled(platform, agent, 3).requests}
        assert found == {"tr-0": ({"shouted": 1.0}, True), "tr-1": ({}, True), "tr-2": ({}, True)}

    def test_the_budget_counts_both_sides_and_says_what_it_left_out(self, platform: Platform, agent: Agent):
        archived(platform, agent, {f"tr-{n}0": request_of(f"question {n}") for n in range(6)})
        sample = sampled(platform, agent, 6, price=0.1, budget=0.3)  # Scored already: one call a request.
        assert (len(sample.requests), sample.over_budget) == (3, 3)
        assert sample.cost_usd == pytest.approx(0.3)
        fresh = [RecordedRequest(one.trace_id, one.inputs, {}) for one in sample.requests]
        kept, cost = within_budget(fresh, {"shouted": 0.1}, 0.3)
        assert (kept, cost) == (fresh[:1], pytest.approx(0.2))

    def test_text_that_a_user_wrote_is_not_taken_for_a_redaction(self):
        assert replayable(request_of("mail me"), EXAMPLE, ["[email]"]) == {
            "input": [{"role": "user", "content": "mail me"}]
        }


def pair(number: int, version: float | None, champion: float | None, *, failure: str = "", error: str = "") -> Pair:
    """A request with one scorer's word on both answers."""
    ours = Outcome(None if failure else version, failure or error)
    return Pair(f"tr-{number}", f"new-{number}", False, failure, {"shouted": Outcome(champion)}, {"shouted": ours})


GATE = Gate.model_validate({"thresholds": [{"metric": "shouted/mean", "at_least": 0.5, "min_rows": 5}]})


def outcomes(pairs: Sequence[Pair]) -> dict[str, str]:
    found = compare_pairs(pairs, GATE.thresholds, GATE, seed=1)
    return {metric: one.outcome for metric, one in found.items()}


class TestPairs:
    def test_each_request_is_held_against_itself(self):
        same = [pair(n, float(n % 2), float(n % 2)) for n in range(40)]
        assert outcomes(same) == {"shouted/mean": "not_worse", ANSWERED: "not_worse"}
        worse = [pair(n, 0.0 if n % 3 else 1.0, 1.0) for n in range(40)]
        assert outcomes(worse)["shouted/mean"] == "worse"
        assert outcomes([pair(n, 1.0, 0.0 if n % 3 else 1.0) for n in range(40)])["shouted/mean"] == "better"

    def test_a_version_that_fails_is_worse_although_its_other_answers_are_as_good(self):
        """Failed answers have no score: compared by scores alone, failing on every hard question looks harmless."""
        pairs = [pair(n, 1.0, 1.0, failure="the agent failed: boom" if n % 2 else "") for n in range(40)]
        assert outcomes(pairs) == {"shouted/mean": "not_worse", ANSWERED: "worse"}
        (loss, *_) = largest_losses(pairs, {"shouted/mean": True, ANSWERED: True})
        assert loss == {"metric": ANSWERED, "request": "tr-1", "answer": "new-1", "champion": 1.0, "version": 0.0}

    def test_too_few_pairs_and_failing_scorers_prove_nothing(self):
        (threshold,) = GATE.thresholds

        def doubts(pairs: list[Pair]) -> list[str]:
            return doubts_about(pairs, threshold, compare_pairs(pairs, [threshold], GATE, seed=1)["shouted/mean"])

        assert doubts([pair(n, 1.0, 1.0) for n in range(5)]) == []
        assert doubts([pair(n, 1.0, 1.0) for n in range(4)]) == ["shouted/mean rests on 4 requests, 5 are required."]
        failing = [pair(n, 1.0, 1.0, error="<b>no judge</b>" if n == 0 else "") for n in range(9)]
        failing[0] = pair(0, None, 1.0, error="<b>no judge</b>")
        assert doubts(failing) == ["shouted failed on 1 of 18 answers: <b>no judge</b>."]
        not_applicable = [pair(n, None if n < 5 else 1.0, 1.0) for n in range(9)]
        assert doubts(not_applicable) == ["shouted/mean rests on 4 requests, 5 are required."]
        assert doubts(not_applicable[1:] + not_applicable[-1:]) == []

    def test_only_a_scorer_that_neither_spoke_nor_failed_anywhere_is_silent(self):
        """One that looks for expectations has none here: were it counted, nothing could ever be told."""
        nothing = [pair(n, None, None, failure="boom" if n == 0 else "") for n in range(9)]
        assert silent_scorers(nothing, ["shouted"]) == ["shouted"]
        for one in (pair(9, 1.0, None), pair(9, None, 1.0), pair(9, None, None, error="no judge")):
            assert silent_scorers([*nothing, one], ["shouted"]) == []


def test_scorers_that_need_expectations_or_name_no_direction_do_not_run(tmp_path: Path):
    scorers = [
        *ATTRIBUTES["scorers"],
        {"name": "correct", "source": {"builtin": "Correctness", "arguments": {"model": "openai:/x"}}},
        {"name": "chat", "source": {"builtin": "Safety"}, "level": "session"},
    ]
    gate = {"thresholds": [{"metric": f"{name}/mean", "at_least": 0.5} for name in ("shouted", "correct")]}
    declared = {"scorers": scorers, "eval": {**ATTRIBUTES["eval"], "gate": gate}}
    chosen, left_out = chosen_scorers(make_agent(tmp_path, attributes=declared), "local")
    assert [one.name for one in chosen] == ["shouted"]
    assert list(left_out) == ["correct"]
    named = {**declared, "shadow": {"scorers": ["length", "correct", "chat"]}}
    with pytest.raises(Refused, match=r"length has no threshold.*correct needs expectations.*chat looks at sessions"):
        chosen_scorers(make_agent(tmp_path, attributes=named), "local")


def test_only_its_own_job_runs_the_check(tmp_path: Path):
    """Dagster selects an asset's checks with the asset: materializing a version must not replay a hundred requests."""
    definitions = agent_definitions(make_agent(tmp_path))
    jobs = {name: definitions.resolve_job_def(f"tiny_{name}") for name in ("release", "rollback", "shadow")}
    running = {name for name, job in jobs.items() if "tiny__shadow" in {node.name for node in job.nodes}}
    assert running == {"shadow"}
    asset, check = frozenset({shadow_key("tiny").asset_key}), frozenset({shadow_key("tiny")})
    runs = [
        dg.DagsterRun("tiny_shadow", run_id="1"),
        dg.DagsterRun("__ASSET_JOB", run_id="2", asset_check_selection=check),
        dg.DagsterRun("__ASSET_JOB", run_id="3", asset_selection=asset),
        dg.DagsterRun("__ASSET_JOB", run_id="4", asset_selection=asset, asset_check_selection=check),
        dg.DagsterRun("__ASSET_JOB", run_id="5"),
    ]
    assert [is_asked_for(run, "tiny") for run in runs] == [True, True, False, False, False]


def said(world: World, *arguments: str) -> Result:
    """What `lifecycle shadow` answers."""
    return CliRunner().invoke(
        main,
        ["shadow", world.agent.name, *arguments],
        catch_exceptions=False,
        env={"LIFECYCLE_DEFS": str(world.agent.folder.parent)},
    )


def register(world: World) -> str:
    """Register the agent as it is now as a version of its own; returns its model id. Promotes nothing."""
    registry = open_gateway("registry")
    model = registry.log(world.agent, observe_source(world.agent), progress=lambda line: None)
    registry.register(world.agent.spec.model_name, model.model_id, {"lifecycle.model_id": model.model_id})
    return model.model_id


@pytest.mark.timeout(420)
def test_a_worse_version_is_found_on_the_champions_own_requests(world: World):
    """Twelve recorded requests, six different ones: the version greets nobody, and its gate might not have noticed."""
    refused = said(world, "challenger")
    assert refused.exit_code == 1
    assert "no version or alias challenger" in refused.stderr
    assert "shadow.max_traces in defs.yaml allows 1 to 100" in said(world, "1", "--traces", "101").stderr
    assert said(world, "1; DROP").exit_code == 2

    world.edit("agent.py", "{CONFIG.get('greeting')} {question.upper()}", "BYE {question.upper()}")
    model_id = register(world)
    aliases, promotions = world.aliases(), world.rows("SELECT * FROM promotions")
    before = {day: production(world, day) for day in (0, 1, 2)}
    found = said(world, "2", "--json")
    assert found.exit_code == 1, found.output
    record = json.loads(found.stdout)
    assert (record["outcome"], record["pairs"], record["recorded"]) == ("worse", 6, 12)
    assert record["skipped"] == {REPEATED: 6}
    metric = next(one for one in record["metrics"] if one["metric"] == "shouted/mean")
    assert (metric["champion"], metric["version"], metric["difference"]) == (1.0, 0.0, -1.0)
    asked = {row["trace_id"]: row["request"] for row in world.rows("SELECT trace_id, request FROM traces")}
    for loss in record["losses"]:
        answer = world.client.get_trace(loss["answer"])
        question = json.loads(asked[loss["request"]])["request"]["input"][0]["content"]
        assert question.upper() in json.dumps(answer.data.spans[0].outputs), "the pair is about one request"
        assert answer.info.trace_metadata["mlflow.sourceRun"] == record["run_id"]

    # Nothing of it is production, an evaluation, or a move.
    assert {day: production(world, day) for day in (0, 1, 2)} == before
    run = world.client.get_run(record["run_id"])
    assert (run.data.tags["lifecycle.step"], run.data.tags["lifecycle.model_id"]) == (STEP, model_id)
    evaluations = f"tags.`lifecycle.step` = 'evaluation' AND tags.`lifecycle.model_id` = '{model_id}'"
    assert not world.client.search_runs([world.experiment], evaluations)
    assert (world.aliases(), world.rows("SELECT * FROM promotions")) == (aliases, promotions)
    (version,) = [one for one in world.versions() if str(one.version) == "2"]
    assert version.tags[SHADOW_TAG].startswith("Version 2 is worse than the champion, version 1, on 6 of 12")

    # The UI shows it, and a rerun reads the finished replay back.
    (shown,) = world.instance.get_runs(dg.RunsFilter(job_name="tiny_shadow", statuses=[dg.DagsterRunStatus.SUCCESS]))
    again = world.run("shadow", run_config={"ops": {"tiny__shadow": {"config": {"version": "2"}}}})
    (check,) = again.get_asset_check_evaluations()
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert shown.run_id != again.run_id
    assert check.metadata["mlflow/run_id"].value == record["run_id"]
    assert check.metadata["reused"].value is True
    assert "image/png" in str(check.metadata["plot"].value)


def production(world: World, days_ago: int) -> int:
    """Production traces MLflow has of a day."""
    later = int(datetime.combine(TODAY + timedelta(days=2), time(0)).timestamp() * 1000)
    found = MlflowTraceStore(world.platform).infos(
        world.agent.spec.experiment, noon(days_ago).date(), settled_before_ms=later
    )
    return len(found)
