"""The gateways as Dagster resources, under the names assets ask for.

Lives here: the one mapping every agent's definitions share; Dagster merges it because it is the same object.
Add here: a gateway.
Not here: which implementation is used (each resource's `create_resource`).
"""

from types import MappingProxyType

from resources.archive import ArchiveResource
from resources.compute import ComputeResource
from resources.deployer import DeployerResource
from resources.evaluator import EvaluatorResource
from resources.labeling_desk import LabelingDeskResource
from resources.model_registry import ModelRegistryResource
from resources.scorer_registry import ScorerRegistryResource
from resources.scoring import ScoringResource
from resources.sql_engine import SqlEngineResource
from resources.trace_store import TraceStoreResource
from resources.tracing import TracingResource

GATEWAYS = MappingProxyType(
    {
        "archive": ArchiveResource(),
        "compute": ComputeResource(),
        "deployer": DeployerResource(),
        "desk": LabelingDeskResource(),
        "evaluator": EvaluatorResource(),
        "registry": ModelRegistryResource(),
        "scorers": ScorerRegistryResource(),
        "scoring": ScoringResource(),
        "sql": SqlEngineResource(),
        "traces": TraceStoreResource(),
        "tracing": TracingResource(),
    }
)
"""Resource key to resource."""
