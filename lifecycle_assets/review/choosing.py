"""Which traces people should look at.

Lives here: SQL over the archive that answers the declared rules, and the pure choice among its answers.
Add here: a rule that selects traces.
Not here: opening the session (`review.py`), deciding when (`sensors/labeling.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lifecycle_assets.spec import Labeling
from resources.feedback import FEEDBACK_NAME
from resources.labeling_desk import QUEUED_TAG
from resources.needs import SqlEngine

NEGATIVE_SQL = """
SELECT DISTINCT t.trace_id, t.request_time FROM traces t JOIN assessments a USING (trace_id, trace_date)
WHERE a.valid AND a.name = ? AND a.source_type = 'HUMAN' AND a.value_number < 0.5 AND t.tags[?] IS NULL
ORDER BY t.request_time DESC, t.trace_id LIMIT ?
"""
LOW_SQL = """
SELECT DISTINCT t.trace_id, t.request_time FROM traces t JOIN assessments a USING (trace_id, trace_date)
WHERE a.valid AND a.name = ? AND a.value_number < ? AND t.tags[?] IS NULL
ORDER BY t.request_time DESC, t.trace_id LIMIT ?
"""
RANDOM_SQL = """
SELECT trace_id FROM traces WHERE state = 'OK' AND tags[?] IS NULL ORDER BY md5(trace_id) LIMIT ?
"""


def negative_traces(sql: SqlEngine, prefix: str, limit: int) -> list[str]:
    """Traces with a thumbs-down that were never in a session, newest first."""
    return _ids(sql.query(prefix, NEGATIVE_SQL, [FEEDBACK_NAME, QUEUED_TAG, limit]).dicts())


def choose_traces(sql: SqlEngine, prefix: str, labeling: Labeling, *, scorer_prefix: str) -> dict[str, str]:
    """Traces the declared rules select, at most `max_items`, each with the rule that selected it.

    Negative feedback comes first, then low scores, then random ones; a trace that was ever in a session is left out.
    """
    limit, rules = labeling.max_items, labeling.rules
    found: list[tuple[str, Sequence[str]]] = []
    if rules.negative_feedback:
        found.append(("negative feedback", negative_traces(sql, prefix, limit)))
    for scorer, below in sorted(rules.low_scores.items()):
        rows = sql.query(prefix, LOW_SQL, [scorer_prefix + scorer, below, QUEUED_TAG, limit]).dicts()
        found.append((f"{scorer} below {below:g}", _ids(rows)))
    if rules.random:
        found.append(
            ("random", _ids(sql.query(prefix, RANDOM_SQL, [QUEUED_TAG, limit]).dicts())[: limit + rules.random])
        )
    return first_of_each(found, limit, at_most={"random": rules.random})


def first_of_each(
    found: Iterable[tuple[str, Sequence[str]]], limit: int, *, at_most: Mapping[str, int]
) -> dict[str, str]:
    """Trace id to rule: rules in order, each trace once, `limit` in all and `at_most` of a rule."""
    chosen: dict[str, str] = {}
    for rule, trace_ids in found:
        taken = 0
        for trace_id in trace_ids:
            if len(chosen) >= limit or taken >= at_most.get(rule, limit):
                break
            if trace_id not in chosen:
                chosen[trace_id] = rule
                taken += 1
    return chosen


def _ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row["trace_id"] for row in rows]
