"""From an error of a Databricks client to a sentence a person can act on.

Lives here: what a rejected sign-in, a missing permission, a throttled or absent workspace look like to each client.
Add here: a fault of the workspace that several gateways meet.
Not here: faults only one gateway can name (it refuses by itself), those of a laptop (`resources/explain.py`).

The clients raise different things for the same fault: databricks-sdk its `DatabricksError`, MLflow a `RestException`,
databricks-agents `requests.HTTPError`, and whoever runs out of retries the builtin `TimeoutError`. So errors are told
apart by what they carry, not by their class, and nothing of Databricks is imported here.
"""

import os
import re

_EXTRA = "run pip install 'lifecycle-assets[databricks]', then run again"
_ABSENT = re.compile(r"\b(catalog|schema)\s+['\"`]?([\w.-]+)['\"`]?\s+(does not exist|not found|cannot be found)", re.I)
_DISABLED = re.compile(r"not (?:enabled|available|supported)|is disabled|preview|not yet supported", re.I)


def workspace_name() -> str:
    """How the workspace is named to people: its host, without anything else of the address."""
    host = re.sub(r"^https?://", "", os.environ.get("DATABRICKS_HOST", "")).strip("/").rpartition("@")[2]
    return host or "the Databricks workspace"


def explain_databricks(error: BaseException) -> str | None:
    """A sentence for a known fault of the workspace or the sign-in, None for anything else."""
    where, text = workspace_name(), message(error)
    code, status = _code(error), _status(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXTRA_MODULES:
        return f"{error.name} is not installed: {_EXTRA}."
    if status in (429, 503) or code == "REQUEST_LIMIT_EXCEEDED":
        return f"{where} is busy ({status or 429}) and was asked often enough; run again later."
    if isinstance(error, TimeoutError) and "timed out after" in text.lower():
        cause = error.__cause__ or error.__context__
        if cause is not None and type(cause).__name__ in ("SSLError", "ProxyError"):
            reason = type(cause).__name__.removesuffix("Error")
            return f"{where} cannot be reached securely ({reason}): correct DATABRICKS_HOST, or the network's proxy."
        if cause is not None and type(cause).__name__ in ("ConnectionError", "ConnectTimeout", "ReadTimeout"):
            return f"{where} does not answer; correct DATABRICKS_HOST, or look at the network, then run again."
        return f"{where} kept answering that it is busy (429 or 503) until time was up; run again later."
    if "cannot configure default credentials" in text or "Reading Databricks credential configuration failed" in text:
        return (
            "No sign-in to Databricks is configured: set DATABRICKS_HOST and run databricks auth login, or name a "
            "profile by MLFLOW_TRACKING_URI=databricks://PROFILE."
        )
    if "has no" in text and "profile configured" in text:
        return f"MLFLOW_TRACKING_URI names a profile that is not configured ({text[:120]}): run databricks auth login."
    if code == "UNAUTHENTICATED" or status == 401 or "invalid access token" in text.lower():
        return (
            f"{where} does not accept the sign-in (token expired or wrong): run databricks auth login, or renew "
            "DATABRICKS_TOKEN, then run again."
        )
    absent = _ABSENT.search(text)
    if absent:
        kind, name = absent[1].lower(), absent[2]
        return f"{where}: {kind} {name} does not exist: CREATE {kind.upper()} {name}, or correct defs.yaml."
    if code in ("FEATURE_DISABLED", "NOT_IMPLEMENTED") or (status in (403, 404, 501) and _DISABLED.search(text)):
        return f"{where} says a feature is not enabled ({text[:200]}): have an administrator enable it in Previews."
    if code == "PERMISSION_DENIED" or status == 403:
        return f"{where} denies permission ({text[:300]}): run lifecycle doctor to see the GRANT that is missing."
    if code == "ENDPOINT_NOT_FOUND":
        return f"{where} does not offer this API ({text[:200]}): the region or the workspace's version lacks it."
    if status >= 500 or type(error).__name__ in _BROKEN or (_is_rest(error) and code in ("", "INTERNAL_ERROR")):
        return f"{where} failed inside ({text[:200]}): run again later; what was done is not done twice."
    if type(error).__name__ in ("ChunkedEncodingError", "IncompleteRead"):
        return f"{where}: the connection broke in the middle of an answer; run again, it goes on where it stopped."
    return None


def message(error: BaseException) -> str:
    """What the server said: the error's text without the client's configuration, the code, and line breaks."""
    text = " ".join(str(error).split())
    response = getattr(error, "response", None)
    body = getattr(response, "text", "") or ""
    said = re.search(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)"', body)
    text = said[1] if said else text
    text = re.sub(r"\s*Config: host=.*$", "", text).removeprefix(f"{_code(error)}: ")
    return text.rstrip(". ")


_EXTRA_MODULES = ("databricks", "dagster_databricks", "dagster_pyspark", "pyspark", "sqlglot")


_BROKEN = ("InternalError", "DataLoss", "InternalServerError", "BadGateway")
"""Errors that say the workspace is at fault."""


def _is_rest(error: BaseException) -> bool:
    """Whether MLflow got this from a server; its own errors have the same code."""
    answered = re.match(r"API request to .* failed with error code 5\d\d", str(error))
    return type(error).__name__ == "RestException" or answered is not None


def _code(error: BaseException) -> str:
    code = getattr(error, "error_code", "")
    return code if isinstance(code, str) else ""


def _status(error: BaseException) -> int:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return status if isinstance(status, int) else 0
