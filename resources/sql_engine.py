"""SQL over the agent's tables and views: DuckDB, read-only."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SqlResult:
    """Columns and rows of a query; `truncated` when more rows than the limit were there."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool = False

    def dicts(self) -> list[dict[str, Any]]:
        """Rows as dictionaries."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class SqlEngine(ABC):
    """Answers read-only SQL. Tables and views are named without prefix: `traces`, `quality_by_version`, …; a table
    that was never written is there with no rows."""

    @abstractmethod
    def query(self, prefix: str, sql: str, params: Sequence[Any] = (), *, limit: int = 10_000) -> SqlResult:
        """Run one statement. Raises `Refused` when it is not a query, writes, reads files, or is wrong SQL."""
