"""Calls, as the engine sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from mpcluster.pool.functions import Function

__all__ = ["Call", "Doomed", "Options"]


class Options:
    """How calls are to be treated.

    Args:
        timeout: Seconds that one call may run, or None.
        retries: How often a call is begun again when its worker dies.
    """

    __slots__ = ("retries", "timeout")

    def __init__(self, timeout: float | None = None, retries: int = 0) -> None:
        self.timeout = timeout
        self.retries = retries


class Call(Protocol):
    """One piece of work, as the engine sees it: run once, finished once."""

    kind: int  #: how it is called (:mod:`mpcluster.pool.records`)
    known_as: Function
    link: Any  #: where it is under way, None before
    number: int  #: the order's number there
    deaths: int  #: how many workers have died of it

    @property
    def count(self) -> int:
        """For how many calls it stands (:class:`mpcluster.pool.runs.Run`)."""

    @property
    def given(self) -> Any:
        """The arguments, as its kind wants them."""

    @property
    def options(self) -> Options:
        """How it is to be treated."""

    @property
    def function(self) -> Any:
        """What is called; None when it is over."""

    def finish(self, value: Any) -> None:
        """It has returned ``value``."""

    def fail(self, error: BaseException) -> None:
        """It has raised ``error``, or cannot be run."""

    def drop(self, error: BaseException) -> None:
        """The pool has ended, and it will not be run."""

    def is_over(self) -> bool:
        """Is there nothing to run any more? (It was cancelled.)"""


class Doomed:
    """What is left of a cancelled call that a worker has been sent, and may yet begin.

    It holds the place of the call there. Taken back in time it is passed over; if the worker
    begins it, it overruns its limit at once, and the worker is ended.
    """

    given = function = None
    deaths = 0
    count: Final = 1
    left: Final = 1
    options = Options(0.0, 0)

    def __init__(self, call: Call, link: Any) -> None:
        self.kind = call.kind
        self.known_as = call.known_as
        self.link = link
        self.number = call.number

    def finish(self, _value: Any) -> None:
        """It came to its end before it was ended."""

    def fail(self, _error: BaseException) -> None:
        """It was ended."""

    def drop(self, _error: BaseException) -> None:
        """The pool has ended."""

    def cancel_unsent(self) -> None:
        """It is cancelled already."""

    def is_over(self) -> bool:
        """There is nothing to run."""
        return True
