"""The emulator's own promises: unknown routes, faults, the log."""

import pytest
import requests

from tests.workspace.server import served_workspace


def test_faults_and_the_log() -> None:
    with served_workspace() as workspace:
        url, head = f"{workspace.url}/api/2.0/mlflow/experiments", {"Authorization": f"Bearer {workspace.token}"}
        assert requests.post(f"{url}/create", json={"name": "/a"}, timeout=5).status_code == 401
        made = requests.post(f"{url}/create", json={"name": "/a"}, headers=head, timeout=5)
        assert made.json() == {"experiment_id": "1000"}
        workspace.fail("POST .*/create", kind="status", status=429, retry_after=1)
        refused = requests.post(f"{url}/create", json={"name": "/b"}, headers=head, timeout=5)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        for kind in ("reset", "lost", "truncated"):
            workspace.fail("POST .*/create", kind=kind)
            with pytest.raises(requests.exceptions.RequestException):
                requests.post(f"{url}/create", json={"name": f"/{kind}"}, headers=head, timeout=5)
        made = requests.post(f"{url}/search", json={}, headers=head, timeout=5).json()["experiments"]
        assert [one["name"] for one in made] == ["/a", "/lost", "/truncated"], "a reset request did nothing"
        assert requests.get(f"{workspace.url}/api/2.0/nothing", headers=head, timeout=5).status_code == 404
        assert workspace.unknown == ["GET /api/2.0/nothing"]
        assert len(workspace.calls("POST .*/create")) == 6
