"""The registered version of a logged model: its tags, and the proof that it loads.

Lives here: the steps under `uc_model_version`; no Dagster context.
Add here: a further fact a version states, a further proof.
Not here: one version a logged model (`resources/model_registry.py`), aliases (`promotion.py`).
"""

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from lifecycle_assets.records import EvalRecord, ModelRecord
from lifecycle_assets.release.approval import EVIDENCE_DIGEST, STATE, approval_state
from lifecycle_assets.spec_file import Agent
from resources import run_marks as marks
from resources.needs import ModelRegistry, RegisteredVersion
from resources.worker import Progress

LOADED_BACK = "lifecycle.loads_back"
"""Version tag: the answer of the version when it was loaded back, and with which MLflow and Python."""

TAG_CHARACTERS = 250
"""Characters of one fact a version states; the shortest limit of a registry is 1000 (Unity Catalog)."""


def register_version(
    agent: Agent, model: ModelRecord, evaluation: EvalRecord, *, registry: ModelRegistry, dagster_run_id: str
) -> RegisteredVersion:
    """The version of this logged model, registered on this evidence.

    What a person said of other evidence is taken back before the version names the new one: killed in between, the
    version is undecided on the old evidence, and the next run goes on from there.
    """
    name, gate = agent.spec.model_name, agent.spec.eval.gate
    there = next((one for one in registry.versions(name) if one.model_id == model.model_id), None)
    found = registry.version(name, there.version) if there else None
    approval = approval_state(found, evaluation.evidence_digest, gate, registry)
    return registry.register(name, model.model_id, version_tags(model, evaluation, approval, dagster_run_id))


def version_tags(model: ModelRecord, evaluation: EvalRecord, approval: str, dagster_run_id: str) -> dict[str, str]:
    """What a registered version says about where it comes from, and whether a person has to approve it."""
    tags = {
        "lifecycle.model_id": model.model_id,
        "lifecycle.eval_run_id": evaluation.run_id,
        "lifecycle.dataset_digest": evaluation.dataset_digest,
        "lifecycle.verdict": evaluation.verdict,
        STATE: approval,
        "lifecycle.git_commit": model.git_commit or "none",
        "lifecycle.dagster_run_id": dagster_run_id,
        EVIDENCE_DIGEST: evaluation.evidence_digest,
    }
    return {name: marks.shortened(value, TAG_CHARACTERS) for name, value in tags.items()}


def load_back(
    version: RegisteredVersion,
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
    proof = _proof(version.tags.get(LOADED_BACK, ""))
    if proof.get("with") != with_these:
        proof = {"with": with_these, "answer": registry.loads_back(version, request, progress=progress)}
        registry.tag_version(version.name, version.version, {LOADED_BACK: json.dumps(proof, ensure_ascii=False)})
    return str(proof.get("answer", ""))


def _proof(text: str) -> Mapping[str, Any]:
    """What the tag says; nothing when somebody wrote something else into it: the version is loaded again then."""
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
