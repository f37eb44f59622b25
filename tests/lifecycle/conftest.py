"""Worlds for sensors and assets: one released once a process, and copies of it.

Lives here: fixtures. Add here: nothing but a fixture. Not here: how a world is made (`tests/building.py`).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.building import Released, World, released_once


@pytest.fixture(scope="session")
def released(migrated_store: Path) -> Released:
    """The released world; building it takes half a minute, once a process."""
    return released_once(migrated_store)


@pytest.fixture
def world(released: Released, tmp_path: Path) -> Iterator[World]:
    """A copy of the released world, which a test may change."""
    with released.copy(tmp_path) as world:
        yield world
