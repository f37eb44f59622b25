"""What a `defs.yaml` may say about where an agent runs and where its traces are kept.

Lives here: deployment, tracing and compute: what differs between a laptop and a workspace, declared once.
Add here: a field that only a platform's resources read.
Not here: what is evaluated, scored and reviewed (`spec.py`).
"""

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lifecycle_assets.spec_base import Strict
from lifecycle_assets.spec_secrets import require_harmless, secret_reference


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
    """Where the champion runs.

    The local platform hands a databricks_* target over to `lifecycle serve`, with the variables that are not secrets.
    """

    target: Literal["none", "local", "databricks_serving", "databricks_app", "databricks_job", "webhook"] = Field(
        default="local",
        description="none; local: lifecycle serve; databricks_serving: a model serving endpoint; databricks_app: a "
        "Databricks App, told by its app.yaml; databricks_job: a job that deploys; webhook: a receiver of your own, "
        "told by a signed POST. On the local platform each databricks_* target is handed over as local.",
    )
    port: int = Field(default=5001, ge=1, le=65535, description="Port of lifecycle serve, on the loopback interface.")
    environment: dict[str, str] = Field(
        default_factory=dict,
        max_length=50,
        description="Further variables of the runtime; a secret only as {{secrets/scope/key}}, which an app resolves "
        "by its resource for that secret, and lifecycle serve leaves to the shell. Not for databricks_job.",
    )
    endpoint: str = Field(
        default="",
        pattern=r"^$|^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$",
        description="Name of the serving endpoint, which is made when absent; default <name>-<environment>.",
    )
    workload_size: str = Field(
        default="Small",
        pattern=r"^[A-Za-z0-9_-]{1,40}$",
        description="Small, Medium, Large, or a size of the workspace.",
    )
    scale_to_zero: bool = Field(default=False, description="Whether the endpoint may sleep when nobody asks.")
    traffic: int = Field(
        default=100,
        ge=1,
        le=100,
        description="Percent of the endpoint's requests the champion answers; the rest stays with who answered before.",
    )
    app: str = Field(
        default="",
        pattern=r"^$|^[a-z][a-z0-9-]{1,29}$",
        description="Name of the Databricks App, which must be there.",
    )
    source_path: str = Field(
        default="",
        pattern=r"^$|^/Workspace(/[^/\x00-\x1f\\?#%]{1,255})+/?$",
        description="Folder of the app's source in the workspace, such as /Workspace/Shared/my-app; app.yaml is there.",
    )
    job: str = Field(
        default="",
        max_length=200,
        description="Id or exact name of the job. It is run with the job parameters model_uri, model_name, "
        "model_version and model_id, which it should declare.",
    )
    parameters: dict[str, str] = Field(
        default_factory=dict, max_length=50, description="Further parameters of the job; no secrets."
    )
    wait_minutes: int = Field(
        default=30, ge=1, le=240, description="How long an update, a deployment or a run is waited for, in minutes."
    )
    url_env: str = Field(
        default="LIFECYCLE_DEPLOY_WEBHOOK",
        pattern=r"^[A-Z][A-Z0-9_]{0,99}$",
        description="Environment variable that holds the URL the webhook is posted to.",
    )
    secret_env: str = Field(
        default="LIFECYCLE_DEPLOY_WEBHOOK_SECRET",
        pattern=r"^[A-Z][A-Z0-9_]{0,99}$",
        description="Environment variable that holds the secret the webhook is signed with: whsec_ and the base64 of "
        "24 to 64 random bytes.",
    )

    @field_validator("job", mode="before")
    @classmethod
    def _id_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _of_this_target(self) -> Self:
        fields = _FIELDS_OF[self.target]
        for name in type(self).model_fields:
            if name in self.model_fields_set and name not in ("target", "port", *fields):
                owners = " and ".join(target for target, names in _FIELDS_OF.items() if name in names)
                raise ValueError(f"{name} is a field of target {owners}, not of {self.target}; remove it")
        for name in _REQUIRED_OF.get(self.target, ()):
            if not getattr(self, name):
                raise ValueError(f"target {self.target} needs {name}; add it")
        if ".." in self.source_path.split("/"):
            raise ValueError("source_path must not hold '..'; write the folder itself")
        return self

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        for name, value in self.environment.items():
            if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,99}", name):
                raise ValueError(f"environment: '{name[:40]}' is no name; use capital letters, digits and underscores")
            if name in SET_BY_US:
                raise ValueError(f"environment: {name} is set by the deployment itself; remove it")
            require_harmless("environment", name, value, remedy="write {{secrets/scope/key}} instead")
        for name, value in self.parameters.items():
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name) or name in JOB_PARAMETERS:
                raise ValueError(f"parameters: '{name[:40]}' is no name, or a parameter the deployment gives itself")
            require_harmless("parameters", name, value, remedy="let the job read it from its secret scope")
            if secret_reference(value):
                raise ValueError(f"parameters: a job does not resolve {name}; let it read its secret scope itself")
        return self


SET_BY_US = frozenset(
    {
        "ENABLE_MLFLOW_TRACING",
        "LIFECYCLE_ENVIRONMENT",
        "LIFECYCLE_HANDED_AT",
        "LIFECYCLE_MODEL_URI",
        "MLFLOW_ACTIVE_MODEL_ID",
        "MLFLOW_EXPERIMENT_ID",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_REGISTRY_URI",
        "MLFLOW_TRACING_DESTINATION",
        "MLFLOW_TRACKING_URI",
    }
)
"""Variables of the runtime that no declaration may set."""

JOB_PARAMETERS = ("model_uri", "model_name", "model_version", "model_id")
"""Parameters every run of a deploying job is given."""

_FIELDS_OF = {
    "none": (),
    "local": ("environment",),
    "databricks_serving": ("environment", "endpoint", "workload_size", "scale_to_zero", "traffic", "wait_minutes"),
    "databricks_app": ("environment", "app", "source_path", "wait_minutes"),
    "databricks_job": ("job", "parameters", "wait_minutes"),
    "webhook": ("environment", "url_env", "secret_env"),
}
_REQUIRED_OF = {"databricks_app": ("app", "source_path"), "databricks_job": ("job",)}


class Compute(Strict):
    """Where the assets with daily partitions run. `compute: serverless` is short for `compute: {mode: serverless}`."""

    mode: Literal["local", "serverless", "job"] = Field(
        default="local",
        description="local: the process that runs Dagster's step; serverless or job: a job of the workspace, on "
        "serverless compute or on a cluster. On the local platform each of them is this process.",
    )
    assets: list[Literal["trace_scores", "archived_traces", "quality_metrics"]] = Field(
        default=["trace_scores", "archived_traces", "quality_metrics"],
        min_length=1,
        description="Assets that run there; default all with daily partitions.",
    )
    volume: str = Field(
        default="",
        pattern=r"^$|^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$",
        description="catalog.schema.volume for the code and its messages; default lifecycle beside the model. It is "
        "made when absent.",
    )
    cluster: dict[str, Any] = Field(
        default_factory=dict,
        description="With mode job: new_cluster of the Jobs API, of a runtime with Python 3.11; default a small node.",
    )
    existing_cluster_id: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9-]*$",
        description="With mode job: a cluster that is there, instead of cluster.",
    )
    environment_version: str = Field(
        default="2",
        pattern=r"^[1-9][0-9]?$",
        description="With mode serverless: version of the environment; the pins here are made for Python 3.11, which "
        "is version 2.",
    )
    timeout_minutes: int = Field(
        default=60, ge=1, le=1440, description="Minutes after which the job of one day is stopped."
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.mode != "job" and (self.cluster or self.existing_cluster_id):
            raise ValueError(f"cluster and existing_cluster_id belong to mode job, and mode is {self.mode}")
        if self.cluster and self.existing_cluster_id:
            raise ValueError("give cluster or existing_cluster_id, not both")
        return self
