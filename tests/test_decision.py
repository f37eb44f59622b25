"""What happens to a version: every condition alone, and the order in which they are held."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lifecycle_assets.records import AliasMove, EvalRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.approval import Approval
from lifecycle_assets.release.decision import Decision, decide, evidence_taken_back
from lifecycle_assets.release.moves import State
from lifecycle_assets.release.promotion import present_champion, wanted_move
from lifecycle_assets.release.standing import standing
from lifecycle_assets.spec_release import Gate
from resources.model_registry import RegisteredVersion
from tests.building import evaluation_of

NOW = datetime(2026, 11, 20, tzinfo=UTC)
NUMBERS: dict[str, Any] = {"thresholds": [{"metric": "a/mean", "at_least": 0.5}]}
ALONE = Gate.model_validate(NUMBERS)
ASKED = Gate.model_validate({**NUMBERS, "approval": "required"})


def evaluated(gate: Gate = ALONE, **changes: Any) -> EvalRecord:
    return evaluation_of(**{"model_id": "m-2", "gate_digest": gate.digest, "at": ago(days=1), **changes})


def ago(**time: float) -> str:
    return (NOW - timedelta(**time)).isoformat()


PASSED = evaluated()
NOTHING_SAID = Approval()
APPROVED = Approval("approved", "ann", "looks good", ago(hours=1), PASSED.evidence_digest)


def decision(evaluation: EvalRecord = PASSED, gate: Gate = ALONE, **changes: Any) -> Decision:
    """What is decided on version 2 of m-2 when nobody is champion, with the given facts replaced."""
    facts: dict[str, Any] = {
        "version": "2",
        "model_id": "m-2",
        "approval": Approval(),
        "champion": "",
        "champion_model_id": "",
        "taken_back": (),
        "now": NOW,
    }
    return decide(evaluation, gate=gate, **{**facts, **changes})


CHAMPION_1: dict[str, Any] = {"champion": "1", "champion_model_id": "m-1"}


class TestEvidence:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"model_id": "m-3"}, "is about m-3, not about m-2: materialize eval_results for this model."),
            ({"gate_digest": "old"}, "held against another gate than defs.yaml declares now"),
            ({"verdict": "failed", "reasons": ["a/mean is low."]}, "is 'failed': a/mean is low."),
            ({"verdict": "dry_run"}, "is 'dry_run'"),
            ({"verdict": "ungated"}, "is 'ungated'"),
            ({"verdict": ""}, "is ''"),
            ({"at": ago(days=31)}, "is 31 days old, 30d is allowed: materialize eval_results again."),
            ({"at": ago(days=-2)}, "which is no time in the past"),
            ({"at": "last week"}, "is dated last week, which is no time in the past"),
        ],
    )
    def test_evidence_that_proves_nothing_is_refused(self, changes: dict[str, Any], sentence: str):
        found = decision(evaluated(**changes))
        assert found.action == "refuse"
        assert sentence in found.sentence

    def test_it_is_refused_before_anything_a_person_said_and_also_of_the_champion(self):
        expired = evaluated(at=ago(days=31))
        approval = Approval("approved", at=ago(), evidence=expired.evidence_digest)
        assert decision(expired, ASKED, approval=approval).action == "refuse"
        assert decision(expired, champion="2", champion_model_id="m-2").action == "refuse"

    @pytest.mark.parametrize(
        ("mode", "verdict", "action"),
        [
            ("enforce", "passed", "promote"),
            ("dry_run", "passed", "promote"),
            ("dry_run", "dry_run", "promote"),
            ("dry_run", "failed", "refuse"),
            ("dry_run", "ungated", "refuse"),
            ("disabled", "ungated", "promote"),
            ("disabled", "dry_run", "refuse"),
        ],
    )
    def test_each_mode_lets_its_own_verdicts_through(self, mode: str, verdict: str, action: str):
        gate = Gate.model_validate({**NUMBERS, "mode": mode})
        assert decision(evaluated(gate, verdict=verdict), gate).action == action


class TestComparison:
    def test_a_version_compared_with_the_present_champion_is_promoted(self):
        assert decision(evaluated(incumbent_model_id="m-1"), **CHAMPION_1).action == "promote"

    @pytest.mark.parametrize("compared_with", ["", "m-0"])
    def test_a_version_compared_with_nobody_or_with_somebody_else_is_refused(self, compared_with: str):
        found = decision(evaluated(incumbent_model_id=compared_with), **CHAMPION_1)
        assert found.action == "refuse"
        assert found.sentence.startswith("Version 2 was not compared with the champion, version 1")

    def test_a_champion_that_names_no_model_cannot_have_been_compared_with(self):
        """Two empty names were equal, and a version passed that was held against nobody."""
        assert decision(champion="7", champion_model_id="").action == "refuse"

    def test_a_gate_that_compares_with_nobody_needs_no_comparison(self):
        for change in ({"incumbent": None}, {"mode": "disabled"}):
            gate = Gate.model_validate({**NUMBERS, **change})
            verdict = "ungated" if gate.mode == "disabled" else "passed"
            assert decision(evaluated(gate, verdict=verdict), gate, **CHAMPION_1).action == "promote"

    def test_who_is_champion_already_stays_and_is_not_asked_to_be_approved(self):
        stands: dict[str, Any] = {"champion": "2", "champion_model_id": "m-2"}
        assert decision(**stands).action == "stay"
        assert decision(gate=ASKED, **stands).action == "stay"


class TestTakenBack:
    def test_the_same_evidence_is_not_promoted_again_and_other_evidence_is(self):
        found = decision(taken_back={PASSED.evidence_digest})
        assert found.action == "refuse"
        assert "taken back by a rollback" in found.sentence
        assert decision(evaluated(rows=4), taken_back={PASSED.evidence_digest}).action == "promote"

    def test_what_says_nothing_about_the_version_does_not_make_other_evidence(self):
        """A new run with the same scores, a commit elsewhere, another age allowed: each lifted the bar."""
        gate = Gate.model_validate({**NUMBERS, "max_age": "60d"})
        again = evaluated(gate, run_id="again", git_commit="later", at=ago(hours=1), incumbent_model_id="m-9")
        assert decision(again, gate, taken_back={PASSED.evidence_digest}).action == "refuse"

    def test_approval_does_not_help(self):
        assert decision(gate=ASKED, approval=APPROVED, taken_back={PASSED.evidence_digest}).action == "refuse"

    def test_all_evidence_a_champion_held_is_barred_with_it(self):
        """Promoted on one evaluation and evaluated again: the second one was not known to the rollback."""
        promoted = moved("passed", {"champion": "1"}, {"champion": "2"}, "e-1")
        again = moved("passed", {"champion": "2"}, {"champion": "2"}, "e-2")
        back = moved("rolled_back", {"champion": "2"}, {"champion": "1"}, "e-0")
        assert evidence_taken_back([promoted, again]) == frozenset()
        assert evidence_taken_back([promoted, again, back]) == {"e-1", "e-2"}
        returned = moved("passed", {"champion": "1"}, {"champion": "2"}, "e-3")
        assert evidence_taken_back([promoted, again, back, returned]) == frozenset()


class TestApproval:
    def test_nothing_said_waits_and_an_approval_promotes(self):
        assert decision(gate=ASKED).action == "wait"
        found = decision(gate=ASKED, approval=APPROVED)
        assert found == Decision("promote", "Version 2 was approved by ann: looks good")

    def test_a_rejection_rejects_and_never_expires(self):
        rejected = Approval("rejected", "ann", "rude", ago(days=300), PASSED.evidence_digest)
        assert decision(gate=ASKED, approval=rejected) == Decision("reject", "Version 2 was rejected by ann: rude")

    @pytest.mark.parametrize("said", ["approved", "rejected"])
    @pytest.mark.parametrize("evidence", ["other", ""])
    def test_what_was_said_of_other_evidence_does_not_count(self, said: str, evidence: str):
        found = decision(gate=ASKED, approval=Approval(said, "ann", "", ago(hours=1), evidence))
        assert found.action == "wait"
        assert "it does not count" in found.sentence

    @pytest.mark.parametrize(
        ("at", "action"),
        [
            (ago(days=6.9), "promote"),
            (ago(days=7.1), "wait"),
            ("", "promote"),  # Set by hand a moment ago.
            (ago(days=-1), "wait"),  # Would never grow old.
            ("2026-11-19T12:00:00", "promote"),
            ("soon", "wait"),
        ],
    )
    def test_an_approval_counts_for_its_time(self, at: str, action: str):
        approval = Approval("approved", "ann", "", at, PASSED.evidence_digest)
        assert decision(gate=ASKED, approval=approval).action == action

    @pytest.mark.parametrize(("mode", "verdict"), [("dry_run", "dry_run"), ("disabled", "ungated")])
    def test_a_gate_that_blocks_nothing_still_asks_for_approval(self, mode: str, verdict: str):
        gate = Gate.model_validate({**NUMBERS, "mode": mode, "approval": "required"})
        assert decision(evaluated(gate, verdict=verdict), gate).action == "wait"

    def test_where_none_is_required_what_somebody_said_changes_nothing(self):
        rejected = Approval("rejected", at=ago(), evidence=PASSED.evidence_digest)
        assert decision(approval=rejected).action == "promote"


def moved(said: str, before: dict[str, str], after: dict[str, str], evidence: str, on: str = "d") -> AliasMove:
    return AliasMove("2026-11-19T00:00:00+00:00", said, before, after, "m", "r", evidence, on, "ann", "why", "run")


def wanted(
    action: Any, aliases: dict[str, str], moves: tuple[AliasMove, ...] = (), approval: Approval = NOTHING_SAID
) -> AliasMove | None:
    return wanted_move(
        Decision(action, "because"),
        "2",
        State(aliases=aliases, versions={}, moves=moves, next_number=len(moves) + 1),
        evaluation=PASSED,
        approval=approval,
        actor="dagster",
        dagster_run_id="run",
    )


class TestPresentChampion:
    """Who a version has to be held against, when a hand was at the alias."""

    def present(self, version: str, alias: str, *there: str) -> str:
        aliases = {"champion": alias} if alias else {}
        versions = {number: RegisteredVersion("m", number, f"m-{number}", {}, 0) for number in there}
        moves = (moved("passed", {}, {"champion": "1"}, "e-1"),)
        return present_champion(version, State(aliases, versions, moves, 2), "tiny")

    def test_an_alias_that_was_removed_is_no_way_round_the_comparison(self):
        assert self.present("2", "1", "1", "2") == "1"
        with pytest.raises(Refused, match="names nobody, but the graph left it at version 1: somebody removed it"):
            self.present("2", "", "1", "2")
        assert self.present("1", "", "1") == "", "its own version takes the alias again"
        assert self.present("2", "", "2") == "", "version 1 was deleted: nobody is left to compare with"

    def test_an_alias_that_was_set_to_the_candidate_does_not_make_it_champion(self):
        with pytest.raises(Refused, match="the graph left it at version 1: somebody moved it by hand"):
            self.present("2", "2", "1", "2")


class TestMove:
    def test_the_first_champion_has_nobody_before_it(self):
        move = wanted("promote", {})
        assert move is not None
        assert (move.before, move.after, move.decision) == ({"champion": ""}, {"champion": "2"}, "passed")
        assert (move.actor, move.reason) == ("dagster", "because")

    def test_an_approved_challenger_becomes_champion_in_one_move_that_names_who_approved(self):
        aliases = {"champion": "1", "challenger": "2", "previous": "0"}
        move = wanted("promote", aliases, approval=APPROVED)
        assert move is not None
        assert move.before == {"champion": "1", "challenger": "2", "previous": "0"}
        assert move.after == {"champion": "2", "challenger": "", "previous": "1"}
        assert (move.decision, move.actor, move.reason) == ("approved", "ann", "looks good")

    def test_waiting_is_claimed_once_for_one_decision_and_again_for_another(self):
        first = wanted("wait", {"champion": "1"})
        assert first is not None
        assert (first.decision, first.after) == ("waiting", {"challenger": "2"})
        waits = {"champion": "1", "challenger": "2"}
        assert wanted("wait", waits, (first,)) is None
        other = moved("waiting", {}, {"challenger": "2"}, first.evidence_digest, "compared with another champion")
        again = wanted("wait", waits, (other,))
        assert again is not None
        assert standing([other, again]) == {"challenger": "2"}

    def test_an_approval_is_of_the_decision_the_version_waited_on(self):
        """Given against one champion, it let the version replace another one that nobody had compared it with."""
        facts: dict[str, Any] = {"gate": ASKED, "approval": APPROVED}
        assert decision(**facts, waited_on=PASSED.decision_digest).action == "promote"
        assert decision(**facts, waited_on="another").action == "wait"
        rejected = replace(APPROVED, decision="rejected")
        assert decision(gate=ASKED, approval=rejected, waited_on="another").action == "reject"

    def test_a_rejected_version_stops_waiting_once(self):
        rejected = Approval("rejected", "ann", "rude", ago(hours=1), PASSED.evidence_digest)
        move = wanted("reject", {"champion": "1", "challenger": "2"}, approval=rejected)
        assert move is not None
        assert (move.decision, move.after, move.actor) == ("rejected", {"challenger": ""}, "ann")
        assert wanted("reject", {"champion": "1"}, approval=rejected) is None
        assert wanted("reject", {"challenger": "3"}, approval=rejected) is None, "it is not the one that waits"

    def test_a_champion_on_new_evidence_is_noted_and_on_the_same_is_not(self):
        same = replace(moved("passed", {}, {"champion": "2"}, PASSED.evidence_digest), eval_run_id=PASSED.run_id)
        assert wanted("stay", {"champion": "2"}, (same,)) is None
        assert wanted("stay", {"champion": "2"}, (replace(same, eval_run_id="deleted"),)) is not None
        move = wanted("stay", {"champion": "2"}, (moved("passed", {}, {"champion": "2"}, "older"),))
        assert move is not None
        assert move.before == move.after == {"champion": "2"}
