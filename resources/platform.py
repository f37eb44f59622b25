"""Which platform this process works on, read from the environment.

Lives here: the variables of the product and the places they name.
Add here: a variable that decides where something is kept or which service is called.
Not here: secrets (the clients read their own), per-agent settings (`defs.yaml`).
"""

import os
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from lifecycle_assets.refused import Refused
from resources.explain import without_password


@dataclass(frozen=True)
class Platform:
    """Where state lives.

    `home` holds all local state; `tracking_uri` and `registry_uri` are MLflow's; `warehouse` is the folder or
    object-store URI above `<catalog>/<schema>/<table>`; `environment` (prod, staging, local) is part of
    registered scorer names and is stamped on traces. On Databricks `warehouse_id` names the SQL warehouse (empty when
    unset; whoever needs it refuses), `warehouse` is empty: tables are Unity Catalog's.
    """

    name: str
    home: Path
    tracking_uri: str
    registry_uri: str
    warehouse: str
    environment: str
    warehouse_id: str = ""

    @property
    def is_databricks(self) -> bool:
        """Whether state lives in a Databricks workspace."""
        return self.name == "databricks"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Self:
        """The platform of `env` (default: this process's). Raises `Refused` for a value that cannot be used."""
        env = os.environ if env is None else env
        name = env.get("LIFECYCLE_PLATFORM", "local")
        if name not in ("local", "databricks"):
            raise Refused(f"LIFECYCLE_PLATFORM is '{name[:40]}'; set it to local or databricks, or unset it.")
        environment = env.get("LIFECYCLE_ENVIRONMENT") or ("local" if name == "local" else "dev")
        if not re.fullmatch(r"[a-z][a-z0-9]{0,19}", environment):
            raise Refused(
                f"LIFECYCLE_ENVIRONMENT is '{environment[:40]}'; use at most 20 lower-case letters and digits, "
                "such as prod."
            )
        home = Path(env.get("LIFECYCLE_HOME") or ".lifecycle").expanduser().absolute()
        if name == "databricks":
            return cls._of_workspace(env, home, environment)
        tracking_uri = env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
        return cls(
            name=name,
            home=home,
            tracking_uri=tracking_uri,
            registry_uri=tracking_uri,
            warehouse=env.get("LIFECYCLE_WAREHOUSE_URI") or str(home / "warehouse"),
            environment=environment,
        )

    @classmethod
    def _of_workspace(cls, env: Mapping[str, str], home: Path, environment: str) -> Self:
        uri = env.get("MLFLOW_TRACKING_URI") or "databricks"
        scheme, _, profile = uri.partition("://")
        if scheme != "databricks":
            raise Refused(
                f"MLFLOW_TRACKING_URI is '{without_password(uri)[:80]}' with LIFECYCLE_PLATFORM=databricks; unset "
                "it, or name a profile: databricks://PROFILE."
            )
        return cls(
            name="databricks",
            home=home,
            tracking_uri=uri,
            registry_uri=f"databricks-uc://{profile}" if profile else "databricks-uc",
            warehouse="",
            environment=environment,
            warehouse_id=env.get("DATABRICKS_WAREHOUSE_ID", ""),
        )

    def prepare(self) -> Self:
        """Make `home` and prove it can be written. Raises `Refused` when it is read-only or full. Safe to repeat."""
        probe = self.home / f".probe-{os.getpid()}-{threading.get_native_id()}"
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x" * 65536)
        except OSError as error:
            raise Refused(
                f"LIFECYCLE_HOME {self.home}: cannot be written ({error.strerror}); "
                "free space there, or set LIFECYCLE_HOME to a folder you can write."
            ) from None
        finally:
            with suppress(OSError):  # Not made, or below something that is no folder.
                probe.unlink()
        return self

    @property
    def dagster_home(self) -> Path:
        """The Dagster instance's folder: `DAGSTER_HOME` when set, else below `home`."""
        return Path(os.environ.get("DAGSTER_HOME") or self.home / "dagster")

    @property
    def store_file(self) -> Path | None:
        """The file of an embedded tracking store; None for a server."""
        uri = self.tracking_uri
        return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])) if uri.startswith("sqlite:///") else None

    def table_uri(self, table: str) -> str:
        """Where `catalog.schema.table` is kept."""
        return "/".join([self.warehouse.rstrip("/"), *table.split(".")])
