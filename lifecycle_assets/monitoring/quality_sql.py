"""The daily numbers as SQL over the archive.

Lives here: every statement of `quality.py`, for DuckDB and, through `resources/databricks/sql/dialect.py`, Databricks.
Add here: a number the engine can count. Not here: intervals (`intervals.py`), names of metrics (`quality.py`).

Rows are counted where they are: what comes back is one row for each model and slice, and bounded samples. A slice is
the traces with one value of a declared tag; its values beyond the most frequent ones are one slice, `part` null there.
All traces are the slice ''.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from resources.feedback import FEEDBACK_NAME

SAMPLE = 500
"""Values of one mean that are resampled at most: the interval of a mean hardly depends on more."""

VALUES_SQL = """
SELECT value FROM (SELECT tags[?] AS value FROM traces WHERE trace_date = ?) t WHERE value IS NOT NULL
GROUP BY value ORDER BY count(*) DESC, value LIMIT ?
"""
"""The most frequent values of a tag on a day."""

_ALL = "SELECT trace_id, model_id, state, execution_ms, input_tokens, output_tokens, cost_usd"
_OF_ALL = f"{_ALL}, '' AS slice, '' AS part FROM traces WHERE trace_date = ?"
_OF_SLICE = f"""
{_ALL}, ? AS slice, CASE WHEN list_contains(?, tags[?]) THEN tags[?] END AS part
FROM traces WHERE trace_date = ? AND tags[?] IS NOT NULL"""

_MEASURES = """
SELECT slice, part, model_id, trace_id, 'latency' AS measure, CAST(execution_ms AS DOUBLE) / 1000 AS value
FROM ({cohorts}) c1
UNION ALL SELECT slice, part, model_id, trace_id, 'input_tokens', CAST(input_tokens AS DOUBLE) FROM ({cohorts}) c2
UNION ALL SELECT slice, part, model_id, trace_id, 'output_tokens', CAST(output_tokens AS DOUBLE) FROM ({cohorts}) c3
UNION ALL SELECT slice, part, model_id, trace_id, 'cost_usd', cost_usd FROM ({cohorts}) c4"""

_SCORED = """
SELECT c.slice, c.part, c.model_id, s.trace_id, s.name, s.value, s.failed FROM ({cohorts}) c JOIN (
    SELECT trace_id, name, value_number AS value, error IS NOT NULL AND error <> '' AS failed FROM assessments
    WHERE trace_date = ? AND valid AND kind = 'feedback' AND source_type <> 'HUMAN'
    QUALIFY row_number() OVER (
        PARTITION BY trace_id, name ORDER BY try_cast(scorer_version AS INTEGER) DESC NULLS LAST, updated_at DESC,
        assessment_id
    ) = 1
) s ON s.trace_id = c.trace_id"""

COUNTS_SQL = """
SELECT slice, part, model_id, count(*) AS n, count(*) FILTER (WHERE state <> 'OK') AS errors
FROM ({cohorts}) c GROUP BY slice, part, model_id ORDER BY slice, part, model_id
"""
MEASURES_SQL = f"""
SELECT slice, part, model_id, measure, count(*) AS n, sum(value) AS total,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY value) AS p50,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY value) AS p95,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY value) AS p99
FROM ({_MEASURES}) m WHERE value IS NOT NULL
GROUP BY slice, part, model_id, measure ORDER BY slice, part, model_id, measure
"""  # noqa: S608 - put together from constants
RANKS_SQL = f"""
SELECT r.slice, r.part, r.model_id, r.measure, q.share,
    max(CASE WHEN r.place = floor(r.n * q.share - 1.959964 * sqrt(r.n * q.share * (1 - q.share))) THEN r.value END)
        AS low,
    max(CASE WHEN r.place = ceil(r.n * q.share + 1 + 1.959964 * sqrt(r.n * q.share * (1 - q.share))) THEN r.value END)
        AS high
FROM (
    SELECT slice, part, model_id, measure, value,
        row_number() OVER (PARTITION BY slice, part, model_id, measure ORDER BY value) AS place,
        count(*) OVER (PARTITION BY slice, part, model_id, measure) AS n
    FROM ({_MEASURES}) m WHERE value IS NOT NULL
) r CROSS JOIN (
    SELECT CAST(0.5 AS DOUBLE) AS share UNION ALL SELECT CAST(0.95 AS DOUBLE) UNION ALL SELECT CAST(0.99 AS DOUBLE)
) q
WHERE r.place = floor(r.n * q.share - 1.959964 * sqrt(r.n * q.share * (1 - q.share)))
    OR r.place = ceil(r.n * q.share + 1 + 1.959964 * sqrt(r.n * q.share * (1 - q.share)))
GROUP BY r.slice, r.part, r.model_id, r.measure, q.share
ORDER BY r.slice, r.part, r.model_id, r.measure, q.share
"""  # noqa: S608 - put together from constants
"""Bounds of percentiles: the values at the ranks between which the percentile lies in 95 of 100 samples.

The ranks are those of the binomial distribution in its normal approximation (W. J. Conover, Practical Nonparametric
Statistics, 3rd edition 1999, section 3.2). A rank that is not there, of few values, leaves its bound open.
"""
SCORES_SQL = f"""
SELECT slice, part, model_id, name, count(*) AS n, count(*) FILTER (WHERE failed) AS failed, count(value) AS scored,
    sum(value) AS total, coalesce(bool_and(value = 0 OR value = 1), false) AS passes
FROM ({_SCORED}) s GROUP BY slice, part, model_id, name ORDER BY slice, part, model_id, name
"""  # noqa: S608 - put together from constants
SCORE_SAMPLES_SQL = f"""
SELECT slice, part, model_id, name, value FROM ({_SCORED}) s WHERE value IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY slice, part, model_id, name ORDER BY md5(trace_id), trace_id) <= ?
ORDER BY slice, part, model_id, name, md5(trace_id), trace_id
"""  # noqa: S608 - put together from constants
MEASURE_SAMPLES_SQL = f"""
SELECT slice, part, model_id, measure AS name, value FROM ({_MEASURES}) m WHERE value IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY slice, part, model_id, measure ORDER BY md5(trace_id), trace_id) <= ?
ORDER BY slice, part, model_id, measure, md5(trace_id), trace_id
"""  # noqa: S608 - put together from constants
FEEDBACK_SQL = """
SELECT c.slice, c.part, c.model_id, count(*) AS n, count(*) FILTER (WHERE a.value_number < 0.5) AS negative
FROM ({cohorts}) c JOIN assessments a ON a.trace_id = c.trace_id
WHERE a.trace_date = ? AND a.valid AND a.name = ? AND a.value_number IS NOT NULL
GROUP BY c.slice, c.part, c.model_id ORDER BY c.slice, c.part, c.model_id
"""
HISTORY_SQL = """
SELECT CAST(trace_date AS VARCHAR) AS day, metric,
    CASE WHEN summed THEN sum(value) ELSE sum(value * n) / sum(n) END AS value,
    CASE WHEN NOT summed THEN min(ci_low) END AS low, CASE WHEN NOT summed THEN max(ci_high) END AS high,
    CAST(sum(n) AS BIGINT) AS n
FROM (
    SELECT trace_date, metric, value, n, ci_low, ci_high,
        split_part(metric, '{', 1) IN ('traces', 'feedback') OR split_part(metric, '{', 1) LIKE '%/sum' AS summed
    FROM quality_metrics WHERE n > 0 AND trace_date > ? AND trace_date <= ?
        AND (metric = split_part(metric, '{', 1) OR list_contains(?, metric))
) q
GROUP BY trace_date, metric, summed ORDER BY metric, day
"""
"""Days after the first, up to the second: counts and sums over the models, the rest averaged by what they rest on.

Of slices, which may be tens of thousands of numbers a day, only those that are listed.
"""


def statements(day: date, slices: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, list[Any]]]:
    """Name to statement and its values. `slices` maps a tag to the values of it that are slices of their own."""
    cohorts = " UNION ALL ".join([_OF_ALL, *[_OF_SLICE] * len(slices)])
    values: list[Any] = [day]
    for tag, named in slices.items():
        values += [tag, list(named), tag, tag, day, tag]

    def filled(sql: str, *rest: Any) -> tuple[str, list[Any]]:
        return sql.replace("{cohorts}", cohorts), values * sql.count("{cohorts}") + list(rest)

    return {
        "counts": filled(COUNTS_SQL),
        "measures": filled(MEASURES_SQL),
        "ranks": filled(RANKS_SQL),
        "scores": filled(SCORES_SQL, day),
        "score_samples": filled(SCORE_SAMPLES_SQL, day, SAMPLE),
        "measure_samples": filled(MEASURE_SAMPLES_SQL, SAMPLE),
        "feedback": filled(FEEDBACK_SQL, day, FEEDBACK_NAME),
    }
