"""What is said of a candidate: its record, its verdict and its health as asset checks; plain steps, no context.

Lives here: evaluating the champion for comparison, the evaluation's record, the checks on model and evaluation.
Add here: a further thing to say about a candidate.
Not here: the verdict's rules (`gate.py`), the assets (`assets.py`).
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from lifecycle_assets.gate import Evidence, Finding, Verdict, failing_scorers, metric_value, rows_digest
from lifecycle_assets.records import DatasetRecord, EvalRecord, ModelRecord
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_release import AGGREGATIONS, Gate
from lifecycle_assets.text import differences_plot, literal, plain, table, thresholds_plot
from resources.evaluator import Evaluated
from resources.needs import Evaluator, LoggedModel, ModelRegistry
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
            metadata={"answer": literal(logged.answer), "seconds": logged.smoke_seconds},
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
    """The champion's evaluation on the same dataset and scorers; None when nobody, or the candidate, is champion.

    It is made anew only when there is none about this dataset digest and these scorer versions: a logged model never
    changes, so that the age of what it answered says nothing. None, too, when the gate compares nothing.
    """
    gate = agent.spec.eval.gate
    champion = registry.aliases(agent.spec.model_name).get(CHAMPION)
    if champion is None or gate.incumbent is None or gate.mode == "disabled":
        return None
    version = next((v for v in registry.versions(agent.spec.model_name) if v.version == champion), None)
    if version is not None and version.model_id == candidate_id:
        return None
    if version is None or not version.model_id:
        progress(f"champion is version {champion}, which no logged model is linked to: nothing to compare with")
        return Evaluated("", Evidence("", dataset.digest, {}, 0, {}, []), 0, reused=False, at="")
    progress(f"comparing with the champion, version {champion} ({version.model_id})")
    return evaluator.evaluate(agent, version.model_id, dataset, progress=progress, any_age=True)


def eval_record(
    model: ModelRecord,
    dataset: DatasetRecord,
    evaluated: Evaluated,
    incumbent: Evaluated | None,
    verdict: Verdict,
    gate: Gate,
    *,
    actor: str,
    dagster_run_id: str,
) -> EvalRecord:
    """The whole decision, as the record the release half rests on. Its size does not depend on the number of rows."""
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
        source_digest=model.source_digest,
        git_commit=model.git_commit,
        dataset_name=dataset.name,
        dataset_digest=evidence.dataset_digest,
        scorers=dict(evidence.scorers),
        rows=evidence.rows,
        rows_digest=rows_digest(evidence),
        errors=sum(1 for outcomes in evidence.outcomes.values() for outcome in outcomes if outcome.failure),
        metrics=metrics,
        verdict=verdict.verdict,
        reasons=list(verdict.reasons),
        findings=[finding.to_json() for finding in verdict.findings],
        comparison=verdict.comparison,
        incumbent_run_id=incumbent.run_id if incumbent else "",
        incumbent_model_id=incumbent.evidence.model_id if incumbent else "",
        incumbent_rows_digest=rows_digest(incumbent.evidence) if incumbent and incumbent.run_id else "",
        gate_digest=gate.digest,
        at=evaluated.at,
        actor=actor,
        dagster_run_id=dagster_run_id,
    )


def eval_checks(verdict: Verdict, evaluated: Evaluated, gate: Gate) -> list[dg.AssetCheckResult]:
    """The verdict and the scorers' health as asset checks.

    Anything but a passed gate is shown as a failed check; only a verdict that blocks has the severity that does. In a
    mode that lets everything through, scorers that failed are shown and block nothing either.
    """
    compared = [one.comparison for one in verdict.findings if one.comparison]
    return [
        dg.AssetCheckResult(
            check_name="gate",
            passed=verdict.verdict == "passed",
            severity=dg.AssetCheckSeverity.WARN if verdict.lets_through else dg.AssetCheckSeverity.ERROR,
            description=" ".join(plain(reason, 500) for reason in verdict.reasons)
            or " ".join(["Every threshold is reached.", *(plain(one.sentence, 500) for one in compared)]),
            metadata=_shown(verdict),
        ),
        dg.AssetCheckResult(
            check_name="scorers_ran",
            passed=not _dead_scorers(evaluated.evidence) and not failing_scorers(evaluated.evidence, gate),
            severity=dg.AssetCheckSeverity.ERROR if gate.mode == "enforce" else dg.AssetCheckSeverity.WARN,
            description=" ".join(_failures(evaluated))
            or f"{len(evaluated.evidence.outcomes)} scorers answered {evaluated.evidence.rows} rows.",
            metadata={"agent_errors": evaluated.agent_errors},
        ),
    ]


def _shown(verdict: Verdict) -> dict[str, dg.MetadataValue]:
    """The findings as a table and as pictures."""
    shown: dict[str, dg.MetadataValue] = {"verdict": dg.MetadataValue.text(verdict.verdict)}
    if not verdict.findings:
        return shown
    columns = ["metric", "candidate", "limit", "champion", "difference", "outcome", "rows", "errors", "passed"]
    shown["comparison"] = dg.MetadataValue.text(verdict.comparison.replace("_", " "))
    shown["findings"] = table(columns, [_cells(finding) for finding in verdict.findings])
    rows = [(f.metric, f.value, f.limit, f.incumbent, f.passed) for f in verdict.findings]
    shown["plot"] = thresholds_plot("Candidate against its thresholds", rows)
    differences = [
        (f.metric, one.difference, one.low, one.high, one.allowed, one.outcome.replace("_", " "))
        for f in verdict.findings
        if (one := f.comparison) is not None and one.difference is not None
    ]
    if differences:
        shown["differences"] = differences_plot("Candidate against champion, on the same records", differences)
    return shown


def _cells(finding: Finding) -> list[Any]:
    one = finding.comparison
    limit, errors = f"{finding.direction} {finding.limit:g}", f"{finding.error_rate:.1%}"
    difference, outcome = "", ""
    if one is not None:
        outcome = one.outcome.replace("_", " ") + (f", about {one.needed} rows needed" if one.needed else "")
        difference = "" if one.difference is None else f"{one.difference:.3g}"
        if one.low is not None and one.high is not None:
            difference += f" ({one.low:.3g} to {one.high:.3g})"
    candidate, champion = finding.value, finding.incumbent
    return [
        finding.metric,
        candidate,
        limit,
        champion,
        difference,
        outcome,
        finding.rows,
        errors,
        finding.passed,
    ]


def _dead_scorers(evidence: Evidence) -> list[str]:
    """Scorers that did not answer every row, or failed on all of them; any scorer when there are no rows."""
    return [
        scorer
        for scorer, outcomes in evidence.outcomes.items()
        if len(outcomes) != evidence.rows or not outcomes or all(outcome.failure for outcome in outcomes)
    ] or ([] if evidence.rows and evidence.outcomes else ["all"])


def _failures(evaluated: Evaluated) -> Sequence[str]:
    sentences = []
    for scorer, outcomes in evaluated.evidence.outcomes.items():
        errors = [outcome.failure for outcome in outcomes if outcome.failure]
        if errors:
            sentences.append(f"{scorer} failed on {len(errors)} of {len(outcomes)} rows: {plain(errors[0])}")
    if not evaluated.evidence.rows:
        sentences.append("The evaluation has no rows: add records to the evaluation dataset.")
    return sentences
