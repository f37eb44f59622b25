"""Evaluations on Databricks: MLflow's, with the dataset in Unity Catalog.

Lives here: how the agent's dataset is named there.
Add here: what an evaluation needs of a workspace. Not here: the records (`datasets.py`), the evaluation itself.
"""

from typing import Any

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources import eval_dataset
from resources.evaluator import MlflowEvaluator


class DatabricksEvaluator(MlflowEvaluator):
    """`mlflow.genai.evaluate` on the dataset `<catalog>.<schema>.<agent>_eval`, or on the one `eval.dataset` names."""

    def _own_name(self, agent: Agent) -> str:
        return f"{agent.spec.catalog}.{agent.spec.schema_name}.{agent.name}_eval"

    def _named(self, name: str) -> Any:
        found = eval_dataset.find_dataset(self._platform, name)
        if found is None:
            raise Refused(
                f"There is no evaluation dataset {name[:120]} in Unity Catalog; create it "
                "(mlflow.genai.datasets.create_dataset), or set eval.dataset in defs.yaml to a .jsonl file."
            )
        return found
