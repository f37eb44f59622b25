"""Values on their way to a SQL warehouse and back.

Lives here: Python values as typed parameters, and the texts of a result as Python values.
Add here: a type of Databricks SQL. Not here: sending (`statements.py`).
"""

import base64
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from databricks.sdk.service.sql import StatementParameterListItem

_INT = 2**31
_WHOLE = {"BIGINT", "LONG", "INT", "INTEGER", "SMALLINT", "SHORT", "TINYINT", "BYTE"}


def parameter(name: str, value: Any) -> "StatementParameterListItem":
    """A value with its type. Raises `TypeError` for a time without a zone and for a value SQL has no scalar for."""
    from databricks.sdk.service.sql import StatementParameterListItem

    text, kind = _typed(value)
    return StatementParameterListItem(name=name, value=text, type=kind)


def _typed(value: Any) -> tuple[str | None, str]:
    if value is None:
        return None, "STRING"
    if isinstance(value, bool):
        return str(value).lower(), "BOOLEAN"
    if isinstance(value, int):
        return str(value), "INT" if -_INT <= value < _INT else "BIGINT"  # LIMIT takes an INT only.
    if isinstance(value, float):
        return repr(value), "DOUBLE"
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise TypeError("a time without a zone means another moment in every session")
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "TIMESTAMP"
    if isinstance(value, date):
        return value.isoformat(), "DATE"
    if isinstance(value, str):
        return value, "STRING"
    raise TypeError(f"a {type(value).__name__} cannot be a parameter of a statement")


def read_value(text: Any, kind: str) -> Any:
    """The Python value of a text of type `kind`, such as `MAP<STRING, STRING>`; times are in UTC.

    Structures become dictionaries and lists; VARIANT stays JSON text, as JSON does in DuckDB.
    """
    if text is None:
        return None
    outer = kind.partition("<")[0].partition("(")[0].strip()
    if outer in _WHOLE:
        return int(text)
    if outer in ("DOUBLE", "FLOAT", "REAL"):
        return float(text)
    if outer in ("DECIMAL", "DEC", "NUMERIC"):
        return Decimal(text)
    if outer == "BOOLEAN":
        return str(text).lower() == "true"
    if outer == "DATE":
        return date.fromisoformat(text[:10])
    if outer == "TIMESTAMP":
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    if outer == "TIMESTAMP_NTZ":
        return datetime.fromisoformat(text.removesuffix("Z"))
    if outer == "BINARY":
        return base64.b64decode(text)
    if outer in ("MAP", "ARRAY", "STRUCT"):
        return json.loads(text) if isinstance(text, str) else text
    return text
