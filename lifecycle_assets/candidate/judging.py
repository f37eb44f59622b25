"""What is said of a candidate: its record, its verdict and its health as asset checks; plain steps, no context.

Lives here: evaluating the champion for comparison, the evaluation's record, the checks on model and evaluation.
Add here: a further thing to say about a candidate.
Not here: the verdict's rules (`gate.py`), the assets (`assets.py`).
"""

from collections.abc import Sequence

import dagster as dg

from lifecycle_assets.gate import Evidence, Verdict, failing_scorers, metric_value
from lifecycle_assets.records import DatasetRecord, EvalRecord
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_release import AGGREGATIONS, Gate
from lifecycle_assets.text import plain, table, thresholds_plot
from resources.evaluator import Evaluated, Evaluator
from resources.model_registry import LoggedModel, ModelRegistry
from resources.worker import Progress


def model_checks(agent: Agent, logged: LoggedModel) -> list[dg.AssetCheckResult]:
    """What can be said of a model that was logged and has answered."""
    unpinned = [line for line in logged.requirements if "==" not in line and not line.startswith("-")]
    declared = len(agent.spec.agent.resources)
    return [
        dg.AssetCheckResult(check_name="set_model_present", passed=True),
        dg.AssetCheckResult(
            check_name="smoke_prediction",
            passed=True,
            metadata={"answer": plain(logged.answer), "seconds": logged.smoke_seconds},
        ),
        dg.AssetCheckResult(
            check_name="resources_declared",
            passed=logged.resources == declared,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{logged.resources} of {declared} declared resources are on the model.",
        ),
        dg.AssetCheckResult(
            check_name="requirements_pinned",
            passed=not unpinned,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"Not pinned: {', '.join(map(plain, unpinned))}; add ==."
            if unpinned
            else "Every one is pinned.",
        ),
        dg.AssetCheckResult(
            check_name="signature_present",
            passed=logged.has_signature,
            severity=dg.AssetCheckSeverity.WARN,
            description=""
            if logged.has_signature
            else "No signature: make the agent a ResponsesAgent, or give type hints.",
        ),
    ]


def evaluate_champion(
    agent: Agent,
    candidate_id: str,
    dataset: DatasetRecord,
    registry: ModelRegistry,
    evaluator: Evaluator,
    *,
    progress: Progress,
) -> Evaluated | None:
    """The champion's evaluation on the same dataset and scorers; None when nobody, or the candidate, is champion."""
    champion = registry.aliases(agent.spec.model_name).get("champion")
    if champion is None or agent.spec.eval.gate.incumbent is None:
        return None
    version = next((v for v in registry.versions(agent.spec.model_name) if v.version == champion), None)
    if version is not None and version.model_id == candidate_id:
        return None
    if version is None or not version.model_id:
        progress(f"champion is version {champion}, which no logged model is linked to: nothing to compare with")
        return Evaluated("", Evidence("", dataset.digest, {}, 0, {}), 0, reused=False, at="")
    progress(f"comparing with the champion, version {champion} ({version.model_id})")
    return evaluator.evaluate(agent, version.model_id, dataset, progress=progress)


def eval_record(
    dataset: DatasetRecord, evaluated: Evaluated, incumbent: Evaluated | None, verdict: Verdict, gate: Gate
) -> EvalRecord:
    """The evaluation and its verdict as the record the release half rests on."""
    evidence = evaluated.evidence
    metrics = {
        f"{scorer}/{aggregation}": value
        for scorer in evidence.outcomes
        for aggregation in AGGREGATIONS
        if (value := metric_value(evidence, f"{scorer}/{aggregation}")) is not None
    }
    return EvalRecord(
        run_id=evaluated.run_id,
        model_id=evidence.model_id,
        dataset_name=dataset.name,
        dataset_digest=evidence.dataset_digest,
        scorers=dict(evidence.scorers),
        rows=evidence.rows,
        rows_digest="",
        source_digest="",
        git_commit="",
        findings=[],
        comparison="none",
        incumbent_rows_digest="",
        actor="",
        dagster_run_id="",
        errors=sum(1 for outcomes in evidence.outcomes.values() for outcome in outcomes if outcome.error),
        metrics=metrics,
        verdict=verdict.verdict,
        reasons=list(verdict.reasons),
        incumbent_run_id=incumbent.run_id if incumbent else "",
        incumbent_model_id=incumbent.evidence.model_id if incumbent else "",
        gate_digest=gate.digest,
        at=evaluated.at,
    )


def eval_checks(verdict: Verdict, evaluated: Evaluated, gate: Gate) -> list[dg.AssetCheckResult]:
    """The verdict and the scorers' health as asset checks."""
    rows = [(f.metric, f.value, f.limit, f.incumbent, f.passed) for f in verdict.findings]
    metadata: dict[str, dg.MetadataValue] = {
        "findings": table(
            ["metric", "value", "limit", "champion", "rows", "passed"],
            [
                (f.metric, f.value, f"{f.direction} {f.limit:g}", f.incumbent, f.rows, f.passed)
                for f in verdict.findings
            ],
        )
    }
    if rows:
        metadata["plot"] = thresholds_plot("Candidate against its thresholds", rows)
    failures = _failures(evaluated)
    return [
        dg.AssetCheckResult(
            check_name="gate",
            passed=verdict.lets_through,
            severity=dg.AssetCheckSeverity.ERROR,
            description=" ".join(plain(reason, 500) for reason in verdict.reasons) or "Every threshold is reached.",
            metadata=metadata,
        ),
        dg.AssetCheckResult(
            check_name="scorers_ran",
            passed=not _dead_scorers(evaluated.evidence) and not failing_scorers(evaluated.evidence, gate),
            description=" ".join(failures)
            or f"{len(evaluated.evidence.outcomes)} scorers answered {evaluated.evidence.rows} rows.",
            metadata={"agent_errors": evaluated.agent_errors},
        ),
    ]


def _dead_scorers(evidence: Evidence) -> list[str]:
    """Scorers that did not answer every row, or failed on all of them; any scorer when there are no rows."""
    return [
        scorer
        for scorer, outcomes in evidence.outcomes.items()
        if len(outcomes) != evidence.rows or not outcomes or all(outcome.error for outcome in outcomes)
    ] or ([] if evidence.rows and evidence.outcomes else ["all"])


def _failures(evaluated: Evaluated) -> Sequence[str]:
    sentences = []
    for scorer, outcomes in evaluated.evidence.outcomes.items():
        errors = [outcome.error for outcome in outcomes if outcome.error]
        if errors:
            sentences.append(f"{scorer} failed on {len(errors)} of {len(outcomes)} rows: {plain(errors[0])}")
    if not evaluated.evidence.rows:
        sentences.append("The evaluation has no rows: add records to the evaluation dataset.")
    return sentences
