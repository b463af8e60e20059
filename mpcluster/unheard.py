"""A process of which nobody hears anything.

Most plain processes are started and joined, and nothing else. Such a one has no life in the
watcher's thread: who joins it takes in its end, and no thread is woken. It is roused, and gets one
(:mod:`mpcluster.life`), with the first that subscribes, sends or asks, when it rings, or by itself
soon (:meth:`Watcher.when_woken`). Which comes first, that or its end, is decided under
`Popen.reaping`. Whoever subscribes after its end is told of all of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from mpcluster import descriptors
from mpcluster.greeting import ONLINE
from mpcluster.life import Life

if TYPE_CHECKING:
    from mpcluster.configuration import Settings
    from mpcluster.family import Family
    from mpcluster.popen import Popen
    from mpcluster.process import ClusterProcess

__all__ = ["Unheard"]


class Unheard:
    """What of a :class:`ClusterProcess` goes on while nobody hears of it. In its parent."""

    _life: Life | None = None
    #: When it has ended and nobody has heard of it: had it said that it runs?
    _has_run: bool | None = None

    if TYPE_CHECKING:
        _popen: Popen | None
        _parent_pid: int
        _family: Family
        _settings: Settings

    def _itself(self) -> ClusterProcess:
        return cast("ClusterProcess", self)

    def rouse(self) -> Life | None:
        """Let the watcher look after it, if that is to be; return its life. Any thread.

        Raises:
            OSError: The system has no room to watch it; it was killed.
        """
        popen = self._popen
        if popen is None or not self._is_asleep():
            return self._life
        with popen.reaping:
            on_end, popen.on_end = popen.on_end, None
            if on_end is None:
                # Another thread has been here.
                return self._life
            self._life = Life(self._itself(), popen, self._settings, self._family)
        self._begin_life()
        return self._life

    def _is_asleep(self) -> bool:
        popen = self._popen
        return popen is not None and popen.on_end is not None and self._parent_pid == os.getpid()

    def _has_greeted(self) -> bool:
        """Has it said that it runs, and nobody heard?"""
        popen = self._popen
        return popen is not None and self._is_asleep() and popen.unread() > 0

    def _begin_life(self) -> None:
        popen, life = self._popen, self._life
        assert popen is not None
        assert life is not None
        try:
            life.begin()
        except OSError:
            popen.kill()
            popen.wait()
            life.abandon()
            raise

    def look_after_unheard(self) -> None:
        """If it has ended with nobody hearing of it, take that in. Any thread."""
        if self._is_asleep():
            self._itself().is_alive()  # reaps it, and multiprocessing forgets it

    def _note_end(self) -> Callable[[], object]:
        """It is reaped, and all that it has said lies in the channel. Under `Popen.reaping`."""
        popen = self._popen
        assert popen is not None
        size = popen.unread()
        if size > len(ONLINE):
            self._life = Life(self._itself(), popen, self._settings, self._family)
            return self._begin_life
        self._has_run = size > 0
        return self._end_unheard

    def _end_unheard(self) -> None:
        assert self._popen is not None
        descriptors.close_numbers(self._popen.connection)
        self._itself().is_alive()  # whoever has reaped it, multiprocessing forgets it
        self._family.bury_unheard(self._itself())

    def tell_of_past(self) -> None:
        """Somebody hears of it now, after its end. In the watcher's thread."""
        popen = self._popen
        if popen is not None and self._life is None and self._has_run is not None:
            self._life = Life(self._itself(), popen, self._settings, self._family)
            self._life.tell_of_past(has_run=self._has_run)
