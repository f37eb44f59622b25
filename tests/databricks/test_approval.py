"""Approval in a workspace: the tag of a deployment job's approval task, under the names Unity Catalog takes."""

from datetime import UTC, datetime
from typing import Any

import pytest

from lifecycle_assets.release.approval import Approval, dated_approval, read_approval, reset_approval, write_approval
from lifecycle_assets.spec_release import Gate
from resources.databricks.registry.model_registry import UnityModelRegistry
from resources.platform import Platform
from tests.workspace.app import Workspace
from tests.workspace.unity_models import UnityModels

NAME = "main.agents.tiny"
AT = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def tags(workspace: Workspace) -> dict[str, str]:
    """The tags of version 1 as the workspace holds them."""
    info = {"name": NAME, "version": "1", "creation_timestamp": 1, "last_updated_timestamp": 1, "status": "READY"}
    held = {"lifecycle_model_id": "m-1", "lifecycle_eval_run_id": "run-1", "lifecycle_evidence_digest": "e-1"}
    version: dict[str, Any] = {"info": info, "tags": held, "polls": None}
    model = {"info": {"name": NAME}, "tags": {}, "aliases": {}, "versions": {"1": version}, "made": 1}
    workspace[UnityModels].models[NAME] = model
    return held


@pytest.mark.parametrize(
    ("declared", "stored"),
    [
        ("Approval_Check", "Approval_Check"),
        ("lifecycle.approval", "lifecycle_approval"),
        ("Approval-Check", "Approval_Check"),
    ],
)
def test_a_tag_set_in_the_workspace_is_seen_dated_and_taken_back(
    databricks: Platform, tags: dict[str, str], declared: str, stored: str
) -> None:
    """What a process remembers of a version hid the tag: it was read before the person set it."""
    registry = UnityModelRegistry(databricks)
    gate = Gate.model_validate({"mode": "disabled", "approval": "required", "approval_tag": declared})
    (known,) = registry.versions(NAME)
    assert read_approval(known, gate, registry) == Approval()

    tags[stored] = "Approved"
    version = registry.version(NAME, "1")
    assert read_approval(version, gate, registry) == Approval("approved", evidence="e-1")
    assert dated_approval(registry, version, gate, now=AT).at == AT.isoformat()
    seen = read_approval(registry.version(NAME, "1"), gate, registry)
    assert seen == Approval("approved", at=AT.isoformat(), evidence="e-1")
    assert tags[stored] == "Approved", "the person's own tag stays as it is"

    reset_approval(registry, registry.version(NAME, "1"), gate)
    assert tags[stored] == "required"
    assert read_approval(registry.version(NAME, "1"), gate, registry) == Approval()

    given = Approval("rejected", "ann", "x" * 500, AT.isoformat(), "e-1")
    write_approval(registry, registry.version(NAME, "1"), gate, given)
    assert (tags[stored], tags["lifecycle_approval"]) == ("rejected", "rejected")
    assert read_approval(registry.version(NAME, "1"), gate, registry) == given
    assert len(tags) <= 9, "a version in Unity Catalog holds a bounded number of tags"
