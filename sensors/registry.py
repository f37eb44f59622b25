"""The sensors of one agent, in the order of the lifecycle.

Lives here: the list. Add here: a sensor. Not here: what it does.
"""

import dagster as dg

from lifecycle_assets.spec_file import Agent
from sensors.alerts import alert_sensor
from sensors.approval import approval_sensor
from sensors.drift import champion_drift_sensor
from sensors.labeling import label_sync_sensor, labeling_session_sensor
from sensors.landing import labels_landed_sensor
from sensors.rollback import rollback_sensor
from sensors.scorer_backfill import scorer_backfill_sensor


def agent_sensors(agent: Agent) -> list[dg.SensorDefinition]:
    """Every sensor of the agent."""
    return [
        scorer_backfill_sensor(agent),
        labeling_session_sensor(agent),
        label_sync_sensor(agent),
        labels_landed_sensor(agent),
        approval_sensor(agent),
        champion_drift_sensor(agent),
        rollback_sensor(agent),
        alert_sensor(agent),
    ]
