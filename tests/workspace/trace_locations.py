"""Places of traces in Unity Catalog, and the experiments linked to them.

Lives here: the location APIs, by table prefix and the older one by schema, and what a link leaves on an experiment.
Add here: a rule of the server about locations. Not here: spans and traces that go there (`otlp.py`).
"""

from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace, not_found
from tests.workspace.lake import Lake
from tests.workspace.otel_tables import SCHEMA_PREFIX, create_tables
from tests.workspace.traces import V4, Traces, needs_warehouse
from tests.workspace.tracking import Tracking

_V5 = "/api/5.0/mlflow"
_TAG = "mlflow.experiment.databricks"


class TraceLocations:
    """Locations by `catalog.schema[.prefix]`, and which experiment is linked to which.

    `by_prefix` off: a server that only knows locations by schema. `ingestion` off: a region without trace intake.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.known: dict[str, dict[str, Any]] = {}
        self.links: dict[str, str] = {}
        self.by_prefix = True
        self.ingestion = True

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("POST", f"{_V5}/tracing/locations", self.create),
            Route("GET", f"{_V5}/tracing/locations/{{location_id}}", self.get),
            Route("POST", f"{_V5}/experiments/{{experiment_id}}/trace-location:link", self.link),
            Route("POST", f"{V4}/location", self.create_schema),
            Route("POST", f"{V4}/{{experiment_id}}/link-location", self.link_schema),
            Route("POST", f"{V4}/{{experiment_id}}/unlink-location", self.unlink),
        ]

    def place_of_table(self, table: str) -> str | None:
        """The location whose spans go to the table."""
        return next((place for place in self.known if table == f"{tables_of(place)}_otel_spans"), None)

    def experiment_of(self, place: str) -> str:
        """The experiment linked to the location, empty when none is."""
        return next((id_ for id_, linked in self.links.items() if linked == place), "")

    def require_intake(self) -> None:
        """Refuse in a region without trace intake."""
        if not self.ingestion:
            raise Failure(400, "FEATURE_DISABLED", "OpenTelemetry on Databricks is not available in this region.")

    def create(self, call: Call) -> dict[str, Any]:
        """POST tracing/locations: the location by table prefix; a known one is given again."""
        self._require_prefix(call)
        asked = call.json["uc_table_prefix"]
        place = f"{asked['catalog_name']}.{asked['schema_name']}.{asked['table_prefix']}"
        if place not in self.known:
            self._creatable(call)
            kinds = ("spans", "logs", "metrics", "annotations")
            self.known[place] = {
                **{key: asked[key] for key in ("catalog_name", "schema_name", "table_prefix")},
                **{f"{kind}_table_name": f"{place}_otel_{kind}" for kind in kinds},
                "location_id": f"loc-{len(self.known)}",
            }
            create_tables(self.workspace, *split_place(place))
        return {"uc_table_prefix": self.known[place]}

    def get(self, call: Call) -> dict[str, Any]:
        """GET tracing/locations/{id}."""
        for location in self.known.values():
            if location.get("location_id") == call.parts["location_id"]:
                return {"uc_table_prefix": location}
        raise not_found(f"Trace location {call.parts['location_id']}")

    def link(self, call: Call) -> dict[str, Any]:
        """POST trace-location:link; once, and before the experiment has traces."""
        self._require_prefix(call)
        asked = call.json["uc_table_prefix"]
        self._link(call, f"{asked['catalog_name']}.{asked['schema_name']}.{asked['table_prefix']}")
        return {}

    def create_schema(self, call: Call) -> dict[str, Any]:
        """POST traces/location: the older location by schema; 409 for a known one."""
        self.require_intake()
        asked = call.json["uc_schema"]
        place = f"{asked['catalog_name']}.{asked['schema_name']}"
        if place in self.known:
            raise Failure(409, "ALREADY_EXISTS", f"Trace location {place} already exists.")
        self._creatable(call)
        self.known[place] = {
            "catalog_name": asked["catalog_name"],
            "schema_name": asked["schema_name"],
            "otel_spans_table_name": f"{SCHEMA_PREFIX}_otel_spans",
            "otel_logs_table_name": f"{SCHEMA_PREFIX}_otel_logs",
        }
        create_tables(self.workspace, *split_place(place))
        return {"uc_schema": self.known[place]}

    def link_schema(self, call: Call) -> dict[str, Any]:
        """POST traces/{experiment}/link-location."""
        asked = call.json["uc_schema"]
        self._link(call, f"{asked['catalog_name']}.{asked['schema_name']}")
        return {}

    def unlink(self, call: Call) -> dict[str, Any]:
        """POST traces/{experiment}/unlink-location."""
        self.links.pop(call.parts["experiment_id"], None)
        tags = self.workspace[Tracking].experiment(call.parts["experiment_id"])["tags"]
        for name in [name for name in tags if name.startswith(_TAG)]:
            del tags[name]
        return {}

    def _creatable(self, call: Call) -> None:
        needs_warehouse(call.json.get("sql_warehouse_id"))
        asked, lake = call.json.get("uc_table_prefix") or call.json["uc_schema"], self.workspace[Lake]
        schema = f"{asked['catalog_name']}.{asked['schema_name']}"
        if not lake.exists("SCHEMA", schema):
            raise Failure(404, "SCHEMA_DOES_NOT_EXIST", f"Schema '{schema}' does not exist.")
        if not lake.privileges.allowed("SCHEMA", schema, "CREATE_TABLE"):
            raise Failure(403, "PERMISSION_DENIED", f"User does not have CREATE TABLE on Schema '{schema}'.")

    def _link(self, call: Call, place: str) -> None:
        experiment_id = call.parts["experiment_id"]
        tags = self.workspace[Tracking].experiment(experiment_id)["tags"]
        if place not in self.known:
            raise not_found(f"Trace location {place}")
        if self.workspace[Traces].all(experiment_id):
            raise Failure(400, "BAD_REQUEST", f"Experiment {experiment_id} already contains traces.")
        if experiment_id in self.links:
            said = f"Experiment {experiment_id} is already linked to {self.links[experiment_id]}."
            raise Failure(400, "BAD_REQUEST", said)
        self.links[experiment_id] = place
        tags[f"{_TAG}TraceDestinationPath"] = place
        tags[f"{_TAG}TraceSpanStorageTable"] = f"{tables_of(place)}_otel_spans"
        tags[f"{_TAG}TraceLogStorageTable"] = f"{tables_of(place)}_otel_logs"
        if place.count(".") == 2:
            tags[f"{_TAG}TraceAnnotationsTable"] = f"{place}_otel_annotations"
            tags[f"{_TAG}TelemetryDestinationId"] = self.known[place]["location_id"]

    def _require_prefix(self, call: Call) -> None:
        if not self.by_prefix:
            raise Failure(404, "ENDPOINT_NOT_FOUND", f"No API found for '{call.method} {call.path}'")
        self.require_intake()


def tables_of(place: str) -> str:
    """What the full names of a location's tables begin with."""
    return place if place.count(".") == 2 else f"{place}.{SCHEMA_PREFIX}"


def split_place(place: str) -> tuple[str, str]:
    """`catalog.schema` and the prefix of the tables' names."""
    schema, _, prefix = tables_of(place).rpartition(".")
    return schema, prefix
