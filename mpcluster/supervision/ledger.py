"""What the workers of each slot have done, those that are gone included.

Sums that only grow, as a chart of rates needs them: a worker's end takes nothing from its
slot's. Touched in the watcher's thread alone, as the rest of a supervisor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mpcluster.tally import Tally

__all__ = ["NOTHING", "Counts", "Ledger"]


@dataclass(frozen=True, slots=True)
class Counts:
    """What was done.

    Attributes:
        messages: That came from the workers.
        accepted: Connections that their programs accepted from shared listeners. None where
            one of them has accepted some that were not counted.
    """

    messages: int = 0
    accepted: int | None = 0

    def __add__(self, other: Counts) -> Counts:
        known = None not in {self.accepted, other.accepted}
        return Counts(
            self.messages + other.messages,
            (self.accepted or 0) + (other.accepted or 0) if known else None,
        )


NOTHING: Final = Counts()


@dataclass(slots=True)
class _Page:
    """Of one living worker."""

    slot: int
    tally: Tally
    messages: int = 0

    @property
    def counts(self) -> Counts:
        return Counts(self.messages, self.tally.accepted)


class Ledger:
    """The pages of the living, and what is left of the others, by slot."""

    def __init__(self) -> None:
        self._pages: dict[int, _Page] = {}  # by worker id
        self._past: dict[int, Counts] = {}  # by slot

    def __repr__(self) -> str:
        return f"<Ledger of workers {sorted(self._pages)}>"

    def begin(self, worker: int, slot: int, tally: Tally) -> None:
        """A worker was started."""
        self._pages[worker] = _Page(slot, tally)

    def message(self, worker: int) -> None:
        """One has come from it."""
        page = self._pages.get(worker)
        if page is not None:
            page.messages += 1

    def end(self, worker: int) -> None:
        """It is gone; what it did stays its slot's."""
        page = self._pages.pop(worker, None)
        if page is not None:
            self._past[page.slot] = self._past.get(page.slot, NOTHING) + page.counts

    def of(self, worker: int) -> Counts:
        """What this living worker has done."""
        page = self._pages.get(worker)
        return NOTHING if page is None else page.counts

    def of_slot(self, slot: int) -> Counts:
        """What all workers have done that this slot ever had."""
        living = (page.counts for page in self._pages.values() if page.slot == slot)
        return sum(living, self._past.get(slot, NOTHING))
