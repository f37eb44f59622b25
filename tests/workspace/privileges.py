"""Who may do what with a securable: one state for SQL's GRANT and the permissions API.

Lives here: explicit grants, what is inherited, and the check of a statement's needs.
Add here: a rule by which a privilege reaches a securable.
Not here: the HTTP surface (`unity.py`), SQL (`lake.py`).
"""

from collections.abc import Iterable

EVERYBODY = "account users"


class Privileges:
    """Explicit grants: (securable type, full name) to principal to privileges, in the API's spelling (`USE_CATALOG`).

    `me` is the caller; while `unrestricted` the caller owns everything. Set it False to have grants decide.
    """

    def __init__(self) -> None:
        self.me = "someone@example.com"
        self.groups: tuple[str, ...] = ("users",)
        self.unrestricted = True
        self.grants: dict[tuple[str, str], dict[str, set[str]]] = {}

    def add(self, kind: str, name: str, principal: str, privileges: Iterable[str]) -> None:
        """Grant; again is the same."""
        held = self.grants.setdefault((kind.upper(), name.lower()), {}).setdefault(principal, set())
        held |= {privilege.replace(" ", "_").upper() for privilege in privileges}

    def remove(self, kind: str, name: str, principal: str, privileges: Iterable[str]) -> None:
        """Revoke; what was not granted is no error."""
        held = self.grants.get((kind.upper(), name.lower()), {}).get(principal, set())
        held -= {privilege.replace(" ", "_").upper() for privilege in privileges}

    def explicit(self, kind: str, name: str) -> dict[str, set[str]]:
        """Principal to the privileges granted on this very securable."""
        return {who: held for who, held in self.grants.get((kind.upper(), name.lower()), {}).items() if held}

    def effective(self, kind: str, name: str) -> dict[str, list[dict[str, str]]]:
        """Principal to privileges, those of the parents with where they come from."""
        found: dict[str, list[dict[str, str]]] = {}
        for parent_kind, parent in [(kind.upper(), name.lower()), *_parents(name)]:
            for who, held in self.explicit(parent_kind, parent).items():
                inherited = {"inherited_from_type": parent_kind, "inherited_from_name": parent}
                here = parent.lower() == name.lower()
                found.setdefault(who, []).extend(
                    {"privilege": privilege, **({} if here else inherited)} for privilege in sorted(held)
                )
        return found

    def allowed(self, kind: str, name: str, privilege: str) -> bool:
        """Whether the caller has the privilege, by any grant or as owner."""
        if self.unrestricted:
            return True
        held = {
            one["privilege"]
            for who, privileges in self.effective(kind, name).items()
            if who in (self.me, *self.groups, EVERYBODY)
            for one in privileges
        }
        return bool(held & {privilege, "ALL_PRIVILEGES"})


def _parents(name: str) -> list[tuple[str, str]]:
    parts = name.lower().split(".")
    kinds = ("CATALOG", "SCHEMA")
    return [(kinds[size - 1], ".".join(parts[:size])) for size in range(min(len(parts) - 1, 2), 0, -1)]
