"""The scorer catalogue of `docs_agent` on real traces, and alone in an empty namespace.

Add a test for every scorer that is added: with expectations, without, on a refusal and on an
error. How scorers are registered and sampled is the platform's business.
"""

import json
from types import ModuleType
from typing import Any

import mlflow
import pytest
from mlflow.entities import Feedback, Trace
from mlflow.genai.scorers import Scorer

from tests.agents.conftest import LoggedAgent

NAMES = [
    "retrieval_hit",
    "expected_facts_covered",
    "grounded",
    "refusal_correct",
    "latency_seconds",
]
FACT = "Set a registered model alias pointing to a model version"


@pytest.fixture(scope="module")
def answered(agent: LoggedAgent) -> Trace:
    """A trace with an answer."""
    return agent.ask("How do I point a registered model alias at a model version?")[1]


@pytest.fixture(scope="module")
def refused(agent: LoggedAgent) -> Trace:
    """A trace with a refusal."""
    return agent.ask("What is the weather in Berlin tomorrow?")[1]


@pytest.fixture(scope="module")
def failed(agent: LoggedAgent) -> Trace:
    """A trace of a request that raised."""
    with pytest.raises(ValueError, match="no message"):
        agent.model.predict({"input": [{"role": "assistant", "content": "hello"}]})
    return mlflow.get_trace(mlflow.get_last_active_trace_id())


def run(scorers: ModuleType, name: str, trace: Trace, expectations: Any = None) -> Any:
    """A scorer as production calls it."""
    return getattr(scorers, name).run(inputs={}, outputs={}, trace=trace, expectations=expectations)


@pytest.mark.parametrize(("source", "hit"), [("set_registered_model_alias", True), ("nope", False)])
def test_retrieval_hit(scorers: ModuleType, answered: Trace, source: str, hit: bool) -> None:
    """A source is found by a part of its name."""
    assert run(scorers, "retrieval_hit", answered, {"expected_sources": [source]}).value is hit


def test_expected_facts_covered(scorers: ModuleType, answered: Trace) -> None:
    """The share of facts stated, whatever their case and quotes; the rest is named."""
    facts = {"expected_facts": [f"  {FACT.upper()}`", "a fact nobody stated"]}
    feedback = run(scorers, "expected_facts_covered", answered, facts)
    assert feedback.value == 0.5
    assert feedback.rationale == "Missing: a fact nobody stated"


def test_refusing_an_answerable_question_covers_no_facts(scorers: ModuleType, refused: Trace) -> None:
    """A refusal is a zero where facts were expected, not an exemption."""
    assert run(scorers, "expected_facts_covered", refused, {"expected_facts": ["x"]}).value == 0.0


@pytest.mark.parametrize("name", ["retrieval_hit", "expected_facts_covered"])
@pytest.mark.parametrize("expectations", [None, {}, {"answerable": False}])
def test_no_expectations_is_not_applicable(scorers: ModuleType, answered: Trace, name: str, expectations: Any) -> None:
    """Production has no expectations: no value, never a neutral one."""
    assert run(scorers, name, answered, expectations) is None


def test_grounded(scorers: ModuleType, answered: Trace, refused: Trace) -> None:
    """Quotations are grounded; a refusal says nothing that could be."""
    assert run(scorers, "grounded", answered).value == 1.0
    assert run(scorers, "grounded", refused) is None


def test_grounded_finds_an_invented_sentence(scorers: ModuleType, answered: Trace) -> None:
    """A sentence that no passage supports lowers the share and is named."""
    recorded = json.loads(answered.to_json())
    (chain,) = [span for span in recorded["data"]["spans"] if span["name"] == "answer_question"]
    outputs = json.loads(chain["attributes"]["mlflow.spanOutputs"])
    outputs["answer"] = f"{FACT}. [1]\nAliases expire every Thursday unless renewed by telegram."
    chain["attributes"]["mlflow.spanOutputs"] = json.dumps(outputs)
    feedback = run(scorers, "grounded", Trace.from_dict(recorded))
    assert feedback.value == 0.5
    assert "telegram" in feedback.rationale


@pytest.mark.parametrize(("answerable", "correct"), [(True, False), (False, True)])
def test_refusal_correct_by_expectation(scorers: ModuleType, refused: Trace, answerable: bool, correct: bool) -> None:
    """The dataset's word decides when it is given."""
    feedback = run(scorers, "refusal_correct", refused, {"answerable": answerable})
    assert feedback.value is correct
    assert feedback.metadata == {"truth": "expectation"}


def test_refusal_correct_by_estimate(scorers: ModuleType, answered: Trace, refused: Trace) -> None:
    """In production the retrieved passages stand in for the truth, and the feedback says so."""
    for trace in (answered, refused):
        feedback = run(scorers, "refusal_correct", trace)
        assert feedback.value is True
        assert feedback.metadata == {"truth": "estimate"}


def test_latency_is_in_seconds(scorers: ModuleType, answered: Trace) -> None:
    """Milliseconds of the trace as seconds."""
    value = run(scorers, "latency_seconds", answered).value
    assert value == answered.info.execution_duration / 1000
    assert 0 < value < 10


def test_error_trace(scorers: ModuleType, failed: Trace) -> None:
    """A failed request has a latency and covers nothing; quality of an answer is not applicable."""
    assert run(scorers, "grounded", failed) is None
    assert run(scorers, "refusal_correct", failed, {"answerable": True}) is None
    assert run(scorers, "expected_facts_covered", failed, {"expected_facts": ["x"]}).value == 0.0
    assert run(scorers, "retrieval_hit", failed, {"expected_sources": ["x"]}).value is False
    assert run(scorers, "latency_seconds", failed).value >= 0


@pytest.mark.parametrize("name", NAMES)
def test_scorer_is_self_contained(scorers: ModuleType, answered: Trace, name: str) -> None:
    """The source MLflow stores for a scorer runs without any name from outside it."""
    stored = getattr(scorers, name).model_dump()
    body = "\n".join(f"    {line}" for line in stored["call_source"].splitlines())
    namespace: dict[str, Any] = {}
    exec(f"def {name}{stored['call_signature']}:\n{body}", namespace)
    arguments = {"trace": answered, "expectations": {"expected_facts": [FACT], "answerable": True}}
    accepted = {key: arguments[key] for key in arguments if key in stored["call_signature"]}
    alone = namespace[name](**accepted)
    beside = run(scorers, name, answered, arguments["expectations"])
    assert getattr(alone, "value", None) == getattr(beside, "value", None)


@pytest.mark.parametrize("name", NAMES)
def test_scorer_survives_serialization(
    scorers: ModuleType, answered: Trace, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow gives back a scorer that scores the same."""
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS", "true")
    original = getattr(scorers, name)
    restored = Scorer.model_validate(original.model_dump())
    expectations = {"expected_sources": ["alias"], "expected_facts": [FACT], "answerable": True}
    values = [
        scorer.run(inputs={}, outputs={}, trace=answered, expectations=expectations) for scorer in (original, restored)
    ]
    assert all(isinstance(value, Feedback) for value in values)
    assert values[0].value == values[1].value
