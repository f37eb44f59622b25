"""How a wrong declaration looks in `dg check defs` and on the code location's page: one sentence.

Lives here: the translation of a refusal while loading. Add here: nothing. Not here: what is refused.
"""

from collections.abc import Generator
from contextlib import contextmanager

from dagster._core.errors import DagsterUserCodeProcessError
from dagster._utils.error import SerializableErrorInfo

from lifecycle_assets.refused import Refused


@contextmanager
def one_sentence() -> Generator[None]:
    """Replace a `Refused` raised while loading, however deep, by an error that Dagster shows without a trace."""
    try:
        yield
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        shown = SerializableErrorInfo(message=f"{refusal}\n", stack=[], cls_name="Refused")
        raise DagsterUserCodeProcessError(str(refusal), user_code_process_error_infos=[shown]) from None


def _refusal(error: BaseException | None) -> Refused | None:
    while error is not None:
        if isinstance(error, Refused):
            return error
        error = error.__cause__ or error.__context__
    return None
