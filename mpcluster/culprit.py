"""Which part of a message cannot be pickled.

"cannot pickle '_thread.lock' object" says nothing about where in a large message the lock
is. After a failure the message is walked, towards whatever fails by itself as well, and
the way there is told as it would be written: ``message['job'].lock``.

It is a help, not a proof: it looks into containers, attributes and closures, and gives up
after :data:`ATTEMPTS`, with the outermost object that it is sure of.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Final

__all__ = ["ATTEMPTS", "describe"]

#: How many parts are tried, at most, each with a pickler of its own.
ATTEMPTS: Final = 1000


def describe(message: object, error: Exception, attempt: Callable[[object], None]) -> str:
    """One sentence: what, where in the message, and why.

    Args:
        message: It could not be pickled.
        error: What pickling it raised.
        attempt: Pickles one object, or raises.
    """
    path, culprit, why = "message", message, error
    budget = itertools.count()
    seen = {id(message)}
    while True:
        for step, part in _parts(culprit):
            if id(part) in seen or next(budget) >= ATTEMPTS:
                continue
            try:
                attempt(part)
            except Exception as deeper:  # noqa: BLE001
                seen.add(id(part))
                path, culprit, why = path + step, part, deeper
                break
        else:
            break
    kind = type(culprit)
    return (
        f"cannot send {path}: {_repr(culprit)} of type {kind.__module__}.{kind.__qualname__} "
        f"cannot be pickled ({type(why).__name__}: {_text(why)})"
    )


def _parts(thing: object) -> Iterator[tuple[str, object]]:
    """What it holds, and how one gets there from it."""
    if isinstance(thing, Mapping):
        for key, value in list(thing.items()):
            yield f"[{_repr(key)}]", value
            yield f".keys()[{_repr(key)}]", key
    elif isinstance(thing, (list, tuple)):
        for index, value in enumerate(thing):
            yield f"[{index}]", value
    elif isinstance(thing, (set, frozenset)):
        for value in list(thing):
            yield f".{{{_repr(value)}}}", value
    elif isinstance(thing, MethodType):
        yield ".__self__", thing.__self__
        yield ".__func__", thing.__func__
    elif isinstance(thing, FunctionType):
        yield from _captured(thing)
    if not isinstance(thing, type):
        yield from _attributes(thing)


def _attributes(thing: object) -> Iterator[tuple[str, object]]:
    attributes = getattr(thing, "__dict__", None)
    if isinstance(attributes, dict):
        for name, value in list(attributes.items()):
            yield f".{name}", value
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(thing, name):
                yield f".{name}", getattr(thing, name)


def _captured(function: FunctionType) -> Iterator[tuple[str, object]]:
    """What comes along with a function that is pickled by value."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".<closure {name}>", cell.cell_contents
        except ValueError:  # not yet bound
            continue
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f".<global {name}>", function.__globals__[name]
    for index, value in enumerate(function.__defaults__ or ()):
        yield f".<default {index}>", value


def _repr(thing: object) -> str:
    try:
        return _short.repr(thing)
    except Exception:  # noqa: BLE001  # a user's __repr__
        return f"<{type(thing).__qualname__}>"


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # a user's __str__
        return "no text"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
