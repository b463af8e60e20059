"""Workers for the tests of sharing: forked processes that talk to a real registry.

Each has an *office*: a socket pair over which it asks the registry in the test's own
process, which answers in one thread a worker. No channel, no watcher: what is tested is the
worker's side of sharing alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from mpcluster import listeners, sharing
from mpcluster.messages import Bind, Bound, Holds, Listening, Release
from mpcluster.registry import Registry

PATIENCE = 30.0  # seconds until a test that waits for a worker gives up


class NoTimer:
    """A registry's timer that never fires."""

    def cancel(self) -> None:
        """Nothing to cancel."""


class Offices:
    """A registry and the workers that ask it."""

    def __init__(self) -> None:
        self.registry = Registry(call_later=lambda seconds, function: NoTimer())
        self.lock = threading.Lock()  # the registry is for one thread; here there are several
        self.workers: list[Worker] = []

    def start(self, program: Callable[[Worker], object], **options: Any) -> Worker:
        """Fork a worker that runs ``program(worker)``."""
        worker = Worker(self, len(self.workers) + 1, program, **options)
        self.workers.append(worker)
        return worker

    def hand_down(self, listening: socket.socket) -> None:
        """Let the registry inherit a socket, as from a service manager."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(listeners, "_FIRST_INHERITED", listening.fileno())
            environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
            (held,) = self.registry.inherit(environ)
        assert held.takes_ipv4
        listening.detach()

    def steer_away_from(self, worker: Worker) -> None:
        """As the master does, before it asks a worker to leave."""
        with self.lock:
            self.registry.drain((worker.number,))

    def close(self) -> None:
        """End every worker and close every listener."""
        for worker in self.workers:
            worker.end()
        self.registry.close()


class Worker:
    """One forked process. ``say`` and ``hear`` work on both sides."""

    def __init__(
        self,
        offices: Offices,
        number: int,
        program: Callable[[Worker], object],
        *,
        install: bool = True,
    ) -> None:
        self.number = number
        self.told: list[object] = []
        self.on_told = threading.Condition()
        self._pipe, theirs = multiprocessing.Pipe()
        office, their_office = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._closing, self._wake = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                self._pipe.close()
                self._pipe = theirs
                self._office = their_office
                office.close()
                for other in offices.workers:
                    other.forget()
                if install:
                    sharing.install(self.ask, self.tell)
                program(self)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        theirs.close()
        their_office.close()
        self._office = office
        self._thread = threading.Thread(target=self._answer, args=(offices,))
        self._thread.start()

    def forget(self) -> None:
        """In a sibling: close what belongs to this one."""
        for end in (self._pipe, self._office, self._wake, self._closing):
            end.close()

    def say(self, message: object) -> None:
        """Give the other side something to hear."""
        self._pipe.send(message)

    def hear(self) -> Any:
        """What the other side said next."""
        assert self._pipe.poll(PATIENCE), "nothing was said"
        return self._pipe.recv()

    def silent(self) -> bool:
        """Has the other side nothing to say at this moment?"""
        return not self._pipe.poll()

    def wait_told(self, kind: type, count: int = 1) -> list[Any]:
        """The messages of that kind, when there are ``count`` of them."""

        def enough() -> list[object]:
            found = [message for message in self.told if isinstance(message, kind)]
            return found if len(found) >= count else []

        with self.on_told:
            found = self.on_told.wait_for(enough, PATIENCE)
        assert found, f"{count} {kind.__name__} expected, told were {self.told}"
        return found

    def join(self) -> int:
        """Wait for the process; its exit code."""
        pidfd = os.pidfd_open(self.pid)
        try:
            assert select.select([pidfd], [], [], PATIENCE)[0], "the worker goes on"
        finally:
            os.close(pidfd)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        """Kill it if it lives, and close this side."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        self._wake.close()
        self._thread.join()
        self._closing.close()
        self._pipe.close()
        self._office.close()

    # -- in the worker

    def ask(self, body: Any) -> Any:
        """Ask the registry."""
        handed: list[int] = []
        if isinstance(body, Bind):
            handed = [body.socket.fileno()]
            body = replace(body, socket=None)  # type: ignore[arg-type]
        socket.send_fds(self._office, [pickle.dumps(("ask", body))], handed)
        data, given, _, _ = socket.recv_fds(self._office, 1 << 16, 4)
        value, error = pickle.loads(data)
        if error is not None:
            raise error
        if given:
            return replace(value, socket=socket.socket(fileno=given[0]))
        return value

    def tell(self, message: object) -> None:
        """Tell the registry."""
        self._office.send(pickle.dumps(("tell", message)))

    # -- in the test

    def _answer(self, offices: Offices) -> None:
        """One thread a worker, until its process is gone or the test is over."""
        while True:
            ready, _, _ = select.select([self._office, self._closing], [], [])
            if self._office not in ready:
                return
            data, fds, _, _ = socket.recv_fds(self._office, 1 << 16, 4)
            if not data:
                return
            verb, body = pickle.loads(data)
            if isinstance(body, Bind):
                body = replace(body, socket=socket.socket(fileno=fds[0]))
            value: Any = None
            error: BaseException | None = None
            given: list[int] = []
            if isinstance(body, (Bind, Holds, Release)):
                with offices.lock:
                    try:
                        value = offices.registry.handle((self.number,), body)
                        if isinstance(value, Bound) and value.socket is not None:
                            given = [os.dup(value.socket.fileno())]
                            value = replace(value, socket=None)
                    except OSError as problem:
                        error = problem
            if verb == "ask":
                socket.send_fds(self._office, [pickle.dumps((value, error))], given)
                for fd in given:
                    os.close(fd)
            with self.on_told:
                self.told.append(body)
                self.on_told.notify_all()


@contextlib.contextmanager
def opened() -> Iterator[Offices]:
    """Offices for one test."""
    offices = Offices()
    try:
        yield offices
    finally:
        offices.close()


def listening_address(worker: Worker, count: int = 1) -> Any:
    """Where the worker's (last of ``count``) listeners is up."""
    return worker.wait_told(Listening, count)[count - 1].sockname
