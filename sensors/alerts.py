"""Alerts: one message for each failed run, each check that begins to fail with ERROR, and each rollback.

Lives here: turning a finished run into messages (pure), and the sensor that sends them.
Add here: a further event people must be told of.
Not here: the transport (`resources/webhook.py`), the rules over daily numbers (`lifecycle_assets/quality.py`).
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from lifecycle_assets.jobs import is_run_of
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from sensors.opened import instance_of
from sensors.watermark import AlertCursor, Watermark

RUNS_A_TICK = 50
"""Finished runs one tick tells of; the rest waits for the next tick."""

RUNS_READ = 1000
"""Finished runs one tick reads."""

LOOKBACK = timedelta(minutes=2)
"""How much later than another a run that ended earlier may appear in Dagster's storage."""

OF_A_DAY = ("trace_scores", "archived_traces", "quality_metrics")
"""Assets whose checks judge the partition of the run; checks of others judge what is now."""

FAILING_KEPT = 2000
"""Failing checks that are remembered: 20 rules on each of 90 late days. Who forgets one tells of it again."""

FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]


def messages_of(
    agent: str,
    run: dg.DagsterRun,
    evaluations: Iterable[dg.AssetCheckEvaluation],
    failing: dict[str, None] | None = None,
) -> list[dict[str, Any]]:
    """What is to be said of a finished run, each message under an id that names the event.

    `failing` are the subjects (`subject_of`) people know to fail. It is brought up to date: what passes leaves it, what
    fails with ERROR enters it, and a warning, such as of a day that cannot be judged yet, changes nothing. A run of a
    partition repeats by the clock: it tells of what was not failing. Other runs were asked for and tell in any case.
    """
    from lifecycle_assets.text import unescaped

    known: dict[str, None] = {} if failing is None else failing
    messages = []
    if is_run_of(agent, run) and run.status == dg.DagsterRunStatus.FAILURE:
        messages.append(_message(agent, run, "run_failed", run.run_id, f"run of {run.job_name} failed"))
    if run.job_name == f"{agent}_rollback" and run.status == dg.DagsterRunStatus.SUCCESS:
        text = f"champion was taken back by {run.tags.get('user', 'somebody')}: {_reason(agent, run)}"
        messages.append(_message(agent, run, "rolled_back", run.run_id, text[:1000]))
    for evaluation in evaluations:
        if evaluation.asset_key.path[0] != agent:
            continue
        subject = subject_of(run, evaluation)
        key, asset, check = _kept_as(subject), evaluation.asset_key.to_user_string(), evaluation.check_name
        is_news = key not in known or not _day(run)
        if evaluation.passed:
            known.pop(key, None)
        elif evaluation.severity.value == "ERROR":
            if is_news:
                text = f"check {check} on {asset} failed: {unescaped(evaluation.description or '')}"
                event = f"{subject}:{evaluation.severity.value}:{run.run_id}"
                messages.append(_message(agent, run, "check_failed", event, text[:1000]))
            known.pop(key, None)
            known[key] = None  # Last: what has not been seen for longest is forgotten first.
    return messages


def subject_of(run: dg.DagsterRun, evaluation: dg.AssetCheckEvaluation) -> str:
    """What a check judged: `<agent>/<asset>:<check>`, and `:<day>` for a check of a day."""
    day = _day(run) if evaluation.asset_key.path[-1] in OF_A_DAY else ""
    return f"{evaluation.asset_key.to_user_string()}:{evaluation.check_name}" + (f":{day}" if day else "")


def _day(run: dg.DagsterRun) -> str:
    return run.tags.get("dagster/partition", "")


def _kept_as(subject: str) -> str:
    from lifecycle_assets.records import digest

    return digest(subject, length=12)


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
        description="Fires when a run failed, a check began to fail with ERROR, or the champion was taken back. Sends "
        "one message to the webhook. Never twice: the cursor moves past a run when its messages are sent, and a "
        "message carries the event's id. A check that fails again for the same day is no news until it has passed.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from resources.webhook import configured

        seen = AlertCursor.from_json(context.cursor)
        if not seen.at:
            start = AlertCursor(datetime.now(UTC).isoformat())
            return dg.SensorResult(skip_reason="Watching from now on.", cursor=start.to_json())
        failing = dict.fromkeys(seen.failing)
        told, messages, fault = _told_of(agent, instance_of(context), seen, failing)
        if fault and not told:
            raise fault
        # What was delivered is not sent again; the rest is, at the next tick.
        after = replace(seen.advance(told, LOOKBACK), failing=tuple(failing)[-FAILING_KEPT:]).to_json()
        if not configured(agent.spec.alerts.webhook_env):
            reason = f"{messages} to tell; set {agent.spec.alerts.webhook_env} to be told."
        else:
            reason = f"{messages} messages sent. {fault or ''}".strip()
        return dg.SensorResult(skip_reason=reason, cursor=after)

    return sensor


def _told_of(
    agent: Agent, instance: dg.DagsterInstance, seen: Watermark, failing: dict[str, None]
) -> tuple[dict[str, str], int, Refused | None]:
    """Send the messages of every new run; returns runs told of and when they ended, messages, and what stopped it.

    `failing` is as after the last run told of. What nobody could be told of, without a webhook, does not enter it.
    """
    from resources.webhook import Webhook, configured

    finished = finished_runs(instance, seen)
    told = {run_id: at for at, run_id, _ in finished if run_id in seen.ids}
    known, messages = len(told), 0
    is_heard = configured(agent.spec.alerts.webhook_env)
    for at, run_id, run in [one for one in finished if one[1] not in seen.ids][:RUNS_A_TICK]:
        after = dict(failing)
        said = messages_of(agent.name, run, _evaluations(instance, run_id), after)
        try:
            for message in said if is_heard else []:
                Webhook(agent.spec.alerts.webhook_env).post(message)
        except Refused as refusal:
            return (told if len(told) > known else {}), messages, refusal
        kept = [one for one in after if is_heard or one in failing]
        failing.clear()
        failing.update(dict.fromkeys(kept))
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
