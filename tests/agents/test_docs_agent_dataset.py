"""The evaluation dataset and the sample traffic of `docs_agent`: size, truth, separation.

Add a test when a file gains a field. How well the agent does on them is the evaluation's verdict.
"""

from typing import Any

import pytest

from tests.agents.conftest import read_lines

DATASET = read_lines("eval_dataset.jsonl")
TRAFFIC = read_lines("traffic.jsonl")


def question_of(record: dict[str, Any]) -> str:
    """The question of an evaluation record."""
    return record["inputs"]["input"][0]["content"]


def test_dataset_has_enough_of_both_kinds() -> None:
    """At least 64 questions; 48 that the documentation answers, 12 that it cannot."""
    answerable = [r for r in DATASET if r["expectations"]["answerable"]]
    assert len(DATASET) >= 64
    assert len(answerable) >= 48
    assert len(DATASET) - len(answerable) >= 12


def test_records_have_one_shape() -> None:
    """Facts and sources where there is an answer, nothing else where there is none."""
    for record in DATASET:
        assert set(record) == {"inputs", "expectations"}
        (message,) = record["inputs"]["input"]
        assert message["role"] == "user"
        assert message["content"].strip()
        expected = record["expectations"]
        if expected["answerable"]:
            assert expected["expected_facts"]
            assert expected["expected_sources"]
        else:
            assert expected == {"answerable": False}


@pytest.mark.parametrize("record", [r for r in DATASET if r["expectations"]["answerable"]])
def test_facts_stand_in_an_expected_source(record: dict[str, Any], passages: list[Any]) -> None:
    """Every fact is literally in the documentation, in a place the record names as a source."""
    sources = record["expectations"]["expected_sources"]
    texts = [p.text for p in passages if any(source in p.uri for source in sources)]
    for fact in record["expectations"]["expected_facts"]:
        assert any(fact in text for text in texts), (question_of(record), fact)


def test_no_question_is_asked_twice() -> None:
    """Neither within a file nor in both: traffic must not leak into the evaluation."""
    questions = [question_of(r) for r in DATASET] + [r["question"] for r in TRAFFIC]
    plain = [" ".join(question.lower().split()) for question in questions]
    assert len(set(plain)) == len(plain)


def test_traffic_is_a_believable_day() -> None:
    """Sessions of several questions by one user each, some feedback, comments with complaints."""
    assert len(TRAFFIC) >= 40
    assert all(set(r) == {"session", "user", "question", "feedback", "comment"} for r in TRAFFIC)
    sessions = {record["session"] for record in TRAFFIC}
    assert 10 <= len(sessions) <= 15
    for session in sessions:
        asked = [record for record in TRAFFIC if record["session"] == session]
        assert len(asked) >= 2
        assert len({record["user"] for record in asked}) == 1
    down = [record for record in TRAFFIC if record["feedback"] == "down"]
    assert 6 <= len(down) <= 10
    assert all(record["comment"] for record in down)
    assert any(record["feedback"] == "up" for record in TRAFFIC)
    assert {record["feedback"] for record in TRAFFIC} == {None, "up", "down"}
