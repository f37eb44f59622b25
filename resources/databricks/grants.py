"""What the graph of an agent needs to be granted in Unity Catalog, and what of it is missing.

    wanted = needed_grants(agent, me, trace_tables=place.tables)
    for grant in missing_grants(platform, wanted, me=current_user):
        print(grant.statement)  # GRANT SELECT ON TABLE `main`.`agents`.`tiny_traces` TO `me@example.com`

Lives here: the privileges by securable, and reading what is held with one request a securable; nothing is changed.
Add here: a privilege that a step of the graph comes to need.
Not here: giving grants (`trace_grants.py`: `ensure_grants` gives and reads back), permissions of the workspace.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.faults import message
from resources.databricks.sql.statements import ticked
from resources.databricks.tracing.trace_grants import Grant, trace_grants
from resources.databricks.workspace import open_workspace
from resources.platform import Platform
from resources.tables import LOCAL, TABLES

if TYPE_CHECKING:
    from databricks.sdk.service.iam import User

EVERYBODY = "account users"
"""The group everybody is in."""

_DATA = ("SELECT", "MODIFY", "EXECUTE", "READ_VOLUME", "WRITE_VOLUME")  # Owning the parent does not give these.


def needed_grants(agent: Agent, principal: str, *, trace_tables: Sequence[str] = ()) -> list[Grant]:
    """What `principal` needs to run the agent's graph, parents first, each once.

    `trace_tables` are the tables its experiment is linked to, which every declared principal of `tracing` needs too;
    without any the right to make them is needed.
    """
    spec, in_catalog = agent.spec, agent.spec.tracing.location == "unity_catalog"
    schemas = {f"{spec.catalog}.{spec.schema_name}": ["CREATE_TABLE", "CREATE_MODEL"]}
    if in_catalog and not trace_tables:
        rights = schemas.setdefault(spec.trace_schema, [])
        rights += [] if "CREATE_TABLE" in rights else ["CREATE_TABLE"]
    if spec.compute.mode != "local":
        schemas.setdefault(spec.volume.rpartition(".")[0], []).append("CREATE_VOLUME")
    grants = [Grant("CATALOG", schema.split(".")[0], "USE_CATALOG", principal) for schema in schemas]
    for schema, rights in schemas.items():
        grants += [Grant("SCHEMA", schema, right, principal) for right in ("USE_SCHEMA", *rights)]
    grants.append(Grant("FUNCTION", spec.model_name, "EXECUTE", principal))
    if spec.compute.mode != "local":
        grants += [Grant("VOLUME", spec.volume, right, principal) for right in ("READ_VOLUME", "WRITE_VOLUME")]
    if in_catalog and trace_tables:
        grants += trace_grants(trace_tables, dict.fromkeys((principal, *spec.tracing.principals)))
    for table in [one for one in TABLES if one not in LOCAL]:
        grants += [Grant("TABLE", spec.table_prefix + table, right, principal) for right in ("SELECT", "MODIFY")]
    return list(dict.fromkeys(grants))


def missing_grants(
    platform: Platform,
    wanted: Sequence[Grant],
    *,
    me: "User",
    ask: Callable[[Callable[[], Any]], Any] = lambda request: request(),
) -> Iterator[Grant]:
    """Those of `wanted` that are not held, in order; a table, model or volume that is not there needs none.

    `me` is the caller, whose groups count. Every request goes through `ask`, which may count it. Raises `Refused` when
    a catalog or schema is not there, or when grants may not be read: then nobody knows what is missing.
    """
    held = _Held(platform, me, ask)
    for grant in wanted:
        if not held.has(grant):
            yield grant


class _Held:
    """What is granted, each securable asked once and only when its parents do not give it already."""

    def __init__(self, platform: Platform, me: "User", ask: Callable[[Callable[[], Any]], Any]) -> None:
        self._w, self._me, self._ask = open_workspace(platform), me, ask
        self._seen: dict[tuple[str, str, bool], dict[str, set[str]] | None] = {}
        self._owners: dict[tuple[str, str], str] = {}

    @cached_property
    def _names(self) -> set[str]:
        groups = [group.display for group in self._me.groups or () if group.display]
        return {name for name in (self._me.user_name, *groups) if name}

    def has(self, grant: Grant) -> bool:
        """Whether the privilege is held."""
        names = {grant.principal, EVERYBODY} | (self._names if grant.principal == self._me.user_name else set())
        if grant.explicit:
            granted = self._granted(grant.kind, grant.name, explicit=True)
            return granted is None or any(grant.privilege in granted.get(name, ()) for name in names)
        for kind, name in _above(grant):
            granted = self._granted(kind, name, explicit=False)
            if granted is None and (kind, name) == (grant.kind, grant.name):
                return True
            if any({grant.privilege, "ALL_PRIVILEGES"} & granted.get(who, set()) for who in names if granted):
                return True
        return self._owner(grant.kind, grant.name) in names

    def _granted(self, kind: str, name: str, *, explicit: bool) -> dict[str, set[str]] | None:
        """Principal to privileges, None for a securable that is not there."""
        from databricks.sdk.errors import DatabricksError

        key = (kind, name, explicit)
        if key not in self._seen:
            read = self._w.grants.get if explicit else self._w.grants.get_effective
            try:
                self._seen[key] = self._privileges(read, kind, name, None)
            except (DatabricksError, Refused) as error:
                self._seen[key] = self._otherwise(error, read, kind, name)
        return self._seen[key]

    def _otherwise(self, error: Exception, read: Any, kind: str, name: str) -> dict[str, set[str]] | None:
        """What is granted when the first question was answered by `error`, which is raised when that says nothing."""
        from databricks.sdk.errors import NotFound, PermissionDenied

        cause = error.__cause__ if isinstance(error, Refused) else error
        if isinstance(cause, PermissionDenied):
            # Who does not own a securable may still be told what he himself has.
            return self._privileges(read, kind, name, self._me.user_name)
        if not isinstance(cause, NotFound):
            raise error
        if cause.error_code == "ENDPOINT_NOT_FOUND" and read == self._w.grants.get_effective:
            return self._added_up(kind, name)
        if kind not in ("CATALOG", "SCHEMA"):
            return None
        if isinstance(error, Refused):
            raise error
        raise Refused(
            f"{kind.lower()} {name} is not there ({message(error)[:200]}): run CREATE {kind} {ticked(name)}, or "
            "correct defs.yaml."
        ) from error

    def _added_up(self, kind: str, name: str) -> dict[str, set[str]] | None:
        """The grants on the securable and on its parents, where the workspace does not add them up itself."""
        own = self._granted(kind, name, explicit=True)
        if own is None:
            return None
        parts, found = name.split("."), {who: set(held) for who, held in own.items()}
        for size, parent in ((1, "CATALOG"), (2, "SCHEMA")):
            if len(parts) > size:
                for who, held in (self._granted(parent, ".".join(parts[:size]), explicit=True) or {}).items():
                    found.setdefault(who, set()).update(held)
        return found

    def _privileges(self, read: Any, kind: str, name: str, principal: str | None) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        token: str | None = None
        while True:
            page = self._ask(partial(read, kind, name, principal=principal, page_token=token))
            for assignment in page.privilege_assignments or ():
                for one in assignment.privileges or ():
                    privilege = getattr(one, "privilege", one)
                    found.setdefault(assignment.principal or "", set()).add(str(getattr(privilege, "value", privilege)))
            token = page.next_page_token
            if not token:
                return found

    def _owner(self, kind: str, name: str) -> str:
        """Who owns the securable; owners have every privilege on it without a grant."""
        read = {
            "CATALOG": self._w.catalogs.get,
            "SCHEMA": self._w.schemas.get,
            "TABLE": self._w.tables.get,
            "FUNCTION": self._w.registered_models.get,
            "VOLUME": self._w.volumes.read,
        }[kind]
        if (kind, name) not in self._owners:
            self._owners[kind, name] = self._owner_of(lambda: read(name))
        return self._owners[kind, name]

    def _owner_of(self, request: Callable[[], Any]) -> str:
        from databricks.sdk.errors import NotFound, PermissionDenied

        try:
            return self._ask(request).owner or ""
        except (NotFound, PermissionDenied):
            return ""  # Whoever may not even look at it does not own it.
        except Refused as refusal:
            if not _is_denial(refusal):
                raise
            return ""


def _above(grant: Grant) -> list[tuple[str, str]]:
    """The securables by which a privilege may be held, those that are asked anyway first."""
    parts = grant.name.split(".")
    if grant.kind in ("CATALOG", "SCHEMA") or grant.privilege not in _DATA:
        return [(grant.kind, grant.name)]
    return [("SCHEMA", ".".join(parts[:2])), (grant.kind, grant.name)]


def _is_denial(refusal: Refused) -> bool:
    from databricks.sdk.errors import PermissionDenied

    return isinstance(refusal.__cause__, PermissionDenied)
