"""Moving the alias `champion`: what is required, and the move itself.

Lives here: the steps under `uc_model_version` and `champion_alias`; no Dagster context.
Add here: a further condition of a move.
Not here: the gate's rules (`gate.py`), the assets (`release.py`).
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from lifecycle_assets.records import EvalRecord, ModelRecord, VersionRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHAMPION, PREVIOUS
from lifecycle_assets.spec_release import Gate
from resources.archive import Archive
from resources.model_registry import ModelRegistry, RegisteredVersion
from resources.sql_engine import SqlEngine
from resources.worker import Progress

PROMOTIONS = "promotions"
LOADED_BACK = "lifecycle.loads_back"
"""Version tag: the answer of the version when it was loaded back, and with which MLflow and Python."""


def require_evidence(evaluation: EvalRecord, model_id: str, gate: Gate, *, now: datetime) -> None:
    """Raise `Refused` unless `evaluation` is about `model_id`, lets it through and is young enough."""
    if evaluation.model_id != model_id:
        raise Refused(
            f"The evaluation {evaluation.run_id} is about {evaluation.model_id}, not about {model_id}: "
            "materialize eval_results for this model."
        )
    allowed = {
        "passed",
        *({"dry_run"} if gate.mode == "dry_run" else ()),
        *({"ungated"} if gate.mode == "disabled" else ()),
    }
    if evaluation.verdict not in allowed:
        why = " ".join(evaluation.reasons) or "The gate did not pass."
        raise Refused(f"The verdict on {model_id} is '{evaluation.verdict}': {why}")
    if evaluation.gate_digest != gate.digest:
        raise Refused(
            f"The evaluation {evaluation.run_id} was held against another gate than defs.yaml declares now: "
            "materialize eval_results again."
        )
    age = now - datetime.fromisoformat(evaluation.at)
    if age > gate.longest_age:
        raise Refused(
            f"The evaluation {evaluation.run_id} is {age.days} days old, {gate.max_age} is allowed: "
            "materialize eval_results again."
        )


def version_tags(model: ModelRecord, evaluation: EvalRecord, gate: Gate, dagster_run_id: str) -> dict[str, str]:
    """What a registered version says about where it comes from, and whether a person had to approve it."""
    return {
        "lifecycle.model_id": model.model_id,
        "lifecycle.eval_run_id": evaluation.run_id,
        "lifecycle.dataset_digest": evaluation.dataset_digest,
        "lifecycle.evidence_digest": evaluation.evidence_digest,
        "lifecycle.verdict": evaluation.verdict,
        "lifecycle.approval": "not_required" if gate.approval == "none" else "required",
        "lifecycle.git_commit": model.git_commit or "none",
        "lifecycle.dagster_run_id": dagster_run_id,
    }


def load_back(
    version: RegisteredVersion,
    model_id: str,
    request: Mapping[str, Any],
    *,
    registry: ModelRegistry,
    progress: Progress,
) -> str:
    """The answer of the version, loaded from the registry in a process of its own.

    A version never changes: what was loaded back with the same MLflow and Python is not loaded again. The tag that
    says so is written after the answer, so that an interrupted try is repeated.
    """
    with_these = f"mlflow {metadata.version('mlflow')}, python {platform.python_version()}"
    proof = json.loads(version.tags.get(LOADED_BACK, "{}"))
    if proof.get("with") != with_these:
        proof = {"with": with_these, "answer": registry.loads_back(version, request, progress=progress)}
        registry.register(version.name, model_id, {LOADED_BACK: json.dumps(proof, ensure_ascii=False)})
    return proof["answer"]


@dataclass(frozen=True)
class Move:
    """A move of `champion`, or the finding that it was there (`moved` False)."""

    from_version: str
    moved: bool
    at: str


def promote(
    version: VersionRecord,
    evaluation: EvalRecord,
    *,
    prefix: str,
    registry: ModelRegistry,
    archive: Archive,
    sql: SqlEngine,
    dagster_run_id: str,
    actor: str,
    gate: Gate,
) -> Move:
    """Point `champion` at `version`, `previous` at who was, and write the row of `promotions`.

    Why a rerun is safe: `previous` is set before `champion`, and the row is written when the ledger's last move is
    not to this version. A run that died between alias and row leaves the alias moved and the row missing; the next
    run finds exactly that and writes the row.
    """
    aliases = registry.aliases(version.name)
    current = aliases.get(CHAMPION, "")
    last = last_move(sql, prefix)
    if current == version.version and last and last["to_version"] == version.version:
        return Move(last["from_version"], moved=False, at=last["at"].isoformat(timespec="seconds"))
    if gate.incumbent is not None and current not in ("", version.version):
        model = next((v.model_id for v in registry.versions(version.name) if v.version == current), "")
        if evaluation.incumbent_model_id != model:
            raise Refused(
                f"Version {version.version} was not compared with the champion, version {current}: "
                "materialize eval_results again."
            )
    # Moved without a row: by a run that died, or by hand. Either way the graph left it where the ledger says.
    former = (last["to_version"] if last else "") if current == version.version else current
    if former and former != version.version:
        registry.set_alias(version.name, PREVIOUS, former)
    if registry.aliases(version.name).get(CHAMPION, "") != current:
        raise Refused(f"{version.name}: champion was moved by somebody else meanwhile: run again to decide anew.")
    registry.set_alias(version.name, CHAMPION, version.version)
    seen = registry.aliases(version.name).get(CHAMPION, "")
    if seen != version.version:
        raise Refused(
            f"{version.name}: champion was set to version {version.version} and now reads '{seen}': somebody else "
            "moved it at the same time; look at lifecycle history, then run again."
        )
    now = datetime.now(UTC)
    archive.append_once(
        prefix,
        PROMOTIONS,
        {
            "at": now,
            "alias": CHAMPION,
            "from_version": former,
            "to_version": version.version,
            "model_id": version.model_id,
            "decision": evaluation.verdict,
            "reason": " ".join(evaluation.reasons) or "The evaluation reached every threshold.",
            "actor": actor,
            "evidence": json.dumps(evaluation.to_json(), sort_keys=True),
            "dagster_run_id": dagster_run_id,
        },
        key=("alias", "at"),
    )
    return Move(former, moved=True, at=now.isoformat(timespec="seconds"))


def last_move(sql: SqlEngine, prefix: str) -> Mapping[str, Any] | None:
    """The newest row of `promotions` for `champion`, None when there is none."""
    rows = sql.query(prefix, 'SELECT * FROM promotions WHERE alias = ? ORDER BY "at" DESC LIMIT 1', [CHAMPION]).dicts()
    return rows[0] if rows else None
