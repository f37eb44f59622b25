"""The whole life on both platforms: the same graph, records, checks, rows and answers.

Lives here: what must be equal, and what may differ by nature (ids, times, addresses).
Add here: a thing both platforms promise alike. Not here: how a gateway does it.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from docs.make_databricks import PAGE, render
from lifecycle_assets.component import agent_definitions
from tests.building import make_agent
from tests.databricks.life import ATTRIBUTES, Seen, on_a_laptop, on_a_new_workspace

ONLY_SHAPES = re.compile(r"(_ids?|_id|digest|url|location|completions|_at|^at|_time|dataset_name)$")
"""Ids, times, addresses, and the dataset name (three levels in Unity Catalog): that they are there counts."""


@pytest.fixture(scope="module")
def laptop(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return on_a_laptop(migrated_store, tmp_path_factory.mktemp("laptop"))


@pytest.fixture(scope="module")
def workspace_seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return on_a_new_workspace(tmp_path_factory.mktemp("workspace"))


def shapes(value: Any, name: str = "") -> Any:
    """`value` with what differs by nature replaced: ids, digests of ids, times and addresses by their kind."""
    if isinstance(value, dict):
        return {key: shapes(one, key) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [shapes(one, name) for one in value]
    if ONLY_SHAPES.search(name):
        return type(value).__name__ if value not in ("", None) else value
    if isinstance(value, str):
        # A warehouse writes JSON without spaces; names of sessions hold a digest of trace ids.
        with suppress(ValueError):
            return shapes(json.loads(value))
        return re.sub(r"\b[0-9a-f]{8}\b", "<digest>", value)
    return value


def test_every_step_succeeds_on_both(laptop: Seen, workspace_seen: Seen) -> None:
    assert laptop.why == {}
    assert workspace_seen.why == {}
    assert list(workspace_seen.steps) == list(laptop.steps)


def test_checks_and_ticks_are_the_same(laptop: Seen, workspace_seen: Seen) -> None:
    assert workspace_seen.checks == laptop.checks
    assert workspace_seen.ticks == laptop.ticks


def test_records_are_the_same(laptop: Seen, workspace_seen: Seen) -> None:
    for asset, record in laptop.records.items():
        found = shapes(workspace_seen.records[asset])
        if asset == "eval_dataset":
            assert found.pop("name") == "main.agents.tiny_eval", "in Unity Catalog a dataset is a table"
            record = {key: value for key, value in record.items() if key != "name"}
        assert found == shapes(record), asset
    datasets = [seen.records["eval_dataset"]["digest"] for seen in (laptop, workspace_seen)]
    assert datasets[0] == datasets[1], "the same rows have the same digest"


def rows(seen: Seen, table: str) -> list[Any]:
    """The rows of a table without ids and times, in an order of their own."""
    left_out = {"metadata", "tags", "attributes", "experiment_id"}
    found = [shapes({k: v for k, v in row.items() if k not in left_out}) for row in seen.tables[table]]
    return sorted(found, key=repr)


@pytest.mark.parametrize("table", ["traces", "spans", "assessments", "promotions", "quality_metrics"])
def test_tables_hold_the_same(laptop: Seen, workspace_seen: Seen, table: str) -> None:
    assert [list(row) for row in workspace_seen.tables[table]][:1] == [list(row) for row in laptop.tables[table]][:1]
    assert rows(workspace_seen, table) == rows(laptop, table)


def keys(value: Any) -> Any:
    """The structure of an answer: its keys, and what its values are."""
    if isinstance(value, dict):
        return {key: keys(one) for key, one in value.items()}
    if isinstance(value, list):
        return [keys(value[0])] if value else []
    return type(value).__name__


def test_commands_answer_alike(laptop: Seen, workspace_seen: Seen) -> None:
    for command, (code, answer) in laptop.commands.items():
        found, said = workspace_seen.commands[command]
        assert found == code, f"{command}: {said}"
        assert keys(said) == keys(answer), command
    assert workspace_seen.commands["query"][1] == laptop.commands["query"][1]


def test_the_graph_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(tmp_path, attributes=ATTRIBUTES)

    def names() -> Iterator[str]:
        defs = agent_definitions(agent)
        graph = defs.resolve_asset_graph()
        yield from sorted(key.to_user_string() for key in graph.get_all_asset_keys())
        yield from sorted(f"{key.asset_key.to_user_string()}:{key.name}" for key in graph.asset_check_keys)
        yield from sorted(str(one.name) for one in [*(defs.jobs or []), *(defs.schedules or []), *(defs.sensors or [])])

    here = list(names())
    monkeypatch.setenv("LIFECYCLE_PLATFORM", "databricks")
    assert list(names()) == here


def test_the_page_shows_what_is_asked(workspace_seen: Seen) -> None:
    assert PAGE.read_text(encoding="utf-8") == render(workspace_seen.requests), "run python -m docs.make_databricks"


def test_no_secret_is_in_a_request_path(workspace_seen: Seen) -> None:
    made = [one for requests in workspace_seen.requests.values() for one in requests]
    assert made
    assert not [one for one in made if re.search(r"token|dapi", one)]
