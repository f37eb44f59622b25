"""Which days are kept, and which may be scored."""

from datetime import date
from typing import Any

import pytest

from lifecycle_assets.retention import oldest_scored
from lifecycle_assets.spec_monitoring import ArchivePolicy

NOW = date(2026, 11, 22)


@pytest.mark.parametrize(
    ("declared", "oldest"),
    [
        ({}, date.min),
        ({"retention_days": 2}, date(2026, 11, 20)),
        ({"store_retention": {"after_days": 9, "how": "archive"}}, date.min),
        ({"store_retention": {"after_days": 9, "how": "delete"}}, date(2026, 11, 13)),
        ({"store_retention": {"after_days": 9, "how": "delete"}, "retention_days": 30}, date(2026, 11, 13)),
    ],
)
def test_a_day_is_scored_while_the_tables_keep_it_and_mlflow_holds_its_traces(declared: Any, oldest: date) -> None:
    assert oldest_scored(ArchivePolicy(**declared), NOW) == oldest
