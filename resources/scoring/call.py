"""One call of a registered scorer in production: what it is given, what its answer means, which errors may pass.

Lives here: turning a registered copy into a function of a trace or of a session that never raises.
Add here: a further sign by which a library says that its service is away.
Not here: loading copies (`scorer_registry.py`), processes and timeouts (`crew.py`, `child.py`).
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lifecycle_assets.gate import Outcome
from resources.scorer_outcome import MAX_ERROR_CHARS, arguments, outcome_of
from resources.scoring.trace_scores import FAILED, TIMEOUT, UNAVAILABLE, Answer

_BUSY = frozenset({408, 425, 429})
_PASSING = frozenset({"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
_AWAY = ("connectionerror", "connecterror", "ratelimit", "serviceunavailable", "maxretryerror", "remoteprotocolerror")
_GIVEN = frozenset({"inputs", "outputs", "expectations"})
_KNOWN = _GIVEN | {"trace", "session"}


@dataclass(frozen=True)
class Call:
    """A registered copy, ready to be called; `session`: it takes the traces of a session, in order."""

    name: str
    ask: Callable[[Any], Any]
    session: bool = False
    seconds: float = 60.0

    def __call__(self, subject: Any) -> Answer:
        """The answer about a trace or a session. A fault of the scorer is an answer; Ctrl-C passes through."""
        try:
            return said(outcome_of(self.ask(subject)))
        except Exception as error:  # noqa: BLE001 - the scorer is the user's code: its fault is a result
            return Answer(code=code_of(error), message=f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS])


def call_of(copy: Any, *, seconds: float, direct: bool) -> Call:
    """How a registered copy is called, at most `seconds` long (or as long as its own `timeout`, if that is less).

    `Scorer.run` starts a thread, inspects the signature and prepares telemetry at each call, which takes longer than
    most functions. With `direct` the function is called with the same arguments, one call at a time, and whoever calls
    it watches the time. Also then what it returns is looked at as `Scorer.run` does.
    """
    own = copy.timeout if isinstance(copy.timeout, int | float) and copy.timeout > 0 else seconds
    name, session, limit = copy.name, bool(copy.is_session_level_scorer), min(own, seconds)
    if not direct:
        return Call(name, _by_run(copy, session=session), session, limit)
    function = inspect.unwrap(type(copy).__call__)  # Without MLflow's telemetry around it.
    taken = frozenset(inspect.signature(copy.__call__).parameters)

    def ask(subject: Any) -> Any:
        if session:
            given: dict[str, Any] = {"session": subject}
        else:
            given = {**(_given(subject) if taken & _GIVEN else {}), "trace": subject}
        # A parameter of a session scorer that is not `session` is given None, as by MLflow.
        answer = function(copy, **{name: given.get(name) for name in taken & _KNOWN})
        if not (answer is None or isinstance(answer, int | float | str | _assessment()) or _is_list(answer)):
            raise TypeError(
                f"{name} must return one of int, float, bool, str, Feedback, or list[Feedback], "
                f"and returned {type(answer).__name__}"
            )
        return answer

    return Call(name, ask, session, limit)


def said(outcome: Outcome) -> Answer:
    """An outcome as an answer; an error in words is not transient, as nobody knows what it was."""
    if outcome.error:
        return Answer(code=FAILED, message=outcome.error)
    return Answer(value=outcome.value)


def code_of(error: BaseException) -> str:
    """Whether an error may pass by itself: a time that ran out, a connection, HTTP 408, 425, 429 and 5xx."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        kind = type(link).__name__.lower()
        if isinstance(link, TimeoutError) or "timeout" in kind:
            return TIMEOUT
        if isinstance(link, ConnectionError) or any(sign in kind for sign in _AWAY) or _is_busy(link):
            return UNAVAILABLE
        link = link.__cause__ or link.__context__
    return FAILED


def _is_busy(error: BaseException) -> bool:
    if hasattr(error, "error_code"):  # MLflow's: every error of its own has status 500.
        return error.error_code in _PASSING
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "http_status", "status", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and not isinstance(status, bool):
                return status in _BUSY or 500 <= status <= 599
    return False


def _by_run(copy: Any, *, session: bool) -> Callable[[Any], Any]:
    if session:
        return lambda traces: copy.run(session=traces)
    return lambda trace: copy.run(trace=trace, **arguments(trace))


_last: tuple[Any, dict[str, Any]] = (None, {})


def _given(trace: Any) -> dict[str, Any]:
    """Inputs, outputs and expectations; the same ones for every scorer of a trace, as in an evaluation of MLflow's."""
    global _last
    if _last[0] is not trace:
        _last = (trace, arguments(trace))
    return _last[1]


def _assessment() -> Any:
    from mlflow.entities import Assessment

    return Assessment


def _is_list(answer: Any) -> bool:
    return isinstance(answer, list) and all(isinstance(one, _assessment()) for one in answer)
