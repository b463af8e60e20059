"""What the layers above do about a worker, as those below call it.

A program whose processes ask and say nothing never imports them: until then :data:`current` does
what can be done without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpcluster import messages
    from mpcluster.process import ClusterProcess

__all__ = ["Above"]


class Above:
    """What the cluster layer does about a worker; its own subclass takes the place of this.

    All are called in the watcher's thread.
    """

    def answer(
        self,
        worker: ClusterProcess,
        message: messages.Request | messages.Release | messages.Gone,
    ) -> None:
        """The worker asks, gives back a listener, or tells of the end of one below it."""
        load()
        current.answer(worker, message)

    def leaving(self, worker: ClusterProcess, proceed: Callable[[], object]) -> None:  # noqa: ARG002
        """The worker is asked to leave; ``proceed()`` tells it so."""
        proceed()

    def gone(self, worker: ClusterProcess, *, crashed: bool) -> None:
        """The worker's process has ended, by its own will or not; `death` comes next."""


#: Set once, by the layer above when it is imported.
current: Above = Above()


def _nothing_to_load() -> None:
    """In the place of what is given from above."""


#: Imports the cluster layer, whose own takes the place of `current`. Given from above.
load: Callable[[], object] = _nothing_to_load
