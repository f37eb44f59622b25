"""Which parts make up the workspace.

Lives here: the list. Add here: a part. Not here: anything else.
"""

from tests.workspace.tracking import Tracking

PARTS: tuple[type, ...] = (Tracking,)
"""Every part, in the order their routes are tried."""
