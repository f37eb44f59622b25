"""Alerts: one message for each failed run, each check that failed with ERROR, and each rollback.

Lives here: turning a finished run into messages (pure), and the sensor that sends them.
Add here: a further event people must be told of.
Not here: the transport (`resources/webhook.py`), the rules over daily numbers (`lifecycle_assets/quality.py`).
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from lifecycle_assets.jobs import is_run_of
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from sensors.opened import instance_of
from sensors.watermark import Watermark

RUNS_A_TICK = 50
"""Finished runs one tick tells of; the rest waits for the next tick."""

RUNS_READ = 1000
"""Finished runs one tick reads."""

LOOKBACK = timedelta(minutes=2)
"""How much later than another a run that ended earlier may appear in Dagster's storage."""

FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]


def messages_of(agent: str, run: dg.DagsterRun, evaluations: Iterable[dg.AssetCheckEvaluation]) -> list[dict[str, Any]]:
    """What is to be said of a finished run, each message under an id that names the event."""
    from lifecycle_assets.text import unescaped

    messages = []
    if is_run_of(agent, run) and run.status == dg.DagsterRunStatus.FAILURE:
        messages.append(_message(agent, run, "run_failed", run.run_id, f"run of {run.job_name} failed"))
    if run.job_name == f"{agent}_rollback" and run.status == dg.DagsterRunStatus.SUCCESS:
        text = f"champion was taken back by {run.tags.get('user', 'somebody')}: {_reason(agent, run)}"
        messages.append(_message(agent, run, "rolled_back", run.run_id, text[:1000]))
    for evaluation in evaluations:
        if evaluation.asset_key.path[0] == agent and not evaluation.passed and evaluation.severity.value == "ERROR":
            asset, check = evaluation.asset_key.to_user_string(), evaluation.check_name
            text = f"check {check} on {asset} failed: {unescaped(evaluation.description or '')}"
            messages.append(_message(agent, run, "check_failed", f"{run.run_id}:{asset}:{check}", text[:1000]))
    return messages


def _reason(agent: str, run: dg.DagsterRun) -> str:
    """The reason a rollback was asked for with."""
    asked: Any = run.run_config.get("ops", {})
    return str(asked.get(f"{agent}__champion_alias", {}).get("config", {}).get("reason", ""))


def _message(agent: str, run: dg.DagsterRun, kind: str, event_id: str, text: str) -> dict[str, Any]:
    return {
        "id": event_id,
        "agent": agent,
        "kind": kind,
        "text": f"{agent}: {text}",
        "run_id": run.run_id,
        "job": run.job_name,
    }


def alert_sensor(agent: Agent) -> dg.SensorDefinition:
    """Declare `<agent>_alert_sensor`."""

    @dg.sensor(
        name=f"{agent.name}_alert_sensor",
        target=dg.AssetSelection.assets(dg.AssetKey([agent.name, "quality_metrics"])),
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fires when a run failed, a check failed with ERROR, or the champion was taken back. Sends one "
        "message to the webhook. Never twice: the cursor moves past a run when its messages are sent, and a message "
        "carries the event's id.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from resources.webhook import configured

        seen = Watermark.from_json(context.cursor)
        if not seen.at:
            start = Watermark(datetime.now(UTC).isoformat())
            return dg.SensorResult(skip_reason="Watching from now on.", cursor=start.to_json())
        told, messages, fault = _told_of(agent, instance_of(context), seen)
        if fault and not told:
            raise fault
        # What was delivered is not sent again; the rest is, at the next tick.
        after = seen.advance(told, LOOKBACK).to_json()
        if not configured(agent.spec.alerts.webhook_env):
            reason = f"{messages} to tell; set {agent.spec.alerts.webhook_env} to be told."
        else:
            reason = f"{messages} messages sent. {fault or ''}".strip()
        return dg.SensorResult(skip_reason=reason, cursor=after)

    return sensor


def _told_of(agent: Agent, instance: dg.DagsterInstance, seen: Watermark) -> tuple[dict[str, str], int, Refused | None]:
    """Send the messages of every new run; returns runs told of and when they ended, messages, and what stopped it."""
    from resources.webhook import Webhook, configured

    finished = finished_runs(instance, seen)
    told = {run_id: at for at, run_id, _ in finished if run_id in seen.ids}
    known, messages = len(told), 0
    for at, run_id, run in [one for one in finished if one[1] not in seen.ids][:RUNS_A_TICK]:
        said = messages_of(agent.name, run, _evaluations(instance, run_id))
        try:
            for message in said if configured(agent.spec.alerts.webhook_env) else []:
                Webhook(agent.spec.alerts.webhook_env).post(message)
        except Refused as refusal:
            return (told if len(told) > known else {}), messages, refusal
        told[run_id] = at
        messages += len(said)
    return told, messages, None


def finished_runs(instance: dg.DagsterInstance, seen: Watermark) -> list[tuple[str, str, dg.DagsterRun]]:
    """When it ended, id, run of every run that ended since the watermark, in the order they ended.

    By the time a run ended, not by the time it was last written: a tag on an old run is no news.
    """
    after = seen.time - timedelta(seconds=1) if seen.time else None
    wanted = dg.RunsFilter(statuses=FINISHED, updated_after=after)
    records = instance.get_run_records(wanted, limit=RUNS_READ, order_by="update_timestamp", ascending=True)
    ended = [
        (datetime.fromtimestamp(record.end_time, UTC).isoformat(), record.dagster_run.run_id, record.dagster_run)
        for record in records
        if record.end_time
    ]
    return sorted((one for one in ended if one[0] >= seen.at), key=lambda one: one[:2])


def _evaluations(instance: dg.DagsterInstance, run_id: str) -> list[dg.AssetCheckEvaluation]:
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    return [entry.dagster_event.asset_check_evaluation_data for entry in entries if entry.dagster_event]
