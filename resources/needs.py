"""The gateways by name, for the annotations of assets, checks and sensors.

Lives here: one name a gateway, which a type checker knows as the gateway itself.
Add here: a gateway that an asset asks for.
Not here: gateways (a module each), which resource key is which (`gateways.py`).

Dagster reads from `dg.ResourceParam[Archive]` that a resource is asked for, not which. So loading the definitions
imports no gateway; a run imports those it creates.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resources.alias_ledger import AliasLedger as AliasLedger
    from resources.archive import Archive as Archive
    from resources.compute import Compute as Compute
    from resources.deployer import Deployer as Deployer
    from resources.evaluator import Evaluator as Evaluator
    from resources.labeling_desk import LabelingDesk as LabelingDesk
    from resources.model_registry import ModelRegistry as ModelRegistry
    from resources.replayer import Replayer as Replayer
    from resources.scorer_registry import ScorerRegistry as ScorerRegistry
    from resources.scoring import Scoring as Scoring
    from resources.sql_engine import SqlEngine as SqlEngine
    from resources.trace_store import TraceStore as TraceStore
    from resources.tracing import Tracing as Tracing
    from resources.upkeep import Upkeep as Upkeep
else:
    AliasLedger = Archive = Compute = Deployer = Evaluator = LabelingDesk = ModelRegistry = Any
    Replayer = ScorerRegistry = Scoring = SqlEngine = TraceStore = Tracing = Upkeep = Any
