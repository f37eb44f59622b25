"""`docs_agent` through a real MLflow: logged, loaded, asked; answers, refusals and traces.

Add a test when a request, an answer or a span changes. Scorers, data files and endpoints are
tested beside this module.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import SpanType, TraceState

from tests.agents.conftest import AGENT_DIR, LoggedAgent, load_module

QUESTION = "How do I point a registered model alias at a model version?"
UNANSWERABLE = "What is the recipe for sourdough bread?"


def test_answers_with_sources(agent: LoggedAgent) -> None:
    """A question the documentation answers gets sentences and the places they stand."""
    text, _ = agent.ask(QUESTION)
    assert "Set a registered model alias pointing to a model version." in text
    answer, _, sources = text.partition("\n\nSources:\n")
    assert "[1]" in answer
    assert sources.startswith("[1] mlflow.")
    assert "set_registered_model_alias" in sources


def test_refuses_with_the_configured_sentence(agent: LoggedAgent, declared: dict[str, Any]) -> None:
    """A question the documentation cannot answer gets the sentence of the configuration."""
    text, trace = agent.ask(UNANSWERABLE)
    assert text == declared["config"]["refusal"]
    (chain,) = trace.search_spans(name="answer_question")
    assert chain.outputs == {"answer": text, "refused": True, "citations": []}


def test_trace_has_the_spans_scorers_read(agent: LoggedAgent, declared: dict[str, Any]) -> None:
    """AGENT over CHAIN over RETRIEVER, with MLflow's retriever schema."""
    _, trace = agent.ask(QUESTION)
    root, chain, retriever = trace.data.spans
    assert (root.span_type, root.parent_id) == (SpanType.AGENT, None)
    assert (chain.name, chain.span_type) == ("answer_question", SpanType.CHAIN)
    assert chain.parent_id == root.span_id
    assert chain.inputs == {"question": QUESTION}
    assert set(chain.outputs) == {"answer", "refused", "citations"}
    assert (retriever.name, retriever.span_type) == ("retrieve", SpanType.RETRIEVER)
    assert retriever.parent_id == chain.span_id
    assert 0 < len(retriever.outputs) <= declared["config"]["top_k"]
    scores = [document["metadata"]["score"] for document in retriever.outputs]
    assert scores == sorted(scores, reverse=True)
    for document in retriever.outputs:
        assert set(document) == {"page_content", "metadata", "id"}
        assert document["page_content"]
        assert document["metadata"]["doc_uri"] == document["id"]


def test_trace_names_model_session_user_and_environment(agent: LoggedAgent) -> None:
    """What production monitoring groups by stands on the trace."""
    _, trace = agent.ask(QUESTION, conversation_id="s-1", user_id="u-1")
    assert trace.info.state == TraceState.OK
    assert trace.info.tags["environment"] == "test"
    assert trace.info.trace_metadata["mlflow.trace.session"] == "s-1"
    assert trace.info.trace_metadata["mlflow.trace.user"] == "u-1"
    assert trace.info.trace_metadata["mlflow.modelId"] == agent.model_id


def test_last_user_message_is_the_question(agent: LoggedAgent) -> None:
    """Earlier turns and the assistant's own words are not the question."""
    agent.model.predict(
        {
            "input": [
                {"role": "user", "content": "What is the recipe for sourdough bread?"},
                {"role": "assistant", "content": "I could not find an answer."},
                {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
            ]
        }
    )
    trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
    assert trace.search_spans(name="answer_question")[0].inputs == {"question": QUESTION}


def test_request_without_user_message_is_an_error(agent: LoggedAgent) -> None:
    """The caller is told what is missing, and the trace is an error."""
    with pytest.raises(ValueError, match="no message with role 'user'"):
        agent.model.predict({"input": [{"role": "assistant", "content": "hello"}]})
    trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
    assert trace.info.state == TraceState.ERROR


@pytest.mark.parametrize("question", ["", "???", "a" * 100_000, "[1] {x} %s </passage> \x00"])
def test_odd_questions_are_refused(agent: LoggedAgent, question: str) -> None:
    """Empty, huge and markup-laden questions neither fail nor are answered."""
    _, trace = agent.ask(question)
    (chain,) = trace.search_spans(name="answer_question")
    assert chain.outputs["refused"] is True
    assert len(chain.inputs["question"]) <= 4000


def test_threads_share_one_agent(agent: LoggedAgent) -> None:
    """Questions in parallel get the answers they get alone."""
    questions = [QUESTION, UNANSWERABLE, "How do I update the cursor of a sensor?"] * 4

    def answer(question: str) -> str:
        reply = agent.model.predict({"input": [{"role": "user", "content": question}]})
        return reply["custom_outputs"]["answer"]

    alone = [answer(question) for question in questions]
    with ThreadPoolExecutor(max_workers=6) as pool:
        assert list(pool.map(answer, questions)) == alone


def test_two_versions_in_one_process_run_their_own_code(
    agent: LoggedAgent, log_agent: Callable[..., LoggedAgent], tmp_path: Path
) -> None:
    """A candidate with another corpus does not change the champion loaded before it."""
    folder = tmp_path / "docs_agent"
    shutil.copytree(AGENT_DIR, folder)
    corpus = folder / "docs_agent_corpus.py"
    corpus.write_text(
        corpus.read_text("utf-8")
        + '\n\ndef load_texts():\n    return (("bread.bake", "The recipe for sourdough bread is '
        'flour, water, salt and a lot of patience."),)\n',
        "utf-8",
    )
    candidate = log_agent(folder, refusal="No idea.")
    assert "a lot of patience" in candidate.ask(UNANSWERABLE)[0]
    assert candidate.ask(QUESTION)[0] == "No idea."
    assert "sourdough" not in agent.ask(UNANSWERABLE)[0]
    assert "Set a registered model alias" in agent.ask(QUESTION)[0]


def test_file_runs_from_its_own_folder(tmp_path: Path) -> None:
    """`agent.py` can be executed for development, with its own configuration."""
    program = (
        "import runpy, mlflow; mlflow.tracing.disable();"
        "agent = runpy.run_path('agent.py')['DocsAgent']();"
        "print(agent.predict({'input': [{'role': 'user', 'content': 'What is an IO manager?'}]})"
        ".custom_outputs['refused'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=AGENT_DIR, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


def test_library_is_large_bounded_and_quick(passages: list[Any]) -> None:
    """Thousands of passages, each bounded and citable, read and indexed in seconds."""
    assert len(passages) >= 3000
    assert max(len(passage.text) for passage in passages) <= 1100
    assert len({passage.text for passage in passages}) == len(passages)
    assert len({passage.uri for passage in passages}) > 0.99 * len(passages)
    corpus = load_module("docs_agent_corpus_timed", AGENT_DIR / "docs_agent_corpus.py")
    cutter = load_module("docs_agent_passages_timed", AGENT_DIR / "docs_agent_passages.py")
    search = load_module("docs_agent_search_timed", AGENT_DIR / "docs_agent_search.py")
    started = time.process_time()
    again = cutter.cut(corpus.load_texts())
    search.Index([passage.title for passage in again], [passage.text for passage in again])
    assert time.process_time() - started < 8  # about 3 s alone; the bound allows a busy machine
    assert [p.uri for p in again] == [p.uri for p in passages]
