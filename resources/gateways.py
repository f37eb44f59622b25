"""The gateways as Dagster resources, under the names assets ask for; each picks the platform's implementation.

Lives here: one small resource a gateway, and the one mapping every agent's definitions share; Dagster merges it
because it is the same object.
Add here: a gateway; its implementations are imported when a run creates one.
Not here: gateways and what they do. Nothing else imports both a gateway's local and its Databricks implementation.
"""

from types import MappingProxyType
from typing import Any

import dagster as dg

from resources.needs import (
    AliasLedger,
    Archive,
    Compute,
    Deployer,
    Evaluator,
    LabelingDesk,
    ModelRegistry,
    Replayer,
    ScorerRegistry,
    Scoring,
    SqlEngine,
    TraceStore,
    Tracing,
    Upkeep,
)
from resources.platform import Platform


class AliasLedgerResource(dg.ConfigurableResource):
    """The ledger of alias moves of this process's platform: MLflow's on each."""

    def create_resource(self, context: dg.InitResourceContext) -> AliasLedger:
        """Opens nothing yet: MLflow is imported at the first question."""
        from resources.alias_ledger import MlflowAliasLedger

        return MlflowAliasLedger(Platform.from_env())


class ArchiveResource(dg.ConfigurableResource):
    """The archive of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> Archive:
        """Opens nothing yet: the tables are opened at each write."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.archive.archive import WarehouseArchive

            return WarehouseArchive(platform)
        from resources.archive.delta_archive import DeltaArchive

        return DeltaArchive(platform)


class ComputeResource(dg.ConfigurableResource):
    """The compute of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> Compute:
        """Opens nothing yet: a workspace is asked when a step has to run there."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.compute.compute import DatabricksCompute

            return DatabricksCompute(platform)
        from resources.compute import LocalCompute

        return LocalCompute()


class DeployerResource(dg.ConfigurableResource):
    """The deployer of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> Deployer:
        """One gateway a run."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.deployment.deployer import DatabricksDeployer

            return DatabricksDeployer(platform)
        from resources.webhook_deployer import LaptopDeployer

        return LaptopDeployer(platform)


class LabelingDeskResource(dg.ConfigurableResource):
    """The labeling desk of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> LabelingDesk:
        """One gateway a run."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.labeling.labeling_desk import DatabricksLabelingDesk

            return DatabricksLabelingDesk(platform)
        from resources.labeling_desk import MlflowLabelingDesk

        return MlflowLabelingDesk(platform)


class EvaluatorResource(dg.ConfigurableResource):
    """The evaluator of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> Evaluator:
        """One gateway a run."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.evaluation.evaluator import DatabricksEvaluator

            return DatabricksEvaluator(platform)
        from resources.evaluator import MlflowEvaluator

        return MlflowEvaluator(platform)


class ModelRegistryResource(dg.ConfigurableResource):
    """The model registry of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> ModelRegistry:
        """One gateway a run."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.registry.model_registry import UnityModelRegistry

            return UnityModelRegistry(platform)
        from resources.model_registry import MlflowModelRegistry

        return MlflowModelRegistry(platform)


class ReplayerResource(dg.ConfigurableResource):
    """The replayer of this process's platform: MLflow's on each."""

    def create_resource(self, context: dg.InitResourceContext) -> Replayer:
        """Opens nothing yet: MLflow is imported at the first replay."""
        from resources.replayer import MlflowReplayer

        return MlflowReplayer(Platform.from_env())


class ScorerRegistryResource(dg.ConfigurableResource):
    """The scorer registry of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> ScorerRegistry:
        """Opens nothing yet: MLflow is imported at the first question."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.scoring.scorer_registry import DatabricksScorerRegistry

            return DatabricksScorerRegistry(platform)
        from resources.scorer_registry import MlflowScorerRegistry

        return MlflowScorerRegistry(platform)


class ScoringResource(dg.ConfigurableResource):
    """The scoring of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> Scoring:
        """Opens nothing yet: MLflow is imported at the first day."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.scoring.scoring import DatabricksScoring

            return DatabricksScoring(platform)
        from resources.scoring.local_scoring import LocalScoring

        return LocalScoring(platform)


class SqlEngineResource(dg.ConfigurableResource):
    """The SQL engine of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> SqlEngine:
        """Opens nothing yet: the tables are opened at each query."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.sql.sql_engine import WarehouseSqlEngine

            return WarehouseSqlEngine(platform)
        from resources.sql.engine import DuckDbEngine

        return DuckDbEngine(platform)


class TraceStoreResource(dg.ConfigurableResource):
    """The trace store of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> TraceStore:
        """Opens nothing yet: MLflow is imported at the first question."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.tracing.trace_store import DatabricksTraceStore

            return DatabricksTraceStore(platform)
        from resources.trace_store import MlflowTraceStore

        return MlflowTraceStore(platform)


class TracingResource(dg.ConfigurableResource):
    """The tracing of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> Tracing:
        """One gateway a run."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.tracing.tracing import DatabricksTracing

            return DatabricksTracing(platform)
        from resources.tracing import LocalTracing

        return LocalTracing(platform)


class UpkeepResource(dg.ConfigurableResource):
    """The upkeep of this process's platform."""

    def create_resource(self, context: dg.InitResourceContext) -> Upkeep:
        """Opens nothing yet: the tables are opened by what is done."""
        platform = Platform.from_env()
        if platform.is_databricks:
            from resources.databricks.archive.upkeep import WarehouseUpkeep

            return WarehouseUpkeep(platform)
        from resources.upkeep.delta_upkeep import DeltaUpkeep

        return DeltaUpkeep(platform)


GATEWAYS = MappingProxyType(
    {
        "archive": ArchiveResource(),
        "compute": ComputeResource(),
        "deployer": DeployerResource(),
        "desk": LabelingDeskResource(),
        "evaluator": EvaluatorResource(),
        "ledger": AliasLedgerResource(),
        "registry": ModelRegistryResource(),
        "replayer": ReplayerResource(),
        "scorers": ScorerRegistryResource(),
        "scoring": ScoringResource(),
        "sql": SqlEngineResource(),
        "traces": TraceStoreResource(),
        "tracing": TracingResource(),
        "upkeep": UpkeepResource(),
    }
)
"""Resource key to resource."""


def open_gateway(key: str) -> Any:
    """The gateway of that key outside of a run, of the platform that this process's environment names now.

    No gateway asks its context anything, so there is none: Dagster would make an instance in memory for each (40 ms).
    """
    no_run: Any = None
    return GATEWAYS[key].create_resource(no_run)
