"""The evaluation dataset in Unity Catalog: the same records as locally, whatever the service does with a write."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.evaluation.datasets import find
from resources.databricks.evaluation.evaluator import DatabricksEvaluator
from resources.dataset_rows import rows_of
from resources.eval_dataset import dataset_to_evaluate
from resources.evaluator import MlflowEvaluator
from resources.platform import Platform
from tests.building import make_agent
from tests.workspace.app import Workspace
from tests.workspace.datasets import Datasets
from tests.workspace.lake import Lake

NAME = "main.agents.tiny_eval"
HOSTILE = '\'; DROP TABLE x; -- `\u202e\x00 "quoted" ' + "é" * 50


def lines(*rows: tuple[Any, dict[str, Any]]) -> str:
    return "\n".join(json.dumps({"inputs": {"q": asked}, "expectations": said}) for asked, said in rows)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    rows = lines(
        (1, {"expected_response": "", "n": 3}), (HOSTILE, {"guidelines": ["be kind"]}), ([1.5, {"a": None}], {})
    )
    return make_agent(tmp_path, dataset=rows)


def declare(agent: Agent, *rows: tuple[Any, dict[str, Any]]) -> Agent:
    agent.path("eval_dataset.jsonl").write_text(lines(*rows) + "\n")
    return agent


def label(asked: Any, trace_id: str = "trace:/main.agents.x/ab", **expectations: Any) -> dict[str, Any]:
    source = {"source_type": "TRACE", "source_data": {"trace_id": trace_id}}
    return {"inputs": {"q": asked}, "expectations": expectations, "source": source}


def held(platform: Platform) -> dict[str, dict[str, Any]]:
    dataset = find(platform, NAME)
    assert dataset is not None
    return {str(row.inputs["q"]): dict(row.expectations) for row in rows_of(dataset)}


def local_platform(home: Path) -> Platform:
    return Platform(
        "local", home, f"sqlite:///{home / 'mlflow.db'}", f"sqlite:///{home / 'mlflow.db'}", str(home), "local"
    )


class TestRecords:
    """What is written."""

    def test_the_file_is_written_once(self, workspace: Workspace, databricks: Platform, agent: Agent) -> None:
        """Records come back whole in small pages; the same file again writes nothing; only differences are written."""
        workspace.page_size = 2
        evaluator = DatabricksEvaluator(databricks)
        first = evaluator.ensure_dataset(agent)
        assert (first.name, first.rows) == (NAME, 3)
        assert first.dataset_id == workspace[Lake].tables[NAME]["table_id"]
        assert held(databricks)["1"] == {"expected_response": "", "n": 3}
        workspace.log.clear()
        assert evaluator.ensure_dataset(agent) == first
        assert not workspace.calls(r"^POST")
        declare(agent, (1, {"expected_response": "", "n": 3}), (2, {}))
        assert evaluator.ensure_dataset(agent).digest != first.digest
        assert held(databricks) == {"1": {"expected_response": "", "n": 3}, "2": {}}
        assert len(workspace.calls("batchCreate")) == len(workspace.calls("batchDelete")) == 1

    @pytest.mark.parametrize("replaces", [True, False])
    def test_labels_stay_and_the_file_changes(
        self, workspace: Workspace, databricks: Platform, agent: Agent, replaces: bool
    ) -> None:
        """A reviewer's answer outlives the file's; what the file takes back goes, however the service updates."""
        workspace[Datasets].replaces = replaces
        evaluator = DatabricksEvaluator(databricks)
        evaluator.ensure_dataset(agent)
        records = [label(1, expected="yes"), label("new", expected="no", n=2)]
        merged = evaluator.merge_labels(agent, records)
        assert evaluator.merge_labels(agent, records) == merged
        declare(agent, (1, {"n": 3}), (2, {}))
        evaluator.ensure_dataset(agent)
        assert held(databricks) == {"1": {"n": 3, "expected": "yes"}, "2": {}, "new": {"expected": "no", "n": 2}}
        declare(agent, (2, {}))
        evaluator.ensure_dataset(agent)
        assert held(databricks) == {"1": {"expected": "yes"}, "2": {}, "new": {"expected": "no", "n": 2}}

    def test_the_same_records_have_the_same_digest_as_locally(
        self, databricks: Platform, agent: Agent, migrated_store: Path, tmp_path: Path
    ) -> None:
        """Through the file, labels, a change of the file, and the dataset given to an evaluation."""
        (tmp_path / "local").mkdir()
        (tmp_path / "local" / "mlflow.db").write_bytes(migrated_store.read_bytes())
        there, here = DatabricksEvaluator(databricks), MlflowEvaluator(local_platform(tmp_path / "local"))
        digests = {there: [], here: []}
        for evaluator, found in digests.items():
            declare(agent, (1, {"expected_response": "", "n": 3.0}), (HOSTILE, {"guidelines": ["be kind"]}))
            found.append(evaluator.ensure_dataset(agent).digest)
            found.append(evaluator.merge_labels(agent, [label(HOSTILE, expected=HOSTILE), label(7, grade=1)]).digest)
            declare(agent, (1, {"n": 3}), (2.5, {"deep": {"b": [None, True, 1], "a": 0.1}}))
            found.append(evaluator.ensure_dataset(agent).digest)
        assert digests[there] == digests[here]
        record = there.ensure_dataset(agent)
        evaluated = dataset_to_evaluate(databricks, record)
        assert (evaluated.name, evaluated.digest) == (NAME, record.digest)
        assert [row.inputs for row in rows_of(evaluated)] == [row.inputs for row in rows_of(find(databricks, NAME))]
        there.merge_labels(agent, [label("late", expected="x")])
        with pytest.raises(Refused, match="changed: its digest is"):
            dataset_to_evaluate(databricks, record)


class TestFaults:
    """Answers that never came."""

    def test_lost_answers_write_nothing_twice(self, workspace: Workspace, databricks: Platform, agent: Agent) -> None:
        """The dataset, records and deletions whose answers were lost are each there once."""
        workspace.fail("POST .*/datasets$", kind="lost")
        workspace.fail("POST .*batchCreate", kind="lost")
        evaluator = DatabricksEvaluator(databricks)
        first = evaluator.ensure_dataset(agent)
        assert (first.rows, len(workspace[Datasets].datasets)) == (3, 1)
        assert [len(records) for records in workspace[Datasets].records.values()] == [3]
        workspace.fail("POST .*batchDelete", kind="lost")
        declare(agent, (1, {}))
        assert evaluator.ensure_dataset(agent).rows == 1

    def test_what_is_no_dataset_is_refused(self, workspace: Workspace, databricks: Platform, tmp_path: Path) -> None:
        """A name not in three parts, a table of somebody's, a name nobody has, a number that would be rounded."""
        evaluator = DatabricksEvaluator(databricks)
        workspace[Lake].create_table("main.agents.plain", {"a": "STRING"})

        def named(name: str) -> Agent:
            return make_agent(tmp_path / name, attributes={"eval": {"dataset": name, "gate": {"mode": "disabled"}}})

        for name, said in (("two.parts", "catalog.schema.dataset"), ("main.agents.plain", "no evaluation dataset")):
            with pytest.raises(Refused, match=said):
                evaluator.ensure_dataset(named(name))
        for name in ("main.agents.nothing", "main.agents.a'b?c#d%41 `; --"):
            with pytest.raises(Refused, match=re.escape(f"There is no evaluation dataset {name}")):
                evaluator.ensure_dataset(named(name))
        assert workspace.calls("GET .*/tables/main.agents.a'b")
        big = make_agent(tmp_path / "big", dataset=lines((2**53 + 1, {})))
        with pytest.raises(Refused, match="write it as text"):
            evaluator.ensure_dataset(big)

    def test_an_unreadable_dataset_is_never_made_anew(
        self, workspace: Workspace, databricks: Platform, agent: Agent
    ) -> None:
        """A 404 that only says the API is not there is an error, and so is a broken answer."""
        evaluator = DatabricksEvaluator(databricks)
        evaluator.ensure_dataset(agent)
        workspace.log.clear()
        workspace.fail("GET .*/tables/", status=404, error_code="ENDPOINT_NOT_FOUND", message="No API found")
        with pytest.raises(Refused, match="does not offer this API"):
            evaluator.ensure_dataset(agent)
        workspace.fail("GET .*/records", status=500)
        with pytest.raises(Exception, match="injected"):
            evaluator.ensure_dataset(agent)
        assert not workspace.calls("^POST")
