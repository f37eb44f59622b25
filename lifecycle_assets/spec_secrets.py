"""Secrets in a declaration: only ever references to them.

Lives here: what a reference looks like, and what looks like a secret itself.
Add here: the shape of another provider's tokens.
Not here: resolving a reference (the runtime does), hiding text in tables (`resources/redaction.py`).
"""

import re

_REFERENCE = re.compile(r"\{\{secrets/([A-Za-z0-9_.@-]{1,128})/([A-Za-z0-9_.@-]{1,128})\}\}")
_NAME = re.compile(r"(^|_)(TOKEN|SECRET|KEY|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_VALUE = re.compile(
    r"\b(dapi|dkea|dose|dsapi)[0-9a-fA-F]+|\bsk-[\w-]{16,}|\bgh[a-z]_\w{20,}|\bgithub_pat_|\bxox[a-z]-"
    r"|\bAKIA[0-9A-Z]{16}|\beyJ[\w-]{10,}\.|-----BEGIN|://[^/@\s]*:[^/@\s]+@"
)


def secret_reference(value: str) -> tuple[str, str] | None:
    """Scope and key of `{{secrets/scope/key}}`, None for anything else."""
    found = _REFERENCE.fullmatch(value)
    return (found[1], found[2]) if found else None


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable holds a secret itself, by its name or by the shape of its value."""
    return not secret_reference(value) and bool(_NAME.search(name) or _VALUE.search(value))


def require_harmless(field: str, name: str, value: str, *, remedy: str) -> None:
    """Raise `ValueError` when a value is a secret, half a reference, or no single line of at most 1000 characters."""
    if looks_secret(name, value):
        raise ValueError(f"{field}: {name} holds a secret in plain text; {remedy}")
    if "{{secrets/" in value and not secret_reference(value):
        raise ValueError(f"{field}: {name} must be {{{{secrets/scope/key}}}} and nothing else")
    if len(value) > 1000 or not value.isprintable():
        raise ValueError(f"{field}: {name} must be at most 1000 printable characters")
