"""Alerts: one message for each failed run and each check that failed with ERROR.

Lives here: turning a finished run into messages (pure), and the sensor that sends them.
Add here: a further event people must be told of.
Not here: the transport (`resources/webhook.py`), the rules over daily numbers (`lifecycle_assets/quality.py`).
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from lifecycle_assets.jobs import JOBS
from lifecycle_assets.spec_file import Agent
from resources.webhook import Webhook, configured
from sensors.watermark import Watermark

RUNS_A_TICK = 50
"""Finished runs one tick looks at; the rest waits for the next tick."""

FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]


def messages_of(agent: str, run: dg.DagsterRun, evaluations: Iterable[dg.AssetCheckEvaluation]) -> list[dict[str, Any]]:
    """What is to be said of a finished run, each message under an id that names the event."""
    messages = []
    selected = {key.path[0] for key in run.asset_selection or ()}
    mine = run.job_name in {f"{agent}_{job}" for job in JOBS} or agent in selected
    if mine and run.status == dg.DagsterRunStatus.FAILURE:
        messages.append(_message(agent, run, "run_failed", run.run_id, f"run of {run.job_name} failed"))
    for evaluation in evaluations:
        if evaluation.asset_key.path[0] == agent and not evaluation.passed and evaluation.severity.value == "ERROR":
            asset, check = evaluation.asset_key.to_user_string(), evaluation.check_name
            text = f"check {check} on {asset} failed: {evaluation.description or ''}"
            messages.append(_message(agent, run, "check_failed", f"{run.run_id}:{asset}:{check}", text[:1000]))
    return messages


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
        description="Fires when a run failed or a check failed with ERROR. Sends one message to the webhook. "
        "Never twice: the cursor moves past a run when its messages are sent, and a message carries the event's id.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        seen = Watermark.from_json(context.cursor)
        if not seen.at:
            start = Watermark(datetime.now(UTC).isoformat())
            return dg.SensorResult(skip_reason="Watching from now on.", cursor=start.to_json())
        sent = []
        for record in finished_runs(context.instance, seen):
            at = record.update_timestamp.replace(tzinfo=UTC).isoformat()
            sent += messages_of(agent.name, record.dagster_run, _evaluations(context.instance, record))
            seen = seen.advance(at, record.dagster_run.run_id)
        return _deliver(agent, sent, seen)

    return sensor


def finished_runs(instance: dg.DagsterInstance, seen: Watermark) -> list[dg.RunRecord]:
    """Runs that finished after the watermark, oldest first, `RUNS_A_TICK` at most."""
    after = seen.time - timedelta(seconds=1) if seen.time else None
    wanted = dg.RunsFilter(statuses=FINISHED, updated_after=after)
    records = instance.get_run_records(wanted, limit=RUNS_A_TICK, order_by="update_timestamp", ascending=True)
    return [
        record
        for record in records
        if seen.is_new(record.update_timestamp.replace(tzinfo=UTC).isoformat(), record.dagster_run.run_id)
    ]


def _evaluations(instance: dg.DagsterInstance, record: dg.RunRecord) -> list[dg.AssetCheckEvaluation]:
    entries = instance.all_logs(record.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    return [entry.dagster_event.asset_check_evaluation_data for entry in entries if entry.dagster_event]


def _deliver(agent: Agent, messages: list[dict[str, Any]], seen: Watermark) -> dg.SensorResult:
    if not configured(agent.spec.alerts.webhook_env):
        reason = f"{len(messages)} to tell; set {agent.spec.alerts.webhook_env} to be told."
        return dg.SensorResult(skip_reason=reason, cursor=seen.to_json())
    for message in messages:
        Webhook(agent.spec.alerts.webhook_env).post(message)
    return dg.SensorResult(skip_reason=f"{len(messages)} messages sent.", cursor=seen.to_json())
