"""Approval: a version that waits was approved or rejected.

Lives here: the pure naming of a decision, and the sensor that has it carried out.
Add here: a further place people decide at.
Not here: the tags (`lifecycle_assets/release/approval.py`), whether a decision counts (`release/decision.py`).
"""

from datetime import UTC, datetime

import dagster as dg

from lifecycle_assets.records import digest
from lifecycle_assets.release.aliases import CHALLENGER
from lifecycle_assets.release.approval import Approval, dated_approval
from lifecycle_assets.spec_file import Agent
from resources.model_registry import ModelRegistry
from sensors.bounded import bounded

CONTINUES = ("champion_alias", "deployment")
"""What a run does after a person has decided: the rest of a release."""


def run_key(version: str, approval: Approval) -> str:
    """Names one decision: the same one is carried out once, and one made anew may be, also after a failed run."""
    about = digest([approval.evidence, approval.at, approval.by, approval.reason])
    return f"approval:{version}:{approval.decision}:{about}"


def approval_sensor(agent: Agent) -> dg.SensorDefinition:
    """Declare `<agent>_approval_sensor`."""
    gate, name = agent.spec.eval.gate, agent.spec.model_name

    @dg.sensor(
        name=f"{agent.name}_approval_sensor",
        job_name=f"{agent.name}_release",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fires when the waiting version (challenger) was approved or rejected, by lifecycle approve or by "
        f"the version tag {gate.approval_tag}. Asks for champion_alias and deployment. Never twice: the run key names "
        "version, decision, evidence and time. Nothing waits in a run meanwhile.",
    )
    @bounded
    def sensor(
        context: dg.SensorEvaluationContext, registry: dg.ResourceParam[ModelRegistry]
    ) -> dg.RunRequest | dg.SkipReason:
        if gate.approval == "none":
            return dg.SkipReason("The gate requires no approval.")
        waits = registry.aliases(name).get(CHALLENGER, "")
        if not waits:
            return dg.SkipReason("No version waits for approval.")
        # A decision set by hand gets its time here: a write that may be repeated, and decides nothing.
        approval = dated_approval(registry, registry.version(name, waits), gate, now=datetime.now(UTC))
        if not approval.decision:
            return dg.SkipReason(f'Version {waits} waits: lifecycle approve {agent.name} {waits} --reason "..."')
        return dg.RunRequest(
            run_key=run_key(waits, approval),
            run_config=dg.RunConfig(ops={f"{agent.name}__champion_alias": {"config": {"to": waits}}}),
            asset_selection=[dg.AssetKey([agent.name, asset]) for asset in CONTINUES],
        )

    return sensor
