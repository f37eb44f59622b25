"""The ledger of alias moves on real MLflow.

Lives here: promises of `resources/alias_ledger.py` and `resources/claims.py`: one ledger a registered model, one move
a number, and a sentence when it is not what it was.
Add here: another way in which a ledger can be lost or doubled.
Not here: carrying moves out (`tests/test_moves.py`), ledgers over HTTP (`test_model_registry.py`, `tests/databricks`).
"""

import threading
from pathlib import Path

import pytest

from lifecycle_assets.records import AliasMove
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources import alias_ledger, claims
from resources.alias_ledger import MlflowAliasLedger
from resources.mlflow_store import experiment_id, open_client
from resources.platform import Platform
from tests.building import make_agent

NAME = "main.agents.tiny"


def a_move(reason: str) -> AliasMove:
    """A move that differs from others by its reason."""
    return AliasMove(
        at="2026-11-20T00:00:00.000000+00:00",
        decision="passed",
        before={"champion": ""},
        after={"champion": "1"},
        model_id="m-1",
        eval_run_id="r",
        evidence_digest="e",
        decision_digest="d",
        actor="me",
        reason=reason,
        dagster_run_id="",
    )


@pytest.fixture
def agent(platform: Platform, tmp_path: Path) -> Agent:
    agent = make_agent(tmp_path / "agents")
    open_client(platform).create_registered_model(NAME)
    return agent


def claim_at_once(platform: Platform, agent: Agent, count: int, number: int = 1) -> list[bool]:
    """Claim from that many threads, as processes would that have not seen the ledger; who won."""
    won, go = [], threading.Barrier(count)

    def claim(mine: int) -> None:
        go.wait()
        won.append(MlflowAliasLedger(platform).claim(agent, number, a_move(f"move of {mine}")))

    threads = [threading.Thread(target=claim, args=(mine,)) for mine in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == count
    return won


def test_reading_makes_nothing(platform: Platform, tmp_path: Path) -> None:
    agent = make_agent(tmp_path / "agents")
    assert MlflowAliasLedger(platform).entries(agent) == []
    assert [one.name for one in open_client(platform).search_experiments()] == ["Default"]


def test_of_many_first_claims_one_ledger_and_one_move_remain(platform: Platform, agent: Agent) -> None:
    assert sorted(claim_at_once(platform, agent, 6)) == [False] * 5 + [True]
    [entry] = MlflowAliasLedger(platform).entries(agent)
    client = open_client(platform)
    [run] = client.search_runs([experiment_id(platform, agent.spec.experiment)])
    assert run.data.tags["lifecycle.step"] == "ledger"
    deciding = client.get_experiment_by_name(f"/agents/{NAME}.ledger")
    assert deciding is not None
    assert deciding.tags["lifecycle.ledger"] == run.info.run_id
    assert client.get_registered_model(NAME).tags["lifecycle.ledger"] == run.info.run_id
    assert {len(value.encode()) <= claims.VALUE_BYTES for value in run.data.params.values()} == {True}
    assert (entry.number, entry.done) == (1, False)


def test_a_claim_in_the_middle_of_a_reading_does_not_look_like_a_ledger_that_was_changed(
    platform: Platform, agent: Agent
) -> None:
    """A store reads a run's parameters and tags one after the other, and another process claims in between."""
    from sqlalchemy import Engine, event

    ledger, number, reading, left = MlflowAliasLedger(platform), 1, False, 0
    assert ledger.claim(agent, number, a_move("move 1"))

    def interrupt(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal number, reading, left
        if not reading or not statement.startswith("SELECT"):
            return
        left -= 1
        if left == 0:
            reading = False
            number += 1
            assert ledger.claim(agent, number, a_move(f"move {number}"))

    event.listen(Engine, "before_cursor_execute", interrupt)
    try:
        for statement in range(1, 100):
            before, reading, left = number, True, statement
            entries = ledger.entries(agent)
            assert len(entries) in (before, number)
            if reading:
                break
    finally:
        event.remove(Engine, "before_cursor_execute", interrupt)
    assert number > 3, "no claim ever fell into a reading: that proves nothing"
    assert [entry.number for entry in ledger.entries(agent)] == list(range(1, number + 1))


def test_a_claim_may_be_repeated_and_is_never_overwritten(platform: Platform, agent: Agent) -> None:
    ledger = MlflowAliasLedger(platform)
    assert ledger.claim(agent, 1, a_move("mine"))
    assert ledger.claim(agent, 1, a_move("mine"))
    assert not ledger.claim(agent, 1, a_move("theirs"))
    ledger.finish(agent, 1)
    ledger.finish(agent, 1)
    assert [(entry.move.reason, entry.done) for entry in ledger.entries(agent)] == [("mine", True)]
    with pytest.raises(ValueError, match="bytes cannot be kept"):
        ledger.claim(agent, 2, a_move("x" * 6000))


def test_a_ledger_that_is_not_what_it_was_stops_with_a_sentence(platform: Platform, agent: Agent) -> None:
    ledger, client = MlflowAliasLedger(platform), open_client(platform)
    assert ledger.claim(agent, 1, a_move("mine"))
    run_id = client.get_registered_model(NAME).tags["lifecycle.ledger"]
    stranger = Agent(agent.spec.model_copy(update={"name": "stranger"}), agent.folder)
    with pytest.raises(Refused, match=r"are moved by the agent 'tiny': give stranger another model_name"):
        ledger.entries(stranger)

    [tag] = [tag for tag in client.get_run(run_id).data.tags if tag.startswith("move.")]
    kept = client.get_run(run_id).data.tags[tag]
    client.set_tag(run_id, tag, kept.replace('"mine"', '"theirs"'))
    with pytest.raises(Refused, match="was changed by hand at move 1: set its tag move"):
        ledger.entries(agent)
    client.set_tag(run_id, tag, kept)

    client.delete_run(run_id)
    with pytest.raises(Refused, match=f"was deleted: restore it .mlflow runs restore --run-id {run_id}"):
        ledger.entries(agent)
    client.restore_run(run_id)
    assert len(ledger.entries(agent)) == 1

    # Another process, to which the registered model no longer says which run it is.
    alias_ledger._runs.clear()
    client.delete_registered_model_tag(NAME, "lifecycle.ledger")
    assert len(ledger.entries(agent)) == 1
    alias_ledger._runs.clear()
    deciding = client.get_experiment_by_name(f"/agents/{NAME}.ledger")
    assert deciding is not None
    client.delete_experiment(deciding.experiment_id)
    for ask in (ledger.entries, lambda agent: ledger.claim(agent, 2, a_move("another"))):
        with pytest.raises(Refused, match=r"was deleted: restore it .mlflow experiments restore"):
            ask(agent)


def test_two_models_of_one_experiment_have_two_ledgers(platform: Platform, agent: Agent) -> None:
    other = Agent(agent.spec.model_copy(update={"name": "other", "model_name": "main.agents.other"}), agent.folder)
    open_client(platform).create_registered_model("main.agents.other")
    ledger = MlflowAliasLedger(platform)
    assert ledger.claim(agent, 1, a_move("of tiny"))
    assert ledger.claim(other, 1, a_move("of other"))
    assert [entry.move.reason for entry in ledger.entries(agent)] == ["of tiny"]
    assert [entry.move.reason for entry in ledger.entries(other)] == ["of other"]
