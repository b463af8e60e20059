"""Calls of one map that stand next to each other: they travel, and are answered, together."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from operator import length_hint
from typing import Any, Final, Protocol

from mpcluster.errors import TaskCancelledError
from mpcluster.pool.calls import Options
from mpcluster.pool.functions import Function

__all__ = ["Feed", "Run", "Supply", "Taker"]


class Taker(Protocol):
    """Who gets the results of a map."""

    kind: int
    known_as: Function
    options: Options
    function: Callable[..., Any]
    stopped: bool  #: nobody wants any more
    given_out: int  #: how many calls there are so far

    def put(self, index: int, values: list[Any]) -> None:
        """The results from ``index`` on have come."""

    def put_error(self, index: int, error: BaseException) -> None:
        """Call ``index`` has raised, or cannot be run."""

    def end_after(self, length: int) -> None:
        """There will be so many, and no more."""

    def end_with(self, error: BaseException) -> None:
        """The input has raised."""

    def fail(self, error: BaseException) -> None:
        """Nothing more will come."""


class Run:
    """Some calls of one map; a :class:`~mpcluster.pool.calls.Call` that stands for many.

    They have indexes, and once they are sent numbers, one after the other. What has become
    of some of them is split off: the parts have the list of the arguments in common.

    Attributes:
        owner: Who gets the results.
        index: Which call of the map the first is.
        count: How many there are.
        number: The order's number of the first, as long as they are under way.
    """

    __slots__ = (
        "_begin",
        "_given",
        "count",
        "deaths",
        "index",
        "kind",
        "known_as",
        "link",
        "number",
        "owner",
    )

    def __init__(self, owner: Taker, index: int, given: list[Any]) -> None:
        self.owner = owner
        self.index = index
        self.count = len(given)
        self.kind = owner.kind
        self.known_as = owner.known_as
        self.link: Any = None
        self.number = self.deaths = 0
        self._given = given
        self._begin = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.count} from {self.index} on>"

    def cut(self, count: int) -> Run:
        """Keep the first ``count``; return the others."""
        rest: Run = object.__new__(Run)
        rest.owner, rest.kind, rest.known_as = self.owner, self.kind, self.known_as
        rest.link, rest.deaths = self.link, self.deaths
        rest.index, rest.number = self.index + count, self.number + count
        rest.count, self.count = self.count - count, count
        rest._given, rest._begin = self._given, self._begin + count
        return rest

    @property
    def given(self) -> Any:
        """The argument of the first."""
        return self._given[self._begin]

    def all_given(self) -> list[Any]:
        """Those of all."""
        if self.count == len(self._given):
            return self._given
        return self._given[self._begin : self._begin + self.count]

    def forget(self) -> None:
        """One of them is over: keep what it was given no longer."""
        self._given[self._begin] = None

    @property
    def left(self) -> int:
        """How many there are."""
        return self.count

    @property
    def options(self) -> Options:
        """Those of the map."""
        return self.owner.options

    @property
    def function(self) -> Any:
        """That of the map."""
        return self.owner.function

    def finish(self, value: Any) -> None:
        """The one call that it is has returned ``value``."""
        self.forget()
        self.owner.put(self.index, [value])

    def fail(self, error: BaseException) -> None:
        """The one call that it is has raised ``error``."""
        self.forget()
        self.owner.put_error(self.index, error)

    def cancel_unsent(self) -> None:
        """Cancel the map."""
        self.drop(TaskCancelledError("this call was cancelled"))

    def drop(self, error: BaseException) -> None:
        """The pool has ended."""
        self.owner.fail(error)

    def is_over(self) -> bool:
        """Was the map stopped?"""
        return self.owner.stopped


class Feed:
    """Where the calls of one map come from, as the engine sees it.

    Args:
        owner: Whose calls these are. Held by its runs too.
        iterable: One that runs no code of a user's.
    """

    count: Final = 1

    def __init__(self, owner: Taker, iterable: Iterable[Any]) -> None:
        self._owner = owner
        self._items = iter(iterable)
        self.known_as = owner.known_as

    @property
    def left(self) -> int:
        """How many there are, as far as that is known; otherwise 0."""
        return length_hint(self._items)

    def cancel_unsent(self) -> None:
        """Cancel the map."""
        self.drop(TaskCancelledError("this call was cancelled"))

    def drop(self, error: BaseException) -> None:
        """The pool has ended."""
        self._owner.fail(error)

    def take(self, count: int) -> tuple[Run | None, bool]:
        """The next calls, at most ``count``; and are there no more?

        One thread at a time, under the engine's lock.
        """
        owner = self._owner
        given: list[Any] = []
        try:
            given.extend(itertools.islice(self._items, count))
        except RuntimeError as error:  # a dict that has changed size
            owner.end_with(error)
            return None, True
        if owner.stopped:
            return None, True
        run = Run(owner, owner.given_out, given) if given else None
        owner.given_out += len(given)
        is_over = len(given) < count
        if is_over:
            owner.end_after(owner.given_out)
        return run, is_over


class Supply(Feed):
    """Calls that another thread adds one by one, and may take its time over.

    What it has added can be taken at once, though it waits for the next.
    """

    def __init__(self, owner: Taker) -> None:
        super().__init__(owner, ())
        self._added: deque[Any] = deque()
        self._taken = 0
        # Is it where the engine looks? Who takes the last clears it, and then looks whether
        # there is more; who adds does so, and then looks at it: one of the two sees the other.
        self._is_known = False

    @property
    def left(self) -> int:
        """How many there are; more may come."""
        return len(self._added)

    def add(self, item: Any) -> bool:
        """One more; is there nobody who would look for it?"""
        self._added.append(item)
        return not self._is_known

    def has_to_be_submitted(self) -> bool:
        """Is there nobody who would look for what was added? There is from now on."""
        if self._is_known or not self._added:
            return False
        self._is_known = True
        return True

    def take(self, count: int) -> tuple[Run | None, bool]:
        """The next calls, at most ``count``; and are there no more, for now?"""
        added, owner = self._added, self._owner
        given = [added.popleft() for _ in range(min(count, len(added)))]
        run = Run(owner, self._taken, given) if given else None
        self._taken += len(given)
        if owner.stopped:
            added.clear()
            return None, True
        if not added:
            self._is_known = False
            if added:
                self._is_known = True
        return run, not self._is_known
