"""`docs_agent` with a model endpoint: both protocols over real HTTP to a loopback server.

Add a test when a protocol is added. The server speaks the chat-completions wire format and
records what it was sent; the client libraries are the real ones.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import mlflow
import openai
import pytest
from databricks.sdk.errors import DatabricksError
from mlflow.entities import SpanType, TraceState

from tests.agents.conftest import LoggedAgent

QUESTION = "How do I update the cursor of a sensor?"


class Endpoint(ThreadingHTTPServer):
    """A chat-completions endpoint that answers `reply` and keeps the requests."""

    reply = "Call context.update_cursor with the new value. [1]"
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        answer: dict[str, Any] = {
            "id": "c-1",
            "object": "chat.completion",
            "created": 1,
            "model": body.get("model", "endpoint"),
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": self.server.reply},
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }
        if self.server.status != 200:
            answer = {"error_code": "BAD_REQUEST", "message": "no", "error": {"message": "no"}}
        payload = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: Any) -> None:
        """Keep test output quiet."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A running endpoint on the loopback interface."""
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


@pytest.fixture(params=["openai", "databricks"])
def configured(request: pytest.FixtureRequest, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """The endpoint, named to the agent in either form."""
    if request.param == "openai":
        monkeypatch.setenv("OPENAI_BASE_URL", f"{endpoint.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "x")
    else:
        monkeypatch.setenv("DATABRICKS_HOST", endpoint.url)
        monkeypatch.setenv("DATABRICKS_TOKEN", "x")
    monkeypatch.setenv("DOCS_AGENT_MODEL", f"{request.param}:/writer")
    return endpoint


def test_model_writes_the_answer_from_the_passages(
    agent: LoggedAgent, configured: Endpoint, declared: dict[str, Any]
) -> None:
    """The model sees question and passages; its answer, citations and tokens are recorded."""
    text, trace = agent.ask(QUESTION)
    assert text.startswith(configured.reply)
    ((path, headers, body),) = configured.requests
    assert path in ("/v1/chat/completions", "/serving-endpoints/writer/invocations")
    assert headers["authorization"] == "Bearer x"
    system, user = body["messages"]
    assert system["role"] == "system"
    assert declared["config"]["prompt"] in system["content"]
    assert user["role"] == "user"
    assert user["content"].endswith(f"Question: {QUESTION}")
    (retriever,) = trace.search_spans(span_type=SpanType.RETRIEVER)
    assert all(document["page_content"] in user["content"] for document in retriever.outputs)
    (chain,) = trace.search_spans(name="answer_question")
    assert chain.outputs["answer"] == configured.reply
    assert chain.outputs["citations"] == [{"number": 1, "doc_uri": retriever.outputs[0]["id"]}]
    (generate,) = trace.search_spans(span_type=SpanType.CHAT_MODEL)
    assert generate.parent_id == chain.span_id
    assert trace.info.token_usage["total_tokens"] == 120


def test_model_may_refuse(agent: LoggedAgent, configured: Endpoint, declared: dict[str, Any]) -> None:
    """The configured sentence from the model counts as a refusal."""
    configured.reply = declared["config"]["refusal"]
    _, trace = agent.ask(QUESTION)
    assert trace.search_spans(name="answer_question")[0].outputs["refused"] is True


def test_unsupported_question_never_reaches_the_model(agent: LoggedAgent, configured: Endpoint) -> None:
    """Without support there is nothing to write from, and nothing to pay for."""
    agent.ask("What is the recipe for sourdough bread?")
    assert configured.requests == []


def test_unknown_protocol_is_named(agent: LoggedAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong variable is reported with the two right forms."""
    monkeypatch.setenv("DOCS_AGENT_MODEL", "gpt")
    with pytest.raises(ValueError, match="use openai:/<model> or databricks:/<endpoint>"):
        agent.ask(QUESTION)


def test_endpoint_error_is_an_error(agent: LoggedAgent, configured: Endpoint) -> None:
    """An outage is raised and recorded, not dressed up as a refusal."""
    configured.status = 400
    with pytest.raises((openai.OpenAIError, DatabricksError)):
        agent.ask(QUESTION)
    trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
    assert trace.info.state == TraceState.ERROR
