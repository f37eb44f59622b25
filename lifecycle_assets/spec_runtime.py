"""What a `defs.yaml` may say about where an agent runs and where its traces are kept.

Lives here: deployment, tracing and compute: what differs between a laptop and a workspace, declared once.
Add here: a field that only a platform's resources read.
Not here: what is evaluated, scored and reviewed (`spec.py`).
"""

from typing import Literal

from pydantic import Field

from lifecycle_assets.spec_base import Strict


class Tracing(Strict):
    """Where Databricks keeps the agent's traces, and who may read and write them. Locally MLflow keeps them."""

    location: Literal["unity_catalog", "experiment"] = Field(
        default="unity_catalog",
        description="unity_catalog: OpenTelemetry tables in Unity Catalog; experiment: MLflow's own store, with native "
        "archival to a Delta table.",
    )
    schema_path: str = Field(
        default="",
        pattern=r"^$|^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$",
        description="catalog.schema of the tables; default that of model_name.",
    )
    table_prefix: str = Field(
        default="", pattern=r"^[a-z0-9_]*$", description="Before the names of the tables; default the agent's name."
    )
    principals: list[str] = Field(
        default_factory=list,
        max_length=20,
        description="Users, groups and service principals that write and read traces, such as the app's own.",
    )


class Deployment(Strict):
    """Where the champion runs."""

    target: Literal["none", "local"] = Field(default="local", description="none, or local: lifecycle serve.")
    port: int = Field(default=5001, ge=1, le=65535, description="Port of lifecycle serve, on the loopback interface.")
