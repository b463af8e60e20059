"""The errors that a pool's calls get when something else than their function has failed them."""

from __future__ import annotations

import copy
import pickle
from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any

from mpcluster.errors import SerializationError, TaskTimeoutError, WorkerDiedError

if TYPE_CHECKING:
    from mpcluster.pool.calls import Call
    from mpcluster.pool.link import Link

__all__ = ["anew", "died", "name_of", "overran", "remote_error", "unreadable", "unsendable"]

#: What pickling raises of itself. Anything else is a user's ``__reduce__`` speaking.
_OWN_ERRORS = (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError)


def anew(error: BaseException) -> BaseException:
    """Another of the same, for one more call to raise.

    Raised by several calls, one error would gather the frames of all of them, and keep what
    is in these as long as the pool keeps the error.
    """
    twin = copy.copy(error)
    twin.__cause__ = error.__cause__
    return twin


def died(link: Link, what: str) -> WorkerDiedError:
    """The error for what was lost with a worker."""
    process = link.process
    code = process.exitcode
    error = WorkerDiedError("", worker_id=getattr(process, "id", None), pid=link.pid, exitcode=code)
    sign = error.signal
    if sign is not None:
        how = f"was ended by {sign.name}"
        hint = {
            "SIGKILL": "; where nobody sent it, the system was out of memory: see its log",
            "SIGSEGV": "; compiled code failed: faulthandler.enable() shows where",
        }.get(sign.name, "")
    else:
        how, hint = f"exited with code {code}", ""
    who = f"worker {process.name} (pid {link.pid})"
    text = f"{who} {how} {what}{hint}. The pool goes on; retries= begins such a task anew"
    error.args = (text,)
    return error


def name_of(call: Call) -> str:
    """What a call's function is called."""
    function = call.function
    return getattr(function, "__qualname__", None) or type(function).__name__


def remote_error(payload: Any) -> BaseException:
    """What a worker has raised, with its traceback as ``__cause__``.

    Args:
        payload: What the worker's answer says: text of the traceback, pickle of the error.
    """
    text, data = pickle.loads(payload)
    try:
        error: BaseException = pickle.loads(data)
        if not isinstance(error, BaseException):
            raise TypeError(f"it became {error!r}")
    except BaseException as why:  # noqa: BLE001  # a user's __setstate__ may raise anything
        error = SerializationError(
            "the task raised an error that cannot be unpickled here "
            f"({type(why).__name__}: {why}); its traceback follows"
        )
    try:
        error.__cause__ = RemoteTraceback(f'\n"""\n{text}"""')
    except Exception:  # noqa: BLE001  # an error of an odd class
        pass
    return error


def unreadable(error: BaseException) -> SerializationError:
    """The error for a result that came whole, and of which ``pickle`` raised ``error``."""
    told = SerializationError(
        f"a task's result cannot be unpickled here ({type(error).__name__}: {error})"
    )
    if error.__traceback__ is not None:  # not our frame, and all that hangs on it
        error.__traceback__ = error.__traceback__.tb_next
    told.__cause__ = error
    return told


def unsendable(error: BaseException) -> BaseException:
    """The error for a call that could not be pickled; a user's own, as it is."""
    cause = error.__cause__
    if isinstance(error, SerializationError) and not isinstance(cause, _OWN_ERRORS):
        return cause or error
    return error


def overran(link: Link, limit: float) -> TaskTimeoutError:
    """The error for a call that ran longer than its limit of so many seconds."""
    return TaskTimeoutError(
        f"a task ran longer than its limit of {limit:g} s; worker "
        f"{link.process.name} (pid {link.pid}), which ran it, is killed"
    )
