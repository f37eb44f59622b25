"""Measuring how complete a day's scores are.

Lives here: `Coverage`: by SQL over the place that keeps the traces, or by MLflow's search where SQL does not know yet.
Add here: a place whose scores are to be counted.
Not here: the statement and what its numbers mean (`coverage_sql.py`), closing gaps (`scoring.py`).

Tables of Unity Catalog hold traces and assessments as they come. Native archival copies both some minutes later, and
has no table before its first round: so there a gap is confirmed by MLflow, trace infos without spans, before anything
is asked for that costs money.
"""

import time
from collections.abc import Callable, Sequence
from functools import cached_property

from lifecycle_assets.spec_file import Agent
from resources.databricks.archive.archive import WarehouseArchive
from resources.databricks.archive.archive_sources import Source, Window
from resources.databricks.scoring.coverage_sql import SESSION_BUFFER_MS, Counted, Question, counted, coverage_statement
from resources.databricks.sql.statements import run_statement
from resources.databricks.tracing.trace_store import DatabricksTraceStore
from resources.platform import Platform
from resources.trace_store import TraceInfo
from resources.worker import Progress


class Coverage:
    """Scores of one day's production traces that ended before `due_ms`."""

    def __init__(self, platform: Platform, agent: Agent, window: Window, due_ms: int, progress: Progress) -> None:
        self._platform = platform
        self._agent = agent
        self._window = window
        self._due_ms = due_ms
        self._progress = progress
        self._within_ms = agent.spec.monitoring.coverage.within_minutes * 60_000

    @cached_property
    def _place(self) -> tuple[Source | None, bool]:
        return WarehouseArchive(self._platform).source(self._agent, self._progress)

    def of(self, questions: Sequence[Question], *, confirmed: bool = False) -> dict[str, Counted]:
        """Numbers by registered name. `confirmed`: as they are now, also where the tables lag behind."""
        source, lags = self._place
        if source is None or (lags and confirmed):
            return self._by_search(questions)
        sql, parameters = coverage_statement(
            source, self._window, questions, self._due_ms, within_ms=self._within_ms, now_ms=int(time.time() * 1000)
        )
        return counted(questions, run_statement(self._platform, sql, parameters).dicts())

    def _by_search(self, questions: Sequence[Question]) -> dict[str, Counted]:
        store, found = DatabricksTraceStore(self._platform), {}
        by_filter = {
            filter_string: store.infos(
                self._agent.spec.experiment,
                self._window.day,
                settled_before_ms=self._due_ms,
                filter_string=filter_string,
            )
            for filter_string in {question.scorer.filter for question in questions}
        }
        for question in questions:
            units = _units(question, by_filter[question.scorer.filter], self._due_ms)
            found[question.scorer.registered_name] = _counted(question, units, self._within_ms)
        return found


def _units(question: Question, infos: Sequence[TraceInfo], due_ms: int) -> list[list[TraceInfo]]:
    """What one score is of: a trace, or the traces of a complete session."""
    if question.scorer.level == "trace":
        return [[info] for info in infos]
    sessions: dict[str, list[TraceInfo]] = {}
    for info in infos:
        if info.session_id:
            sessions.setdefault(info.session_id, []).append(info)
    return [unit for unit in sessions.values() if max(one.ended_ms for one in unit) < due_ms - SESSION_BUFFER_MS]


def _counted(question: Question, units: Sequence[Sequence[TraceInfo]], within_ms: int) -> Counted:
    overdue_ms = int(time.time() * 1000) - within_ms

    def number(of: Callable[[Sequence[TraceInfo]], bool]) -> int:
        return sum(1 for unit in units if of(unit))

    def said(unit: Sequence[TraceInfo], *, failed: bool) -> bool:
        scores = [score for one in unit for score in one.scores]
        return any(question.counts(name, version, made) for name, version, made, bad in scores if bad == failed)

    def ok(unit: Sequence[TraceInfo]) -> bool:
        return said(unit, failed=False)

    def bad(unit: Sequence[TraceInfo]) -> bool:
        return not ok(unit) and said(unit, failed=True)

    def ended(unit: Sequence[TraceInfo]) -> int:
        return max(one.ended_ms for one in unit)

    def late(unit: Sequence[TraceInfo]) -> bool:
        return ended(unit) >= question.until_ms

    def took(unit: Sequence[TraceInfo]) -> int | None:
        """Milliseconds until the first answer; None where there is none."""
        made = [made for one in unit for name, version, made, _ in one.scores if question.counts(name, version, made)]
        return min(made) - ended(unit) if made else None

    def is_new(unit: Sequence[TraceInfo]) -> bool:
        return ended(unit) >= question.since_ms

    def overdue(unit: Sequence[TraceInfo]) -> bool:
        since = max(question.since_ms, question.until_ms)
        return not ok(unit) and not bad(unit) and since <= ended(unit) <= overdue_ms

    done = number(lambda unit: late(unit) and (ok(unit) or bad(unit)))
    times = [(unit, time_taken) for unit in units if (time_taken := took(unit)) is not None]
    on_time = sum(1 for _, time_taken in times if time_taken <= within_ms)
    after_time = sum(1 for unit, time_taken in times if time_taken > within_ms and is_new(unit))
    return Counted(
        question.scorer.sample_rate, len(units), number(ok), number(bad), number(late), done,
        on_time, after_time, number(overdue),
    )  # fmt: skip
