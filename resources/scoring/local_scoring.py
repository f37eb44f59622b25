"""Scores of a day on the local platform: called here, landed in the tables, published to MLflow.

Lives here: `LocalScoring`: the order of things, and what a run may spend.
Add here: a rule of what is done first, or left out.
Not here: what is owed (`units.py`), its books (`run.py`), calling (`crew.py`), tables
(`score_table.py`), MLflow (`publisher.py`).

Why a rerun is safe, wherever the last one was killed: what is in `assessments`, or on the trace in MLflow, is not
owed; what was landed and not published is pending. So nothing is lost, and nothing is there twice, also when several
processes score the same day: each looks again before it gives out a block, and goes through them in an order of its
own.
"""

import random
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

from lifecycle_assets.monitoring.coverage import tally
from lifecycle_assets.records import ScorerVersion
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.archive.lost_store import lost_store
from resources.mlflow_store import experiment_id, open_mlflow
from resources.platform import Platform
from resources.reading.few_collections import few_collections
from resources.reading.reading import open_reader
from resources.reading.trace_reader import TraceReader
from resources.scorer_registry import MlflowScorerRegistry
from resources.scoring.call import Call
from resources.scoring.crew import Crew
from resources.scoring.publisher import Lag, Publisher, lag_of
from resources.scoring.run import Owed, Run, within
from resources.scoring.score_claims import Claims, part_of
from resources.scoring.score_table import ScoreTable
from resources.scoring.scoring import NO_LIMITS, DayScores, ScoreLimits, Scoring
from resources.scoring.tasks import Said, Task, called_here, in_blocks
from resources.scoring.units import Owing, Units, of_sessions, of_traces, only, sampled, window
from resources.trace_store import MlflowTraceStore
from resources.worker import Progress

BLOCK = 100
"""Traces a child is given at once."""

LARGE_DAY = 400
"""Traces from which two processes call code of the agent's own."""


class LocalScoring(Scoring):
    """Scores with the registered copies, in processes forked from this one."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._registry = MlflowScorerRegistry(platform)
        self._traces = MlflowTraceStore(platform)

    def score_day(
        self,
        agent: Agent,
        day: date,
        scorers: Sequence[ScorerVersion],
        *,
        settled_before_ms: int,
        progress: Progress,
        limits: ScoreLimits = NO_LIMITS,
    ) -> DayScores:
        """See `Scoring.score_day`."""
        if why := lost_store(self._platform, agent.spec.table_prefix, agent.spec.experiment):
            raise Refused(why)
        open_mlflow(self._platform)
        experiment = experiment_id(self._platform, agent.spec.experiment)
        reader = open_reader(self._platform, experiment, progress)
        table = ScoreTable(self._platform, agent.spec.table_prefix)
        active = [scorer for scorer in scorers if scorer.sample_rate > 0]
        units = self._units(agent, day, active, reader, settled_before_ms)
        run = Run(day, active, table, progress, agent.redactions)
        with few_collections(max((found.traces.num_rows for found in units.values()), default=0)):
            return self._closed(agent, experiment, reader, run, units, limits)

    def _closed(
        self,
        agent: Agent,
        experiment: str,
        reader: TraceReader,
        run: Run,
        units: Mapping[ScorerVersion, Units],
        limits: ScoreLimits,
    ) -> DayScores:
        """The day with its gaps closed."""
        table, day, active = run.table, run.day, run.scorers
        since = self._registry.registered_at_ms(agent)
        scores = table.scores(day)
        owing = [sampled(units[scorer], scores, scorer) for scorer in active]
        publisher = Publisher(
            self._platform, table, reader, {(s.registered_name, s.version): s for s in active}, agent.redactions
        )
        with closing(publisher):
            failed = self._score(agent, experiment, run, publisher, within(run, owing, units, limits))
            failed = failed or _published(publisher, day, agent.spec.archive.late_days, run.progress)
            lag = lag_of(table, day) if failed else Lag()
        if failed:
            run.progress(f"{day}: {failed}")
        if run.written:
            scores = table.scores(day)
            owing = [sampled(units[scorer], scores, scorer) for scorer in active]
        coverage = _coverage(agent, run, owing, since)
        traces = len({one.trace_id for scorer in owing for one in scorer})
        return DayScores(
            traces, run.written, coverage, run.calls, run.seconds, run.left, lag.pending, lag.minutes, failed
        )

    def _units(
        self, agent: Agent, day: date, active: Sequence[ScorerVersion], reader: TraceReader, settled_before_ms: int
    ) -> dict[ScorerVersion, Units]:
        """What each scorer may look at: one listing, one search a distinct filter."""
        start, end = window(day)
        all_of: dict[str, Units] = {}
        if any(scorer.level != "session" for scorer in active):
            all_of["trace"] = of_traces(reader.list(start, end, settled_before_ms=settled_before_ms))
        if any(scorer.level == "session" for scorer in active):
            all_of["session"] = of_sessions(reader, day, settled_before_ms, int(time.time() * 1000))
        matching = {
            text: [
                info.trace_id
                for info in self._traces.infos(agent.spec.experiment, day, settled_before_ms=2**53, filter_string=text)
            ]
            for text in {scorer.filter for scorer in active if scorer.filter.strip()}
        }
        levels = {scorer: all_of["session" if scorer.level == "session" else "trace"] for scorer in active}
        return {
            scorer: only(found, matching[scorer.filter]) if scorer.filter.strip() else found
            for scorer, found in levels.items()
        }

    def _score(self, agent: Agent, experiment: str, run: Run, publisher: Publisher, tasks: Sequence[Owed]) -> str:
        """Call what is owed, land the answers, publish them; why publishing failed, empty when it did not."""
        failed, declared = "", {scorer.name: scorer for scorer in agent.spec.scorers}
        called = {index for owed in tasks for index in owed.calls}
        free = {
            index
            for index in called
            if (spec := declared.get(run.scorers[index].name)) and isinstance(spec.source, str)
            if not run.scorers[index].cost_per_call
        }
        calls = [
            self._registry.load(agent, scorer, direct=index in free and sys.platform == "linux")
            if index in called
            else Call(scorer.registered_name, lambda _: None)
            for index, scorer in enumerate(run.scorers)
        ]
        for group, threads in ((free, 0), (called - free, agent.spec.monitoring.workers)):
            mine = [replace(owed, calls=kept) for owed in tasks if (kept := owed.calls & group)]
            if not mine:
                continue
            run.begin(mine, paid=bool(threads))
            try:
                with closing(self._answers(agent, experiment, calls, run, mine, threads)) as answers:
                    for said in answers:
                        run.take(said)
                        if run.is_due():
                            run.land()
                            if run.is_long() and not failed:
                                failed = _tried(partial(run.publish, publisher))
            finally:  # Interrupted too: what was paid for lands, and nobody waits for claims of a step that has ended.
                run.end()
        return failed or _tried(partial(run.publish, publisher))

    def _answers(
        self, agent: Agent, experiment: str, calls: Sequence[Call], run: Run, mine: Sequence[Owed], threads: int
    ) -> Generator[Said | None]:
        names = [(scorer.registered_name, scorer.version) for scorer in run.scorers]
        tasks = [Task(owed.key, owed.members, tuple(sorted(owed.calls))) for owed in mine]
        if threads:
            parts: dict[int, list[Task]] = {}
            for task in tasks:
                parts.setdefault(part_of(task.trace_ids[0]), []).append(task)
            shares = list(parts.items())
            random.shuffle(shares)  # Of several processes on one day each begins elsewhere.
            claims = Claims(self._platform, agent.spec.table_prefix, run.day)
            todo = run.claimed([(part, list(in_blocks(mine, threads))) for part, mine in shares], claims)
        else:
            blocks = list(in_blocks(tasks, BLOCK))
            random.shuffle(blocks)
            todo = run.still_owed(blocks)

        def read(trace_ids: Sequence[str]) -> Iterator[Any]:
            """In the child, on a connection of its own; what the parent has open is not its."""
            from mlflow.tracing.client import TracingClient

            inherited = getattr(TracingClient(self._platform.tracking_uri).store, "engine", None)
            if inherited is not None and "reader" not in opened:
                inherited.dispose(close=False)
            opened.setdefault("reader", open_reader(self._platform, experiment, lambda _: None))
            yield from opened["reader"].traces(trace_ids)

        opened: dict[str, TraceReader] = {}
        if sys.platform != "linux":
            return called_here(calls, names, read, todo)
        size = 1 if threads or len(mine) < LARGE_DAY else 2
        run.crew = Crew(calls, names, read, size=size, threads=threads)
        return run.crew.answers(todo)


def _coverage(
    agent: Agent, run: Run, sampled: Sequence[Sequence[Owing]], since: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Coverage by registered name, of what is known now: also when MLflow went away meanwhile."""
    now_ms, found = int(time.time() * 1000), {}
    for index, (scorer, ones) in enumerate(zip(run.scorers, sampled, strict=True)):
        found[scorer.registered_name] = tally(
            scorer.version,
            (
                (one.ended_ms, *run.there.get((one.trace_id, index), (one.answered_ms, one.failed)))
                for one in ones
                if one.trace_id not in run.gone
            ),
            agent.spec.monitoring.coverage,
            now_ms=now_ms,
            since_ms=since.get(scorer.registered_name, 0),
        )
    return found


def _tried(publish: Callable[[], object]) -> str:
    """Publish, and return why it failed: the scores are in the tables, the next run goes on."""
    from mlflow.exceptions import MlflowException

    try:
        publish()
    except (Refused, MlflowException) as error:
        said = " ".join(str(error).split())[:300]
        return f"the scores are in the tables, and not yet in MLflow: {said}"
    return ""


def _published(publisher: Publisher, day: date, late_days: int, progress: Progress) -> str:
    """Publish what earlier runs left of this day, and of one of the days before, another one each hour."""
    back = 1 + datetime.now(UTC).hour % late_days if late_days else 0
    days = [day, day - timedelta(days=back)] if back else [day]
    return next((failed for one in days if (failed := _tried(partial(publisher.publish_rest, one, progress)))), "")


def pending(platform: Platform, agent: Agent, day: date) -> Lag:
    """Scores of a day that are in the tables and not in MLflow yet. Reads tables only."""
    return lag_of(ScoreTable(platform, agent.spec.table_prefix), day)
