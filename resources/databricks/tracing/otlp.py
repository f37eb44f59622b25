"""Agents outside Databricks that send OpenTelemetry spans by themselves.

Lives here: the variables with which any OpenTelemetry SDK or collector writes into the agent's trace tables.
Add here: another setting of the intake. Not here: making the tables (`tracing_steps.py`), MLflow's own exporter.
"""

ENDPOINT = "/api/2.0/otel/v1/traces"
"""Where the workspace takes spans in, as protobuf over HTTP."""


def exporter_environment(host: str, spans_table: str) -> dict[str, str]:
    """Variables of an OpenTelemetry exporter; `host` is the workspace's URL, `spans_table` the table's full name.

    They hold no secret: the token is a reference to DATABRICKS_TOKEN, for the shell or the runtime to fill in. The
    principal needs MODIFY and SELECT on the table; the intake wants an OAuth token.
    """
    headers = {
        "content-type": "application/x-protobuf",
        "X-Databricks-UC-Table-Name": spans_table,
        "Authorization": "Bearer%20${DATABRICKS_TOKEN}",
    }
    return {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": host.rstrip("/") + ENDPOINT,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": ",".join(f"{name}={value}" for name, value in headers.items()),
    }
