"""The agent's views, as SQL over its tables.

Lives here: the contract that users' queries rest on besides the tables, said once for both engines.
Add here: a view. Not here: tables (`tables.py`), querying (`engine.py`).

A view reads tables by their unprefixed names, in SQL that DuckDB and, through `resources/databricks/sql/dialect.py`,
Databricks answer alike. It has no WITH: the user's query around it may use any name. `judge_cost` also reads
`scorer_costs(name, cost_per_call)`, which the engine fills with what it was given: a scorer nobody stated a price for
costs 0. What a scorer sampled, which depends on its rate and filter, is known to who scored the day: `scorer_coverage`
has it from the table `scorer_days`, null for versions that are not the day's last.
"""

from resources.scoring.trace_scores import OWED_AGAIN_SQL

VIEWS: dict[str, str] = {
    "quality_by_version": """
        SELECT s.model_id, coalesce(v.version, '') AS version, s.name, s.scorer_version, s.n, s.mean, s.lowest,
            s.highest, s.errors, s.not_applicable, s.first_date, s.last_date
        FROM (
            SELECT t.model_id, a.name, a.scorer_version, count(a.value_number) AS n, avg(a.value_number) AS mean,
                min(a.value_number) AS lowest, max(a.value_number) AS highest,
                count(*) FILTER (WHERE a.error IS NOT NULL) AS errors,
                count(*) FILTER (WHERE a.value_text = 'not applicable') AS not_applicable,
                min(t.trace_date) AS first_date, max(t.trace_date) AS last_date
            FROM assessments a JOIN traces t USING (trace_id, trace_date)
            WHERE a.valid AND a.kind = 'feedback' AND a.source_type <> 'HUMAN'
            GROUP BY t.model_id, a.name, a.scorer_version
        ) s LEFT JOIN (
            SELECT model_id, max_by(to_version, promotions."at") AS version FROM promotions
            WHERE alias = 'champion' AND model_id <> '' GROUP BY model_id
        ) v USING (model_id)
        ORDER BY s.model_id, version, s.name, s.scorer_version""",
    "latency": """
        SELECT trace_date, model_id, count(execution_ms) AS n,
            percentile_cont(0.5) WITHIN GROUP (ORDER BY execution_ms) AS p50_ms,
            percentile_cont(0.9) WITHIN GROUP (ORDER BY execution_ms) AS p90_ms,
            percentile_cont(0.95) WITHIN GROUP (ORDER BY execution_ms) AS p95_ms,
            percentile_cont(0.99) WITHIN GROUP (ORDER BY execution_ms) AS p99_ms,
            max(execution_ms) AS max_ms
        FROM traces WHERE state <> 'ERROR' GROUP BY trace_date, model_id ORDER BY trace_date, model_id""",
    "errors": """
        SELECT trace_date, model_id, count(*) AS traces, count(*) FILTER (WHERE state = 'ERROR') AS errors,
            count(*) FILTER (WHERE state = 'ERROR') / count(*) AS error_rate
        FROM traces GROUP BY trace_date, model_id ORDER BY trace_date, model_id""",
    "feedback": """
        SELECT s.trace_date, t.model_id, s.name, count(*) AS n,
            count(*) FILTER (WHERE s.positive) AS positive, count(*) FILTER (WHERE NOT s.positive) AS negative,
            count(*) FILTER (WHERE s.positive) / nullif(count(s.positive), 0) AS positive_rate
        FROM (
            SELECT trace_id, trace_date, name, CASE
                WHEN value_number IS NOT NULL THEN value_number >= 0.5
                WHEN lower(value_text) IN ('yes', 'true', 'good', 'pass', 'positive', 'up', 'thumbs_up') THEN true
                WHEN lower(value_text) IN ('no', 'false', 'bad', 'fail', 'negative', 'down', 'thumbs_down') THEN false
            END AS positive
            FROM assessments WHERE valid AND kind = 'feedback' AND source_type = 'HUMAN' AND error IS NULL
        ) s JOIN traces t USING (trace_id, trace_date)
        GROUP BY s.trace_date, t.model_id, s.name ORDER BY s.trace_date, t.model_id, s.name""",
    "scorer_coverage": f"""
        SELECT c.trace_date, c.name, c.scorer_version, d.traces, c.scored, c.errored, c.not_applicable,
            c.scored / d.traces AS coverage, c.sampled, c.waiting, c.on_time
        FROM (
            SELECT trace_date, name, scorer_version, coalesce(s.scored, 0) AS scored, coalesce(s.errored, 0) AS errored,
                coalesce(s.not_applicable, 0) AS not_applicable, m.sampled, m.waiting, m.on_time
            FROM (
                SELECT trace_date, name, scorer_version, count(*) FILTER (WHERE outcome = 2) AS scored,
                    count(*) FILTER (WHERE outcome = 1) AS errored,
                    count(*) FILTER (WHERE not_applicable) AS not_applicable
                FROM (
                    SELECT trace_date, name, scorer_version, trace_id,
                        max(CASE WHEN error IS NULL THEN 2 WHEN {OWED_AGAIN_SQL} THEN 0 ELSE 1 END) AS outcome,
                        bool_or(value_text = 'not applicable') AS not_applicable
                    FROM assessments
                    WHERE valid AND kind = 'feedback' AND source_type <> 'HUMAN' AND scorer_version IS NOT NULL
                    GROUP BY trace_date, name, scorer_version, trace_id
                ) each_trace GROUP BY trace_date, name, scorer_version
            ) s FULL JOIN (
                SELECT trace_date, name, scorer_version, sampled, waiting, on_time FROM scorer_days
            ) m USING (trace_date, name, scorer_version)
        ) c JOIN (SELECT trace_date, count(*) AS traces FROM traces GROUP BY trace_date) d USING (trace_date)
        ORDER BY c.trace_date, c.name, c.scorer_version""",  # noqa: S608 a condition of ours
    "sessions": """
        SELECT session_id, max(nullif(user_id, '')) AS user_id, count(*) AS traces,
            min(request_time) AS started_at, max(request_time) AS last_at,
            count(*) FILTER (WHERE state = 'ERROR') AS errors, CAST(sum(execution_ms) AS BIGINT) AS execution_ms,
            CAST(sum(input_tokens) AS BIGINT) AS input_tokens, CAST(sum(output_tokens) AS BIGINT) AS output_tokens,
            sum(cost_usd) AS cost_usd
        FROM traces WHERE session_id <> '' GROUP BY session_id ORDER BY started_at, session_id""",
    "judge_cost": """
        SELECT a.trace_date, a.name, a.scorer_version, count(*) AS calls,
            coalesce(max(c.cost_per_call), 0.0) AS cost_per_call,
            count(*) * coalesce(max(c.cost_per_call), 0.0) AS cost_usd
        FROM assessments a LEFT JOIN scorer_costs c USING (name)
        WHERE a.kind = 'feedback' AND a.source_type <> 'HUMAN' AND a.scorer_version IS NOT NULL
        GROUP BY a.trace_date, a.name, a.scorer_version ORDER BY a.trace_date, a.name, a.scorer_version""",
}
"""View to its query. Judges and code scorers are assessments of a scorer's version; people are source HUMAN."""
