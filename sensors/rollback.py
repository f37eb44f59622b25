"""Rollback without being asked: a fresh champion that is worse in production than the version before it.

Lives here: the pure decision over windows, and the sensor over it.
Add here: a further condition under which a champion is taken back.
Not here: reading the windows (`lifecycle_assets/monitoring/windows.py`), the rollback itself
(`lifecycle_assets/release/rollback.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from lifecycle_assets.jobs import rollback_config
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHAMPION, PREVIOUS
from lifecycle_assets.spec import AgentSpec
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_release import Rollback, RollbackRule
from resources.needs import AliasLedger, Evaluator, ModelRegistry, SqlEngine
from resources.platform import Platform
from sensors.bounded import bounded
from sensors.look import Look
from sensors.opened import gateway
from sensors.watermark import RollbackCursor

if TYPE_CHECKING:
    from lifecycle_assets.monitoring.windows import Compared
    from lifecycle_assets.records import AliasMove

SAID = 1000
"""Characters of a sentence that the cursor keeps, to be said again while nothing changes."""

ASKED = "asked to be taken back before: see the runs of the job."


@dataclass(frozen=True)
class Fresh:
    """A champion that may be taken back: its version and model, its predecessor's, and since when it is champion."""

    version: str
    model_id: str
    former: str
    former_model_id: str
    since: datetime

    @property
    def run_key(self) -> str:
        """Names this champion from this promotion on: one automatic rollback."""
        return f"rollback:{self.version}:{self.since.isoformat()}"


def fresh_champion(moves: "Sequence[AliasMove]", champion: str, *, now: datetime, days: int) -> Fresh | str:
    """The champion of the ledger's `moves` when it is fresh; otherwise a sentence that says why nothing is judged.

    `champion` is who it is in MLflow. A champion that a rollback brought back is not judged: nothing may swing.
    """
    from lifecycle_assets.release.standing import ROLLED_BACK, champion_moves

    changes = champion_moves(moves)
    if not changes or not changes[-1].after[CHAMPION]:
        return "Nobody is champion: there is nothing to watch."
    last = changes[-1]
    version, former, since = last.after[CHAMPION], last.before.get(CHAMPION, ""), datetime.fromisoformat(last.at)
    if champion != version:
        return f"champion was moved outside Dagster, from version {version} to {champion or 'nobody'}: not judged."
    if last.decision == ROLLED_BACK:
        return f"Version {version} is champion by a rollback: it is not taken back by itself."
    if now - since > timedelta(days=days):
        return (
            f"Version {version} is champion since {since:%Y-%m-%d %H:%M} UTC: no longer fresh, by fresh_days: {days}."
        )
    models = {move.after[CHAMPION]: move.model_id for move in changes[:-1]}
    if not models.get(former) or models[former] == last.model_id:
        return f"Version {version} follows nobody it can be held against."
    return Fresh(version, last.model_id, former, models[former], since)


def drop_of(compared: "Compared", *, higher_is_better: bool, min_traces: int) -> float | None:
    """By how much the champion is worse in that window; None when either side has too few traces to be judged."""
    ours, theirs = compared.ours, compared.theirs
    if ours is None or theirs is None or min(ours.n, theirs.n) < min_traces:
        return None
    return theirs.value - ours.value if higher_is_better else ours.value - theirs.value


def breaches(drops: Sequence[float | None], *, max_drop: float, recovered_at: float) -> list[bool]:
    """Which windows breach, oldest first.

    Above `max_drop` a number breaches, and it goes on breaching until it has come back to `recovered_at` (a share) of
    it. A window that is not judged does not breach, and ends no breach either.
    """
    found, breached = [], False
    for drop in drops:
        if drop is not None:
            breached = drop > (max_drop * recovered_at if breached else max_drop)
        found.append(breached and drop is not None)
    return found


def find_breach(rollback: Rollback, compared: "Mapping[str, Sequence[Compared]]", higher: Mapping[str, bool]) -> str:
    """A sentence on the first rule that `k` of the last `n` windows breach, the newest included; empty for none.

    `compared` holds windows by metric, oldest first; those before the last `n` only say how a breach began.
    """
    for rule in rollback.rules:
        rows = compared[rule.metric]
        drops = [drop_of(row, higher_is_better=higher[rule.metric], min_traces=rollback.min_traces) for row in rows]
        found = breaches(drops, max_drop=rule.max_drop, recovered_at=rollback.recovered_at)[-rollback.n :]
        if found and found[-1] and sum(found) >= rollback.k:
            return _sentence(rule, rows[-1], sum(found), len(found))
    return ""


def _sentence(rule: RollbackRule, newest: "Compared", count: int, of: int) -> str:
    assert newest.ours is not None  # A window without numbers does not breach.
    assert newest.theirs is not None
    return (
        f"{rule.metric} is {newest.ours.value:.4g} from {newest.window.start:%Y-%m-%d %H:%M} to "
        f"{newest.window.end:%H:%M} UTC ({newest.ours.n} traces), and was {newest.theirs.value:.4g} before at the same "
        f"hours of the week ({newest.theirs.n}): worse than {rule.max_drop:g} allows in {count} of {of} windows."
    )


def directions(spec: AgentSpec) -> dict[str, bool]:
    """Whether higher is better, by metric of the declared rules.

    A mean of a scorer is, unless the gate declares it with `at_most`; error rate and latency never are.
    """
    lower = {t.metric.rpartition("/")[0] for t in spec.eval.gate.thresholds if not t.higher_is_better}
    scorers = {f"{scorer.name}/mean" for scorer in spec.scorers if scorer.name not in lower}
    return {rule.metric: rule.metric in scorers for rule in spec.rollback.rules}


def rollback_sensor(agent: Agent) -> dg.SensorDefinition:
    """Declare `<agent>_rollback_sensor`."""
    rules, prefix = agent.spec.rollback, agent.spec.table_prefix
    on = dg.DefaultSensorStatus.RUNNING if rules.automatic else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name=f"{agent.name}_rollback_sensor",
        job_name=f"{agent.name}_rollback",
        minimum_interval_seconds=60,
        default_status=on,
        description="Fires when a fresh champion is worse in production than the version before it was at the same "
        "hours of the week, in k of the last n windows, as rollback in defs.yaml declares. Asks for the job rollback. "
        "Never twice: the run key names the champion and its promotion, and a champion that a rollback brought back "
        "is not judged. Off unless rollback.automatic is true.",
    )
    @bounded
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from lifecycle_assets.monitoring.windows import archived_until

        if not rules.automatic:
            return dg.SkipReason(
                "rollback.automatic is not true in defs.yaml: nobody is taken back without being asked."
            )
        seen, look = RollbackCursor.from_json(context.cursor), look_at(agent, context)
        if unchanged := look.unchanged(seen):
            return dg.SensorResult(skip_reason=seen.said, cursor=unchanged.to_json())
        ledger: AliasLedger = gateway(context, "ledger")
        registry: ModelRegistry = gateway(context, "registry")
        evaluator: Evaluator = gateway(context, "evaluator")
        sql: SqlEngine = gateway(context, "sql")
        now, moves = datetime.now(UTC), [entry.move for entry in ledger.entries(agent)]
        aliases = registry.aliases(agent.spec.model_name)
        fresh = fresh_champion(moves, aliases.get(CHAMPION, ""), now=now, days=rules.fresh_days)
        if isinstance(fresh, str):
            return _skipped(look, seen, fresh)
        if seen.fired == fresh.run_key:
            return _skipped(look, seen, f"Version {fresh.version} was {ASKED}")
        settle = timedelta(minutes=agent.spec.archive.settle_minutes)
        until = archived_until(sql, prefix, since=(now - timedelta(days=1)).date(), settle=settle)
        if until is None or (fresh.run_key, until.isoformat()) == (seen.champion, seen.until):
            return _skipped(look, seen, f"Nothing new was archived: {agent.name}_monitor does that every hour.")
        breach = judge(agent, sql, fresh, until)
        judged = look.noted(RollbackCursor(fresh.run_key, until.isoformat()))
        if not breach:
            return _skipped(look, judged, f"Version {fresh.version} holds what its rules ask.")
        return _asked(agent, fresh, breach, moves, aliases.get(PREVIOUS, ""), registry, evaluator, judged)

    return sensor


def look_at(agent: Agent, context: dg.SensorEvaluationContext) -> Look:
    """A look at what is judged: the aliases, the ledger, and the archived traces.

    Time alone makes no champion worse: it only ends being fresh.
    """
    from resources import store_glance
    from resources.alias_ledger import LEDGER, deciding_experiment

    name = agent.spec.model_name
    watched = (store_glance.aliases(name), store_glance.run_named_by(name, deciding_experiment(agent), LEDGER))
    return Look(agent, context, tables=["traces"], watched=watched)


def _skipped(look: Look, cursor: RollbackCursor, said: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=said, cursor=look.noted(replace(cursor, said=said)).to_json())


def judge(agent: Agent, sql: SqlEngine, fresh: Fresh, until: datetime) -> str:
    """Read the windows that the rules look at, and what they breach; see `find_breach`.

    Twice the declared `n`, so that a breach that began before them is known as one.
    """
    from lifecycle_assets.monitoring.windows import compare_windows, complete_windows

    rules, spec = agent.spec.rollback, agent.spec
    windows = complete_windows(since=fresh.since, until=until, hours=rules.window_hours, at_most=2 * rules.n)
    environment = Platform.from_env().environment
    compared = compare_windows(
        sql,
        spec.table_prefix,
        windows=windows,
        hours=rules.window_hours,
        model_id=fresh.model_id,
        other_model_id=fresh.former_model_id,
        metrics=[rule.metric for rule in rules.rules],
        scorer_names={scorer.name: f"{environment}_{agent.name}_{scorer.name}" for scorer in spec.scorers},
    )
    return find_breach(rules, compared, directions(spec))


def _asked(
    agent: Agent,
    fresh: Fresh,
    breach: str,
    moves: "Sequence[AliasMove]",
    previous: str,
    registry: ModelRegistry,
    evaluator: Evaluator,
    judged: RollbackCursor,
) -> dg.SensorResult:
    """The request for a rollback; without a gated version to go to, the sentence that says so."""
    from lifecycle_assets.records import REASON_CHARACTERS
    from lifecycle_assets.release.rollback import choose_target, gated_verdicts, verdicts_of

    try:
        target = choose_target(
            champion=fresh.version,
            previous=previous,
            moves=moves,
            versions={one.version: one for one in registry.versions(agent.spec.model_name)},
            accepted=gated_verdicts(agent.spec.eval.gate) - {"ungated"},
            verdict=verdicts_of(evaluator),
        )
    except Refused as refusal:
        said = f"{breach} {refusal}"[:SAID]
        return dg.SensorResult(skip_reason=said, cursor=replace(judged, said=said).to_json())
    config = rollback_config(
        agent.name, to=target.after[CHAMPION], reason=breach[:REASON_CHARACTERS], taken_back=fresh.version
    )
    request = dg.RunRequest(run_key=fresh.run_key, run_config=config, tags={"user": f"{agent.name}_rollback_sensor"})
    asked = replace(judged, fired=fresh.run_key, said=f"Version {fresh.version} was {ASKED}")
    return dg.SensorResult(run_requests=[request], cursor=asked.to_json())
