"""Labeling: when a session opens, and when its labels are fetched.

Lives here: the pure decisions, and the two sensors over them.
Add here: a further fact that should bring people in.
Not here: which traces are chosen (`lifecycle_assets/review/`), opening the session (`resources/labeling_desk.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from lifecycle_assets.edges import latest
from lifecycle_assets.spec_file import Agent
from resources.needs import Archive, LabelingDesk, SqlEngine
from resources.platform import Platform
from sensors.bounded import bounded
from sensors.look import Look
from sensors.opened import gateway, instance_of
from sensors.watermark import LabelingCursor, SyncCursor

if TYPE_CHECKING:
    from lifecycle_assets.records import SessionRecord
    from lifecycle_assets.review.negative import Known

TABLES = ("traces", "assessments")
"""The tables by which a session's opening is decided."""

UNCHANGED = "Neither the archive nor the champion has changed since the last tick."

SYNCED = ("labeling_session", "human_labels")
NO_ITEM = "No item was completed since the last tick."


@dataclass(frozen=True)
class Opening:
    """A session that should open: its name is the fact it answers, so that it opens once."""

    name: str
    reason: str
    trace_ids: tuple[str, ...] = ()


def decide_opening(
    agent: str,
    *,
    negative: Sequence[str],
    threshold: int,
    sessions: "Sequence[SessionRecord]",
    champion: str,
    choosable: Callable[[], bool],
) -> Opening | None:
    """Whether a session should open now.

    Enough negative feedback since the last session comes first; then a champion under which no session was opened,
    once there is something of it to look at, which is asked last. A trace of an earlier session does not count again.
    """
    from lifecycle_assets.records import digest

    queued = {trace_id for session in sessions for trace_id in session.trace_ids}
    fresh = [trace_id for trace_id in negative if trace_id not in queued]
    if threshold and len(fresh) >= threshold:
        name = f"{agent}-feedback-{digest(sorted(fresh), length=8)}"
        return Opening(name, f"{len(fresh)} traces with negative feedback", tuple(fresh))
    if champion and all(session.champion_version != champion for session in sessions) and choosable():
        return Opening(f"{agent}-champion-v{champion}", f"version {champion} became champion")
    return None


def labeling_session_sensor(agent: Agent) -> dg.SensorDefinition:
    """Declare `<agent>_labeling_session_sensor`."""
    labeling, prefix = agent.spec.labeling, agent.spec.table_prefix

    @dg.sensor(
        name=f"{agent.name}_labeling_session_sensor",
        job_name=f"{agent.name}_labeling",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fires when enough traces got negative feedback, or a new champion has traces. Asks for a labeling "
        "session with them. Never twice: the session's name is the fact, and a queued trace is never queued again.",
    )
    @bounded
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from lifecycle_assets.records import ChampionRecord
        from lifecycle_assets.review.assets import sessions_of
        from lifecycle_assets.review.choosing import can_choose

        before = LabelingCursor.from_json(context.cursor)
        look = Look(agent, context, assets=["champion_alias"], tables=TABLES)
        if look.unchanged(before):
            return dg.SkipReason(UNCHANGED)
        sql: SqlEngine = gateway(context, "sql")
        instance = instance_of(context)
        record = look.latest("champion_alias", ChampionRecord)
        versions = "" if look.can_tell else versions_of(prefix, gateway(context, "archive"))
        seen = look.noted(LabelingCursor(versions, record.version if record else ""))
        if versions and seen == before:
            return dg.SkipReason(UNCHANGED)
        negative = negative_now(agent, sql, look, before)
        seen = knowing(seen, negative, look)
        scorer_prefix = f"{Platform.from_env().environment}_{agent.name}_"
        opening = decide_opening(
            agent.name,
            negative=negative.trace_ids,
            threshold=labeling.rules.negative_feedback,
            sessions=sessions_of(instance, agent.name),
            champion=seen.champion,
            choosable=partial(can_choose, sql, prefix, labeling, scorer_prefix, negative.trace_ids),
        )
        if opening is None:
            return dg.SensorResult(skip_reason="Nothing calls for a session yet.", cursor=seen.to_json())
        return dg.SensorResult(run_requests=[_open_request(agent.name, opening)], cursor=seen.to_json())

    return sensor


def versions_of(prefix: str, archive: Archive) -> str:
    """The newest versions of the tables, which cost a question each."""
    return ":".join(str(archive.version(prefix, table)) for table in TABLES)


def negative_now(agent: Agent, sql: SqlEngine, look: Look, before: LabelingCursor) -> "Known":
    """The newest traces with negative feedback; of days that did not change since the cursor, those it holds."""
    from lifecycle_assets.review.negative import Known, asking, negative_traces

    labeling, (asked, *commits) = agent.spec.labeling, before.commits or ("",)
    if not labeling.rules.negative_feedback:
        return Known()
    changed = look.days_changed(commits) if asked == asking() else None
    known = Known(before.negative, before.whole)
    return negative_traces(sql, agent.spec.table_prefix, labeling.max_items, known=known, changed=changed)


def knowing(cursor: LabelingCursor, negative: "Known", look: Look) -> LabelingCursor:
    """The cursor with an answer that began after a look, where the look can tell what changes from then on."""
    from lifecycle_assets.review.negative import asking

    kept, commits = negative.kept(), (asking(), *look.commits)
    return replace(cursor, negative=kept.traces, whole=kept.whole, commits=commits) if look.can_tell else cursor


def _open_request(agent: str, opening: Opening) -> dg.RunRequest:
    config = {"name": opening.name, "reason": opening.reason, "trace_ids": list(opening.trace_ids)}
    return dg.RunRequest(
        run_key=f"labeling:{opening.name}",
        run_config=dg.RunConfig(ops={f"{agent}__labeling_session": {"config": config}}),
        asset_selection=[dg.AssetKey([agent, "labeling_session"])],
    )


def label_sync_sensor(agent: Agent) -> dg.SensorDefinition:
    """Declare `<agent>_label_sync_sensor`."""

    @dg.sensor(
        name=f"{agent.name}_label_sync_sensor",
        job_name=f"{agent.name}_labeling",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fires when reviewers completed items. Asks for human_labels and judge_agreement. Never twice: the "
        "completions are compared with those last synced, and the cursor holds those last asked for.",
    )
    @bounded
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from lifecycle_assets.records import LabelsRecord
        from lifecycle_assets.review.assets import sessions_of
        from lifecycle_assets.review.labels import OPEN_SESSIONS, completions
        from resources.store_glance import completed_items

        before = SyncCursor.from_json(context.cursor)
        look = Look(agent, context, assets=SYNCED, watched=[*map(completed_items, before.sessions)])
        if unchanged := look.unchanged(before):
            return dg.SensorResult(skip_reason=NO_ITEM, cursor=unchanged.to_json())
        instance = instance_of(context)
        sessions = [session.session_id for session in sessions_of(instance, agent.name)[:OPEN_SESSIONS]]
        if not sessions:
            return dg.SkipReason("No labeling session was opened yet.")
        look = look.watching([*map(completed_items, sessions)])
        desk: LabelingDesk = gateway(context, "desk")
        found = completions({session: desk.items(session) for session in sessions})
        now = look.noted(SyncCursor(found, sessions=tuple(sessions)))
        synced = latest(instance, dg.AssetKey([agent.name, "human_labels"]), LabelsRecord)
        if now.completions in {"", before.completions, synced.completions if synced else ""}:
            return dg.SensorResult(skip_reason=NO_ITEM, cursor=now.to_json())
        request = dg.RunRequest(
            run_key=f"labels:{now.completions}",
            asset_selection=[dg.AssetKey([agent.name, name]) for name in ("human_labels", "judge_agreement")],
        )
        return dg.SensorResult(run_requests=[request], cursor=now.to_json())

    return sensor
