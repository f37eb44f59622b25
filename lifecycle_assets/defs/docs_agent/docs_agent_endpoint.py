"""Writing an answer with a model endpoint, from passages that were already retrieved.

Here live the two protocols `DOCS_AGENT_MODEL` can name: `openai:/<model>` (any OpenAI-compatible
endpoint; OPENAI_BASE_URL, OPENAI_API_KEY) and `databricks:/<endpoint>` (the Databricks SDK's own
authentication). Add to it when another protocol is needed. Retrieval and refusal belong in
`agent.py`. The client libraries are imported when first used: without an endpoint none is needed.
"""

from collections.abc import Sequence
from typing import Any

import mlflow
from mlflow.entities import SpanType

TIMEOUT_SECONDS = 60

Reply = tuple[str, dict[str, int] | None]  # text and, when the endpoint counts them, tokens


def generate(model: str, prompt: str, question: str, passages: Sequence[tuple[str, str]]) -> str:
    """The model's answer from the `(uri, text)` passages, under a CHAT_MODEL span.

    The passages go into the user message, numbered from 1; `prompt` alone instructs. Raises
    ValueError for a `model` that names no known protocol, and whatever the client raises when the
    endpoint fails: an outage is no refusal.
    """
    provider, _, name = model.partition(":/")
    if provider not in ("openai", "databricks") or not name:
        raise ValueError(f"DOCS_AGENT_MODEL is {model!r}; use openai:/<model> or databricks:/<endpoint>.")
    quoted = "\n\n".join(f"[{n}] {uri}\n{text}" for n, (uri, text) in enumerate(passages, start=1))
    messages = [
        {"role": "system", "content": prompt},
        {"role": "user", "content": f"Passages:\n{quoted}\n\nQuestion: {question}"},
    ]
    with mlflow.start_span("generate", span_type=SpanType.CHAT_MODEL) as span:
        span.set_inputs({"messages": messages, "model": name})
        text, tokens = (_openai if provider == "openai" else _databricks)(name, messages)
        span.set_attributes({"mlflow.llm.model": name, "mlflow.llm.provider": provider})
        if tokens:
            span.set_attribute("mlflow.chat.tokenUsage", tokens)
        span.set_outputs({"content": text})
    return text.strip()


def _openai(model: str, messages: list[Any]) -> Reply:
    """A chat completion from an OpenAI-compatible endpoint."""
    from openai import OpenAI

    client = OpenAI(timeout=TIMEOUT_SECONDS)
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0)
    return reply.choices[0].message.content or "", _tokens(reply.usage)


def _databricks(endpoint: str, messages: list[Any]) -> Reply:
    """A chat completion from a Databricks serving endpoint."""
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.serving import ChatMessage

    reply = WorkspaceClient().serving_endpoints.query(
        name=endpoint,
        messages=[ChatMessage.from_dict(message) for message in messages],
        temperature=0,
    )
    message = reply.choices[0].message if reply.choices else None
    return (message.content if message else None) or "", _tokens(reply.usage)


def _tokens(usage: Any) -> dict[str, int] | None:
    """Token counts under the names that MLflow adds up over a trace."""
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens or 0,
        "output_tokens": usage.completion_tokens or 0,
        "total_tokens": usage.total_tokens or 0,
    }
