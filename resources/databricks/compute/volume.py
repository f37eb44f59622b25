"""Files of ours in a volume of the workspace.

Lives here: making the volume, putting the wheel there once, small JSON files.
Add here: a further file that jobs of the workspace share.
Not here: building the wheel (`resources/wheel.py`), messages of a step (Dagster Pipes writes and removes them).
"""

import io
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from resources.wheel import Wheel

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient


def volume_path(volume: str) -> str:
    """The folder of `catalog.schema.volume`."""
    return "/Volumes/" + volume.replace(".", "/")


def upload_once(workspace: "WorkspaceClient", volume: str, wheel: Wheel) -> str:
    """Where the wheel is in the volume `catalog.schema.volume`, which is made when absent; uploaded unless it is there.

    Safe to repeat and to be killed: a file that is not whole has another size and is written again. Raises `Refused`
    when the volume cannot be made or written.
    """
    from databricks.sdk.errors import BadRequest, NotFound, PermissionDenied

    root = volume_path(volume)
    path = f"{root}/wheels/{wheel.name}"
    try:
        ensure_volume(workspace, volume)
        with suppress(NotFound):
            if workspace.files.get_metadata(path).content_length == len(wheel.data):
                return path
        workspace.files.create_directory(f"{root}/wheels")
        workspace.files.upload(path, io.BytesIO(wheel.data), overwrite=True)
    except (BadRequest, NotFound, PermissionDenied) as error:
        raise Refused(
            f"Volume {volume}: the code for the job could not be put there ({str(error)[:200]}); create the volume, or "
            f"GRANT READ VOLUME, WRITE VOLUME ON VOLUME {volume} to this principal, or name another one by "
            "attributes.compute.volume."
        ) from None
    return path


def ensure_volume(workspace: "WorkspaceClient", volume: str) -> None:
    """Make the managed volume when it is absent; two processes at once both go on."""
    from databricks.sdk.errors import NotFound, ResourceConflict
    from databricks.sdk.service.catalog import VolumeType

    try:
        workspace.volumes.read(volume)
    except NotFound:
        catalog, schema, name = volume.split(".")
        with suppress(ResourceConflict):
            workspace.volumes.create(catalog, schema, name, VolumeType.MANAGED)


def read_json(workspace: "WorkspaceClient", path: str) -> Any:
    """The JSON file, None when it is not there. Raises `Refused` when it is something else."""
    from databricks.sdk.errors import NotFound

    try:
        contents = workspace.files.download(path).contents
    except NotFound:
        return None
    try:
        return json.loads(contents.read()) if contents else None
    except ValueError:
        raise Refused(f"{path}: is not JSON; move the file away, it is written anew.") from None


def write_json(workspace: "WorkspaceClient", path: str, value: Any) -> None:
    """Write the JSON file, in place of the one that is there."""
    workspace.files.create_directory(path.rpartition("/")[0])
    workspace.files.upload(path, io.BytesIO(json.dumps(value).encode()), overwrite=True)
