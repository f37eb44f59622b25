"""Labels that landed: the evaluation dataset is not the one that was evaluated.

Lives here: the sensor that closes the cycle from people's labels back to an evaluation, which no edge can.
Add here: a further way in which a dataset changes.
Not here: merging labels (`lifecycle_assets/review/`), records and their digest (`resources/eval_dataset.py`).
"""

from dataclasses import replace

import dagster as dg

from lifecycle_assets.edges import latest
from lifecycle_assets.spec_file import Agent
from resources.needs import Evaluator
from sensors.bounded import bounded
from sensors.look import Look, under_way
from sensors.opened import gateway, instance_of
from sensors.watermark import LandedCursor

ASKED = ("eval_dataset", "eval_results")
"""What a changed dataset asks for: its record, and the logged model evaluated on it. No alias moves by that."""

RESTS_ON = ("eval_dataset", "logged_model")

AS_EVALUATED = "The evaluation dataset is the one that was last recorded."


def run_key(digest: str, recorded: tuple[int, float] | None) -> str:
    """Names a dataset by its digest, and the record it is newer than: going back and forth is news each time."""
    return f"dataset:{digest}:{recorded[0] if recorded else 0}"


def labels_landed_sensor(agent: Agent) -> dg.SensorDefinition:
    """Declare `<agent>_labels_landed_sensor`."""
    key = dg.AssetKey([agent.name, "eval_dataset"])

    @dg.sensor(
        name=f"{agent.name}_labels_landed_sensor",
        job_name=f"{agent.name}_release",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fires when the evaluation dataset's digest changed: labels of reviewers were merged, or somebody "
        "edited it in MLflow. Asks for eval_dataset and eval_results, and moves no alias. Never twice: the run key "
        "names the digest.",
    )
    @bounded
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from lifecycle_assets.records import DatasetRecord
        from resources.store_glance import evaluation_dataset

        before = LandedCursor.from_json(context.cursor)
        look = Look(agent, context, assets=RESTS_ON, watched=[evaluation_dataset(before.dataset, before.dataset_id)])
        if unchanged := look.unchanged(before):
            return dg.SensorResult(skip_reason=before.said, cursor=unchanged.to_json())
        instance = instance_of(context)
        recorded = latest(instance, key, DatasetRecord)
        if recorded is None or look.events[1] is None:
            return dg.SkipReason(f"Nothing was evaluated yet: run {agent.name}_release first.")
        look = look.watching([evaluation_dataset(recorded.name, recorded.dataset_id)])
        evaluator: Evaluator = gateway(context, "evaluator")
        held = evaluator.held(recorded)
        if held is None:
            return dg.SkipReason(f"Dataset {recorded.name} was deleted: run {agent.name}_release to make it again.")
        seen = LandedCursor(recorded.name, recorded.dataset_id, held.mark, recorded.digest, before.said)
        if (seen.mark, seen.recorded) == (before.mark, before.recorded):
            return dg.SensorResult(skip_reason=seen.said, cursor=look.noted(seen).to_json())
        if under_way(instance, agent.name):
            return dg.SkipReason(f"A run of {agent.name} is under way: the dataset is compared when it has ended.")
        now = held.digest()
        if now == recorded.digest:
            same = look.noted(replace(seen, said=AS_EVALUATED))
            return dg.SensorResult(skip_reason=AS_EVALUATED, cursor=same.to_json())
        request = dg.RunRequest(
            run_key=run_key(now, look.events[0]),
            asset_selection=[dg.AssetKey([agent.name, one]) for one in ASKED],
        )
        asked = replace(seen, said=f"Digest {now} was asked to be evaluated: see the runs of {agent.name}_release.")
        return dg.SensorResult(run_requests=[request], cursor=look.noted(asked).to_json())

    return sensor
