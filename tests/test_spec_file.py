"""A wrong declaration: one sentence naming file, field and remedy."""

import copy
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import dataset_rows, find_agents, parse_agent, read_agent
from lifecycle_assets.spec_yaml import load_yaml
from tests.building import ATTRIBUTES, write_agent

Change = Callable[[dict[str, Any]], object]

FILTERS_REFUSED = [
    ("quality > 3", "quality > 3"),
    ("tags.a = 'b' AND attributes.nonsense = 'x'", "attributes.nonsense = 'x'"),
    ("tags.a = 'b' OR tags.a = 'c'", "tags.a = 'b' OR tags.a = 'c'"),
    ("trace_id = 'x'", "trace_id = 'x'"),
    ("timestamp_ms IS NULL", "timestamp_ms IS NULL"),
    ("status IS NULL", "status IS NULL"),
    ("tags.a <> 'x'", "tags.a <> 'x'"),
    ("Tags.a = 'x'", "Tags.a = 'x'"),
    ("STATUS = 'OK'", "STATUS = 'OK'"),
    ("timestamp > 3.5", "timestamp > 3.5"),
]
"""A scorer's filter that no search takes, and the clause that is named."""


def refused(folder: Path, change: Change) -> str:
    """What is said of the tiny agent's declaration after `change`."""
    attributes = copy.deepcopy(ATTRIBUTES)
    change(attributes)
    file = write_agent(folder)
    with pytest.raises(Refused) as refusal:
        parse_agent(attributes, file)
    return str(refusal.value)


def alert(attributes: dict[str, Any], metric: str, *slices: str) -> None:
    """Declare one alert rule, and slices."""
    rules = [{"name": "rule", "metric": metric, "at_least": 1}]
    attributes.update(alerts={"rules": rules}, monitoring={"slices": slices})


@pytest.mark.parametrize(
    "metric",
    ["traces", "latency/p99{tenant=a%20b}", "cost_usd/sum", "shouted/error_rate", "shouted/mean{tenant=other}"],
)
def test_an_alert_rule_may_name_each_daily_number(tmp_path: Path, metric: str):
    attributes = copy.deepcopy(ATTRIBUTES)
    alert(attributes, metric, "tenant")
    assert parse_agent(attributes, write_agent(tmp_path)).spec.alerts.rules[0].metric == metric


def test_a_filter_that_is_declared_is_one_that_the_store_searches_by(tmp_path: Path, migrated_store: Path):
    """What loading lets through must not stop a day: MLflow itself takes each of them, and none that is refused."""
    from mlflow.exceptions import MlflowException

    from resources.mlflow_store import open_client
    from resources.platform import Platform

    attributes = copy.deepcopy(ATTRIBUTES)
    clauses = [
        "attributes.status = 'OK'",
        "trace.status LIKE 'O%'",
        "request_id ILIKE 'a%'",
        "name LIKE 'a%' AND run_id IS NOT NULL",
        "timestamp_ms > 3 and execution_time_ms <= 2.5 AND end_time != 0",
        "tags.`a b` != 'x' AND metadata.m IS NULL AND request_metadata.m LIKE 'x'",
        "feedback.thumb IS NULL AND expectation.facts IS NOT NULL",
    ]
    (tmp_path / "home").mkdir()
    shutil.copy(migrated_store, tmp_path / "home" / "mlflow.db")
    store = open_client(Platform.from_env({"LIFECYCLE_HOME": str(tmp_path / "home")}))
    experiment = store.create_experiment("/agents/tiny")
    for clause in clauses:
        attributes["scorers"][0]["filter"] = clause
        assert parse_agent(attributes, write_agent(tmp_path)).spec.scorers[0].filter == clause
        assert store.search_traces(locations=[experiment], filter_string=clause) == []
    for clause, _ in FILTERS_REFUSED:
        with pytest.raises(MlflowException):
            store.search_traces(locations=[experiment], filter_string=clause)


def test_a_section_that_is_written_twice_is_refused(tmp_path: Path):
    """YAML would forget the first one without a word."""
    file = write_agent(tmp_path)
    file.write_text("attributes:\n  archive: {late_days: 3}\n  name: x\n  archive: {settle_minutes: 0}\n")
    with pytest.raises(Refused, match=r"defs\.yaml line 4: 'archive' stands there a second time; write it once"):
        read_agent(file)


def test_a_merged_mapping_may_be_overridden():
    assert load_yaml("x: {a: &a {<<: &b {k: 1}, k: 2}}\ny: {<<: *a, k: 3}\n") == {"x": {"a": {"k": 2}}, "y": {"k": 3}}


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        (lambda a: a.update(nmae="x"), "attributes.nmae is not a known field", "did you mean 'name'?"),
        (lambda a: a.update(name="Bad Name"), "attributes.name", "pattern"),
        (lambda a: a["scorers"][0].update(sample_rate=1.5), "attributes.scorers[0].sample_rate is 1.5", "0..1"),
        (lambda a: a["agent"].update(path="gone.py"), "attributes.agent.path names 'gone.py'", "create the file"),
        (lambda a: a["agent"].update(path="../x.py"), "attributes.agent.path", "move the file into it"),
        (lambda a: a["eval"].update(dataset="gone.jsonl"), "attributes.eval.dataset", "create the file"),
        (lambda a: a["scorers"].append(a["scorers"][0]), "attributes.scorers", "declared twice"),
        (lambda a: a["scorers"][0].update(name="cost_usd"), "attributes.scorers", "give it another one"),
        (lambda a: a["scorers"][0].update(source="scorers.py"), "attributes.scorers[0].source", "file.py:function"),
        (lambda a: a.update(model_name="two.levels"), "attributes.model_name", "catalog.schema.model"),
        (lambda a: a.pop("experiment"), "attributes.experiment is missing", "add it"),
        (lambda a: a["eval"]["gate"].update(thresholds=[]), "attributes.eval.gate", "add thresholds"),
        (
            lambda a: a["eval"]["gate"]["thresholds"][0].update(metric="nosuch/mean"),
            "attributes.eval.gate.thresholds[0].metric: unknown metric 'nosuch/mean'",
            "write <scorer>/<aggregation>",
        ),
        (
            lambda a: a["eval"]["gate"]["thresholds"][0].update(at_most=1),
            "attributes.eval.gate.thresholds[0]",
            "exactly one of at_least and at_most",
        ),
        (lambda a: a["labeling"]["schemas"][0].update(judges="nosuch"), "labeling.schemas.judges", "declared are"),
        (
            lambda a: a.update(rollback={"rules": [{"metric": "nosuch/mean", "max_drop": 0.1}]}),
            "rollback.rules[0].metric: unknown metric 'nosuch/mean'",
            "a scorer of length, shouted",
        ),
        (lambda a: a.update(coverage={"share": 0.9}), "attributes.coverage", "it stands in attributes.monitoring."),
        (
            lambda a: a.update(monitoring={"anomalies": {}}),
            "attributes.monitoring.anomalies",
            "it stands in attributes.",
        ),
        (lambda a: a.update(monitoring={"coverage": 0.9}), "coverage is 0.9", "write fields below it (share, within"),
        (lambda a: a.update(archive={"start_date": "2025-13-01"}), "attributes.archive.start_date", "is no day"),
        (
            lambda a: a.update(archive={"start_date": f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}"}),
            "attributes.archive.start_date",
            "write today or a day that was",
        ),
        *[
            (
                lambda a, wrong=wrong: a["scorers"][0].update(filter=wrong),
                f"attributes.scorers[0].filter: The scorer filter's clause {clause!r}",
                "write comparisons such as tags.environment = 'prod'",
            )
            for wrong, clause in FILTERS_REFUSED
        ],
        (lambda a: alert(a, "shouted"), "alerts.rules[0].metric: unknown metric 'shouted'", "write <scorer>/mean"),
        (lambda a: alert(a, "latency/p94"), "alerts.rules[0].metric: unknown metric", "such as latency/p95"),
        (lambda a: alert(a, "traces{tenant=a}"), "no slice is '{tenant=a}'", "monitoring.slices declares (none yet)"),
        (lambda a: alert(a, "traces{tenant=a", "tenant"), "no slice is '{tenant=a'", "write traces{tag=value}"),
        (lambda a: a.update(rollback={"automatic": True}), "attributes.rollback", "add rules, or remove automatic"),
        (lambda a: a.update(archive={"redact": [{"pattern": "("}]}), "archive.redact[0].pattern", "correct it"),
        (
            lambda a: a["scorers"].extend(dict(a["scorers"][0], name=f"s{i}") for i in range(20)),
            "attributes.scorers",
            "20",
        ),
        *[
            (lambda a, tag=tag: a["eval"]["gate"].update(approval_tag=tag), "gate.approval_tag", "take another")
            for tag in ("lifecycle.model_id", "lifecycle_approval", "Lifecycle.approval_evidence", "mlflow.note")
        ],
    ],
)
def test_a_wrong_field_is_one_sentence(tmp_path: Path, change: Change, field: str, remedy: str):
    sentence = refused(tmp_path, change)
    assert "\n" not in sentence
    assert "defs.yaml" in sentence
    assert field in sentence
    assert remedy in sentence


def test_a_file_that_is_not_yaml_names_the_line(tmp_path: Path):
    file = write_agent(tmp_path)
    file.write_text("type: x\nattributes: [unclosed\n")
    with pytest.raises(Refused, match=r"defs\.yaml line \d+: is not YAML"):
        read_agent(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no record"),
        ("\n\n", "holds no record"),
        ('{"inputs": {"q": 1}}\n{"inputs": ', "line 2: is not JSON"),
        ("[1]", 'line 1: has no "inputs" object'),
        ('{"inputs": {}}', 'line 1: has no "inputs" object'),
        ('{"inputs": {"q": 1}, "expected": {}}', "line 1: only"),
        ('{"inputs": {"q": 1}}\n{"inputs": {"q": 1}}', "line 2: asks the same as line 1"),
    ],
)
def test_a_malformed_dataset_names_the_line(tmp_path: Path, text: str, words: str):
    file = tmp_path / "eval_dataset.jsonl"
    file.write_text(text)
    with pytest.raises(Refused, match=words):
        dataset_rows(file)


def test_two_agents_of_one_name_are_refused(tmp_path: Path):
    write_agent(tmp_path / "a", "tiny")
    write_agent(tmp_path / "b", "tiny")
    with pytest.raises(Refused, match="name 'tiny' is taken by"):
        find_agents(tmp_path)


def test_two_agents_with_the_same_tables_are_refused(tmp_path: Path):
    """Scores and traces of one would stand among those of the other."""
    for name in ("one", "two"):
        write_agent(tmp_path, name, attributes={"archive": {"table_prefix": "shared_"}})
    with pytest.raises(Refused, match=r"two.* the tables main\.agents\.shared_… are those of one; set archive"):
        find_agents(tmp_path)


def test_agents_are_found_by_name(tmp_path: Path):
    write_agent(tmp_path, "second")
    write_agent(tmp_path, "first")
    assert [agent.name for agent in find_agents(tmp_path)] == ["first", "second"]
