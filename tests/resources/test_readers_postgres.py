"""On PostgreSQL both readers give the same rows as well."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from resources.mlflow_store import experiment_id, open_client
from resources.platform import Platform
from resources.reading.database_reader import DatabaseReader
from resources.reading.public_reader import PublicReader
from resources.reading.reading import open_reader
from resources.reading.trace_reader import Marks
from tests.postgres import binaries, postgres
from tests.resources.readers import FOREVER, rows, trace, write
from tests.resources.test_trace_store import EXPERIMENT, MIDNIGHT_MS, assess, make_bare_trace, make_trace

pytestmark = pytest.mark.skipif(binaries() is None, reason="no PostgreSQL: sh tests/postgres.sh")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with postgres() as uri:
        home = tmp_path_factory.mktemp("postgres")
        yield Platform.from_env({"LIFECYCLE_HOME": str(home), "MLFLOW_TRACKING_URI": uri})


@settings(
    max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], database=None
)
@given(made=st.lists(trace, min_size=2, max_size=3))
def test_both_readers_give_the_same_rows_of_any_trace(world: Platform, made: list) -> None:
    known = experiment_id(world, f"/any/{len(open_client(world).search_experiments())}")
    for one in made:
        write(world, known, one)
    database = open_reader(world, known, pytest.fail)

    assert isinstance(database, DatabaseReader)
    assert rows(database)["traces"]
    assert rows(database) == rows(PublicReader(world, known))
    assert rows(database, spans=False) == rows(PublicReader(world, known), spans=False)


def test_listing_state_and_changes(world: Platform) -> None:
    made = [make_trace(world, MIDNIGHT_MS + i, error=i == 1) for i in range(3)]
    make_trace(world, MIDNIGHT_MS, metadata={"mlflow.sourceRun": "r-1"})
    bare = make_bare_trace(world, "tr-" + "c" * 32, MIDNIGHT_MS)
    known = experiment_id(world, EXPERIMENT)
    database, public = open_reader(world, known, pytest.fail), PublicReader(world, known)

    listing = database.list(MIDNIGHT_MS, FOREVER, settled_before_ms=FOREVER)
    assert set(listing.ids) == {*made, bare}
    assert public.list(MIDNIGHT_MS, FOREVER, settled_before_ms=FOREVER).traces.equals(listing.traces)
    assert [one.to_dict() for one in database.traces(made)] == [one.to_dict() for one in public.traces(made)]
    marks, state = database.touched(0, FOREVER, Marks()).marks, database.state()
    assert state == database.state() != 0
    assess(world, made[0], name="good", value=1)
    assert database.state() != state
    assert database.touched(0, FOREVER, marks).heads == {made[0]}
