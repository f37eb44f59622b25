"""Arrow's compute functions.

Lives here: the one import of them. Add here: nothing. Not here: what is computed.
"""

from typing import Any


def compute() -> Any:
    """`pyarrow.compute`; it makes its functions when it is imported, so no type checker knows them."""
    import pyarrow.compute

    return pyarrow.compute
