"""Which of the champion's recorded requests another version is asked, and what that may cost.

Lives here: reading them from the archive, the deterministic sample, what cannot be replayed, the budget.
Add here: a further reason why a request cannot be replayed.
Not here: answering them (`resources/replayer.py`), what the answers mean (`shadow.py`).

What users wrote is data: it is parsed, counted and handed on, never interpreted.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from lifecycle_assets.gate import aggregate
from lifecycle_assets.review.labels import agent_inputs
from lifecycle_assets.spec_file import Agent
from resources.dataset_rows import canonical
from resources.evaluation_rows import as_number
from resources.needs import SqlEngine
from resources.redaction import Redaction
from resources.replayer import RecordedRequest
from resources.trace_rows import NOT_APPLICABLE

NOT_INPUT, REDACTED, REPEATED = "not the agent's input", "redacted", "asked before"
"""Why a recorded request is not replayed."""

LISTED = 1_000_000
"""Traces whose ids are listed at most."""

CHUNK = 100
"""Requests read at once: each is a parameter of one statement."""

LOOKED_AT_FACTOR = 10
"""How many times the size of the sample is looked at before the search for usable requests ends."""

MARK_CHARACTERS = 3
"""Shortest replacement of a redaction rule by which a redacted text is known."""

_IDS_SQL = "SELECT trace_id FROM traces WHERE model_id = ? AND trace_date >= ? AND request_time >= ?"
_REQUESTS_SQL = "SELECT trace_id, request, state FROM traces WHERE trace_date >= ? AND trace_id IN ({})"
_SCORES_SQL = """
SELECT trace_id, name, kind, scorer_version, value_number, value_text, error FROM assessments
WHERE valid AND trace_date >= ? AND trace_id IN ({})"""
_GROUP = re.compile(r"\\(?:\d+|g<[^>]*>)")


@dataclass(frozen=True)
class Sample:
    """Requests to replay, in the order of the sample.

    `recorded` counts what the archive holds; `skipped` maps a reason to the number of requests it left out;
    `over_budget` counts those the money did not reach; `cost_usd` is what the scorers will cost at most.
    """

    requests: tuple[RecordedRequest, ...]
    recorded: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    over_budget: int = 0
    cost_usd: float = 0.0


def sample_order(trace_ids: Collection[str]) -> list[str]:
    """The ids by the SHA-256 of `<trace_id>:shadow`: the same everywhere and for ever.

    A sample is a beginning of this order, so a larger one holds every smaller one.
    """
    return sorted(trace_ids, key=lambda trace_id: hashlib.sha256(f"{trace_id}:shadow".encode()).digest())


def redaction_marks(rules: Redaction) -> list[str]:
    """The longest fixed text of each rule's replacement, where that is long enough to be told from what users write."""
    longest = [max(_GROUP.split(replacement), key=len) for _, replacement in rules]
    return [text for text in longest if len(text.strip()) >= MARK_CHARACTERS]


def replayable(request: str | None, example: Mapping[str, Any], marks: Sequence[str]) -> dict[str, Any] | str:
    """The inputs of a recorded request, or why it is not replayed.

    Session and user are left out: they would make the answer look like that user's. A request is the agent's input
    when it shares a field with the declared input example; text that was cut off is no JSON.
    """
    try:
        inputs = agent_inputs(request or "", without=("context",))
    except RecursionError:
        return NOT_INPUT
    if inputs is None or not set(inputs) & set(example):
        return NOT_INPUT
    text = json.dumps(inputs, ensure_ascii=False)
    if any(json.dumps(mark, ensure_ascii=False)[1:-1] in text for mark in marks):
        return REDACTED
    return inputs


def within_budget(
    requests: Sequence[RecordedRequest], prices: Mapping[str, float], max_cost_usd: float
) -> tuple[list[RecordedRequest], float]:
    """The longest beginning of `requests` whose scoring costs at most `max_cost_usd`, and what it costs.

    `prices` maps scorer to USD a call. The version's answer costs one call of each, the champion's one of each that
    the archive does not hold. What the agents themselves cost is not known here.
    """
    kept, spent = [], 0.0
    for request in requests:
        cost = sum(price * (1 if name in request.scores else 2) for name, price in prices.items())
        if spent + cost > max_cost_usd + 1e-9:
            break
        kept.append(request)
        spent += cost
    return kept, spent


def take_sample(
    agent: Agent,
    sql: SqlEngine,
    champion_model_id: str,
    registered: Mapping[tuple[str, str], str],
    prices: Mapping[str, float],
    *,
    size: int,
    max_cost_usd: float,
    now: datetime,
) -> Sample:
    """At most `size` requests of the champion's model within `shadow.lookback_days`, within the budget.

    `registered` maps `(registered name, version)` of the scorers that run to their declared names: scores of exactly
    these count as known. Of requests with the same inputs the first of the sample's order stands for all.
    """
    since = now.astimezone(UTC) - timedelta(days=agent.spec.shadow.lookback_days)
    found = sql.query(agent.spec.table_prefix, _IDS_SQL, [champion_model_id, since.date(), since], limit=LISTED)
    order = sample_order({row[0] for row in found.rows})
    marks, example = redaction_marks(agent.redactions), agent.spec.agent.input_example
    skipped: dict[str, int] = {}
    seen: set[str] = set()
    requests: list[RecordedRequest] = []
    for row in _recorded(agent, sql, order[: max(CHUNK, size * LOOKED_AT_FACTOR)], since):
        if len(requests) == size:
            break
        inputs = replayable(row["request"], example, marks)
        reason = inputs if isinstance(inputs, str) else REPEATED if canonical(inputs) in seen else ""
        if reason:
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        assert isinstance(inputs, dict)  # Anything else had a reason.
        seen.add(canonical(inputs))
        scores = known_scores(row["assessments"], registered)
        requests.append(RecordedRequest(row["trace_id"], inputs, scores, failed=row["state"] == "ERROR"))
    kept, cost = within_budget(requests, prices, max_cost_usd)
    return Sample(tuple(kept), len(order), skipped, len(requests) - len(kept), cost)


def known_scores(
    assessments: Sequence[Mapping[str, Any]], registered: Mapping[tuple[str, str], str]
) -> dict[str, float | None]:
    """What scorers of exactly these versions said of a trace, by declared name; None is 'not applicable'.

    Several scores (one a span) become their mean. An error is not known: the scorer is asked again. Of a trace for
    which a person said what was expected nothing is known: its scores may rest on that, and the version's answer is
    scored without.
    """
    if any(one["kind"] == "expectation" for one in assessments):
        return {}
    said: dict[str, list[float]] = {}
    for one in assessments:
        scorer = registered.get((one["name"], one["scorer_version"] or ""))
        if scorer is None or one["error"] is not None:
            continue
        number = one["value_number"] if one["value_number"] is not None else as_number(one["value_text"])
        if number is not None or one["value_text"] == NOT_APPLICABLE:
            said.setdefault(scorer, []).extend([] if number is None else [number])
    return {scorer: aggregate(values, "mean") for scorer, values in said.items()}


def _recorded(agent: Agent, sql: SqlEngine, order: Sequence[str], since: datetime) -> Iterator[dict[str, Any]]:
    """Requests and their assessments in this order, a chunk at a time."""
    for start in range(0, len(order), CHUNK):
        ids = order[start : start + CHUNK]
        places = ", ".join("?" for _ in ids)
        params = [since.date(), *ids]
        rows = {
            row["trace_id"]: {**row, "assessments": []}
            for row in sql.query(agent.spec.table_prefix, _REQUESTS_SQL.format(places), params).dicts()
        }
        said = sql.query(agent.spec.table_prefix, _SCORES_SQL.format(places), params, limit=LISTED).dicts()
        for one in said:
            if one["trace_id"] in rows:
                rows[one["trace_id"]]["assessments"].append(one)
        yield from (rows[trace_id] for trace_id in ids if trace_id in rows)
