"""The gateways and what they return, by name, for annotations in assets, checks, sensors and the steps under them.

Lives here: one name each, which a type checker knows as the thing itself.
Add here: a gateway that an asset asks for; a value of a gateway that is only passed on.
Not here: gateways (a module each), which resource key is which (`gateways.py`).

Dagster reads from `dg.ResourceParam[Archive]` that a resource is asked for, not which; other annotations it does not
read at all. So loading the definitions imports no gateway; a run imports those it creates.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resources.alias_ledger import AliasLedger as AliasLedger
    from resources.alias_ledger import Entry as Entry
    from resources.archive.archive import Archive as Archive
    from resources.compute import Compute as Compute
    from resources.deployer import Deployer as Deployer
    from resources.evaluator import Evaluated as Evaluated
    from resources.evaluator import Evaluator as Evaluator
    from resources.labeling_desk import Item as Item
    from resources.labeling_desk import Label as Label
    from resources.labeling_desk import LabelingDesk as LabelingDesk
    from resources.model_registry import LoggedModel as LoggedModel
    from resources.model_registry import ModelRegistry as ModelRegistry
    from resources.model_registry import RegisteredVersion as RegisteredVersion
    from resources.replayer import Pair as Pair
    from resources.replayer import Replay as Replay
    from resources.replayer import Replayer as Replayer
    from resources.scorer_registry import ScorerRegistry as ScorerRegistry
    from resources.scorer_source import DeclaredScorer as DeclaredScorer
    from resources.scoring.scoring import Scoring as Scoring
    from resources.sql.engine import SqlEngine as SqlEngine
    from resources.trace_store import TraceStore as TraceStore
    from resources.tracing import Tracing as Tracing
    from resources.upkeep.upkeep import Upkeep as Upkeep
else:
    AliasLedger = Archive = Compute = Deployer = Evaluator = LabelingDesk = ModelRegistry = Replayer = Any
    ScorerRegistry = Scoring = SqlEngine = TraceStore = Tracing = Upkeep = Any
    DeclaredScorer = Entry = Evaluated = Item = Label = LoggedModel = Pair = RegisteredVersion = Replay = Any
