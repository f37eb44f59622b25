"""What agent evaluation tells the workspace besides traces and runs.

Lives here: the usage events of `mlflow.genai.evaluate`.
Add here: another route below `/api/2.0/agents`.
Not here: managed evaluations (`scorers.py`, `datasets.py`, `review_apps.py`).
"""

from typing import Any

from tests.workspace.app import Call, Route, Workspace


class AgentEvents:
    """Usage events as they came."""

    def __init__(self, workspace: Workspace) -> None:
        self.events: list[dict[str, Any]] = []

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [Route("POST", "/api/2.0/agents/evaluation-client-usage-events", self.take)]

    def take(self, call: Call) -> dict[str, Any]:
        """POST agents/evaluation-client-usage-events."""
        self.events += call.json["agent_evaluation_client_usage_events"]
        return {}
