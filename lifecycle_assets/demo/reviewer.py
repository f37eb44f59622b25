"""The demo's reviewer: reads a trace and answers the questions of the label schemas.

Lives here: how it judges, which is not how the scorers do.
Add here: an answer to a further question of `docs_agent`'s label schemas.
Not here: writing the answers (`resources/labeling_desk.py`).

It stands in for a person so that a demo has labels. Its answers are its own reading of each trace: a reply is right
when the user did not object and it is either a refusal or an answer most of whose words stand in one passage.
"""

import json
import re
from typing import Any

from resources.trace_store import TraceStore

WORDS_IN_ONE_PASSAGE = 0.8


def answers_for(traces: TraceStore, trace_id: str) -> dict[str, Any]:
    """Answers to `handled_well` and `answerable` for one trace."""
    rows = traces.rows(next(traces.read([trace_id])))
    answer = next((json.loads(s["outputs"]) for s in rows.spans if s["name"] == "answer_question" and s["outputs"]), {})
    found = next((json.loads(s["outputs"]) for s in rows.spans if s["type"] == "RETRIEVER" and s["outputs"]), [])
    passages = [set(_words(document.get("page_content", ""))) for document in found]
    said = _words(re.sub(r"\[\d+\]", " ", answer.get("answer", "")))
    covered = max((sum(word in passage for word in said) / len(said) for passage in passages if said), default=0.0)
    refused = bool(answer.get("refused"))
    disliked = any(a["name"] == "user_feedback" and a["value_number"] == 0 for a in rows.assessments)
    return {
        "handled_well": not disliked and (refused or covered >= WORDS_IN_ONE_PASSAGE),
        "answerable": not refused or disliked,
    }


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z_]{3,}", text.lower())
