"""Assessments on traces, kept in an experiment or in Unity Catalog.

Lives here: creating, updating, overriding, reading and deleting them, by both versions of the API.
Add here: a rule of the server about assessments. Not here: the traces (`traces.py`).
"""

import re
import uuid
from datetime import UTC, datetime
from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace, not_found
from tests.workspace.otlp import UcTraces
from tests.workspace.traces import V3, V4, Traces

_UC = f"{V4}/{{location}}/{{trace_id}}/assessments"


class Assessments:
    """Assessments are held in the infos of their traces; this part only writes them."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("POST", f"{V3}/{{trace_id}}/assessments", lambda call: self._v3(self.create(call))),
            Route("GET", f"{V3}/{{trace_id}}/assessments/{{assessment_id}}", lambda call: self._v3(self.get(call))),
            Route("PATCH", f"{V3}/{{trace_id}}/assessments/{{assessment_id}}", lambda c: self._v3(self.update(c))),
            Route("DELETE", f"{V3}/{{trace_id}}/assessments/{{assessment_id}}", self.delete),
            Route("POST", _UC, lambda call: self._v4(call, self.create(call))),
            Route("GET", f"{_UC}/{{assessment_id}}", lambda call: self._v4(call, self.get(call))),
            Route("PATCH", f"{_UC}/{{assessment_id}}", lambda call: self._v4(call, self.update(call))),
            Route("DELETE", f"{_UC}/{{assessment_id}}", self.delete),
        ]

    def add(self, trace_id: str, assessment: dict[str, Any]) -> dict[str, Any]:
        """Put an assessment on a trace; an id that is there already is refused, an overridden one turns invalid."""
        said = self._on(trace_id)
        made = {"assessment_id": f"a-{uuid.uuid4().hex}", "create_time": _now(), "valid": True, **assessment}
        made = {"last_update_time": made["create_time"], "metadata": {}, **made, "trace_id": trace_id}
        made.pop("trace_location", None)
        if any(one["assessment_id"] == made["assessment_id"] for one in said):
            raise Failure(400, "ALREADY_EXISTS", f"Assessment {made['assessment_id']} already exists.")
        for one in said:
            if one["assessment_id"] == made.get("overrides"):
                one["valid"] = False
        said.append(made)
        self._stored(trace_id)
        return made

    def create(self, call: Call) -> dict[str, Any]:
        """POST assessments: in the older version the body wraps the assessment."""
        return self.add(_trace_of(call), call.json.get("assessment") or call.json)

    def get(self, call: Call) -> dict[str, Any]:
        """GET an assessment."""
        for one in self._on(_trace_of(call)):
            if one["assessment_id"] == call.parts["assessment_id"]:
                return one
        raise not_found(f"Assessment {call.parts['assessment_id']}")

    def update(self, call: Call) -> dict[str, Any]:
        """PATCH an assessment: the fields its mask names; metadata is merged."""
        one = self.get(call)
        changes = call.json.get("assessment") or call.json
        mask = call.query.get("update_mask") or call.json.get("update_mask") or ""
        for field in (re.sub(r"[A-Z]", lambda m: "_" + m[0].lower(), name) for name in mask.split(",") if name):
            if field == "metadata":
                one["metadata"] = {**one.get("metadata", {}), **changes.get("metadata", {})}
            else:
                one[field] = changes.get(field)
        one["last_update_time"] = _now()
        self._stored(_trace_of(call))
        return one

    def delete(self, call: Call) -> dict[str, Any]:
        """DELETE an assessment."""
        self._on(_trace_of(call)).remove(self.get(call))
        self._stored(_trace_of(call))
        return {}

    def _on(self, trace_id: str) -> list[dict[str, Any]]:
        return self.workspace[Traces].get(trace_id)["info"]["assessments"]

    def _stored(self, trace_id: str) -> None:
        if trace_id.startswith("trace:/"):
            self.workspace[UcTraces].assessed(trace_id)

    def _v3(self, assessment: dict[str, Any]) -> dict[str, Any]:
        return {"assessment": assessment}

    def _v4(self, call: Call, assessment: dict[str, Any]) -> dict[str, Any]:
        location = self.workspace[Traces].get(_trace_of(call))["info"]["trace_location"]
        return {**assessment, "trace_id": call.parts["trace_id"], "trace_location": location}


def _trace_of(call: Call) -> str:
    location = call.parts.get("location")
    return f"trace:/{location}/{call.parts['trace_id']}" if location else call.parts["trace_id"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
