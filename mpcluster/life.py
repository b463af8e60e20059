"""A worker's life as its parent takes it in.

Messages on the channel, the end of the channel, the end of the process: all of it comes to
the watcher's thread, which advances the state and tells the family. What the worker had
sent is delivered before its death is told, for at the moment of death all of it lies in
this side's end of the channel.

A worker that only runs and ends says one thing, that it runs; that is understood here. For
more, either way, there is :mod:`mpcluster.downstream`. And one of which nobody hears anything has
no life here at all, until somebody does (:meth:`ClusterProcess.wake`).
"""

from __future__ import annotations

import _socket  # the bare calls, where gevent has replaced the module's
import errno
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mpcluster import above, descriptors, watcher
from mpcluster.configuration import Settings
from mpcluster.errors import ChannelClosedError
from mpcluster.family import Family
from mpcluster.greeting import ONLINE
from mpcluster.popen import Popen
from mpcluster.states import STARTED, Step, WorkerState, advance

if TYPE_CHECKING:
    from mpcluster import messages
    from mpcluster.downstream import Downstream
    from mpcluster.process import ClusterProcess

__all__ = ["Life"]

#: Seconds after which a worker is told a second time that it shall leave; then twice that.
FIRST_KNOCK: Final = 0.1

#: In the place of the number of a channel: it is closed, and this is told or is not yet.
_LOST: Final = -1
_CLOSED: Final = -2

#: Seconds that `close()` waits for the watcher when that is in a callback.
CLOSE_PATIENCE: Final = 1.0


class Life:
    """One started worker, from its parent's side.

    Args:
        process: Whose life it is.
        popen: The forked child.
        settings: Those that it was forked with.
        relatives: Who is told what happens.
    """

    def __init__(
        self, process: ClusterProcess, popen: Popen, settings: Settings, relatives: Family
    ) -> None:
        self.state = STARTED
        #: It was asked to leave, by its parent or by itself.
        self.asked_to_leave = False
        self._process = process  # until its death is told: no circle is left to collect
        self._name, self._number = process.name, process.id
        self._popen = popen
        self._settings = settings
        self._family = relatives
        self._owner = os.getpid()
        self._fork_told = False
        self._told_to_end = False  # and the watcher holds the process no longer
        self._timers: list[watcher.Timer] = []
        self._fd = popen.connection  # this side's end of the channel; or one of those below 0
        self._has_run = False  # it had said so, and its channel is closed
        self._downstream: Downstream | None = None
        self._listening = False  # is `_fd` watched?
        self._is_watched = False  # is the sentinel?
        # Guards the one making of `_downstream` out of `_fd`, the closing of either, and the
        # first registration of both descriptors: a death cannot be taken in between. Taken by
        # the thread that starts, by those that send (a signal handler may, too), and by the
        # watcher. Nothing of a user's is called under it, and nothing is imported.
        self._making = threading.RLock()
        # Guards the read-and-replace of `state`, which the program's threads (DRAIN) and
        # the watcher (all else) do. Nothing is called under it. Re-entrant for the sake of
        # signal handlers, which may well call `disconnect()`.
        self._stepping = threading.RLock()

    @classmethod
    def over(
        cls, process: ClusterProcess, popen: Popen, settings: Settings, relatives: Family
    ) -> Life:
        """One that is over, with nobody to be told: what is asked of it comes too late."""
        life = cls(process, popen, settings, relatives)
        life._fd = _LOST
        return life

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._name}: {self.state.value}>"

    # -- any thread ------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Is the channel open, as far as this side has noticed?"""
        if not self._listening:
            self.listen()
        return self._fd >= 0

    def begin(self) -> None:
        """Watch it from now on. The last step of its start: `fork` is told next.

        Nobody is woken for it: `fork` is told when somebody hears it, or with the next event.

        Raises:
            OSError: The system has no room to watch it.
        """
        the_watcher, process = watcher.current(), self._process
        self._popen.watch()
        self._is_watched = True
        with self._making:
            self.listen()
            the_watcher.add(self._popen.sentinel, self._on_end)
        # From here on a new subscriber finds it watched.
        if self._family.hears(process, "fork"):
            the_watcher.call_soon(self.tell_of_fork)

    def listen(self) -> None:
        """Watch its channel from now on. Idempotent, from any thread of its parent."""
        if os.getpid() != self._owner:
            return
        with self._making:
            if self._listening or self._fd < 0:
                return
            self._listening = True
            # Something may have been queued before anybody would have written it.
            talks = self._downstream is not None
            events = watcher.READABLE | watcher.WRITABLE if talks else watcher.READABLE
            watcher.current().add(self._fd, self._on_ready, events)

    def abandon(self) -> None:
        """It cannot be watched and was killed: go through its end all the same."""
        watcher.current().call_soon(lambda: self._on_end(0))

    def downstream(self) -> Downstream:
        """What talks to the worker; made at the first call.

        Raises:
            ChannelClosedError: The channel is closed.
        """
        made = self._downstream
        if made is not None:
            return made
        from mpcluster.downstream import Downstream

        above.load()  # who talks may ask; and the workers to come need not import it
        with self._making:
            if self._downstream is None:
                label = f"worker {self._number} (pid {self._popen.pid})"
                if self._fd < 0:
                    raise ChannelClosedError(errno.EPIPE, f"the channel to {label} is closed")
                self._downstream = Downstream(
                    self,
                    self._process,
                    self._fd,
                    label=label,
                    tell_messages=self._family.tell_messages,
                    settings=self._settings,
                )
                self.listen()
            return self._downstream

    def ask_to_leave(self, timeout: float | None) -> None:
        """Once: let the worker know that it shall go; after ``timeout`` seconds, make it."""
        with self._stepping:
            if self.asked_to_leave:
                return
            self.asked_to_leave = True
            self.state = advance(self.state, Step.DRAIN)
        watcher.current().call_soon(lambda: self._begin_to_leave(timeout))

    def is_over(self) -> bool:
        """Has its death been told, or is it being told?"""
        return self.state is WorkerState.DEAD

    def wait_until_told(self) -> None:
        """Let the watcher finish with this dead worker, so that it holds it no longer."""
        if self._told_to_end:
            return
        if watcher.current().in_thread():
            self._on_end(0)
            return
        # A callback may be running there that waits for this very thread.
        self._family.wait_told(lambda: self._told_to_end, CLOSE_PATIENCE)

    # -- asking it to leave ----------------------------------------------------------------

    def _begin_to_leave(self, timeout: float | None) -> None:
        if self.state is not WorkerState.DEAD:
            if timeout is not None:
                self._after(timeout, self._terminate_then_kill)
            above.current.leaving(self._process, self._tell_to_leave)

    def _tell_to_leave(self) -> None:
        from mpcluster.messages import Disconnect

        # One that has closed its end is about to end.
        if self.is_connected and self.downstream().order(Disconnect()):
            self._knock(FIRST_KNOCK)

    def _knock(self, seconds: float) -> None:
        """A program that does not listen starts to; in ``seconds`` it is told so again.

        A signal that comes in the instant before its main thread waits for something in C is
        noticed there only when the wait is over.
        """
        self._popen.send_signal(signal.SIGURG)
        self._timers = [timer for timer in self._timers if not timer.is_cancelled]
        self._after(seconds, lambda: self._knock(2 * seconds))

    def _terminate_then_kill(self) -> None:
        self._popen.send_signal(signal.SIGTERM)
        self._after(self._settings.kill_timeout, lambda: self._popen.send_signal(signal.SIGKILL))

    def _after(self, seconds: float, call: Callable[[], object]) -> None:
        self._timers.append(watcher.current().call_later(seconds, call))

    # -- the watcher's thread ------------------------------------------------------------------

    def step(self, step: Step) -> None:
        """Advance the state."""
        with self._stepping:
            self.state = advance(self.state, step)

    def come_online(self) -> None:
        """The worker has said that it runs."""
        self.step(Step.COME_ONLINE)
        self.emit("online")

    def _on_ready(self, events: int) -> None:
        self.tell_of_fork()
        if self._downstream is not None:
            self._downstream.on_ready(events)
        elif events & watcher.READABLE:
            self._take_in()

    def _take_in(self) -> bool:
        """Take in what is there on the channel; returns whether there was anything."""
        if self._fd == _CLOSED:
            has_run, self._has_run = self._has_run, False
            if has_run:
                self.come_online()
            return has_run
        if self._downstream is None:
            first = _peek(self._fd, len(ONLINE))
            if first is None:
                return False
            if not first:
                self.lose_channel()
                return False
            if first == ONLINE:
                os.read(self._fd, len(ONLINE))
                self.come_online()
                return True
        return self.downstream().take_in()

    def _on_end(self, _events: int) -> None:
        """The process has ended: first what it had sent, then its end."""
        if self.is_over():
            return
        self.tell_of_fork()
        while self._fd != _LOST and self._take_in():
            pass
        self.lose_channel()
        if self.is_over():
            return  # a callback has closed it, and this was gone through within
        self._finish()

    def tell_of_past(self, *, has_run: bool) -> None:
        """It is over, nobody has heard of it: tell of its life from the beginning.

        Args:
            has_run: It had said so.
        """
        self._fd, self._has_run = _CLOSED, has_run
        self._on_end(0)

    def _finish(self) -> None:
        self._popen.poll()
        if self._is_watched:
            watcher.current().remove(self._popen.sentinel)
            self._popen.release()
        try:
            self._process.is_alive()  # multiprocessing forgets it, and its descriptor goes
        except ValueError:
            pass  # closed
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self.step(Step.DIE)
        process = self._process
        del self._process
        if self._downstream is not None:
            self._downstream.end()
            self._downstream = None  # no circle is left to collect
        crashed = self._popen.returncode != 0 and not self.asked_to_leave
        self._family.bury(process, crashed=crashed)
        del process
        self._told_to_end = True
        self._family.settle()

    def tell_of_fork(self) -> None:
        """Tell of it, if nothing of this worker was told yet."""
        if not (self._fork_told or self.is_over()):
            self._fork_told = True
            self.emit("fork")

    def lose_channel(self) -> None:
        """Close the channel, if it is open: `disconnect` is told."""
        with self._making:
            fd, self._fd = self._fd, _LOST
        if fd != _LOST:
            if self._downstream is not None:
                watcher.current().remove(fd)
                self._downstream.close()
            elif fd != _CLOSED:
                watcher.current().remove(fd)
                descriptors.close(fd)
            self.step(Step.DISCONNECT)
            self.emit("disconnect")

    def order(self, message: messages.Reply | messages.Ping | messages.Laid) -> None:
        """Answer or ask this worker; one that is gone needs none."""
        if self._fd >= 0:
            self.downstream().order(message)

    def emit(self, event: str, *args: object, weight: int = 0) -> None:
        """Tell of an event of this worker."""
        self._family.emit(self._process, event, *args, weight=weight)


def _peek(fd: int, count: int) -> bytes | None:
    """The first bytes that are there: none at the end of the channel, None before any."""
    line = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    try:
        return line.recv(count, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:  # ECONNRESET: it ended with something of ours unread
        return b""
    finally:
        line.detach()
