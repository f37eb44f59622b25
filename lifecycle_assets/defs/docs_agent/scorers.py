"""The scorer catalogue of `docs_agent`: the same functions offline and in production.

Here lives every code scorer that `defs.yaml` names. Add one when the agent's quality gets a new
number. Judges with a prompt and built-in scorers belong in `defs.yaml`, gates and averages in
the platform.

MLflow stores only the source of a scorer's body and runs it in an empty namespace. So everything
a body uses is imported or defined inside it, the signature carries no type hints, and repetition
between scorers is wanted. Question, answer and passages are read from the trace (CHAIN span
`answer_question`, RETRIEVER span); expectations come from the dataset and are absent in
production. `None` means not applicable and counts nowhere. Trace text is untrusted: it is only
compared, never interpreted.
"""

from mlflow.genai.scorers import scorer


@scorer
def retrieval_hit(trace, expectations):
    """True when a retrieved source contains one of `expected_sources`; None without them."""
    from mlflow.entities import Feedback

    expected = (expectations or {}).get("expected_sources")
    if not expected or trace is None:
        return None
    uris = []
    for span in trace.search_spans(span_type="RETRIEVER"):
        for document in span.outputs or []:
            uris.append(str((document.get("metadata") or {}).get("doc_uri", "")))
    hits = [uri for uri in uris if any(str(source) in uri for source in expected)]
    if hits:
        return Feedback(value=True, rationale="Retrieved " + ", ".join(hits[:3]))
    wanted = ", ".join(str(source) for source in expected)
    return Feedback(value=False, rationale=f"None of {len(uris)} passages is from {wanted}")


@scorer
def expected_facts_covered(trace, expectations):
    """Share 0..1 of `expected_facts` that the answer states, ignoring case, quotes and spacing.

    None without expected facts; 0.0 when the agent failed or refused although facts exist.
    """
    import re

    from mlflow.entities import Feedback

    facts = (expectations or {}).get("expected_facts")
    if not facts or trace is None:
        return None

    def plain(text):
        return " ".join(re.sub(r"[`'\"*]", "", str(text)).lower().split())

    spans = trace.search_spans(name="answer_question")
    outputs = (spans[0].outputs if spans else None) or {}
    answer = plain(outputs.get("answer") or "")
    missing = [str(fact) for fact in facts if plain(fact) not in answer]
    covered = (len(facts) - len(missing)) / len(facts)
    rationale = "Missing: " + "; ".join(missing) if missing else "Every expected fact is stated"
    return Feedback(value=covered, rationale=rationale)


@scorer
def grounded(trace):
    """Share 0..1 of the answer's sentences whose words stand in one retrieved passage.

    A sentence counts as supported when at least 70 % of its content words occur in a single
    passage or its title. None when the agent refused, failed or said nothing.
    """
    import re

    from mlflow.entities import Feedback

    spans = trace.search_spans(name="answer_question") if trace is not None else []
    outputs = (spans[0].outputs if spans else None) or {}
    if outputs.get("refused") or not outputs.get("answer"):
        return None

    def words(text):
        return {word[:6] for word in re.findall(r"[a-z0-9]{4,}", text.lower())}

    passages = []
    for span in trace.search_spans(span_type="RETRIEVER"):
        for document in span.outputs or []:
            uri = (document.get("metadata") or {}).get("doc_uri", "")
            passages.append(words(f"{uri} {document.get('page_content', '')}"))
    answer = re.sub(r"\[\d{1,3}\]", " ", outputs["answer"])
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n+", answer) if words(part)]
    if not sentences:
        return None
    unsupported = [
        sentence
        for sentence in sentences
        if max((len(words(sentence) & passage) for passage in passages), default=0) < 0.7 * len(words(sentence))
    ]
    value = (len(sentences) - len(unsupported)) / len(sentences)
    rationale = "Unsupported: " + unsupported[0][:200] if unsupported else "Every sentence stands"
    return Feedback(value=value, rationale=rationale)


@scorer
def refusal_correct(trace, expectations):
    """True when the agent refused exactly when it should have.

    The truth is `expectations.answerable` when given. In production it is an estimate: the
    question counts as answerable when one retrieved passage contains at least 60 % of its content
    words. `metadata.truth` says which of both was used. None when the agent gave no answer at all.
    """
    import re

    from mlflow.entities import Feedback

    spans = trace.search_spans(name="answer_question") if trace is not None else []
    outputs = (spans[0].outputs if spans else None) or {}
    if "refused" not in outputs:
        return None
    refused = bool(outputs["refused"])
    answerable = (expectations or {}).get("answerable")
    truth = "estimate" if answerable is None else "expectation"
    if answerable is None:
        common = """about after also been can does each from give have help into many more must
            need only should some tell that them then there they this what when where which while
            whom will with would your mlflow dagster question"""

        def words(text):
            return {word[:5] for word in re.findall(r"[a-z0-9]{3,}", text.lower())}

        question = set(re.findall(r"[a-z0-9]{4,}", str(spans[0].inputs).lower()))
        asked = {word[:5] for word in question - set(common.split())}
        best = 0
        for span in trace.search_spans(span_type="RETRIEVER"):
            for document in span.outputs or []:
                uri = (document.get("metadata") or {}).get("doc_uri", "")
                passage = words(f"{uri} {document.get('page_content', '')}".replace("_", " "))
                best = max(best, len(asked & passage))
        answerable = bool(asked) and best >= 0.6 * len(asked)
    did = "refused" if refused else "answered"
    should = "answerable" if answerable else "not answerable"
    return Feedback(
        value=refused != bool(answerable),
        rationale=f"The agent {did}; the question is {should} ({truth})",
        metadata={"truth": truth},
    )


@scorer
def latency_seconds(trace):
    """Wall-clock seconds of the request, from the trace's execution duration; lower is better."""
    from mlflow.entities import Feedback

    duration = trace.info.execution_duration if trace is not None else None
    return None if duration is None else Feedback(value=duration / 1000.0)
