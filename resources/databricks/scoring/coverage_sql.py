"""How complete a day's scores are, as one SQL statement over the traces the workspace keeps.

Lives here: the statement, what its numbers mean, and when a sample is short.
Add here: a rule of which traces a scorer owes a score.
Not here: where traces are kept (`archive_sources.py`), filters (`resources/sql/filters.py`), running anything
(`scoring.py`).

Which traces production monitoring samples is its own decision, taken for each with the declared rate. So below rate 1
the number of scores is compared with a binomial distribution, see `resources.scoring.sampling.least_expected`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lifecycle_assets.records import ScorerVersion
from resources.databricks.archive.archive_sources import Source, Window
from resources.scoring.sampling import least_expected
from resources.sql.filters import condition_of

SESSION = "mlflow.trace.session"
SESSION_BUFFER_MS = 5 * 60_000
"""A session without a new trace for so long is complete: production monitoring's own default
(MLFLOW_ONLINE_SCORING_DEFAULT_SESSION_COMPLETION_BUFFER_SECONDS of its job)."""

_SESSIONS = "d.session <> '' AND "
_NUMBERS = ("matching", "scored", "errored", "late", "late_done", "on_time", "after_time", "overdue")


@dataclass(frozen=True)
class Question:
    """A scorer, since when its version counts (0: not known), and until when a finished backfill has seen traces.

    Both are epoch milliseconds; what ended later is not seen.
    """

    scorer: ScorerVersion
    registered_at_ms: int = 0
    until_ms: int = 0

    @property
    def since_ms(self) -> int:
        """Since when a score counts that names no version as this workspace numbers them; 0: none does.

        Times of assessments may be whole seconds.
        """
        return self.registered_at_ms // 1000 * 1000

    @property
    def is_numbered(self) -> bool:
        """Whether the workspace numbers definitions; else our digest stands for one, and no score names it."""
        return self.scorer.version.isdecimal()

    def counts(self, name: str, version: str, made_ms: int) -> bool:
        """Whether a score of this name and version (empty: none is noted) is of the current version."""
        by_time = (not version or not self.is_numbered) and self.since_ms > 0 and made_ms >= self.since_ms
        return name == self.scorer.registered_name and (version == self.scorer.version or by_time)


@dataclass(frozen=True)
class Counted:
    """Traces (of a session scorer: sessions) the filter takes, by what the current version said of them.

    `late` ended after the last finished backfill; `late_done` of them have a score or an error. `on_time` were
    answered within the declared time. Of what ended since the version was registered, `after_time` were answered
    later, and `overdue` ended longer ago, after the last finished backfill, and have no answer.
    """

    rate: float
    matching: int
    scored: int
    errored: int
    late: int
    late_done: int
    on_time: int = 0
    after_time: int = 0
    overdue: int = 0

    @property
    def waiting(self) -> int:
        """How many scores are missing.

        A finished backfill has seen what had ended by then: what has no assessment then was not sampled, or the
        scorer had nothing to say of it, which leaves none. Of the rest, at rate 1 each is owed. Below, the sample is
        short when it has fewer than `least_expected` scores, or none at all where one or more are expected.
        """
        if self.rate >= 1:
            return self.late - self.late_done
        expected = round(self.late * self.rate)
        short = self.late_done < least_expected(self.late, self.rate) or (self.late_done == 0 and expected > 0)
        return max(expected - self.late_done, 1) if short else 0

    def coverage(self, version: str) -> dict[str, Any]:
        """As `DayScores` says it. At rate 1 what a finished backfill left without an assessment counts as scored.

        Below rate 1 nobody knows which traces were sampled: as many of the overdue count as scores are missing.
        """
        answered = self.matching - self.waiting if self.rate >= 1 else self.scored + self.errored
        return {
            "version": version,
            "sampled": answered + self.waiting,
            "scored": answered - self.errored,
            "errored": self.errored,
            "waiting": self.waiting,
            "on_time": self.on_time,
            "due": self.on_time + self.after_time + min(self.overdue, self.waiting),
        }

    @property
    def silent(self) -> int:
        """At rate 1, how many were seen by a finished backfill and have no assessment."""
        return max(self.matching - self.waiting - self.scored - self.errored, 0) if self.rate >= 1 else 0


def coverage_statement(
    source: Source, window: Window, questions: Sequence[Question], due_ms: int, *, within_ms: int, now_ms: int
) -> tuple[str, dict[str, str | float]]:
    """One row a question that any trace answers to: `n` (its place) and the numbers of `Counted`; the parameters.

    One pass over the traces, however many scorers there are. `within_ms` is the time an answer may take, of `now_ms`.

    Counted are production traces of the window that ended before `due_ms`. A score is of the current version when its
    metadata says so; where the workspace writes no version there, when it was made after the version was registered.
    It is known by its name, or by its source when the scorer named its feedback itself.
    Raises `Refused` for a filter SQL cannot count.
    """
    parameters: dict[str, str | float] = {"session_key": SESSION, "run_key": "mlflow.sourceRun"}
    relations = dict(source.relations(window))
    relations["tagged"] = (
        "SELECT key, map_from_entries(collect_list(struct(name, value))) AS tags FROM (SELECT key, name, "
        "max(value) AS value FROM tag_pairs GROUP BY key, name) AS each_once GROUP BY key"
    )
    relations["by_name"] = (
        "SELECT key, map_from_entries(collect_list(struct(name, '1'))) AS judged FROM (SELECT DISTINCT key, "
        "concat(kind, '.', name) AS name FROM said WHERE valid) AS each_name GROUP BY key"
    )
    production = "(r.metadata IS NULL OR r.metadata[:run_key] IS NULL)"
    relations["due"] = (
        "SELECT r.key, r.trace_id, r.state, r.request_ms, r.ended_ms, r.execution_ms, r.metadata, g.tags, "  # noqa: S608
        "j.judged, r.metadata[:session_key] AS session FROM roots AS r LEFT JOIN tagged AS g ON g.key = r.key "
        "LEFT JOIN by_name AS j ON j.key = r.key "
        f"WHERE r.ended_ms < {int(due_ms)} AND {production}"
    )
    relations["scores"] = (
        "SELECT key, name, source_id, scorer_version, unix_millis(created_at) AS made_ms, "
        "CASE WHEN error_code IS NOT NULL OR error_message IS NOT NULL THEN 1 ELSE 0 END AS failed "
        "FROM said WHERE kind = 'feedback' AND valid AND source_type IN ('CODE', 'LLM_JUDGE')"
    )
    asked, taken, sessions = [], [], []
    for number, question in enumerate(questions):
        scorer = question.scorer
        condition = condition_of(scorer.filter, prefix=f"f{number}_")
        names = {f"name{number}": scorer.registered_name, f"version{number}": scorer.version}
        parameters |= {**names, **condition.parameters}
        asked.append(
            f"SELECT {number} AS n, :name{number} AS scorer, :version{number} AS version, "
            f"CAST({question.since_ms} AS BIGINT) AS since_ms, {int(question.is_numbered)} AS numbered, "
            f"CAST({int(question.until_ms)} AS BIGINT) AS until_ms"
        )
        is_session = scorer.level == "session"
        sessions += [str(number)] if is_session else []
        taken.append(f"WHEN {number} THEN {_SESSIONS if is_session else ''}({condition.sql})")
    relations["asked"] = " UNION ALL ".join(asked)
    by_session = f"q.n IN ({', '.join(sessions)})" if sessions else "1 = 0"
    relations["units"] = f"""
        SELECT q.n, q.until_ms, q.since_ms, min(s.made_ms) AS made_ms,
            CASE WHEN {by_session} THEN d.session ELSE d.key END AS unit,
            max(CASE WHEN {by_session} THEN 1 ELSE 0 END) AS of_session, max(d.ended_ms) AS ended_ms,
            max(coalesce(1 - s.failed, 0)) AS ok, max(coalesce(s.failed, 0)) AS bad
        FROM due AS d CROSS JOIN asked AS q LEFT JOIN scores AS s
            ON s.key = d.key AND (s.name = q.scorer OR s.source_id = q.scorer) AND (s.scorer_version = q.version
                OR ((s.scorer_version IS NULL OR q.numbered = 0) AND q.since_ms > 0 AND s.made_ms >= q.since_ms))
        WHERE CASE q.n {" ".join(taken)} END
        GROUP BY q.n, q.until_ms, q.since_ms, CASE WHEN {by_session} THEN d.session ELSE d.key END"""  # noqa: S608
    new = "ended_ms >= since_ms"
    listed = ", ".join(f"{name} AS ({query})" for name, query in relations.items())
    return (
        f"""WITH {listed}
        SELECT n, count(*) AS matching, sum(ok) AS scored, sum(CASE WHEN ok = 0 THEN bad ELSE 0 END) AS errored,
            sum(CASE WHEN ended_ms >= until_ms THEN 1 ELSE 0 END) AS late,
            sum(CASE WHEN ended_ms >= until_ms AND ok + bad > 0 THEN 1 ELSE 0 END) AS late_done,
            sum(CASE WHEN made_ms - ended_ms <= {int(within_ms)} THEN 1 ELSE 0 END) AS on_time,
            sum(CASE WHEN {new} AND made_ms - ended_ms > {int(within_ms)} THEN 1 ELSE 0 END) AS after_time,
            sum(CASE WHEN {new} AND made_ms IS NULL AND ended_ms >= until_ms
                AND ended_ms <= {int(now_ms) - int(within_ms)} THEN 1 ELSE 0 END) AS overdue
        FROM units WHERE of_session = 0 OR ended_ms < {int(due_ms) - SESSION_BUFFER_MS} GROUP BY n""",  # noqa: S608
        parameters,
    )


def counted(questions: Sequence[Question], rows: Sequence[Mapping[str, Any]]) -> dict[str, Counted]:
    """The rows of the statement, by registered name; who has no row has no trace."""
    found = {int(row["n"]): [int(row[name] or 0) for name in _NUMBERS] for row in rows}
    return {
        question.scorer.registered_name: Counted(question.scorer.sample_rate, *found.get(number, [0] * len(_NUMBERS)))
        for number, question in enumerate(questions)
    }
