"""Scheduled scorers of the workspace's experiments, their versions, monitors and monitoring cadence.

Lives here: the managed-evals routes that keep scorers as they are declared.
Add here: a further setting of production monitoring.
Not here: running the scorers (`monitoring_job.py`).

The list is written as a whole: whoever patches it decides every entry. What the real server alone knows is a switch:
`versioned` (it numbers definitions), `numbers_as_text` (as JSON text, as a 64-bit number is sent),
`tells_backfill_job` (a monitor names its running backfill).
"""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace
from tests.workspace.tracking import Tracking

BASE = "/api/2.0/managed-evals"
MAX_ACTIVE = 20


class Scorers:
    """Scheduled scorers by experiment: `{name, serialized_scorer, builtin | custom, sample_rate, filter_string,
    scorer_version}`; absent until the first POST.

    `after_patch` is called with the experiment when a PATCH was answered: another writer of the list, for tests.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.lists: dict[str, list[dict[str, Any]]] = {}
        self.versions: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.minutes: dict[str, int] = {}
        self.backfill_jobs: dict[str, str] = {}
        self.versioned = True
        self.numbers_as_text = False
        self.tells_backfill_job = True
        self.after_patch: Callable[[str], None] | None = None

    def routes(self) -> list[Route]:
        """The routes of this part."""
        scheduled, versions = f"{BASE}/scheduled-scorers/{{experiment}}", "scorers/{key}/versions"
        return [
            Route("GET", scheduled, self.get),
            Route("PATCH", scheduled, self.patch),
            Route("POST", scheduled, self.create),
            Route("DELETE", scheduled, self.delete),
            Route("GET", f"{BASE}/experiments/{{experiment}}/{versions}", self.list_versions),
            Route("GET", f"{BASE}/experiments/{{experiment}}/{versions}/{{version}}", self.version),
            Route("GET", f"{BASE}/experiments/{{experiment}}/monitoring-configuration", self.cadence),
            Route("PATCH", f"{BASE}/experiments/{{experiment}}/monitoring-configuration", self.set_cadence),
            Route("POST", f"{BASE}/monitors", self.monitors),
        ]

    def scheduled(self, experiment_id: str) -> list[dict[str, Any]]:
        """The scheduled scorers of an experiment, in order."""
        return self.lists.get(experiment_id, [])

    def get(self, call: Call) -> dict[str, Any]:
        """GET scheduled-scorers/{experiment}: an empty list before the first POST."""
        experiment = self._experiment(call)
        some, token = self.workspace.page(self.scheduled(experiment), call)
        return self._shown(experiment, some) | ({"next_page_token": token} if token else {})

    def patch(self, call: Call) -> dict[str, Any]:
        """PATCH scheduled-scorers/{experiment}: the list becomes the one that was sent."""
        experiment = self._experiment(call)
        if experiment not in self.lists:
            raise Failure(404, "NOT_FOUND", f"Scheduled scorers for experiment {experiment} do not exist.")
        if call.json.get("update_mask") != "scheduled_scorers.scorers":
            raise Failure(400, "INVALID_PARAMETER_VALUE", f"Unsupported update_mask {call.json.get('update_mask')!r}.")
        self.put(experiment, call.json["scheduled_scorers"]["scorers"])
        answer = self._shown(experiment, self.scheduled(experiment))
        if self.after_patch:
            self.after_patch(experiment)
        return answer

    def create(self, call: Call) -> dict[str, Any]:
        """POST scheduled-scorers/{experiment}: once."""
        experiment = self._experiment(call)
        if experiment in self.lists:
            raise Failure(409, "ALREADY_EXISTS", f"Scheduled scorers for experiment {experiment} already exist.")
        self.put(experiment, call.json["scheduled_scorers"]["scorers"])
        return self._shown(experiment, self.scheduled(experiment))

    def delete(self, call: Call) -> dict[str, Any]:
        """DELETE scheduled-scorers/{experiment}."""
        self.lists.pop(self._experiment(call), None)
        return {}

    def put(self, experiment: str, scorers: list[dict[str, Any]]) -> None:
        """Make `scorers` the list; a definition that differs from the newest of its name becomes a new version."""
        names = [one["name"] for one in scorers]
        if len(set(names)) != len(names):
            raise Failure(400, "INVALID_PARAMETER_VALUE", "Scheduled scorers have duplicate names.")
        for one in scorers:
            if not 0 <= float(one.get("sample_rate") or 0) <= 1:
                raise Failure(400, "INVALID_PARAMETER_VALUE", f"sample_rate of {one['name']} is not within 0..1.")
        active = [one["name"] for one in scorers if float(one.get("sample_rate") or 0) > 0]
        if len(active) > MAX_ACTIVE:
            raise Failure(
                400, "RESOURCE_EXHAUSTED", f"{len(active)} active scorers; an experiment has at most {MAX_ACTIVE}."
            )
        self.lists[experiment] = [self._versioned(experiment, one) for one in scorers]

    def list_versions(self, call: Call) -> dict[str, Any]:
        """GET experiments/{experiment}/scorers/{key}/versions."""
        some, token = self.workspace.page(self._versions(call), call)
        return {"scorer_versions": some, **({"next_page_token": token} if token else {})}

    def version(self, call: Call) -> dict[str, Any]:
        """GET experiments/{experiment}/scorers/{key}/versions/{version}."""
        for one in self._versions(call):
            if str(one["scorer_version"]) == call.parts["version"]:
                return one
        raise Failure(404, "NOT_FOUND", f"Scorer version {call.parts['version']} does not exist.")

    def cadence(self, call: Call) -> dict[str, Any]:
        """GET experiments/{experiment}/monitoring-configuration; empty when the schedule was never set."""
        experiment = self._experiment(call)
        return {"frequency_minutes": self.minutes[experiment]} if experiment in self.minutes else {}

    def set_cadence(self, call: Call) -> dict[str, Any]:
        """PATCH experiments/{experiment}/monitoring-configuration; there must be scorers."""
        experiment = self._experiment(call)
        if not self.scheduled(experiment):
            raise Failure(404, "NOT_FOUND", f"No monitor exists for experiment {experiment}.")
        minutes = call.json["monitoring_configuration"]["frequency_minutes"]
        if not 1 <= minutes <= 60:
            raise Failure(400, "INVALID_PARAMETER_VALUE", f"frequency_minutes must be in [1, 60] but was {minutes}")
        self.minutes[experiment] = minutes
        return {"frequency_minutes": minutes}

    def monitors(self, call: Call) -> dict[str, Any]:
        """POST monitors {experiment_id}: the list of monitors; the first registration made one."""
        experiment = call.json["experiment_id"]
        if experiment not in self.lists:
            return {"monitor_infos": []}
        running = self.backfill_jobs.get(experiment) if self.tells_backfill_job else None
        return {
            "monitor_infos": [
                {
                    "monitor": {"experiment_id": experiment, "is_agent_external": True},
                    "endpoint_name": f"monitor_{experiment}",
                    **({"current_backfill_job_id": running} if running else {}),
                }
            ]
        }

    def _experiment(self, call: Call) -> str:
        self.workspace[Tracking].experiment(call.parts["experiment"])
        return call.parts["experiment"]

    def _shown(self, experiment: str, scorers: list[dict[str, Any]]) -> dict[str, Any]:
        hidden = () if self.versioned else ("scorer_version",)
        shown = [{key: value for key, value in one.items() if key not in hidden} for one in scorers]
        for one in shown if self.numbers_as_text and self.versioned else ():
            one["scorer_version"] = str(one["scorer_version"])
        return {"experiment_id": experiment, "scheduled_scorers": {"scorers": shown}}

    def _versioned(self, experiment: str, scorer: dict[str, Any]) -> dict[str, Any]:
        known = self.versions.setdefault((experiment, scorer["name"]), [])
        if not known or known[-1]["serialized_scorer"] != scorer["serialized_scorer"]:
            key = base64.urlsafe_b64encode(scorer["name"].encode()).decode().rstrip("=")
            number = len(known) + 1
            known.append(
                {
                    "name": f"experiments/{experiment}/scorers/{key}/versions/{number}",
                    "display_name": scorer["name"],
                    "serialized_scorer": scorer["serialized_scorer"],
                    "scorer_version": number,
                    "create_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
            )
        return {**json.loads(json.dumps(scorer)), "scorer_version": known[-1]["scorer_version"]}

    def _versions(self, call: Call) -> list[dict[str, Any]]:
        if not self.versioned:
            raise Failure(404, "NOT_FOUND", "Scorer versioning is not enabled for this workspace.")
        key = call.parts["key"]
        name = base64.urlsafe_b64decode(key + "=" * (-len(key) % 4)).decode()
        experiment = self._experiment(call)
        if name not in [one["name"] for one in self.scheduled(experiment)]:
            raise Failure(404, "NOT_FOUND", f"Scorer '{name}' does not exist.")
        return self.versions[(experiment, name)]
