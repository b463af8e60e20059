"""Who in an event loop has to do with a connection: its tasks, its timers, its threads.

A plain ``asyncio.Protocol`` shows no requests, but whatever shall still write to its
transport has it, or the protocol, at hand: a suspended coroutine among its variables, a
timer as its method or argument. A look from outside would find frames that run, so the
loop looks itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Holders", "look"]

#: Seconds to wait for a loop's answer. One that gives none is at work.
_PATIENCE = 0.2

_DEEP = 30  # coroutines that await one another, at most


@dataclass(frozen=True, slots=True)
class Holders:
    """What a loop has in hand at one moment, as ``id``s.

    Args:
        tasks: What the variables of its suspended coroutines refer to.
        timers: What its timers are methods and arguments of.
        threads: Its executor works on something, which may be anybody's.
    """

    tasks: frozenset[int]
    timers: frozenset[int]
    threads: bool


def look(loop: Any) -> Holders | None:
    """Have ``loop`` look. From another thread; ``None`` if it does not get to it."""
    found: list[Holders] = []
    answered = threading.Event()

    def answer() -> None:
        try:
            found.append(_look_here(loop))
        finally:
            answered.set()

    try:
        loop.call_soon_threadsafe(answer)
    except RuntimeError:  # it is closed: nothing goes on in there
        return Holders(frozenset(), frozenset(), threads=False)
    answered.wait(_PATIENCE)
    return found[0] if found else None


def _look_here(loop: Any) -> Holders:
    tasks: set[int] = set()
    for task in asyncio.all_tasks(loop):
        for frame in _frames(task.get_coro()):
            tasks.update(_referred(frame.f_locals.values()))
    timers: set[int] = set()
    for handle in getattr(loop, "_scheduled", ()):
        if not handle.cancelled():
            timers.update(_referred((handle._callback, *(handle._args or ()))))  # noqa: SLF001
    return Holders(frozenset(tasks), frozenset(timers), _works(loop))


def _frames(coroutine: Any) -> Iterator[Any]:
    """Those of a coroutine and of what it awaits; generators' and async generators' too."""
    for _ in range(_DEEP):
        for kind in ("cr", "gi", "ag"):
            frame = getattr(coroutine, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                coroutine = getattr(coroutine, f"{kind}_await" if kind != "gi" else "gi_yieldfrom")
                break
        else:
            return


def _referred(values: Iterable[Any]) -> Iterator[int]:
    """The values and what their attributes are: a writer has its transport there."""
    for value in values:
        yield id(value)
        owner = getattr(value, "__self__", value)  # a bound method's
        yield id(owner)
        attributes = getattr(owner, "__dict__", None)
        if type(attributes) is dict:  # no class's or module's
            yield from map(id, list(attributes.values()))


def _works(loop: Any) -> bool:
    executor = getattr(loop, "_default_executor", None)
    if executor is None:
        return False
    threads, idle = getattr(executor, "_threads", ()), getattr(executor, "_idle_semaphore", None)
    return idle is None or idle._value < len(threads)  # noqa: SLF001
