"""Made-up production traces: trace `i` is a function of the seed, `i` and the times it is asked for.

Lives here: what a trace of an agent looks like: 4 to 6 spans, payloads of 1 to 2 KB (some 11 KB of spans in all), tags,
sessions of five traces, errors, thumbs.
Add here: a kind of span, tag or feedback that production has.
Not here: rows of MLflow's store, and writing them (`corpus.py`).

Words follow Zipf's law with exponent 1.1 over 6,000 words, so that compression finds about what it finds in text.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

ERRORS = 0.03
"""Share of traces that end in an error."""

THUMBS = 0.4
"""Share of traces a user gave a thumb; a quarter of those have stars as well."""

TIES = 200
"""One trace of so many starts in the very millisecond its predecessor starts in."""

SESSION = 5
"""Traces of a session."""

MODEL_TRACES = 12_500
"""Traces of one logged model before the next one takes over; there are four."""

WORDS = 6_000


@dataclass(frozen=True)
class MadeSpan:
    """A span as MLflow stores it: hexadecimal ids, epoch nanoseconds, attributes as JSON text."""

    span_id: str
    parent_id: str | None
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str]
    error: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class MadeAssessment:
    """Feedback of a user: `value` is true, false or a number of stars."""

    assessment_id: str
    name: str
    value: bool | int
    rationale: str | None
    source_id: str
    at_ms: int


@dataclass(frozen=True)
class MadeTrace:
    """A trace with the columns, tags and metadata an application leaves behind. Times in epoch milliseconds."""

    trace_id: str
    start_ms: int
    duration_ms: int
    state: str
    request: str
    response: str | None
    session: str
    user: str
    tags: dict[str, str]
    metadata: dict[str, str]
    tokens: dict[str, int]
    cost: dict[str, float]
    spans: list[MadeSpan]
    assessments: list[MadeAssessment]


@cache
def vocabulary(seed: int) -> tuple[list[str], Any]:
    """Words of 2 to 11 letters, and the cumulative probability of each."""
    import numpy as np

    draw = np.random.default_rng([seed, 0])
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(draw.choice(letters, int(n))) for n in draw.integers(2, 12, WORDS)]
    words[17], words[40] = "café", "naïve"
    weights = np.cumsum(1.0 / np.arange(1, WORDS + 1) ** 1.1)
    return words, weights / weights[-1]


def make_trace(seed: int, number: int, start_ms: int) -> MadeTrace:
    """Trace `number` of `seed`, which starts at `start_ms`."""
    return _Maker(seed, number, start_ms).trace()


class _Maker:
    def __init__(self, seed: int, number: int, start_ms: int) -> None:
        import numpy as np

        self.seed, self.number, self.start_ns = seed, number, start_ms * 1_000_000
        self.draw = np.random.default_rng([seed, 1, number])
        self.words, self.weights = vocabulary(seed)
        self.key = self.id(f"trace {number}", 32)
        self.spans: list[MadeSpan] = []

    def id(self, of: str, length: int) -> str:
        return hashlib.sha256(f"{self.seed} {of}".encode()).hexdigest()[:length]

    def text(self, count: int) -> str:
        found = self.weights.searchsorted(self.draw.random(count)).tolist()
        return " ".join([self.words[place] for place in found])

    def add(
        self,
        name: str,
        kind: str,
        begin: float,
        end: float,
        given: Any,
        said: Any,
        *,
        more: Any = None,
        error: str = "",
    ) -> None:
        """A span below the first one; `begin` and `end` are milliseconds after the trace's start."""
        values = {
            "mlflow.traceRequestId": f"tr-{self.key}",
            "mlflow.spanType": kind,
            "mlflow.spanInputs": given,
            "mlflow.spanOutputs": said,
            **(more or {}),
            "mlflow.spanLogLevel": 40 if error else 20,
        }
        end_ns = self.start_ns + int(end * 1e6)
        raised = {"exception.message": error, "exception.type": "TimeoutError", "exception.stacktrace": "Traceback: …"}
        self.spans.append(
            MadeSpan(
                span_id=self.id(f"span {self.number} {len(self.spans)}", 16),
                parent_id=self.spans[0].span_id if self.spans else None,
                name=name,
                kind=kind,
                start_ns=self.start_ns + int(begin * 1e6),
                end_ns=end_ns,
                attributes={key: _text(value) for key, value in values.items() if value is not None},
                error=f"TimeoutError: {error}" if error else "",
                events=[{"name": "exception", "time_unix_nano": end_ns, "attributes": raised}] if error else [],
            )
        )

    def trace(self) -> MadeTrace:
        chance = self.draw.random(6)
        failed, tool, guard = chance[0] < ERRORS, chance[1] < 0.5, chance[2] < 0.5
        question = {"question": self.text(int(12 + 24 * chance[3]))}
        answer = None if failed else {"answer": self.text(int(110 + 70 * chance[4])), "citations": [1, 3]}
        took = float(300 + 2500 * self.draw.exponential())
        problem = "the model did not answer within 30 s" if failed else ""
        self.add("answer", "AGENT", 0, took, question, answer, error=problem)
        documents = [
            {"page_content": self.text(78), "metadata": {"doc_uri": f"docs/{int(place)}.md", "score": 0.5}}
            for place in self.draw.integers(0, 500, 4)
        ]
        self.add("search", "RETRIEVER", 5, took * 0.1, question, documents)
        if tool:
            said = {"rows": [{"name": self.text(3), "note": self.text(40)} for _ in range(4)]}
            self.add("lookup", "TOOL", took * 0.1, took * 0.2, {"query": self.text(8)}, said)
        prompt = {"prompt": self.text(135)}
        self.add("write_prompt", "CHAIN", took * 0.2, took * 0.22, {**question, "documents": len(documents)}, prompt)
        tokens, cost = self.complete(took, prompt, answer, problem)
        if guard and not failed:
            self.add("guardrail", "GUARDRAIL", took * 0.9, took * 0.95, answer, {"allowed": True, "reasons": []})
        return self.finished(took, question, answer, tokens, cost)

    def complete(self, took: float, prompt: Any, answer: Any, problem: str) -> tuple[dict[str, int], dict[str, float]]:
        given = [{"role": "system", "content": self.text(60)}, {"role": "user", "content": prompt["prompt"]}]
        read, wrote = int(self.draw.integers(400, 1800)), int(self.draw.integers(60, 400))
        tokens = {} if problem else {"input_tokens": read, "output_tokens": wrote, "total_tokens": read + wrote}
        spent = {"input_cost": read * 2.5e-6, "output_cost": wrote * 1e-5}
        cost = {} if problem else {**spent, "total_cost": spent["input_cost"] + spent["output_cost"]}
        said = answer and {"choices": [{"message": {"role": "assistant", "content": answer["answer"]}}]}
        more = {"mlflow.llm.model": "gpt-4o", "mlflow.llm.provider": "openai"}
        if tokens:
            more = {"mlflow.chat.tokenUsage": tokens, "mlflow.llm.cost": cost, **more}
        self.add("chat", "CHAT_MODEL", took * 0.22, took * 0.9, {"messages": given}, said, more=more, error=problem)
        return tokens, cost

    def finished(self, took: float, question: Any, answer: Any, tokens: Any, cost: Any) -> MadeTrace:
        session = self.number // SESSION
        user = f"user-{session % 700}"
        asked, said = _text(question), _text(answer) if answer else None
        metadata = {
            "mlflow.modelId": "m-" + self.id(f"model {self.number // MODEL_TRACES % 4}", 32),
            "mlflow.source.git.branch": "main",
            "mlflow.source.git.commit": self.id("commit", 40),
            "mlflow.source.git.repoURL": "",
            "mlflow.source.name": "serve.py",
            "mlflow.source.type": "LOCAL",
            "mlflow.trace.sizeBytes": "12000",
            "mlflow.trace.user": user,
            "mlflow.traceInputs": _cut(asked, 250),
            "mlflow.traceOutputs": _cut(said or "", 250),
            "mlflow.trace_schema.version": "3",
            "mlflow.user": "app",
        }
        place = session % 10
        tags = {
            "environment": "staging" if place == 9 else "prod",
            "mlflow.traceName": "answer",
            "tenant": f"tenant-{session % 23}",
        }
        start_ms = self.start_ns // 1_000_000
        return MadeTrace(
            trace_id=f"tr-{self.key}",
            start_ms=start_ms,
            duration_ms=int(took),
            state="OK" if answer else "ERROR",
            request=_cut(asked, 1000),
            response=_cut(said, 1000) if said else None,
            session=f"session-{self.id(f'session {session}', 12)}",
            user=user,
            tags=tags,
            metadata=metadata,
            tokens=tokens,
            cost=cost,
            spans=self.spans,
            assessments=self.thumbs(start_ms + int(took) + 20_000, user),
        )

    def thumbs(self, at_ms: int, user: str) -> list[MadeAssessment]:
        chance = self.draw.random(3)
        if chance[0] >= THUMBS:
            return []
        up = bool(chance[1] < 0.85)
        why = None if up else self.text(15)
        found = [MadeAssessment("a-" + self.id(f"thumb {self.number}", 32), "user_feedback", up, why, user, at_ms)]
        if chance[2] < 0.25:
            stars = int(self.draw.integers(3, 6)) if up else int(self.draw.integers(1, 4))
            found.append(
                MadeAssessment("a-" + self.id(f"stars {self.number}", 32), "stars", stars, None, user, at_ms + 1)
            )
        return found


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
