"""Who may write and read traces in Unity Catalog.

Lives here: the privileges trace tables want of each principal, giving those that are missing, reading them back.
Add here: a privilege the trace tables come to need. Not here: which principals (`defs.yaml`), other securables.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lifecycle_assets.refused import Refused
from resources.databricks.faults import message
from resources.databricks.workspace import open_workspace
from resources.platform import Platform

_EVERYBODY = "account users"  # The group everybody is in.


@dataclass(frozen=True)
class Grant:
    """A privilege on a securable: `kind` is CATALOG, SCHEMA or TABLE, `privilege` as the API spells it.

    An `explicit` one has to be granted on the securable itself: for trace tables neither ALL PRIVILEGES nor a grant
    on the schema will do.
    """

    kind: str
    name: str
    privilege: str
    principal: str
    explicit: bool = False

    @property
    def target(self) -> str:
        """The securable as SQL names it."""
        return ".".join(_ticked(part) for part in self.name.split("."))

    @property
    def statement(self) -> str:
        """The SQL that gives it."""
        return f"GRANT {self.privilege.replace('_', ' ')} ON {self.kind} {self.target} TO {_ticked(self.principal)}"


def trace_grants(tables: Sequence[str], principals: Iterable[str]) -> list[Grant]:
    """What each principal needs to write and read traces in these tables, given by full name, of one schema."""
    catalog, schema, _ = tables[0].split(".")
    return [
        grant
        for principal in principals
        for grant in (
            Grant("CATALOG", catalog, "USE_CATALOG", principal),
            Grant("SCHEMA", f"{catalog}.{schema}", "USE_SCHEMA", principal),
            *(Grant("TABLE", table, right, principal, True) for table in tables for right in ("MODIFY", "SELECT")),
        )
    ]


def ensure_grants(platform: Platform, wanted: Sequence[Grant], *, me: str = "") -> list[str]:
    """Give what is missing and read it back; returns the statements of what was given.

    Raises `Refused` naming every GRANT that is missing and may not be given from here. What `me`, the caller, may have
    by a group is passed over: it is proven by using it. Repeating gives nothing twice.
    """
    w, given, denied = open_workspace(platform), [], []
    for place in dict.fromkeys((grant.kind, grant.name) for grant in wanted):
        missing = _missing(w, [grant for grant in wanted if (grant.kind, grant.name) == place])
        if not missing:
            continue
        why = _give(w, *place, missing)
        left = _missing(w, missing)
        given += [grant.statement for grant in missing if grant not in left]
        denied += [(grant.statement, why) for grant in left if grant.explicit or grant.principal != me]
    if denied:
        statements = "; ".join(statement for statement, _ in denied)
        why = next((why for _, why in denied if why), "the workspace took the grant but does not show it")
        raise Refused(f"Traces need grants that could not be given ({why[:200]}); have an owner run: {statements}.")
    return given


def _missing(w: Any, wanted: Sequence[Grant]) -> list[Grant]:
    """Those of one securable that are not held: asked on it, and for what may be inherited, from above."""
    return [
        grant
        for principal in dict.fromkeys(grant.principal for grant in wanted)
        for grant in _missing_of(w, [grant for grant in wanted if grant.principal == principal])
    ]


def _missing_of(w: Any, wanted: Sequence[Grant]) -> list[Grant]:
    """What may not be read, or is not known to be inherited, counts as missing: then it is granted, or named."""
    from databricks.sdk.errors import NotFound, PermissionDenied

    about, held = wanted[0], set()
    with suppress(PermissionDenied):
        held |= set(_held(w.grants.get, about, about.principal))
    missing = [grant for grant in wanted if grant.privilege not in held]
    if any(not grant.explicit for grant in missing):
        with suppress(PermissionDenied, NotFound):
            for who in (about.principal, _EVERYBODY):
                held |= set(_held(w.grants.get_effective, about, who))
        missing = [
            grant
            for grant in missing
            if grant.explicit or (grant.privilege not in held and "ALL_PRIVILEGES" not in held)
        ]
    return missing


def _held(ask: Callable[..., Any], about: Grant, principal: str) -> Iterator[str]:
    """Privileges the principal has on the grant's securable, page by page."""
    token = None
    while True:
        page = ask(about.kind, about.name, principal=principal, page_token=token)
        for assignment in page.privilege_assignments or ():
            if (assignment.principal or "").lower() == principal.lower():
                for one in assignment.privileges or ():
                    privilege = getattr(one, "privilege", one)
                    yield str(getattr(privilege, "value", privilege))
        token = page.next_page_token
        if not token:
            return


def _give(w: Any, kind: str, name: str, missing: Sequence[Grant]) -> str:
    """Grant on one securable; returns why not, empty when it was taken."""
    from databricks.sdk.errors import BadRequest, NotFound, PermissionDenied
    from databricks.sdk.service.catalog import PermissionsChange, Privilege

    changes = [
        PermissionsChange(
            principal=principal, add=[Privilege(grant.privilege) for grant in missing if grant.principal == principal]
        )
        for principal in dict.fromkeys(grant.principal for grant in missing)
    ]
    try:
        w.grants.update(kind, name, changes=changes)
    except (PermissionDenied, NotFound, BadRequest) as error:  # The latter two: a principal nobody knows.
        return message(error)
    return ""


def _ticked(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
