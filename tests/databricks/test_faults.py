"""What people read when the workspace, the network or the sign-in is at fault."""

import time

import pytest

from lifecycle_assets.refused import Refused
from resources.databricks.workspace import open_workspace
from resources.explain import explained
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from tests.databricks.conftest import forget_clients
from tests.workspace.app import Workspace


def refusal_of_mlflow(platform: Platform, name: str = "/agents/tiny") -> str:
    forget_clients()
    with pytest.raises(Refused) as refused, explained(platform.tracking_uri):
        experiment_id(platform, name)
    return str(refused.value)


def test_a_rejected_sign_in(databricks: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-wrong")
    said = refusal_of_mlflow(databricks)
    assert "does not accept the sign-in" in said
    assert "databricks auth login" in said
    assert "dapi" not in said, "a token must not be shown"
    open_workspace.cache_clear()
    with pytest.raises(Refused, match="does not accept the sign-in"), explained(databricks.tracking_uri):
        open_workspace(databricks).current_user.me()
    open_workspace.cache_clear()


def test_no_sign_in_at_all(databricks: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_TOKEN")
    assert "No sign-in to Databricks is configured" in refusal_of_mlflow(databricks)
    with pytest.raises(Refused, match="databricks auth login"):
        open_workspace(Platform.from_env({"LIFECYCLE_PLATFORM": "databricks", "LIFECYCLE_HOME": "/tmp/nobody"}))


def test_permission_and_features(databricks: Platform, workspace: Workspace) -> None:
    workspace.fail("get-by-name", status=403, error_code="PERMISSION_DENIED", message="User a has no MANAGE on b")
    said = refusal_of_mlflow(databricks)
    assert "denies permission (User a has no MANAGE on b)" in said
    assert "lifecycle doctor" in said
    workspace.fail("get-by-name", status=404, error_code="FEATURE_DISABLED", message="Feature X is not enabled")
    assert "feature is not enabled" in refusal_of_mlflow(databricks)
    workspace.fail("get-by-name", status=404, error_code="NOT_FOUND", message="Catalog 'nope' does not exist.")
    assert "CREATE CATALOG nope" in refusal_of_mlflow(databricks)
    workspace.fail("get-by-name", kind="truncated")
    assert "the connection broke" in refusal_of_mlflow(databricks)


def test_a_busy_and_an_absent_workspace(
    databricks: Platform, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT", "2")
    workspace.fail("get-by-name", status=429, retry_after=1, times=100)
    assert "429 or 503" in refusal_of_mlflow(databricks)
    monkeypatch.setenv("DATABRICKS_HOST", "http://127.0.0.1:9")
    assert "127.0.0.1:9 does not answer; correct DATABRICKS_HOST" in refusal_of_mlflow(databricks)


def test_a_long_retry_after_is_not_slept(databricks: Platform, workspace: Workspace) -> None:
    workspace.fail("scim/v2/Me", status=429, retry_after=3600, times=100)
    began = time.monotonic()
    with pytest.raises(Refused, match="429 or 503"), explained(databricks.tracking_uri):
        open_workspace(databricks, seconds=1).current_user.me()
    assert time.monotonic() - began < 15
    open_workspace.cache_clear()


def test_the_folder_of_an_experiment_must_be_there(databricks: Platform, workspace: Workspace) -> None:
    why = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Parent directory /agents does not exist."}
    workspace.fail("POST .*/experiments/create", status=404, **why)
    said = refusal_of_mlflow(databricks, "/agents/tiny")
    assert "has no folder /agents; make it (databricks workspace mkdirs /agents)" in said


def test_an_experiment_must_be_an_absolute_path(databricks: Platform) -> None:
    assert "is not an absolute path" in refusal_of_mlflow(databricks, "docs agent")
