"""The functions that a pool's workers know.

A function is pickled once, and sent to a worker once: pickling a closure costs far more than
sending it. What is kept is found by the function's identity and holds it weakly. A function
that travels by value is looked at again each time, for its closure may have been bound anew;
a global that it refers to is taken as it was when it was pickled.

Bound methods, partials and other callable objects have a state of their own, which may
change between two calls: each call of :meth:`Functions.of` makes a new entry, which the
workers forget when the last call is through.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

from mpcluster import pickling
from mpcluster.pickling import Pickled

__all__ = ["DEEPEST", "TINY", "Function", "Functions"]

#: Most calls that are ever under way to one worker.
DEEPEST: Final = 2048
#: Seconds of a call that is short beside the waking of a worker.
TINY: Final = 30e-6
#: Seconds of work that a worker is given in advance; and of tiny calls, which are given to few
#: workers: where the processors have other work, each refill is some milliseconds in coming.
_AHEAD: Final = 2e-3
_AHEAD_IF_TINY: Final = 10e-3
#: Calls whose time is doubted when it is long, and the seconds from which on it is believed.
_FEW: Final = 8
_SURELY_SLOW: Final = 0.02


class Function:
    """One function, as the workers know it.

    Attributes:
        number: Its number in the workers.
        depth: How many calls of it a worker is given at once, by the measured run time.
        mean: Seconds that a call takes, 0.0 before the first.
    """

    __slots__ = ("__weakref__", "_pickled", "depth", "mean", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.depth = 1
        self.mean = 0.0
        self._pickled: Pickled | None = None

    def pickled(self, function: Callable[..., Any]) -> Pickled:
        """Its pickle, made at the first call.

        Raises:
            SerializationError: It cannot travel.
        """
        if self._pickled is None:
            segments, buffers, carried = pickling.dump(function)
            self._pickled = [b"".join(segments)], buffers, carried
        return self._pickled

    def ran(self, calls: int, seconds: float) -> None:
        """Take note of how long it takes."""
        mean = seconds / calls
        # A function that has become slow is believed at once, one that was quick by and by. But
        # a few calls of some milliseconds were held up by another process, as likely as not.
        known = self.mean
        if known and calls < _FEW and mean < _SURELY_SLOW:
            mean = min(mean, 4 * known)
        self.mean = mean if not known or mean > known else 0.7 * known + 0.3 * mean
        ahead = _AHEAD_IF_TINY if self.mean < TINY else _AHEAD
        self.depth = max(1, min(DEEPEST, int(ahead / max(self.mean, 1e-9))))


class Functions:
    """All functions of one pool."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._known: dict[int, tuple[weakref.ref[Any], Function, Any]] = {}

    def of(self, function: Callable[..., Any]) -> Function:
        """Return the entry of a function, a new one if it is not known. Any thread."""
        key = id(function)
        found = self._known.get(key)
        if (
            found is not None
            and found[0]() is function
            and (found[2] is None or found[2] == _state(function))
        ):
            return found[1]
        return self._make(function, key)

    def _make(self, function: Callable[..., Any], key: int) -> Function:
        made = Function(next(self._numbers))
        kind = type(function)
        if (
            kind is FunctionType
            or kind is type
            or (kind is BuiltinFunctionType and _is_stateless(function))
        ):
            known = self._known
            reference = weakref.ref(function, lambda _: known.pop(key, None))
            known[key] = reference, made, _state(function)
        return made


def _is_stateless(function: Any) -> bool:
    """Is it a function of a module, not a method of some object?"""
    owner = getattr(function, "__self__", None)
    return owner is None or type(owner) is type(itertools)


def _state(function: Any) -> tuple[Any, ...] | None:
    """What of it may be bound anew; None where nothing is."""
    if type(function) is not FunctionType:
        return None
    closure = function.__closure__
    if closure is None:
        return function.__code__, function.__defaults__
    cells = []
    for cell in closure:
        try:
            cells.append(id(cell.cell_contents))
        except ValueError:  # not yet bound
            cells.append(0)
    return function.__code__, function.__defaults__, *cells
