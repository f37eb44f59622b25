"""`docs_agent`: answers questions about MLflow and Dagster from their installed documentation.

Here live the agent that MLflow logs from this file (models from code), its spans, its refusal and
the choice between extraction and a model endpoint (`DOCS_AGENT_MODEL`). Add to it when the
request or the trace changes. Finding documentation (`docs_agent_corpus`), cutting it
(`docs_agent_passages`), ranking it (`docs_agent_search`) and calling a model
(`docs_agent_endpoint`) do not belong here.
"""

import hashlib
import importlib.util
import os
import re
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import mlflow
from mlflow.entities import Document, SpanType
from mlflow.models import ModelConfig
from mlflow.pyfunc import ResponsesAgent
from mlflow.types.responses import ResponsesAgentRequest, ResponsesAgentResponse

MAX_QUESTION_CHARS = 4000

config = ModelConfig(
    development_config={
        "top_k": 6,
        "min_similarity": 0.2,
        "min_coverage": 0.45,
        "max_sentences": 4,
        "refusal": "I could not find an answer to this in the MLflow and Dagster documentation.",
        "prompt": "Answer from the numbered passages only and cite them like [1].",
    }
)


def _beside(name: str) -> ModuleType:
    """The module `name` next to this file, or in the `code` folder of a logged model.

    It is loaded by path and named by the digest of its source: two versions of the agent in one
    process (a candidate and the champion) each run the code they were logged with, and models
    with the same code share what it has read.
    """
    here = Path(__file__).resolve().parent
    path = next(p for p in (here / f"{name}.py", here / "code" / f"{name}.py") if p.is_file())
    unique = f"{name}_{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python module.")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules.setdefault(unique, module)
    return sys.modules[unique]


corpus = _beside("docs_agent_corpus")
cutter = _beside("docs_agent_passages")
search = _beside("docs_agent_search")
endpoints = _beside("docs_agent_endpoint")


class DocsAgent(ResponsesAgent):
    """Retrieves passages, then extracts or generates a cited answer, or refuses."""

    def __init__(self) -> None:
        """Cheap; the documentation is read when the model is loaded, or at the first question."""
        self._lock = threading.Lock()
        self._loaded: tuple[list, Any] | None = None

    def load_context(self, context: Any) -> None:
        """Read and index the documentation, so that no question waits for it."""
        self._library()

    def predict(self, request: ResponsesAgentRequest) -> ResponsesAgentResponse:
        """Answer the last user message; the sources follow the answer."""
        _describe_trace(request)
        result = self._answer(_question(request))
        sources = [f"[{c['number']}] {c['doc_uri']}" for c in result["citations"]]
        text = result["answer"] + ("\n\nSources:\n" + "\n".join(sources) if sources else "")
        item = self.create_text_output_item(text=text, id=f"msg_{uuid4().hex}")
        outputs = {**result, "trace_id": mlflow.get_active_trace_id()}
        return ResponsesAgentResponse(output=[item], custom_outputs=outputs)

    def _answer(self, question: str) -> dict[str, Any]:
        """`answer`, `refused` and `citations` (number, doc_uri), under a CHAIN span."""
        with mlflow.start_span("answer_question", span_type=SpanType.CHAIN) as span:
            span.set_inputs({"question": question})
            documents, supported = self._retrieve(question)
            refusal = config.get("refusal")
            answer = self._write(question, documents) if supported else refusal
            refused = answer == refusal
            cited = set() if refused else {int(n) for n in re.findall(r"\[(\d{1,3})\]", answer)}
            result = {
                "answer": answer,
                "refused": refused,
                "citations": [
                    {"number": number, "doc_uri": document.metadata["doc_uri"]}
                    for number, document in enumerate(documents, start=1)
                    if number in cited
                ],
            }
            span.set_outputs(result)
            return result

    def _retrieve(self, question: str) -> tuple[list[Document], bool]:
        """The best passages, and whether they support an answer; under a RETRIEVER span."""
        passages, index = self._library()
        with mlflow.start_span("retrieve", span_type=SpanType.RETRIEVER) as span:
            span.set_inputs({"query": question, "top_k": config.get("top_k")})
            hits = index.search(question, config.get("top_k"))
            found = [passages[hit.position] for hit in hits]
            documents = [
                Document(
                    page_content=passage.text,
                    metadata={
                        "doc_uri": passage.uri,
                        "title": passage.title,
                        "score": round(hit.score, 4),
                    },
                    id=passage.uri,
                )
                for passage, hit in zip(found, hits, strict=True)
            ]
            similarity = max((hit.score for hit in hits), default=0.0)
            shares = (index.coverage(question, f"{p.title} {p.text}") for p in found)
            coverage = max(shares, default=0.0)
            span.set_attributes({"top_similarity": round(similarity, 4), "question_coverage": round(coverage, 4)})
            span.set_outputs(documents)
        supported = similarity >= config.get("min_similarity")
        return documents, supported and coverage >= config.get("min_coverage")

    def _write(self, question: str, documents: list[Document]) -> str:
        """The answer by the configured endpoint, else by extraction; the refusal when empty."""
        model = os.environ.get("DOCS_AGENT_MODEL")
        if not model:
            return self._extract(question, documents) or config.get("refusal")
        prompt = f"{config.get('prompt')} Without an answer, say exactly: {config.get('refusal')}"
        passages = [(document.metadata["doc_uri"], document.page_content) for document in documents]
        return endpoints.generate(model, prompt, question, passages) or config.get("refusal")

    def _extract(self, question: str, documents: list[Document]) -> str:
        """The sentences that answer, grouped by passage, each group named and cited."""
        _, index = self._library()
        passages = [(d.metadata["title"], d.page_content, d.metadata["score"]) for d in documents]
        lines: dict[int, list[str]] = {}
        for sentence in index.extract(question, passages, config.get("max_sentences")):
            lines.setdefault(sentence.rank, []).append(sentence.text.lstrip("-*• "))
        return "\n".join(
            f"{documents[rank].metadata['title']}: {' '.join(said)} [{rank + 1}]" for rank, said in lines.items()
        )

    def _library(self) -> tuple[list, Any]:
        """The passages and their index, built once for all threads."""
        if self._loaded is None:
            with self._lock:
                if self._loaded is None:
                    passages = cutter.cut(corpus.load_texts())
                    index = search.Index([p.title for p in passages], [p.text for p in passages])
                    self._loaded = (passages, index)
        return self._loaded


def _question(request: ResponsesAgentRequest) -> str:
    """The last user message as text, cut to `MAX_QUESTION_CHARS`.

    Raises ValueError when the request has no user message.
    """
    for item in reversed(request.input):
        message = item.model_dump()
        if message.get("role") == "user":
            content = message.get("content") or ""
            if isinstance(content, list):
                content = " ".join(part.get("text") or "" for part in content)
            return content.strip()[:MAX_QUESTION_CHARS]
    raise ValueError("The request holds no message with role 'user': there is nothing to answer.")


def _describe_trace(request: ResponsesAgentRequest) -> None:
    """Put the conversation, the user and the environment on the current trace."""
    context = request.context
    known = {
        "mlflow.trace.session": context.conversation_id if context else None,
        "mlflow.trace.user": context.user_id if context else None,
    }
    if mlflow.get_current_active_span() is None:  # tracing is off, as when MLflow logs the model
        return
    environment = os.environ.get("LIFECYCLE_ENVIRONMENT")
    mlflow.update_current_trace(
        metadata={key: value for key, value in known.items() if value},
        tags={"environment": environment} if environment else {},
    )


mlflow.models.set_model(DocsAgent())
