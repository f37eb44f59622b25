"""The unmodified clients reach the emulated workspace."""

import pytest

from lifecycle_assets.refused import Refused
from resources.mlflow_store import experiment_id, open_client
from resources.platform import Platform
from tests.workspace.app import Workspace


def test_an_experiment_is_made_once(databricks: Platform, workspace: Workspace) -> None:
    made = experiment_id(databricks, "/agents/tiny")
    assert open_client(databricks).get_experiment(made).name == "/agents/tiny"
    assert experiment_id(databricks, "/agents/tiny") == made
    assert len(workspace.calls("POST .*/experiments/create")) == 1


def test_another_tracking_uri_is_refused() -> None:
    with pytest.raises(Refused, match="MLFLOW_TRACKING_URI is 'http://host'"):
        Platform.from_env({"LIFECYCLE_PLATFORM": "databricks", "MLFLOW_TRACKING_URI": "http://u:p@host"})
