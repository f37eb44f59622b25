"""Scoring a day of production traces: which pairs are missing, scoring them, counting.

Lives here: the steps under `trace_scores`; no Dagster context.
Add here: a rule of which traces a scorer owes a score.
Not here: registering scorers, tables.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from lifecycle_assets.monitoring.sampling import is_sampled
from lifecycle_assets.records import ScorerVersion
from lifecycle_assets.spec_file import Agent
from resources.scorer_registry import ScorerRegistry
from resources.trace_store import TraceInfo, TraceStore
from resources.worker import Progress

REPORT_EVERY = 50
"""Traces between two lines of progress."""


def owed(scorer: ScorerVersion, infos: Sequence[TraceInfo]) -> list[TraceInfo]:
    """The traces this scorer samples."""
    return [info for info in infos if is_sampled(info.trace_id, scorer.registered_name, scorer.sample_rate)]


def missing(scorer: ScorerVersion, sampled: Sequence[TraceInfo]) -> list[TraceInfo]:
    """The sampled traces without a value or an error of this very version."""
    pair = (scorer.registered_name, scorer.version)
    return [info for info in sampled if pair not in info.scored and pair not in info.errored]


def score_day(
    agent: Agent,
    day: date,
    scorers: Sequence[ScorerVersion],
    *,
    traces: TraceStore,
    registry: ScorerRegistry,
    settled_before_ms: int,
    progress: Progress,
) -> tuple[int, int, dict[str, dict[str, Any]]]:
    """Score what is missing of `day`; returns traces seen, scores written, and coverage per registered scorer.

    Why a rerun is safe: a score is one assessment whose id is made of trace, scorer and version. What a killed run
    wrote is found and not written again; what it did not write is still missing.
    """
    active = [scorer for scorer in scorers if scorer.sample_rate > 0]
    sampled = {
        scorer.registered_name: owed(
            scorer,
            traces.infos(agent.spec.experiment, day, settled_before_ms=settled_before_ms, filter_string=scorer.filter),
        )
        for scorer in active
    }
    work: dict[str, list[ScorerVersion]] = {}
    for scorer in active:
        for info in missing(scorer, sampled[scorer.registered_name]):
            work.setdefault(info.trace_id, []).append(scorer)
    loaded = {scorer: registry.load(agent, scorer) for scorer in {s for owing in work.values() for s in owing}}
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
    coverage = {scorer.registered_name: count(scorer, sampled[scorer.registered_name], written) for scorer in active}
    return len(seen), len(written), coverage


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
