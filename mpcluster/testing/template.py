"""The process that forks the workers.

A fork of the controller from before it had any thread: one thread, which waits for orders
and for the ends of its children. It ignores Ctrl-C, which its workers and the controller
deal with, and ends with the controller, whatever ends that one.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

import execnet

from mpcluster import descriptors, forking, interpreter, leash
from mpcluster.testing import orders
from mpcluster.testing.worker import Job, Plan, WorkerSide

__all__ = ["Template"]


class Template:
    """Takes orders until it is told to fork, and returns in the fork only.

    Args:
        plan: What holds for the whole run.
        control: This side's end of the controller's orders.
    """

    def __init__(self, plan: Plan, control: socket.socket) -> None:
        self.plan = plan
        self._control = control
        #: Workers forked so far.
        self.forked = 0
        #: Called when all workers are gone.
        self.at_end: Callable[[], object] = lambda: None
        self._waiting: list[tuple[orders.Launch, list[int]]] = []
        self._first_input: bytes | None = None
        self._children: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: pid, news
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def wait_for_input(self) -> dict[str, object]:
        """Wait for the first worker's ``workerinput``; keep the orders that come before it."""
        while self._first_input is None:
            self._take_order()
        workerinput: dict[str, object] = execnet.loads(self._first_input)
        return workerinput

    def serve(self) -> WorkerSide:
        """Fork a worker at each order; report the end of each. Returns in a worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.collect()
        # What is there now is never looked at by a collection again, here or in a worker:
        # that would copy all of its pages. It also tells a worker what it has opened itself.
        gc.freeze()
        while True:
            while self._waiting:
                worker = self._launch(*self._waiting.pop(0))
                if worker is not None:
                    return worker
            for fd, _ in self._poll.poll():
                if fd == self._control.fileno():
                    self._take_order()
                else:
                    self._bury(fd)

    def _take_order(self) -> None:
        try:
            arrived = orders.receive_order(self._control)
        except OSError:
            arrived = None
        if arrived is None:
            self.end()
        order, fds = arrived
        for fd in fds:
            descriptors.own(fd)
        if isinstance(order, orders.Launch):
            self._waiting.append((order, fds))
        elif self._first_input is None:
            self._first_input = order.data

    def _launch(self, order: orders.Launch, fds: list[int]) -> WorkerSide | None:
        stream, news_fd, stdout, stderr = fds
        try:
            with warnings.catch_warnings():
                # Threads of the program's own are told of by `safety`, with their names.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = forking.fork((*fds, leash.hold(), *self.plan.terminal.streams))
        except OSError as error:
            self._refuse(fds, error)
            return None
        if pid == 0:
            return WorkerSide(
                self.plan, Job(order.id, stream, news_fd, stdout, stderr, order.env, order.nice)
            )
        self.forked += 1
        for fd in (stream, stdout, stderr):
            descriptors.close(fd)
        news = socket.socket(fileno=news_fd)
        descriptors.disown(news_fd)
        descriptors.own(news)
        pidfd = os.pidfd_open(pid)
        descriptors.own(pidfd)
        self._children[pidfd] = (pid, news)
        self._poll.register(pidfd, select.POLLIN)
        orders.send_news(news, orders.Begun(pid), (pidfd,))
        return None

    def _refuse(self, fds: list[int], error: OSError) -> None:
        stream, news_fd, stdout, stderr = fds
        with socket.socket(fileno=os.dup(news_fd)) as news:
            orders.send_news(news, orders.NotForked(f"cannot fork a worker: {error}"))
        for fd in (stream, news_fd, stdout, stderr):
            descriptors.close(fd)

    def _bury(self, pidfd: int) -> None:
        pid, news = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        _, status = os.waitpid(pid, 0)
        descriptors.close(pidfd)
        orders.send_news(news, orders.Ended(os.waitstatus_to_exitcode(status)))
        descriptors.close(news)

    def end(self) -> NoReturn:
        """The controller has gone or wants no more: end, and leave nobody behind."""
        for pidfd, (pid, _) in self._children.items():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
        try:
            self.at_end()
            interpreter.flush_std_streams()
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(0)
