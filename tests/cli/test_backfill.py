"""`lifecycle backfill` on a released world: the estimate, doing it within caps, dying in the middle, saying no.

The world holds two days of six traces, scored by version 1 of `shouted` (all) and `length` (half).
"""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from lifecycle_assets.cli.progress_line import ProgressLine
from lifecycle_assets.refused import Refused
from tests.building import TODAY, Released, World, day_of, released_once
from tests.cli.conftest import Run

pytestmark = pytest.mark.timeout(900)

CHANGE = ("== spans[0].outputs.lower()", "!= spans[0].outputs.upper()")
RANGE = ("--from", day_of(2), "--to", day_of(1))
COUNT = (
    "SELECT scorer_version AS version, count(*) AS n FROM assessments WHERE valid AND name = ? GROUP BY 1 ORDER BY 1"
)


@pytest.fixture(scope="session")
def released(migrated_store: Path) -> Released:
    return released_once(migrated_store)


@pytest.fixture
def world(released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with released.copy(tmp_path) as world:
        monkeypatch.setenv("LIFECYCLE_DEFS", str(world.agent.folder.parent))
        monkeypatch.setenv("COLUMNS", "200")
        yield world


def scores(world: World, name: str = "local_tiny_shouted") -> dict[str, int]:
    return {row["version"]: row["n"] for row in world.rows(COUNT, name)}


def runs_of(world: World) -> list[dg.DagsterRun]:
    """The backfill's runs, oldest first."""
    return list(reversed(world.instance.get_runs(dg.RunsFilter(job_name="tiny_scorer_backfill"))))


def test_what_is_scored_owes_nothing_and_run_says_so(world: World, run: Run):
    for more in ((), ("--run",)):
        found = run("backfill", "tiny", *RANGE, *more)
        assert found.exit_code == 0, found.output
        assert f"Every sampled trace from {day_of(2)} to {day_of(1)} is scored by the present version" in found.output
    assert runs_of(world) == []


def test_a_changed_scorer_is_estimated_done_within_caps_and_gone_on_with(world: World, run: Run):
    world = world.declared(
        scorers=[
            {"name": "shouted", "source": "scorers.py:shouted", "cost_per_call": 0.25},
            {"name": "length", "source": "scorers.py:length", "sample_rate": 0.5},
        ]
    )
    world.edit("scorers.py", *CHANGE)
    said = json.loads(run("backfill", "tiny", *RANGE, "--json").stdout)
    assert (said["traces"], said["traces_to_score"], said["calls"], said["usd"]) == (12, 12, 12, 3.0)
    assert {(row["day"], row["to_score"], row["reason"]) for row in said["days"] if row["scorer"] == "shouted"} == {
        (day_of(1), 6, "code"),
        (day_of(2), 6, "code"),
    }
    assert [(row["scorer"], row["version"], row["to_score"]) for row in said["scorers"]] == [
        ("shouted", "", 12),
        ("length", "1", 0),
    ]
    assert (said["canary"]["day"], said["canary"]["traces"], said["runs"]) == (day_of(1), 6, [])
    assert runs_of(world) == [], "an estimate starts nothing"

    capped = run("backfill", "tiny", *RANGE, "--run", "--max-usd", "2.1")
    assert capped.exit_code == 0, capped.output
    assert f"The cap on money leaves 4 traces of {day_of(2)}." in capped.output
    told = [line.strip() for line in capped.stderr.splitlines() if "scores landed" in line]
    assert told == [
        f"{day_of(1)}: 6 of 6 scores landed, 1.5 USD",
        f"{day_of(2)}: 2 of 2 scores landed, 0.5 USD",
    ]
    assert scores(world) == {"1": 12, "2": 8}
    first, second = runs_of(world)
    assert [first.tags["dagster/partition"], second.tags["dagster/partition"]] == [day_of(1), day_of(2)]
    assert [first.tags["lifecycle/backfill_canary"], second.tags["lifecycle/backfill_canary"]] == ["true", "false"]
    assert (second.tags["lifecycle/backfill_reason"], second.tags["lifecycle/backfill_by"]) == ("code", "command")
    assert (second.tags["lifecycle/backfill_usd"], second.tags["lifecycle/backfill_traces"]) == ("0.500000", "2")

    rest = json.loads(run("backfill", "tiny", *RANGE, "--json").stdout)
    assert (rest["calls"], rest["usd"]) == (4, 1.0)
    assert rest["seconds_per_call"] > 0, "measured by the runs before"
    assert set(scores(world, "local_tiny_length")) == {"1"}


def test_raising_a_rate_scores_the_additional_traces_only_and_only_the_scorer_asked_for(world: World, run: Run):
    before = scores(world, "local_tiny_length")["1"]
    scorers = [{"name": name, "source": f"scorers.py:{name}"} for name in ("shouted", "length")]
    world = world.declared(scorers=scorers)
    said = json.loads(
        run("backfill", "tiny", "--scorer", "length", "--from", day_of(1), *RANGE[2:], "--run", "--json").stdout
    )
    assert {row["reason"] for row in said["days"] if row["to_score"]} == {"sampling"}
    assert [one["success"] for one in said["runs"]] == [True]
    assert scores(world, "local_tiny_length") == {"1": before + said["calls"]}
    assert scores(world) == {"1": 12}


def test_a_canary_full_of_errors_stops_the_backfill_with_a_sentence(world: World, run: Run):
    world.edit(
        "scorers.py",
        '    spans = trace.search_spans(name="answer")\n    if not spans:\n',
        "    spans = 1 / 0\n    if not spans:\n",
    )
    found = run("backfill", "tiny", *RANGE, "--run")
    assert found.exit_code == 1
    assert "The backfill stopped after its first traces: local_tiny_shouted failed on 6 of 6 traces" in found.stderr
    assert len(runs_of(world)) == 1, "the other day was not begun"
    assert scores(world) == {"1": 12, "2": 6}


def test_killed_in_the_middle_it_goes_on_without_scoring_twice(world: World, run: Run):
    world.edit("scorers.py", *CHANGE)
    dies = """
import sys
from tests.deadly import deadly
deadly("resources.scoring.score_table:ScoreTable.land", "return", 1)
from lifecycle_assets.cli.main import main
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", dies, "backfill", "tiny", *RANGE, "--run"]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (dead,) = runs_of(world)
    assert dead.status == dg.DagsterRunStatus.STARTED

    after = run("backfill", "tiny", *RANGE, "--run")
    assert after.exit_code == 0, after.output
    assert scores(world) == {"1": 12, "2": 12}
    assert runs_of(world)[0].status == dg.DagsterRunStatus.FAILURE
    (newest,) = world.instance.fetch_materializations(dg.AssetKey(["tiny", "trace_scores"]), limit=1).records
    assert newest.asset_materialization is not None
    assert newest.asset_materialization.metadata["calls"].value == 6, "what had landed is not called again"
    assert len(runs_of(world)) == 2


def test_progress_is_one_line_that_changes_in_a_terminal_and_lines_now_and_then_elsewhere():
    told = ["one", "two \x1b[2J", "three"]
    parent, child = os.openpty()
    file = io.StringIO()
    with os.fdopen(child, "w") as terminal:
        for shown in (ProgressLine(terminal), ProgressLine(file)):
            for line in told:
                shown.passing(line)
            shown.lasting("done")
        said = os.read(parent, 1000).decode()
    os.close(parent)
    assert said == "\r\x1b[2K  one\r\x1b[2K  two  [2J\r\x1b[2K  three\r\ndone\r\n"
    assert file.getvalue() == "  one\n  three\ndone\n", "the newest is always shown before what follows"


def test_work_that_may_be_paid_for_goes_on_when_nobody_reads_its_progress():
    reading, writing = os.pipe()
    os.close(reading)
    with io.TextIOWrapper(os.fdopen(writing, "wb", buffering=0), write_through=True) as pipe:
        shown = ProgressLine(pipe)
        shown.passing("1 of 2")
        with pytest.raises(BrokenPipeError):
            shown.lasting("in between, it ends as ever")


def test_a_run_that_fails_stops_with_its_sentence_and_the_next_call_goes_on(world: World, run: Run):
    world.edit("scorers.py", *CHANGE)
    world.edit(
        "scorers.py", "def length(trace):", "def length(trace):\n    return undefined_name\n\n\ndef unused(trace):"
    )
    found = run("backfill", "tiny", *RANGE, "--run")
    assert found.exit_code == 1
    assert "undefined_name" in found.stderr
    assert "run the same command again" in found.stderr
    assert "Traceback" not in found.output
    assert scores(world) == {"1": 12}


TOMORROW = f"{TODAY + timedelta(days=1)}"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("tyni", *RANGE), 2, "No agent 'tyni' is declared; did you mean 'tiny'?"),
        (("tiny", "--scorer", "shuted", *RANGE), 2, "tiny has no scorer 'shuted'; did you mean 'shouted'?"),
        (("tiny", "--scorer", "zzz", *RANGE), 2, "declared are shouted, length."),
        (("tiny", "--from", day_of(1), "--to", TOMORROW), 2, f"--to {TOMORROW} is in the future"),
        (("tiny", "--from", day_of(1), "--to", day_of(2)), 2, f"--from {day_of(1)} is after --to {day_of(2)}"),
        (("tiny", "--from", "yesterday", "--to", day_of(1)), 2, "--from is 'yesterday', which is no day"),
        (("tiny", "--from", "2020-01-01", "--to", day_of(1)), 2, "is before 2025-01-01, the first day of tiny"),
        (("tiny", "--from", "2025-01-01", "--to", day_of(0)), 2, "ask for at most 400 at once"),
        (("tiny", *RANGE, "--max-traces", "0"), 2, "max-traces"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence(fresh: Path, run: Run, arguments: tuple[str, ...], code: int, said: str):
    found = run("backfill", *arguments)
    assert found.exit_code == code, found.output
    assert said in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_without_an_archive_and_with_a_filter_that_cannot_be_counted(fresh: Path, run: Run):
    found = run("backfill", "tiny", *RANGE)
    assert (found.exit_code, "tiny has no archive yet; run tiny_monitor" in found.stderr) == (1, True)
    assert not (fresh / "nothing").exists(), "a question makes nothing"


def test_a_filter_that_cannot_be_counted_is_one_sentence(world: World, run: Run):
    scorers: list[dict[str, Any]] = [
        {"name": "shouted", "source": "scorers.py:shouted", "filter": "feedback.thumb > 0.5"}
    ]
    with pytest.raises(Refused):
        world.declared(scorers=scorers)
    found = run("backfill", "tiny", *RANGE)
    assert found.exit_code in (1, 2)
    assert "cannot be counted by SQL; write comparisons such as" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 2, "that sentence, and that no other agent is declared"
