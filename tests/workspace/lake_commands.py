"""Statements of the lake that are about objects and grants, not about rows.

Lives here: GRANT and REVOKE, SHOW, CREATE of catalogs, schemas and volumes, DESCRIBE HISTORY, what does nothing here.
Add here: such a statement. Not here: queries and writes (`lake.py`).
"""

import re
import uuid
from typing import Any

from sqlglot import exp

from tests.workspace.lake_sql import WrongSql, plain, ticked

Answer = tuple[list[tuple[str, str, str]], list[tuple[Any, ...]]]

_KINDS = {"MODEL": "FUNCTION", "DATABASE": "SCHEMA", "VIEW": "TABLE", "": "TABLE"}
_NAME = r"((?:`(?:[^`]|``)*`|[\w$]+)(?:\s*\.\s*(?:`(?:[^`]|``)*`|[\w$]+))*)"
_OBJECT = r"(CATALOG|SCHEMA|DATABASE|TABLE|VIEW|VOLUME|FUNCTION|MODEL|)"
_GRANT = re.compile(
    rf"(GRANT|REVOKE)\s+(.+?)\s+ON\s+{_OBJECT}\s*{_NAME}\s+(?:TO|FROM)\s+(`(?:[^`]|``)*`|[\w$]+)", re.I | re.S
)
_SHOW_GRANTS = re.compile(rf"SHOW\s+GRANTS?\s+(?:(`(?:[^`]|``)*`|[\w$]+)\s+)?ON\s+{_OBJECT}\s*{_NAME}", re.I)
_SHOW = re.compile(rf"SHOW\s+(TABLES|VIEWS|SCHEMAS|DATABASES|CATALOGS|VOLUMES)(?:\s+(?:IN|FROM)\s+{_NAME})?.*", re.I)
_CREATE = re.compile(rf"CREATE\s+(CATALOG|SCHEMA|DATABASE|VOLUME)\s+(IF\s+NOT\s+EXISTS\s+)?{_NAME}.*", re.I | re.S)
_HISTORY = re.compile(rf"DESC(?:RIBE)?\s+(HISTORY|DETAIL)\s+{_NAME}(?:\s+LIMIT\s+(\d+))?", re.I)
_NOTHING = re.compile(r"(OPTIMIZE|VACUUM|ANALYZE|COMMENT\s+ON|ALTER\s+TABLE\s+\S+\s+(SET|UNSET|CLUSTER|OWNER))\b", re.I)


def command(lake: Any, text: str, catalog: str, schema: str) -> Answer | None:
    """The answer to a statement of this kind, None for another kind."""
    for pattern, work in (
        (_GRANT, _grant),
        (_SHOW_GRANTS, _show_grants),
        (_CREATE, _create),
        (_HISTORY, _describe_history),
        (_SHOW, _show),
    ):
        match = pattern.fullmatch(text)
        if match:
            return work(lake, match, catalog, schema)
    return ([], []) if _NOTHING.match(text) else None


def _grant(lake: Any, match: re.Match[str], catalog: str, schema: str) -> Answer:
    verb, privileges, kind, name, principal = match.groups()
    kind, name = _KINDS.get(kind.upper(), kind.upper()), plain(name)
    if not lake.exists(kind, name):
        raise WrongSql(f"{kind}_NOT_FOUND", f"The {kind.lower()} {ticked(name)} cannot be found. SQLSTATE: 42704")
    work = lake.privileges.add if verb.upper() == "GRANT" else lake.privileges.remove
    work(kind, name, plain(principal, lower=False), [one.strip() for one in privileges.split(",")])
    return [], []


def _show_grants(lake: Any, match: re.Match[str], catalog: str, schema: str) -> Answer:
    principal, kind, name = match.groups()
    kind, name = _KINDS.get(kind.upper(), kind.upper()), plain(name)
    rows = [
        (
            who,
            one["privilege"].replace("_", " "),
            one.get("inherited_from_type", kind),
            one.get("inherited_from_name", name),
        )
        for who, held in sorted(lake.privileges.effective(kind, name).items())
        if not principal or who == plain(principal, lower=False)
        for one in held
    ]
    return [(column, "STRING", "STRING") for column in ("Principal", "ActionType", "ObjectType", "ObjectKey")], rows


def _create(lake: Any, match: re.Match[str], catalog: str, schema: str) -> Answer:
    kind, quietly, name = match.group(1).upper(), match.group(2), plain(match.group(3))
    kind = _KINDS.get(kind, kind)
    if kind == "SCHEMA" and "." not in name:
        name = f"{catalog}.{name}"
    if lake.exists(kind, name):
        if quietly:
            return [], []
        raise WrongSql(f"{kind}_ALREADY_EXISTS", f"Cannot create {kind.lower()} {ticked(name)}. SQLSTATE: 42P06")
    if kind == "CATALOG":
        lake.catalogs[name] = {"name": name, "owner": lake.privileges.me}
        return [], []
    if name.split(".")[0] not in lake.catalogs:
        raise WrongSql("NO_SUCH_CATALOG_EXCEPTION", f"Catalog '{name.split('.')[0]}' was not found. SQLSTATE: 42704")
    if kind == "SCHEMA":
        lake.need("CATALOG", name.split(".")[0], "CREATE_SCHEMA")
        lake.create_schema(name)
    else:
        if name.rpartition(".")[0] not in lake.schemas:
            raise WrongSql("SCHEMA_NOT_FOUND", f"The schema of {ticked(name)} cannot be found. SQLSTATE: 42704")
        lake.need("SCHEMA", name.rpartition(".")[0], "CREATE_VOLUME")
        lake.volumes[name] = {"full_name": name, "owner": lake.privileges.me, "volume_id": str(uuid.uuid4())}
    return [], []


def _describe_history(lake: Any, match: re.Match[str], catalog: str, schema: str) -> Answer:
    name = plain(match.group(2))
    lake.check(name, exp.Table(), exp.Select(), written=False)
    history = lake.tables[name]["history"]
    if match.group(1).upper() == "DETAIL":
        return [("format", "STRING", "STRING"), ("id", "STRING", "STRING"), ("name", "STRING", "STRING")], [
            ("delta", lake.tables[name]["table_id"], name)
        ]
    kinds = (("version", "LONG", "BIGINT"), ("timestamp", "TIMESTAMP", "TIMESTAMP"))
    columns = [*kinds, ("userName", "STRING", "STRING"), ("operation", "STRING", "STRING")]
    return columns, list(reversed(history))[: int(match.group(3) or len(history))]


def _show(lake: Any, match: re.Match[str], catalog: str, schema: str) -> Answer:
    kind, place = match.group(1).upper(), plain(match.group(2) or "")
    if kind == "CATALOGS":
        return [("catalog", "STRING", "STRING")], [(name,) for name in sorted(lake.catalogs)]
    if kind in ("SCHEMAS", "DATABASES"):
        found = [
            name.partition(".")[2] for name in sorted(lake.schemas) if name.partition(".")[0] == (place or catalog)
        ]
        return [("databaseName", "STRING", "STRING")], [(name,) for name in found]
    place = place if "." in place else f"{catalog}.{place or schema}"
    lake.check(f"{place}.x", exp.Table(), exp.Create(), written=True)
    held = lake.volumes if kind == "VOLUMES" else lake.tables
    listed = [name.rpartition(".")[2] for name in sorted(held) if name.rpartition(".")[0] == place]
    columns = [
        ("database", "STRING", "STRING"),
        ("tableName", "STRING", "STRING"),
        ("isTemporary", "BOOLEAN", "BOOLEAN"),
    ]
    return columns, [(place.rpartition(".")[2], name, False) for name in listed]
