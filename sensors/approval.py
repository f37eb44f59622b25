"""Approval: a version that waits was approved or rejected.

Lives here: the pure naming of a decision, and the sensor that has it carried out.
Add here: a further place people decide at.
Not here: the tags (`lifecycle_assets/release/approval.py`), whether a decision counts (`release/decision.py`).
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from lifecycle_assets.release.aliases import CHALLENGER
from lifecycle_assets.spec_file import Agent
from resources.needs import ModelRegistry
from sensors.bounded import bounded
from sensors.look import Look
from sensors.opened import gateway
from sensors.watermark import ApprovalCursor

if TYPE_CHECKING:
    from lifecycle_assets.release.approval import Approval

CONTINUES = ("champion_alias", "deployment")
"""What a run does after a person has decided: the rest of a release."""


def run_key(version: str, approval: "Approval") -> str:
    """Names one decision: the same one is carried out once, and one made anew may be, also after a failed run."""
    from lifecycle_assets.records import digest

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
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from lifecycle_assets.release.approval import dated_approval
        from resources.store_glance import version_at

        if gate.approval == "none":
            return dg.SkipReason("The gate requires no approval.")
        before = ApprovalCursor.from_json(context.cursor)
        look = Look(agent, context, watched=[version_at(name, CHALLENGER)])
        if unchanged := look.unchanged(before):
            return dg.SensorResult(skip_reason=before.said, cursor=unchanged.to_json())
        registry: ModelRegistry = gateway(context, "registry")
        waits = registry.aliases(name).get(CHALLENGER, "")
        if not waits:
            return _nothing_to_do(look, "No version waits for approval.")
        # A decision set by hand gets its time here: a write that may be repeated, and decides nothing.
        approval = dated_approval(registry, registry.version(name, waits), gate, now=datetime.now(UTC))
        if not approval.decision:
            said = f'Version {waits} waits: lifecycle approve {agent.name} {waits} --reason "..."'
            return _nothing_to_do(look, said)
        request = dg.RunRequest(
            run_key=run_key(waits, approval),
            run_config=dg.RunConfig(ops={f"{agent.name}__champion_alias": {"config": {"to": waits}}}),
            asset_selection=[dg.AssetKey([agent.name, asset]) for asset in CONTINUES],
        )
        said = f"Version {waits} was {approval.decision}: see the runs of {agent.name}_release."
        return dg.SensorResult(run_requests=[request], cursor=look.noted(ApprovalCursor(said)).to_json())

    return sensor


def _nothing_to_do(look: Look, said: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=said, cursor=look.noted(ApprovalCursor(said)).to_json())
