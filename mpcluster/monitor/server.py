"""Serves what the monitor knows, over HTTP, read-only.

The standard library's server, with a thread for each request, for the master's watcher must
not wait for a reader. **Threads**: one that accepts (woken by a client, or by ``stop()``, which
ends it), and up to :data:`MOST` that answer one request each and end with their connection.
All are daemons. They belong to the master, which forks workers while they run, at any
moment of theirs, so:

* what they have open is owned (:mod:`mpcluster.descriptors`): no worker keeps the page's port
  from being free, or a browser waiting for the end of an answer;
* they print and log nothing, import nothing (all is imported before they start), and take no
  lock but those of their own objects, which no child uses;
* in a child there is nothing of them: the object there is closed, and its ``stop()`` does
  nothing.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import socket
import socketserver
import threading
from typing import Any, Final

from mpcluster import descriptors, forking
from mpcluster.address import Address, failure
from mpcluster.events import report
from mpcluster.recruiting import require_master
from mpcluster.supervision import Supervisor

from . import hosts
from .answers import Answering, Known
from .hosts import Place
from .metrics import Exposition
from .page import page
from .sampler import THREAD_NAME, Sampler
from .snapshot import take

__all__ = ["MOST", "Monitor"]

#: Requests that are answered at one time. One more ends the oldest: who sends half a request
#: and waits keeps nobody out.
MOST: Final = 16

#: Seconds without accepting, after there was no descriptor left for one more client.
REST: Final = 0.2


class Monitor:
    """A page that shows a supervisor's workers. Made by :func:`mpcluster.monitor.start`.

    Args:
        supervisor: As there, and so are ``address``, ``public`` and ``program``.
        handed_down: The socket of a page that another process has served, closed here in any
            case. If it listens at ``address``, that is served on it, whoever waits there
            included.

    Attributes:
        url: Where it is.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        address: str,
        *,
        public: bool = False,
        program: str | None = None,
        handed_down: socket.socket | None = None,
    ) -> None:
        try:
            require_master("monitor.start()")
            place = hosts.parse(address, public=public)
            page()
            if handed_down is not None and not place.is_that_of(handed_down):
                descriptors.close(handed_down)
                handed_down = None
        except BaseException:
            if handed_down is not None:
                descriptors.close(handed_down)
            raise
        self._pid = os.getpid()
        self._server = _Server(place, handed_down)
        try:
            look = functools.partial(take, program=program)
            self.sampler = Sampler(supervisor, look=look)
            try:
                self._server.begin(self.sampler)
            except BaseException:
                self.sampler.stop()
                raise
        except BaseException:
            self._server.server_close()
            raise
        shown = f"[{place.host}]" if ":" in place.host else place.host
        self.url = f"http://{shown}:{self._server.server_port}/"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def fileno(self) -> int:
        """The number of the socket that listens, to hand it down; -1 when it serves no more."""
        return self._server.socket.fileno()

    def stop(self) -> None:
        """Serve no more; the port is free when this returns. Idempotent; nothing in a child."""
        if os.getpid() == self._pid:
            self._server.end()
            self.sampler.stop()


class _Server(socketserver.TCPServer):
    """Listens, and answers each request in a thread.

    Args:
        place: Where.
        listening: The socket that does so already; None: it is made.

    Raises:
        OSError: The address cannot be had, with ``.address``.
    """

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, place: Place, listening: socket.socket | None) -> None:
        self.address_family = place.family
        self.place = place
        where = Address(place.family, place.address, place.port)
        with descriptors.opening():
            # Its `server_bind` and `server_activate` wait for nothing.
            try:
                super().__init__(
                    (place.address, place.port), Answering, bind_and_activate=listening is None
                )
            except OSError as error:
                raise failure(error, where) from None
            if listening is not None:
                self.socket.close()
                self.socket = listening
            descriptors.own(self.socket)
        self.socket.setblocking(False)  # noqa: FBT003
        self.server_port = int(self.socket.getsockname()[1])
        # The threads that answer, the oldest first, and on which connection. Put in by the
        # thread that accepts, taken out by the one that answers: one entry in one step.
        self._answering: dict[threading.Thread, socket.socket] = {}
        self._ends = False
        self._bell = -1
        self._thread: threading.Thread | None = None

    def begin(self, sampler: Sampler) -> None:
        """Answer from now on.

        Raises:
            EngineUnavailableError: prometheus-client is missing.
        """
        exposition = Exposition(lambda: sampler.last()[0])
        for form in ("text/plain", "application/openmetrics-text; version=1.0.0"):
            exposition.write(form)  # what the library imports late it imports now
        self.known = Known(self.place, sampler, exposition)
        with descriptors.opening():
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            descriptors.own(self._bell)
        self._thread = self._start(self._accept_until_the_end)

    def end(self) -> None:
        """Close everything, and wait for the threads."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._ends = True
        os.eventfd_write(self._bell, 1)
        thread.join()
        self.server_close()
        descriptors.close(self._bell)
        for answering, connection in list(self._answering.items()):
            _shut(connection)
            answering.join()

    def server_close(self) -> None:
        """Close the listener."""
        descriptors.close(self.socket)

    def _start(self, target: Any, *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name=THREAD_NAME, daemon=True)
        forking.allow_beside(thread)
        thread.start()
        return thread

    # -- the thread that accepts ---------------------------------------------------------------

    def _accept_until_the_end(self) -> None:
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        while not self._ends:
            poll.poll()
            self.timeout = 0
            self.handle_request()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept, with no fork of another thread between that and its being owned."""
        try:
            with descriptors.opening():
                connection, peer = self.socket.accept()
                descriptors.own(connection)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                self._rest()  # the client still waits, and poll() would say so again at once
            raise
        connection.setblocking(True)  # noqa: FBT003
        return connection, peer

    def _rest(self) -> None:
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.poll(REST * 1000)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, and end the oldest that still answers if they are too many."""
        while len(answering := list(self._answering.items())) >= MOST:
            oldest, connection = answering[0]
            _shut(connection)
            oldest.join()
        begun = threading.Event()

        def answer() -> None:
            begun.wait()
            try:
                self.finish_request(request, client_address)
            except Exception as error:  # noqa: BLE001  # the next request may do better
                if not isinstance(error, OSError):  # else the client is gone
                    report("in the monitor", error, self)
            finally:
                self.shutdown_request(request)
                self._answering.pop(threading.current_thread(), None)

        thread = self._start(answer)
        self._answering[thread] = request
        begun.set()

    def close_request(self, request: Any) -> None:
        """Close a connection."""
        descriptors.close(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """No thread could be started, say: nobody is to read of it on stderr again and again."""


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed meanwhile
