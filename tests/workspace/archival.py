"""Native trace archival: an experiment's traces copied into a Delta table by a job of the workspace.

Lives here: switching it on and off, and one round of the job, which a tick does.
Add here: a rule of the server about archival. Not here: the table's columns (`otel_tables.py`).
"""

from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace, not_found
from tests.workspace.lake import Lake
from tests.workspace.otel_tables import put_row, trace_columns, trace_row
from tests.workspace.traces import Traces
from tests.workspace.tracking import Tracking

_ONE = "/api/2.0/managed-evals/experiments/{experiment_id}/trace-archival"


class Archival:
    """Experiment id to the table its traces are archived into. `assessment_name` is how the table calls that field."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.tables: dict[str, str] = {}
        self.assessment_name = "name"
        self.json_values = True
        workspace.every_tick(self.work)

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [Route("POST", _ONE, self.enable), Route("DELETE", _ONE, self.disable)]

    def enable(self, call: Call) -> dict[str, Any]:
        """POST trace-archival: 409 when it is on, 404 for an unknown experiment and for a missing schema alike."""
        experiment_id, table = call.parts["experiment_id"], call.json["archive_table_fullname"]
        self.workspace[Tracking].experiment(experiment_id)
        if experiment_id in self.tables:
            raise Failure(409, "ALREADY_EXISTS", f"Trace archival is already configured for {experiment_id}.")
        if table.rpartition(".")[0].lower() not in self.workspace[Lake].schemas:
            raise not_found(f"Schema '{table.rpartition('.')[0]}'")
        self.tables[experiment_id] = table
        return {"job_id": str(7000 + len(self.tables))}

    def disable(self, call: Call) -> dict[str, Any]:
        """DELETE trace-archival: 404 when it is not on."""
        if self.tables.pop(call.parts["experiment_id"], None) is None:
            raise not_found(f"Trace archival of {call.parts['experiment_id']}")
        return {}

    def work(self) -> None:
        """One round of the job: new and changed traces of every archived experiment go into its table."""
        lake = self.workspace[Lake]
        for experiment_id, table in self.tables.items():
            columns = trace_columns("DOUBLE", self.assessment_name)
            lake.create_table(table, columns)
            for trace in self.workspace[Traces].all(experiment_id):
                row = trace_row(trace, name=self.assessment_name, json_values=self.json_values)
                put_row(lake, table, columns, row)
