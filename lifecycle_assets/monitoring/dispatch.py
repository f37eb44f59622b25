"""From an asset with daily partitions to its step, wherever that runs.

Lives here: the one translation between Dagster's context and a step of plain values.
Add here: nothing but what every partitioned asset hands to its step.
Not here: the steps (`steps.py`), the places they run (`resources/compute.py`).
"""

from collections.abc import Mapping
from datetime import date
from typing import Any

import dagster as dg

from lifecycle_assets.monitoring.listening import telling
from lifecycle_assets.monitoring.steps import STEPS, DayStep
from lifecycle_assets.records import Record
from lifecycle_assets.spec_file import Agent
from resources.compute import StepRequest
from resources.needs import Compute


def materialize(
    context: dg.AssetExecutionContext,
    agent: Agent,
    compute: Compute,
    *,
    gateways: Mapping[str, Any],
    inputs: Mapping[str, Record] | None = None,
) -> dg.MaterializeResult:
    """The materialization of the asset that runs: its step on the day of the partition, where the agent declares it.

    `inputs` are records of other assets by name. Raises `Refused` when the step does.
    """
    name, day = context.asset_key.path[-1], date.fromisoformat(context.partition_key)
    given = {asset: record.to_json() for asset, record in (inputs or {}).items()}
    step = DayStep(agent, day, given, gateways, telling(context.run.run_id, context.log.info))
    return compute.run(context, agent, StepRequest(name, day, given), lambda: STEPS[name](step)).to_result()
