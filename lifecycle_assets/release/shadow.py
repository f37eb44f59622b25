"""What the champion's recorded requests say of another version: paired, in words and numbers.

Lives here: who is compared with whom, which scorers run, and the record of what came out; no Dagster context.
Add here: a further condition of a comparison.
Not here: the sample and its price (`sample.py`), answering (`resources/replayer.py`), what the pairs say
(`shadow_pairs.py`), the asset check (`shadow_check.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from lifecycle_assets.comparison import overall
from lifecycle_assets.gate import aggregate
from lifecycle_assets.records import Record, digest
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHALLENGER, CHAMPION
from lifecycle_assets.release.sample import Sample, take_sample
from lifecycle_assets.release.shadow_pairs import (
    ANSWERED,
    compare_pairs,
    doubts_about,
    largest_losses,
    numbers,
    silent_scorers,
)
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.text import literal
from resources.needs import (
    DeclaredScorer,
    ModelRegistry,
    Pair,
    RegisteredVersion,
    Replay,
    Replayer,
    ScorerRegistry,
    SqlEngine,
)
from resources.scorer_source import declared_scorers, needs_expectations
from resources.worker import Progress

SHADOW_TAG = "lifecycle.shadow"
"""Version tag with the result of its last comparison in one line."""

WORDS = {
    "better": "is better than",
    "not_worse": "is not worse than",
    "worse": "is worse than",
    "unsure": "cannot be told from",
}
"""Outcome to what stands between the two versions in a sentence."""


@dataclass(frozen=True)
class ShadowRecord(Record):
    """A comparison on recorded requests, and all it rests on.

    `outcome` is `better`, `not_worse`, `worse` or `unsure`; `metrics` hold one comparison each, `losses` the requests
    on which the version lost most: `{metric, request, answer, champion, version}` with trace ids and scores.
    `skipped` maps the reason to the number of requests that were left out; costs are USD of the scorers' calls.
    """

    version: str
    model_id: str
    champion: str
    champion_model_id: str
    outcome: str
    sentences: list[str]
    recorded: int
    pairs: int
    skipped: dict[str, int]
    metrics: list[dict[str, Any]]
    losses: list[dict[str, Any]]
    left_out: dict[str, str]
    cost_usd: float
    run_id: str
    reused: bool
    url: str

    @property
    def is_well(self) -> bool:
        """Whether nothing was lost."""
        return self.outcome in ("better", "not_worse")

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        return (
            f"Version {self.version} {WORDS[self.outcome]} the champion, version {self.champion}, on {self.pairs} of "
            f"{self.recorded} recorded requests."
        )


def shadow_version(
    agent: Agent,
    *,
    version: str,
    traces: int | None,
    max_cost_usd: float | None,
    registry: ModelRegistry,
    scorers: ScorerRegistry,
    sql: SqlEngine,
    replayer: Replayer,
    environment: str,
    now: datetime,
    progress: Progress,
    dagster_run_id: str = "",
) -> ShadowRecord:
    """Have `version` (a number or an alias; empty means who waits as challenger) answer what users asked the champion.

    `traces` and `max_cost_usd` may lower what `shadow` declares. Tags the version with the result. Raises `Refused`
    when there is nothing to compare, or nothing to compare by.

    Why a rerun is safe: the sample is the same, a finished replay of it is read back, the tag says the same.
    """
    declared = agent.spec.shadow
    size = _at_most(f"{agent.name}: traces", traces, 1, declared.max_traces, "shadow.max_traces")
    budget = _at_most(f"{agent.name}: max_cost_usd", max_cost_usd, 0, declared.max_cost_usd, "shadow.max_cost_usd")
    asked, champion = both_versions(agent, version, registry)
    chosen, left_out = chosen_scorers(agent, environment)
    digests = {one.name: one.digest for one in chosen}
    sample = take_sample(
        agent,
        sql,
        champion.model_id,
        {(s.registered_name, s.version): s.name for s in scorers.registered(agent) if digests.get(s.name) == s.digest},
        {one.name: one.spec.cost_per_call for one in chosen},
        size=int(size),
        max_cost_usd=budget,
        now=now,
    )
    require_requests(agent, sample, champion, budget)
    progress(
        f"version {asked.version} answers {len(sample.requests)} requests recorded of version {champion.version}; "
        f"scoring costs at most {sample.cost_usd:.4g} USD"
    )
    replay = replayer.replay(
        agent,
        asked.model_id,
        champion.model_id,
        sample.requests,
        digests,
        progress=progress,
        dagster_run_id=dagster_run_id,
    )
    record = shadow_record(agent, asked, champion, sample, replay, chosen, left_out)
    registry.tag_version(asked.name, asked.version, {SHADOW_TAG: f"{record.headline} Run {record.run_id}."})
    return record


def both_versions(agent: Agent, version: str, registry: ModelRegistry) -> tuple[RegisteredVersion, RegisteredVersion]:
    """The version that is asked, and the champion. Raises `Refused` when either is not there, or both are one."""
    name = agent.spec.model_name
    aliases, versions = registry.aliases(name), {one.version: one for one in registry.versions(name)}
    champion = versions.get(aliases.get(CHAMPION, ""))
    if champion is None or not champion.model_id:
        raise Refused(
            f"{name}: nobody is champion, or that version was deleted or names no logged model; release one first."
        )
    wanted = version or CHALLENGER
    asked = versions.get(aliases.get(wanted, wanted))
    if asked is None:
        known = ", ".join(one for one in versions if one != champion.version) or "none"
        raise Refused(f"{name} has no version or alias {literal(wanted, 60)}; name another version, there is: {known}.")
    if not asked.model_id:
        raise Refused(f"{name}: version {asked.version} names no logged model; release the agent again.")
    if asked.model_id == champion.model_id:
        raise Refused(f"{name}: version {asked.version} is the champion itself; name another version.")
    return asked, champion


def chosen_scorers(agent: Agent, environment: str) -> tuple[list[DeclaredScorer], dict[str, str]]:
    """The scorers that run, of `shadow.scorers` or else of the gate, and why each other of them does not.

    Raises `Refused` when none is left. Only the gate's thresholds say which direction of a number is better.
    """
    gated = [threshold.metric.rpartition("/")[0] for threshold in agent.spec.eval.gate.thresholds]
    names = list(dict.fromkeys(agent.spec.shadow.scorers or gated))
    active = {one.name: one for one in declared_scorers(agent, environment)}
    specs = {one.name: one for one in agent.spec.scorers}
    left_out = {}
    for name in names:
        if name not in active:
            left_out[name] = f"is not active, {specs[name].requires} is not set"
        elif specs[name].level == "session":
            left_out[name] = "looks at sessions"
        elif needs_expectations(specs[name]):
            left_out[name] = "needs expectations, and recorded requests have none"
        elif name not in gated:
            left_out[name] = "has no threshold in eval.gate that says which direction is better"
    chosen = [active[name] for name in names if name not in left_out]
    if not chosen:
        why = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise Refused(
            f"{agent.name}: no metric of eval.gate.thresholds can be compared on recorded requests"
            f"{f' ({why})' if why else ''}; add a threshold for a scorer that needs no expectations."
        )
    return chosen, left_out


def require_requests(agent: Agent, sample: Sample, champion: RegisteredVersion, max_cost_usd: float) -> None:
    """Raise `Refused` with the reason when the sample is empty."""
    if sample.requests:
        return
    if not sample.recorded:
        raise Refused(
            f"{agent.name}: no request of the last {agent.spec.shadow.lookback_days} days that version "
            f"{champion.version} answered is in the archive; run {agent.name}_monitor, or raise shadow.lookback_days."
        )
    if sample.over_budget:
        raise Refused(
            f"{agent.name}: scoring one request costs more than the {max_cost_usd:g} USD allowed; raise "
            "shadow.max_cost_usd, or name cheaper scorers in shadow.scorers."
        )
    why = ", ".join(f"{number} {reason}" for reason, number in sorted(sample.skipped.items()))
    raise Refused(
        f"{agent.name}: none of the {sample.recorded} recorded requests can be replayed ({why}); look at the column "
        "request of the table traces."
    )


def shadow_record(
    agent: Agent,
    asked: RegisteredVersion,
    champion: RegisteredVersion,
    sample: Sample,
    replay: Replay,
    scorers: Sequence[DeclaredScorer],
    left_out: Mapping[str, str],
) -> ShadowRecord:
    """What a replay says, held against the gate's settings of the comparison."""
    gate, pairs = agent.spec.eval.gate, replay.pairs
    left_out = {**left_out, **_silent(agent, pairs, [one.name for one in scorers])}
    names = [one.name for one in scorers if one.name not in left_out]
    thresholds = [t for t in gate.thresholds if t.metric.rpartition("/")[0] in names]
    compared = compare_pairs(pairs, thresholds, gate, seed=int(digest([one.trace_id for one in pairs], length=8), 16))
    metrics = []
    for metric, comparison in compared.items():
        ours, theirs = numbers(pairs, metric)
        how = metric.rpartition("/")[2]
        values = {"version": aggregate(ours, how), "champion": aggregate(theirs, how)}
        metrics.append({"metric": metric, **values, **asdict(comparison)})
    doubts = [doubt for one in thresholds for doubt in doubts_about(pairs, one, compared[one.metric])]
    outcome = overall([one.outcome for one in compared.values()])
    outcome = "unsure" if doubts and outcome != "worse" else outcome
    decisive = [one.sentence for one in compared.values() if one.outcome == outcome]
    skipped = {**sample.skipped, **({"gone from MLflow": len(replay.gone)} if replay.gone else {})}
    skipped |= {"over the budget": sample.over_budget} if sample.over_budget else {}
    prices = {one.name: one.spec.cost_per_call for one in scorers}
    return ShadowRecord(
        version=asked.version,
        model_id=asked.model_id,
        champion=champion.version,
        champion_model_id=champion.model_id,
        outcome=outcome,
        sentences=[*doubts, *decisive],
        recorded=sample.recorded,
        pairs=len(pairs),
        skipped=skipped,
        metrics=metrics,
        losses=largest_losses(pairs, {t.metric: t.higher_is_better for t in thresholds} | {ANSWERED: True}),
        left_out=left_out,
        cost_usd=sum(prices[name] * calls for name, calls in replay.calls.items()),
        run_id=replay.run_id,
        reused=replay.reused,
        url=replay.url,
    )


def _silent(agent: Agent, pairs: Sequence[Pair], names: Sequence[str]) -> dict[str, str]:
    """Scorers of the gate that do not count. One that `shadow.scorers` names does; when all are silent, all do."""
    silent = [] if agent.spec.shadow.scorers else silent_scorers(pairs, names)
    return {} if len(silent) == len(names) else dict.fromkeys(silent, "said nothing of any recorded request")


def _at_most(what: str, asked: float | None, least: float, allowed: float, field: str) -> float:
    """`asked`, or what is allowed when nothing was asked. Raises `Refused` for less than the least and for more."""
    if asked is not None and not least <= asked <= allowed:
        raise Refused(f"{what} is {asked:.12g}, {field} in defs.yaml allows {least:g} to {allowed:g}; correct either.")
    return allowed if asked is None else asked
