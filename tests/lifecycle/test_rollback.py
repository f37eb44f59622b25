"""The champion is taken back: to whom, once, and not promoted again as it is."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from lifecycle_assets.cli.main import main
from lifecycle_assets.jobs import rollback_config
from lifecycle_assets.records import AliasMove
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.rollback import choose_target, gated_verdicts, interrupted_rollback
from lifecycle_assets.spec_release import Gate
from resources.model_registry import RegisteredVersion
from resources.tables import arrow_table
from sensors.watermark import RollbackCursor
from tests.building import Released, World, refusal
from tests.lifecycle.dying import killer
from tests.resources.test_archive import make_rows
from tests.sensors.test_rollback import move

WHY = "answers shout too much"
GATED = frozenset({"passed"})


@pytest.fixture(scope="module")
def twice(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Released:
    """The released world with a second version as champion: released once for all tests here."""
    folder = tmp_path_factory.mktemp("twice")
    with released.copy(folder) as world:
        world.edit("agent.py", ".upper()", ".upper() + '!'")
        assert world.run("release").success
        assert world.aliases() == {"champion": "2", "previous": "1"}
    return replace(released, folder=folder / "copy")


@pytest.fixture
def world(twice: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with ExitStack() as stack:
        world = stack.enter_context(twice.copy(tmp_path))
        monkeypatch.setenv("LIFECYCLE_DEFS", str(world.agent.folder.parent))
        yield world


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["rollback", *arguments])


def moves_of(world: World) -> list[tuple[str, str, str]]:
    rows = world.rows(
        'SELECT from_version, to_version, decision FROM promotions WHERE alias = ? ORDER BY "at"', "champion"
    )
    return [(row["from_version"], row["to_version"], row["decision"]) for row in rows]


RELEASES = [("", "1", "passed"), ("1", "2", "passed")]


class TestTarget:
    """Where a rollback goes, from the ledger alone."""

    MOVES = (move(1, "", "1"), move(2, "1", "2"), move(3, "2", "3"))

    def target(
        self,
        champion: str,
        moves: Sequence[AliasMove],
        *,
        to: str = "",
        gone: Sequence[str] = (),
        accepted: frozenset[str] = GATED,
        approved_on: str = "passed",
        **models: str,
    ) -> str:
        versions = {
            str(n): RegisteredVersion("m", str(n), models.get(f"v{n}", f"m-{n}"), {}, 0)
            for n in range(1, 6)
            if str(n) not in gone
        }
        previous = moves[-1].after.get("previous", "") if moves else ""
        found = choose_target(
            champion=champion,
            previous=previous,
            moves=moves,
            versions=versions,
            accepted=accepted,
            verdict=lambda move: approved_on if move.decision == "approved" else move.decision,
            to=to,
        )
        return found.after["champion"]

    def test_it_goes_to_the_one_before_or_the_newest_that_may_be(self):
        assert self.target("3", self.MOVES) == "2"
        assert self.target("3", self.MOVES, to="1") == "1"
        assert self.target("3", self.MOVES, gone=["2"]) == "1"
        back = (*self.MOVES, move(4, "3", "2", "rolled_back"))
        assert self.target("2", back) == "1", "the second step back does not return to what was taken back"
        forth = (*back, move(5, "2", "3", evidence_digest="new"), move(6, "3", "4"))
        assert self.target("4", forth) == "3", "promoted again on new evidence"
        assert self.target("5", self.MOVES) == "3", "set by hand: the ledger's champion was before it"

    @pytest.mark.parametrize(
        ("champion", "to", "more", "sentence"),
        [
            ("3", "3", (), "Version 3 is champion already"),
            ("3", "5", (), "Version 5 was never made champion by this graph; versions that were: 1, 2, 3."),
            ("2", "3", (move(4, "3", "2", "rolled_back"),), "Version 3 was taken back itself"),
            ("4", "3", (move(4, "3", "3", "ungated"), move(5, "3", "4")), "became champion as 'ungated'"),
            ("", "2", (), "Nobody is champion"),
        ],
    )
    def test_a_version_that_may_not_be_is_one_sentence(
        self, champion: str, to: str, more: tuple[AliasMove, ...], sentence: str
    ):
        with pytest.raises(Refused, match=sentence):
            self.target(champion, (*self.MOVES, *more), to=to)

    def test_a_version_that_is_gone_or_another_than_it_was_is_not_gone_back_to(self):
        with pytest.raises(Refused, match="Version 2 was deleted"):
            self.target("3", self.MOVES, to="2", gone=["2"])
        with pytest.raises(Refused, match="Version 2 names model m-other now, and was champion with model m-2"):
            self.target("3", self.MOVES, to="2", v2="m-other")
        with pytest.raises(Refused, match="no version to go back to from version 1: nobody was champion before it"):
            self.target("1", self.MOVES[:1])

    def test_what_counts_as_gated_is_what_the_declared_mode_lets_through(self):
        ungated = (move(1, "", "1", "ungated"), move(2, "1", "2"))
        disabled = gated_verdicts(Gate(mode="disabled"))
        assert self.target("2", ungated, accepted=disabled) == "1"
        with pytest.raises(Refused, match="'ungated'"):
            self.target("2", ungated, accepted=disabled - {"ungated"})
        approved = (move(1, "", "1", "approved"), move(2, "1", "2"))
        assert self.target("2", approved) == "1"
        with pytest.raises(Refused, match="'ungated'"):
            self.target("2", approved, approved_on="ungated")

    def test_a_repeat_is_known_by_its_run_and_a_named_version_is_taken_back_once(self):
        moves = (*self.MOVES, move(4, "3", "2", "rolled_back", reason=WHY))

        def repeated(
            known: Sequence[AliasMove] = moves,
            to: str = "",
            reason: str = WHY,
            taken_back: str = "",
            ended_well: bool = False,
        ) -> AliasMove | None:
            return interrupted_rollback(
                known,
                to=to,
                reason=reason,
                taken_back=taken_back,
                ended_well=lambda run_id: ended_well or run_id != "run-4",
            )

        assert repeated() == moves[-1]
        assert repeated(reason="another") is None
        assert repeated(to="1") is None
        assert repeated(ended_well=True) is None
        assert repeated((*moves, move(5, "2", "4"))) is None
        assert repeated(taken_back="3", reason="another", ended_well=True) == moves[-1]
        assert repeated(taken_back="2") is None


@pytest.mark.timeout(420)
def test_the_command_takes_the_champion_back_and_it_is_not_promoted_again(world: World):
    first = world.versions()[0].tags["lifecycle.model_id"]
    for arguments, code, sentence in (
        ((), 2, "Missing option '--reason'"),
        (("--reason", " \n"), 2, "A rollback needs a reason"),
        (("--reason", "x" * 501), 2, "The reason has 501 characters, 500 are kept"),
        (("--reason", WHY, "--to", "1; DROP"), 2, "'1; DROP' is no version"),
        (("--reason", WHY, "--to", "9"), 1, "Version 9 was never made champion by this graph"),
    ):
        wrong = cli("tiny", *arguments)
        assert (wrong.exit_code, sentence in wrong.stderr) == (code, True), wrong.output
        assert "Traceback" not in wrong.output
    launched = world.run("rollback")  # From the launchpad, with nothing filled in.
    assert refusal(launched) == "A rollback needs a reason: say in one sentence why the champion is taken back."
    other = world.run("rollback", run_config=rollback_config("tiny", reason=WHY, taken_back="1"))
    assert refusal(other) == "Version 1 is not champion any more, version 2 is: nothing was moved; decide anew."
    assert moves_of(world) == RELEASES

    done = cli("tiny", "--reason", f"  {WHY}\n", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["from"], said["to"], said["why"], said["repeated"]) == ("2", "1", WHY, False)
    assert world.aliases() == {"champion": "1", "previous": "2"}
    assert moves_of(world) == [*RELEASES, ("2", "1", "rolled_back")]
    row = world.rows("SELECT * FROM promotions WHERE decision = 'rolled_back'")[0]
    assert json.loads(row["evidence"])["run_id"] == world.versions()[0].tags["lifecycle.eval_run_id"]
    assert (row["model_id"], row["reason"], row["dagster_run_id"]) == (first, WHY, said["dagster_run_id"])
    run = world.instance.get_run_by_id(said["dagster_run_id"])
    assert run is not None
    assert (run.job_name, run.status) == ("tiny_rollback", dg.DagsterRunStatus.SUCCESS)
    assert world.metadata("deployment")["mlflow/model_id"] == first
    assert world.metadata("champion_alias")["lifecycle/record"]["previous"] == "2"

    again = cli("tiny", "--reason", WHY)
    assert again.exit_code == 1
    assert "no version to go back to from version 1: Version 2 was taken back itself" in again.stderr
    assert "Traceback" not in again.output
    released = world.run("release", asset_selection=[dg.AssetKey(["tiny", "champion_alias"])])
    assert not released.success
    assert "taken back" in refusal(released)
    assert world.aliases() == {"champion": "1", "previous": "2"}
    assert len(moves_of(world)) == 3


DEATHS = [
    # function, event: the instant, in the order of the rollback
    ("resources.alias_ledger:MlflowAliasLedger.claim", "return"),  # decided, nothing carried out
    ("resources.local_deployer:LocalDeployer.hand_off", "call"),  # the runtime still has the version taken back
]


@pytest.mark.timeout(420)
def test_a_champion_that_fails_in_production_is_taken_back_once_however_often_that_is_killed(world: World):
    """On real tables: errors under the champion at hours at which its predecessor made none the week before."""
    rules = {"rules": [{"metric": "error_rate", "max_drop": 0.1}], "k": 2, "n": 3, "min_traces": 2}
    assert "nobody is taken back without being asked" in world.tick("rollback_sensor").skip_message
    world = world.declared(rollback={**rules, "automatic": True})
    models = [version.tags["lifecycle.model_id"] for version in world.versions()]
    start = (datetime.now(UTC) + timedelta(hours=1)).replace(minute=0, second=0, microsecond=0)
    served(world, start, models[1], state="ERROR", hours=1)
    served(world, start - timedelta(weeks=1), models[0], state="OK", hours=2)
    first = world.tick("rollback_sensor")
    assert first.skip_message == "Version 2 holds what its rules ask.", "one window of two"
    again = world.tick("rollback_sensor", first.cursor)
    assert (again.run_requests, again.skip_message) == ([], first.skip_message), "nothing new was archived"

    served(world, start + timedelta(hours=1), models[1], state="ERROR", hours=1)
    found = world.tick("rollback_sensor", first.cursor)
    (request,) = found.run_requests
    assert request.run_key == RollbackCursor.from_json(found.cursor).fired
    assert request.run_key.startswith("rollback:2:")
    assert "asked to be taken back before" in world.tick("rollback_sensor", found.cursor).skip_message
    config = request.run_config["ops"]["tiny__champion_alias"]["config"]
    assert (config["to"], config["taken_back"]) == ("1", "2")
    assert config["reason"].startswith("error_rate is 1 from ")
    assert config["reason"].endswith("worse than 0.1 allows in 2 of 2 windows.")

    with killer(world) as killing:
        for function, event in DEATHS:
            killing.kill("rollback", function, event, config=rollback_config("tiny", reason=config["reason"]))
    assert world.metadata("deployment")["mlflow/model_id"] == models[1]
    done = cli("tiny", "--reason", config["reason"])
    assert done.exit_code == 0, done.output
    assert "had been interrupted; it is carried out, and none was added" in done.stdout
    assert world.aliases() == {"champion": "1", "previous": "2"}
    assert world.metadata("deployment")["mlflow/model_id"] == models[0]
    assert world.do(request, "rollback").success, "the sensor's own run comes late, and finds that it is done"
    assert moves_of(world) == [*RELEASES, ("2", "1", "rolled_back")]
    assert "champion by a rollback" in world.tick("rollback_sensor").skip_message


def served(world: World, start: datetime, model_id: str, *, state: str, hours: int) -> None:
    """Two traces an hour from `start` on, archived four hours after they began."""
    from deltalake import write_deltalake

    traces = []
    for number in range(2 * hours):
        at = start + timedelta(minutes=30 * number)
        one = {**make_rows(0, at.date()).trace, "trace_id": f"tr-{at:%m%d%H%M}", "request_time": at, "state": state}
        traces.append({**one, "model_id": model_id, "archived_at": start + timedelta(hours=hours)})
    where = world.platform.table_uri(world.agent.spec.table_prefix + "traces")
    write_deltalake(where, arrow_table("traces", traces), mode="append")
