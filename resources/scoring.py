"""Scoring a day of production traces: which pairs are missing, scoring them, counting.

Lives here: the gateway `Scoring`, and its local implementation, in which this process scores.
Add here: a rule of which traces a scorer owes a score.
Not here: registering scorers (`scorer_registry.py`), the sampling decision (`sampling.py`), tables.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from lifecycle_assets.records import ScorerVersion
from lifecycle_assets.spec_file import Agent
from resources.sampling import is_sampled
from resources.scorer_registry import ScorerRegistry
from resources.trace_store import TraceInfo, TraceStore
from resources.worker import Progress

REPORT_EVERY = 50
"""Traces between two lines of progress."""


@dataclass(frozen=True)
class DayScores:
    """A day after scoring: traces seen, scores written (or asked for), and coverage per registered scorer name.

    Coverage is `{version, sampled, scored, errored, waiting}`, all but the version in traces.
    """

    traces: int
    written: int
    coverage: dict[str, dict[str, Any]]


class Scoring(ABC):
    """Brings the scores of a day up to the current scorer versions, and says how complete they are."""

    @abstractmethod
    def score_day(
        self, agent: Agent, day: date, scorers: Sequence[ScorerVersion], *, settled_before_ms: int, progress: Progress
    ) -> DayScores:
        """Close the gaps of `day` (UTC): sampled traces that ended before `settled_before_ms` without a score.

        Repeating asks for nothing that is there or under way. Raises `Refused` when a filter is not understood.
        """


class LocalScoring(Scoring):
    """Scores in this process with the registered copies.

    Why a rerun is safe: a score is one assessment whose id is made of trace, scorer and version. What a killed run
    wrote is found and not written again; what it did not write is still missing.
    """

    def __init__(self, traces: TraceStore, registry: ScorerRegistry) -> None:
        self._traces = traces
        self._registry = registry

    def score_day(
        self, agent: Agent, day: date, scorers: Sequence[ScorerVersion], *, settled_before_ms: int, progress: Progress
    ) -> DayScores:
        """See `Scoring.score_day`."""
        traces = self._traces
        active = [scorer for scorer in scorers if scorer.sample_rate > 0]
        sampled = {
            scorer.registered_name: owed(
                scorer,
                traces.infos(
                    agent.spec.experiment, day, settled_before_ms=settled_before_ms, filter_string=scorer.filter
                ),
            )
            for scorer in active
        }
        work: dict[str, list[ScorerVersion]] = {}
        for scorer in active:
            for info in missing(scorer, sampled[scorer.registered_name]):
                work.setdefault(info.trace_id, []).append(scorer)
        owing = {scorer for scorers_of_trace in work.values() for scorer in scorers_of_trace}
        loaded = {scorer: self._registry.load(agent, scorer) for scorer in owing}
        written: dict[tuple[str, str], bool] = {}
        for done, trace in enumerate(traces.read(list(work)), start=1):
            trace_id = trace.info.trace_id
            for scorer in work[trace_id]:
                outcome = loaded[scorer](trace)
                traces.write_score(trace_id, scorer, outcome)
                written[trace_id, scorer.registered_name] = bool(outcome.error)
            if done % REPORT_EVERY == 0 or done == len(work):
                progress(f"{day}: scored {done} of {len(work)} traces")
        seen = {info.trace_id for infos in sampled.values() for info in infos}
        coverage = {s.registered_name: count(s, sampled[s.registered_name], written) for s in active}
        return DayScores(len(seen), len(written), coverage)


def owed(scorer: ScorerVersion, infos: Sequence[TraceInfo]) -> list[TraceInfo]:
    """The traces this scorer samples."""
    return [info for info in infos if is_sampled(info.trace_id, scorer.registered_name, scorer.sample_rate)]


def missing(scorer: ScorerVersion, sampled: Sequence[TraceInfo]) -> list[TraceInfo]:
    """The sampled traces without a value or an error of this very version."""
    pair = (scorer.registered_name, scorer.version)
    return [info for info in sampled if pair not in info.scored and pair not in info.errored]


def count(
    scorer: ScorerVersion, sampled: Sequence[TraceInfo], written: Mapping[tuple[str, str], bool]
) -> dict[str, Any]:
    """Coverage of one scorer: traces sampled, scored, errored and still waiting."""
    pair = (scorer.registered_name, scorer.version)
    errored = sum(
        1
        for i in sampled
        if written.get((i.trace_id, scorer.registered_name), pair in i.errored and pair not in i.scored)
    )
    done = sum(
        1 for i in sampled if (i.trace_id, scorer.registered_name) in written or pair in i.scored or pair in i.errored
    )
    return {
        "version": scorer.version,
        "sampled": len(sampled),
        "scored": done - errored,
        "errored": errored,
        "waiting": len(sampled) - done,
    }
