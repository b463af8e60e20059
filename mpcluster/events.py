"""Callbacks by event name, and the keeping of what nobody has subscribed to yet.

Both classes are used by one thread at a time for delivery (the watcher's), while any
thread may subscribe. Subscriptions are tuples that are replaced, never changed, so that
a delivery under way sees the set that it began with.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar

from mpcluster.logs import logger

__all__ = ["Emitter", "KeptEvents", "call", "report", "report_callback"]

Callback: TypeAlias = Callable[..., object]
C = TypeVar("C", bound=Callback)


def report(message: str, error: BaseException, culprit: object) -> None:
    """Tell of an error that has nowhere to be raised: to the unraisable hook and the log.

    The log only where it is set up: without handlers it would print the same once more.
    """
    if logger().hasHandlers():
        logger().error("%s: %r", message, error, exc_info=error)
    try:
        told = _Unraisable((type(error), error, error.__traceback__, message, culprit))
        sys.unraisablehook(told)
    except Exception:  # noqa: BLE001  # there is nobody else to tell
        logger().exception("sys.unraisablehook itself failed")


def _unraisable_type() -> Callable[[tuple[object, ...]], Any]:
    """Return the type of what the hook gets, which CPython shows to the hook alone."""
    seen: list[type] = []

    class Raises:
        def __del__(self) -> None:
            raise RuntimeError

    hook = sys.unraisablehook
    sys.unraisablehook = lambda args: seen.append(type(args))
    try:
        Raises()
    finally:
        sys.unraisablehook = hook
    return seen[0]


# When this is imported, no error is under way that would become this one's context.
_Unraisable = _unraisable_type()


def call(callback: Callback, *args: object, expected: tuple[type[BaseException], ...] = ()) -> None:
    """Call a user's callback; what it raises is reported and stops nothing.

    Args:
        expected: Errors that are passed over without a word.
    """
    try:
        callback(*args)
    except expected:
        pass
    except BaseException as error:  # noqa: BLE001
        report_callback(callback, error)


def report_callback(callback: Callback, error: BaseException) -> None:
    """Tell of what a user's callback has raised.

    SystemExit too: a callback runs in the watcher's thread, which is not the program's to end.
    """
    report(f"callback {callback!r} raised", error, callback)


class _Subscription(NamedTuple):
    callback: Callback
    once: bool


class Emitter:
    """The callbacks of one object, by event name.

    Args:
        names: The events that there are; any other is refused with the list of these.
        subscribed: Called after each new subscription with the event's name, so that
            what was kept for it can be handed over.
    """

    def __init__(
        self, names: Iterable[str], subscribed: Callable[[str], object] | None = None
    ) -> None:
        self.names = tuple(names)
        self._subscribed = subscribed
        self._subscriptions: dict[str, tuple[_Subscription, ...]] = {}
        # The callbacks of each event all of whose subscriptions last, ready to be called.
        self._ready: dict[str, tuple[Callback, ...]] = dict.fromkeys(self.names, ())
        #: As :meth:`take`, but None where somebody subscribed for one time only.
        self.lasting: Callable[[str], tuple[Callback, ...] | None] = self._ready.get
        #: Another one after every change. Who has read it before he asked for callbacks may
        #: go on with these for as long as it is the same.
        self.version = 0
        # Taken to replace one tuple by another, by any thread; nothing is called and
        # nothing is written while it is held. Re-entrant for the sake of signal handlers. A
        # forked child drops its parent's emitters.
        self._lock = threading.RLock()

    def _checked(self, event: str) -> str:
        if event not in self.names:
            raise ValueError(f"there is no event {event!r}; there are: {', '.join(self.names)}")
        return event

    def add(self, event: str, callback: C, *, once: bool = False) -> C:
        """Subscribe ``callback``; the same one twice is called twice.

        Raises:
            ValueError: There is no such event.
            TypeError: ``callback`` cannot be called.
        """
        self._checked(event)
        if not callable(callback):
            raise TypeError(f"a callback for {event!r} must be callable, not {callback!r}")
        with self._lock:
            present = self._subscriptions.get(event, ())
            self._replace(event, (*present, _Subscription(callback, once)))
        if self._subscribed is not None:
            self._subscribed(event)
        return callback

    def discard(self, event: str, callback: Callback | None = None) -> None:
        """Unsubscribe ``callback`` (its latest subscription), or all of ``event``."""
        self._checked(event)
        with self._lock:
            present = self._subscriptions.get(event, ())
            if callback is None:
                remaining: tuple[_Subscription, ...] = ()
            else:
                remaining = present
                for index in reversed(range(len(present))):
                    if present[index].callback == callback:
                        remaining = present[:index] + present[index + 1 :]
                        break
            self._replace(event, remaining)

    def has(self, event: str) -> bool:
        """Is anybody subscribed to ``event``?"""
        return bool(self._subscriptions.get(event))

    def take(self, event: str) -> tuple[Callback, ...]:
        """Return the callbacks to call now; those for one time are unsubscribed."""
        ready = self._ready.get(event)
        if ready is not None:
            return ready
        with self._lock:
            present = self._subscriptions.get(event, ())
            self._replace(event, tuple(s for s in present if not s.once))
        return tuple(subscription.callback for subscription in present)

    def _replace(self, event: str, subscriptions: tuple[_Subscription, ...]) -> None:
        """Under the lock."""
        self._subscriptions[event] = subscriptions
        if any(subscription.once for subscription in subscriptions):
            self._ready.pop(event, None)
        else:
            self._ready[event] = tuple(subscription.callback for subscription in subscriptions)
        self.version += 1

    def clear(self) -> None:
        """Forget every subscription."""
        with self._lock:
            self._subscriptions.clear()
            self._ready.update(dict.fromkeys(self.names, ()))
            self.version += 1


class _Kept(NamedTuple):
    key: Hashable
    owner: Callable[[], Any]  # gives the worker, or None once a weakly kept one is gone
    event: str
    args: tuple[object, ...]
    weight: int


class KeptEvents:
    """Events that came while nobody had a callback for them, in order and bounded.

    Used by the watcher's thread only. Past either bound the oldest entry goes: a program
    that never subscribes to ``message`` must not grow with every message.

    Args:
        most: Entries kept in all.
        weight: Bytes kept in all (an entry that is larger alone is kept alone).
    """

    def __init__(self, most: int = 4096, weight: int = 64 * 1024 * 1024) -> None:
        self._most = most
        self._most_weight = weight
        self._weight = 0
        self._numbers = itertools.count()
        #: What is kept, by number, in order; to look whether there is anything.
        self.entries: OrderedDict[int, _Kept] = OrderedDict()
        self._places: dict[Hashable, dict[str, deque[int]]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} entries={len(self)} bytes={self._weight}>"

    def keep(
        self,
        key: Hashable,
        owner: object,
        event: str,
        args: tuple[object, ...],
        *,
        weight: int = 0,
        weakly: bool = False,
    ) -> bool:
        """Keep one event of the worker ``owner``, known by ``key``.

        Args:
            weight: Its size in bytes.
            weakly: Do not keep the worker object alive by it.

        Returns:
            False if an older event had to go for it.
        """
        holder: Callable[[], Any] = weakref.ref(owner) if weakly else lambda: owner
        number = next(self._numbers)
        self.entries[number] = _Kept(key, holder, event, args, weight)
        self._places.setdefault(key, {}).setdefault(event, deque()).append(number)
        self._weight += weight
        dropped = False
        while len(self) > self._most or (self._weight > self._most_weight and len(self) > 1):
            self._remove(*next(iter(self.entries.items())))
            dropped = True
        return not dropped

    def _remove(self, number: int, entry: _Kept) -> None:
        del self.entries[number]
        self._weight -= entry.weight
        events = self._places[entry.key]
        events[entry.event].remove(number)  # nearly always the first there
        if not events[entry.event]:
            del events[entry.event]
            if not events:
                del self._places[entry.key]

    def events(self, key: Hashable) -> Iterable[str]:
        """Return the names of what is kept of one worker."""
        return tuple(self._places.get(key, ()))

    def take(
        self, heard: Callable[[Any, str], bool], key: Hashable | None = None
    ) -> Iterator[tuple[Any, str, tuple[object, ...]]]:
        """Hand over what somebody hears by now, of one worker or (``key=None``) of all.

        Each entry is asked for and taken out when its turn comes: what a callback before it
        has unsubscribed from stays, in its place.

        Args:
            heard: Tells of a worker and an event's name whether anybody hears it.

        Yields:
            ``(worker, event, args)`` in the order in which they came.
        """
        if key is None:
            numbers = list(self.entries)
        else:
            numbers = sorted(itertools.chain(*self._places.get(key, {}).values()))
        for number in numbers:
            entry = self.entries.get(number)
            if entry is None:
                continue  # a callback in between has led to its being taken, or dropped
            owner = entry.owner()
            if owner is None or heard(owner, entry.event):
                self._remove(number, entry)
                if owner is not None:
                    yield owner, entry.event, entry.args

    def forget(self, key: Hashable, *, but: str | None = None) -> None:
        """Drop all that is kept of one worker, but for events of one name."""
        for event in self.events(key):
            if event != but:
                for number in tuple(self._places[key][event]):
                    self._remove(number, self.entries[number])
