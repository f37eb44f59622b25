"""The cluster of a step that runs as `compute: job`.

Lives here: what a declaration of a cluster leaves open.
Add here: a default a workspace needs. Not here: the run (`step_job.py`).
"""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.compute import ClusterSpec

RUNTIME = "15.4.x-scala2.12"
"""Databricks Runtime of the default cluster: the newest long-term one with Python 3.11."""

NODES = {"aws": "i3.xlarge", "azure": "Standard_D3_v2", "gcp": "n1-standard-4"}
"""Node of the default cluster by cloud."""

SINGLE_NODE = {"spark.databricks.cluster.profile": "singleNode", "spark.master": "local[*]"}


def new_cluster(workspace: "WorkspaceClient", declared: dict[str, Any]) -> "ClusterSpec":
    """The cluster `declared`, completed to one small node that sees volumes. Raises `Refused` for an unknown field."""
    from databricks.sdk.service.compute import ClusterSpec

    unknown = sorted(set(declared) - {field.name for field in fields(ClusterSpec)})
    if unknown:
        raise Refused(f"attributes.compute.cluster: {unknown[0]} is not a field of new_cluster; correct or remove it.")
    config = workspace.config
    cloud = "azure" if config.is_azure else "gcp" if config.is_gcp else "aws"
    # Volumes are seen by clusters with an access mode of Unity Catalog only.
    spec: dict[str, Any] = {"spark_version": RUNTIME, "data_security_mode": "SINGLE_USER", **declared}
    if not {"node_type_id", "instance_pool_id"} & set(spec):
        spec["node_type_id"] = NODES[cloud]
    if not {"num_workers", "autoscale"} & set(spec):
        spec |= {"num_workers": 0, "custom_tags": {"ResourceClass": "SingleNode", **(spec.get("custom_tags") or {})}}
        spec["spark_conf"] = {**SINGLE_NODE, **(spec.get("spark_conf") or {})}
    return ClusterSpec.from_dict(spec)
