"""The archive's statements: from the workspace's traces to the rows of the contract, compared and merged.

Lives here: SQL texts and their parameters; the columns as `resources/trace_rows.py` makes them locally.
Add here: a column of `traces`, `spans` or `assessments`, made of what a source gives.
Not here: where traces come from (`archive_sources.py`), redaction (`redaction_sql.py`), rows this process makes
(`rows_sql.py`), running anything.

A merge is fed with the rows that differ from the table only, so it says by itself whether there is anything to write,
and running it again writes nothing. Texts that are not ours are parameters; day and milliseconds are ours.
"""

# ruff: noqa: S608 - SQL of names and numbers of ours; every text of others is a parameter.

import re
from datetime import date

from resources.databricks.archive.archive_sources import Source, Window
from resources.databricks.archive.redaction_sql import CONSTANTS, Redactor, protected, quoted, unquoted, unreadable
from resources.databricks.sql.statements import ticked
from resources.tables import KEYS, PARTITION, columns
from resources.trace_rows import NOT_APPLICABLE

CHILDREN = ("spans", "assessments", "traces")
"""The tables of traces, in the order they are written: a trace that is there has its spans and assessments."""

_OWN_COLUMN = "'mlflow.spanInputs', 'mlflow.spanOutputs', 'mlflow.spanType', 'mlflow.traceRequestId'"
_COPIES = "'mlflow.traceInputs', 'mlflow.traceOutputs'"
_NUMBER = "^-?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?$"
_WHOLE = "9.2E18"  # What fits a BIGINT.
_PATTERNS = {
    **CONSTANTS,
    "one_string": '^"[^"]*"$',
    "like_json": r'^(\{[\s\S]*\}|\[[\s\S]*\]|"[\s\S]*"|true|false|null|-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?)$',
}


class DaySql:
    """Statements that bring one day of an agent's tables up to date. `prefix` is `catalog.schema.prefix_`."""

    def __init__(
        self, source: Source, day: date, *, prefix: str, experiment_id: str, settled_before_ms: int, redactor: Redactor
    ) -> None:
        self._day, self._prefix = f"DATE'{day}'", prefix
        self._settled, self._redactor = int(settled_before_ms), redactor
        self._relations = source.relations(Window(day))
        self.parameters = {**_PATTERNS, **redactor.parameters, "experiment_id": experiment_id}

    def taken(self) -> str:
        """How many settled production traces there are, and the start of the newest one, epoch milliseconds."""
        return f"{self._with('taken')} SELECT count(*) AS settled, max(request_ms) AS newest FROM taken"

    def differing(self) -> str:
        """The same as `taken` with, by table, rows that differ and how many of those are known: (name, n, m)."""
        counted = " UNION ALL ".join(
            f"SELECT '{table}' AS name, count(*) AS n, count(held) AS m FROM ({self._changes(table)}) AS {table}_found"
            for table in CHILDREN
        )
        relations = self._with("taken", *(f"new_{table}" for table in CHILDREN))
        return f"{relations} SELECT 'taken' AS name, count(*) AS n, max(request_ms) AS m FROM taken UNION ALL {counted}"

    def merge(self, table: str) -> str:
        """Write the rows of `table` that differ."""
        names = list(columns(table))
        same = " AND ".join(f"t.`{key}` = s.`{key}`" for key in KEYS[table])
        changes = f"{self._with('taken', f'new_{table}')} {self._changes(table)}"
        return (
            f"MERGE INTO {ticked(self._prefix + table)} AS t USING ({changes}) AS s "
            f"ON t.`{PARTITION}` = {self._day} AND {same} "
            f"WHEN MATCHED THEN UPDATE SET {', '.join(f'`{name}` = s.`{name}`' for name in names)} "
            f"WHEN NOT MATCHED THEN INSERT ({', '.join(f'`{name}`' for name in names)}) "
            f"VALUES ({', '.join(f's.`{name}`' for name in names)})"
        )

    def absent(self) -> str:
        """Ids of settled traces the table lacks, a hundred at most."""
        return (
            f"{self._with('taken')} SELECT n.trace_id FROM taken AS n LEFT JOIN {ticked(self._prefix + 'traces')} AS h "
            f"ON h.`{PARTITION}` = {self._day} AND h.trace_id = n.trace_id WHERE h.trace_id IS NULL "
            "ORDER BY n.trace_id LIMIT 100"
        )

    def _with(self, *wanted: str) -> str:
        made = {
            **self._relations,
            "taken": f"SELECT * FROM roots WHERE ended_ms < {self._settled} "
            "AND (metadata IS NULL OR metadata['mlflow.sourceRun'] IS NULL)",
            "new_traces": self._traces(),
            "attrs": self._attributes(),
            "new_spans": self._spans(),
            "new_assessments": self._assessments(),
        }
        # Only what is asked for and what it rests on: a relation nobody reads may still be computed.
        needed, left = set(), list(wanted)
        while left:
            name = left.pop()
            if name in made and name not in needed:
                needed.add(name)
                left += re.findall(r"(?:FROM|JOIN) (\w+)", made[name])
        return "WITH " + ", ".join(f"{name} AS ({query})" for name, query in made.items() if name in needed)

    def _changes(self, table: str) -> str:
        """Rows that are new or differ, with `held`: the id of the row that is there already, else null."""
        names, key = list(columns(table)), KEYS[table][-1]
        kinds = columns(table)
        joined = " AND ".join(f"h.`{one}` = n.`{one}`" for one in KEYS[table])
        same = " AND ".join(
            f"to_json(n.`{name}`) IS NOT DISTINCT FROM to_json(h.`{name}`)"
            if kinds[name].startswith("MAP")
            else f"n.`{name}` IS NOT DISTINCT FROM h.`{name}`"
            for name in names
            if name != "archived_at"
        )
        target = ticked(self._prefix + table)
        found = (
            f"SELECT {', '.join(f'n.`{name}`' for name in names)}, h.`{key}` AS held FROM new_{table} AS n "
            f"LEFT JOIN {target} AS h ON h.`{PARTITION}` = {self._day} AND {joined} "
            f"WHERE h.`{key}` IS NULL OR NOT ({same})"
        )
        if table != "assessments":
            return found
        listed = ", ".join("false AS valid" if name == "valid" else f"h.`{name}`" for name in names)
        return (
            f"{found} UNION ALL SELECT {listed}, h.`{key}` AS held FROM {target} AS h "
            "JOIN taken AS d ON d.trace_id = h.trace_id "
            "LEFT JOIN new_assessments AS n ON n.trace_id = h.trace_id AND n.assessment_id = h.assessment_id "
            f"WHERE h.`{PARTITION}` = {self._day} AND h.valid AND n.assessment_id IS NULL"
        )

    def _pairs(self, relation: str, where: str = "") -> str:
        entry = f"SELECT key, {self._redactor.texts('name', 'value')} AS said FROM {relation}{where}"
        once = (
            f"SELECT key, said[0] AS name, coalesce(max(said[1]), '') AS value FROM ({entry}) AS entries "
            "GROUP BY key, said[0]"
        )
        return (
            "SELECT key, map_from_entries(array_sort(collect_list(struct(name, value)))) AS pairs "
            f"FROM ({once}) AS each_once GROUP BY key"
        )

    def _traces(self) -> str:
        meta = (
            "SELECT key, e.key AS name, e.value AS value FROM taken LATERAL VIEW explode(map_entries(metadata)) x AS e"
        )
        picked = (
            "SELECT key, max(CASE WHEN name = 'environment' THEN value END) AS environment, "
            "max(CASE WHEN name = 'mlflow.modelId' THEN value END) AS model_id FROM tag_pairs GROUP BY key"
        )
        usage, cost = "d.metadata['mlflow.trace.tokenUsage']", "d.metadata['mlflow.trace.cost']"
        texts = self._redactor.texts(
            "coalesce(d.metadata['mlflow.trace.session'], '')",
            "coalesce(d.metadata['mlflow.trace.user'], '')",
            "coalesce(nullif(p.environment, ''), d.metadata['mlflow.source.type'], '')",
            f"CASE WHEN d.inputs IS NULL THEN d.request_preview ELSE {_payload('d.inputs')} END",
            f"CASE WHEN d.outputs IS NULL THEN d.response_preview ELSE {_payload('d.outputs')} END",
        )
        none = "CAST(map() AS MAP<STRING, STRING>)"
        return f"""
            SELECT t.trace_id, :experiment_id AS experiment_id, timestamp_millis(t.request_ms) AS request_time,
                {self._day} AS trace_date, t.state, t.execution_ms, t.model_id, t.said[0] AS session_id,
                t.said[1] AS user_id, t.said[2] AS environment, t.said[3] AS request, t.said[4] AS response,
                coalesce(g.pairs, {none}) AS tags, coalesce(m.pairs, {none}) AS metadata,
                t.input_tokens, t.output_tokens, t.cost_usd, current_timestamp() AS archived_at
            FROM (
                SELECT d.key, d.trace_id, d.request_ms, d.state, d.execution_ms, {texts} AS said,
                    coalesce(nullif(d.metadata['mlflow.modelId'], ''), p.model_id, '') AS model_id,
                    CAST({_finite(_in_json(usage, "input_tokens"), _WHOLE)} AS BIGINT) AS input_tokens,
                    CAST({_finite(_in_json(usage, "output_tokens"), _WHOLE)} AS BIGINT) AS output_tokens,
                    {_finite(_in_json(cost, "total_cost"))} AS cost_usd
                FROM taken AS d LEFT JOIN ({picked}) AS p ON p.key = d.key
            ) AS t
            LEFT JOIN ({self._pairs("tag_pairs")}) AS g ON g.key = t.key
            LEFT JOIN ({self._pairs(f"({meta}) AS entry", f" WHERE name NOT IN ({_COPIES})")}) AS m ON m.key = t.key"""

    def _attributes(self) -> str:
        texts = self._redactor.texts("name", _payload("coalesce(value, 'null')"))
        return f"""
            SELECT key, span_id, array_join(array_sort(collect_list(entry)), ', ') AS body FROM (
                SELECT key, span_id, concat({quoted("said[0]")}, ': ', said[1]) AS entry FROM (
                    SELECT key, span_id, {texts} AS said FROM (
                        SELECT key, span_id, e.key AS name, e.value AS value FROM span_rows
                        LATERAL VIEW explode(map_entries(attrs)) x AS e
                    ) AS entry WHERE name NOT IN ({_OWN_COLUMN})
                ) AS entries
            ) AS written GROUP BY key, span_id"""

    def _spans(self) -> str:
        texts = self._redactor.texts(
            "s.name",
            "coalesce(nullif(replace(s.attrs['mlflow.spanType'], '\"', ''), ''), 'UNKNOWN')",
            "nullif(s.message, '')",
            "s.events",
            _payload("s.attrs['mlflow.spanInputs']"),
            _payload("s.attrs['mlflow.spanOutputs']"),
        )
        message = f"CASE WHEN s.said[2] IS NOT NULL THEN concat('\"status.description\": ', {quoted('s.said[2]')}) END"
        events = "CASE WHEN s.said[3] IS NOT NULL THEN concat('\"events\": ', s.said[3]) END"
        return f"""
            SELECT s.trace_id, {self._day} AS trace_date, s.span_id, s.parent_span_id, s.said[0] AS name,
                s.said[1] AS type, timestamp_micros(s.start_ns DIV 1000) AS start_time,
                timestamp_micros(s.end_ns DIV 1000) AS end_time, s.code AS status, s.said[4] AS inputs,
                s.said[5] AS outputs, concat('{{', concat_ws(', ', a.body, {message}, {events}), '}}') AS attributes
            FROM (
                SELECT d.trace_id, s.key, s.span_id, s.parent_span_id, s.start_ns, s.end_ns, s.code, {texts} AS said
                FROM span_rows AS s JOIN taken AS d ON d.key = s.key WHERE s.span_id IS NOT NULL
            ) AS s LEFT JOIN attrs AS a ON a.key = s.key AND a.span_id = s.span_id"""

    def _assessments(self) -> str:
        number = (
            "CASE WHEN a.v = 'true' THEN CAST(1 AS DOUBLE) WHEN a.v = 'false' THEN CAST(0 AS DOUBLE) "
            f"WHEN a.v RLIKE '{_NUMBER}' THEN {_finite('a.v')} END"
        )
        is_string = f"{protected('a.v')} RLIKE :one_string AND NOT {unreadable(protected('a.v'))}"
        failed = "a.error_code IS NOT NULL OR a.error_message IS NOT NULL"
        error = "concat_ws(': ', nullif(a.error_code, ''), nullif(a.error_message, ''))"
        texts = self._redactor.texts(
            "a.source_id",
            f"CASE WHEN {is_string} THEN {unquoted('a.v')} ELSE a.v END",
            "a.comment",
            f"CASE WHEN {failed} THEN {error} END",
        )
        return f"""
            SELECT trace_id, trace_date, assessment_id, name, kind, source_type, said[0] AS source_id, value_number,
                CASE WHEN v IS NULL OR v = 'null' THEN CASE WHEN said[3] IS NULL THEN outcome END
                    WHEN value_number IS NULL THEN said[1] END AS value_text,
                said[2] AS rationale, said[3] AS error, scorer_version, valid, created_at, updated_at
            FROM (
                SELECT d.trace_id, {self._day} AS trace_date, a.assessment_id, a.name, a.kind, a.source_type,
                    {number} AS value_number, a.v, {texts} AS said, a.scorer_version, a.valid,
                    CASE WHEN a.outcome = '{NOT_APPLICABLE}' THEN a.outcome END AS outcome, a.created_at, a.updated_at
                FROM (SELECT *, row_number() OVER (PARTITION BY key, assessment_id ORDER BY updated_at DESC) AS nth
                    FROM said) AS a JOIN taken AS d ON d.key = a.key WHERE a.assessment_id IS NOT NULL AND a.nth = 1
            ) AS each_one"""


def _payload(value: str) -> str:
    """An attribute as JSON text: what does not look like it is a string; null stays null."""
    return f"CASE WHEN {value} RLIKE :like_json THEN {value} WHEN {value} IS NOT NULL THEN {quoted(value)} END"


def _in_json(value: str, name: str) -> str:
    """The number a JSON text has under `name`, as text; read without parsing, since it may be anything."""
    return f"regexp_extract({value}, '\"{name}\"[ ]*:[ ]*(-?[0-9][0-9.eE+-]*)', 1)"


def _finite(text: str, below: str = "1.7E308") -> str:
    """A text as a number; null when it is none, or none that is finite."""
    number = f"try_cast({text} AS DOUBLE)"
    return f"CASE WHEN abs({number}) < {below} THEN {number} END"
