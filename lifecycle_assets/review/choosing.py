"""Which traces people should look at.

Lives here: SQL over the archive that answers the declared rules, and the pure choice among its answers.
Add here: a rule that selects traces.
Not here: those with negative feedback (`negative.py`), opening the session (`resources/labeling_desk.py`), deciding
when (`sensors/labeling.py`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lifecycle_assets.review.negative import negative_traces
from lifecycle_assets.spec import Labeling
from resources.labeling_desk import QUEUED_TAG
from resources.needs import SqlEngine

LOW_SQL = """
SELECT DISTINCT t.trace_id, t.request_time FROM traces t JOIN assessments a USING (trace_id, trace_date)
WHERE a.valid AND a.name = ? AND a.value_number < ? AND t.tags[?] IS NULL
ORDER BY t.request_time DESC, t.trace_id LIMIT ?
"""
RANDOM_SQL = """
SELECT trace_id FROM traces WHERE state = 'OK' AND tags[?] IS NULL ORDER BY md5(trace_id) LIMIT ?
"""
ANY_SQL = """
SELECT count(*) > 0 AS there FROM (SELECT trace_id FROM traces WHERE state = 'OK' AND tags[?] IS NULL LIMIT 1) one
"""


def choose_traces(sql: SqlEngine, prefix: str, labeling: Labeling, *, scorer_prefix: str) -> dict[str, str]:
    """Traces the declared rules select, at most `max_items`, each with the rule that selected it.

    Negative feedback comes first, then low scores, then random ones; a trace that was ever in a session is left out.
    """
    limit, rules = labeling.max_items, labeling.rules
    found: list[tuple[str, Sequence[str]]] = []
    if rules.negative_feedback:
        found.append(("negative feedback", negative_traces(sql, prefix, limit).trace_ids))
    found += _with_low_scores(sql, prefix, rules.low_scores, scorer_prefix, limit)
    if rules.random:
        found.append(
            ("random", _ids(sql.query(prefix, RANDOM_SQL, [QUEUED_TAG, limit]).dicts())[: limit + rules.random])
        )
    return first_of_each(found, limit, at_most={"random": rules.random})


def can_choose(sql: SqlEngine, prefix: str, labeling: Labeling, scorer_prefix: str, negative: Sequence[str]) -> bool:
    """Whether `choose_traces` would choose a trace; `negative` are those with negative feedback, as far as known."""
    rules = labeling.rules
    if rules.negative_feedback and negative:
        return True
    if rules.random and sql.query(prefix, ANY_SQL, [QUEUED_TAG]).rows[0][0]:
        return True
    return any(ids for _, ids in _with_low_scores(sql, prefix, rules.low_scores, scorer_prefix, 1))


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


def _with_low_scores(
    sql: SqlEngine, prefix: str, low: Mapping[str, float], scorer_prefix: str, limit: int
) -> Iterator[tuple[str, Sequence[str]]]:
    for scorer, below in sorted(low.items()):
        rows = sql.query(prefix, LOW_SQL, [scorer_prefix + scorer, below, QUEUED_TAG, limit]).dicts()
        yield f"{scorer} below {below:g}", _ids(rows)


def _ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row["trace_id"] for row in rows]
