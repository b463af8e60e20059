"""Where replacements come from: a process that is forked with the pool, and forks for it.

By the time that a worker has to be replaced, the master has threads, and any of them may hold
a lock at that moment, which the new worker would inherit for ever. So a pool makes a
*template* when it is made, behind its first workers, which come to life meanwhile: a child
with one thread, which waits and does nothing else. When a
worker is needed, the template forks itself, and the new process is at once the *master's*
child (``CLONE_PARENT``): the master waits for it, and has its exit code, as of any other. It
begins with the state of the day on which the pool was made, like the first workers.

What goes over the line to the template, one packet each way::

    master     pickle of (name, identity, id), and the descriptors of channel and berth
    template   the pid of the new process, or minus the errno of the fork
"""

from __future__ import annotations

import array
import errno
import functools
import os
import pickle
import select
import signal
import socket
import struct
import threading
from typing import Any, Final, NamedTuple

from mpcluster import descriptors, forking, interpreter, leash, watcher
from mpcluster.pool.worker import Berth, Plan
from mpcluster.popen import Popen, own_pidfd
from mpcluster.process import ClusterProcess

__all__ = ["Template", "TemplateGoneError", "as_it_is", "can_have_template"]

_PID: Final = struct.Struct("=q")
#: Bytes of one request, at most.
_REQUEST: Final = 1 << 16
#: Seconds that a request may take when the template is to end.
_PATIENCE: Final = 1.0


@functools.cache
def _can_fork_sibling() -> bool:
    return forking.can_fork_sibling()


def can_have_template(process: object) -> bool:
    """Can processes like this one be forked by another than this process?"""
    return type(process).start is ClusterProcess.start and _can_fork_sibling()  # type: ignore[attr-defined]


def as_it_is(process: ClusterProcess) -> ClusterProcess:
    """What a process is before it is started, of which the start leaves little."""
    kept: ClusterProcess = object.__new__(type(process))
    kept.__dict__.update(process.__dict__)
    return kept


class TemplateGoneError(Exception):
    """The template is dead: somebody has killed it."""


class Template:
    """The template of a pool, in the master.

    Args:
        prototype: A process that was not started: what the new ones shall be like.
        plan: What they do first.
    """

    def __init__(self, prototype: ClusterProcess, plan: Plan) -> None:
        # One request at a time: held from the request to the answer, which takes as long as
        # a fork. Taken by whoever hires. Nobody forks this process meanwhile but other
        # threads, whose children have no use for it.
        self._asking = threading.Lock()
        with descriptors.opening():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            descriptors.own(ours)
            descriptors.own(theirs)
        try:
            sentinel = own_pidfd()
            keep = (theirs.fileno(), sentinel, leash.hold())
            threaded = interpreter.count_threads() > watcher.current().is_running()
            pid = forking.fork(keep)
            if pid == 0:
                _be_template(_Office(theirs, sentinel, prototype, plan), threaded=threaded)
        except BaseException:
            descriptors.close(ours)
            raise
        finally:
            descriptors.close(theirs)
        self._socket = ours
        self.pid = pid
        with descriptors.opening():
            self._pidfd = os.pidfd_open(pid)
            descriptors.own(self._pidfd)

    def popen(self, process: ClusterProcess) -> Popen:
        """Start ``process`` from the template; takes the place of its ``_Popen``."""
        return _TemplatePopen(process, self)

    def fork(self, request: tuple[Any, ...], fds: list[int]) -> int:
        """Let it fork; return the pid of the new process.

        Raises:
            TemplateGoneError: It is dead.
            OSError: The system has no room for one more process.
        """
        with self._asking:
            try:
                socket.send_fds(self._socket, [pickle.dumps(request)], fds)
                answer = self._socket.recv(_PID.size)
            except OSError as error:
                raise TemplateGoneError from error
        if not answer:
            raise TemplateGoneError
        pid = int(_PID.unpack(answer)[0])
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def kill(self) -> None:
        """Let it end; :meth:`close` waits for that.

        A request that is under way is answered first: killed between its fork and its answer, it
        would leave this process a child that nobody knows of.
        """
        is_at_rest = self._asking.acquire(timeout=_PATIENCE)  # unless it is stopped, or swapped out
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            if is_at_rest:
                self._asking.release()

    def close(self) -> None:
        """End it. Idempotent."""
        if self._pidfd < 0:
            return
        self.kill()
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll()
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # the program has waited for it
        descriptors.close(self._pidfd)
        self._pidfd = -1
        descriptors.close(self._socket)


class _TemplatePopen(Popen):
    """A child that the template has forked."""

    has_bell = False  # what the template would ring is not the master's

    def __init__(self, process: ClusterProcess, template: Template) -> None:
        self._template = template
        super().__init__(process)

    def _launch(self, process_obj: Any) -> None:
        self._begin()
        with descriptors.opening():
            ours, theirs = (end.detach() for end in socket.socketpair())
            descriptors.own(ours)
            descriptors.own(theirs)
        try:
            berth, _ = process_obj._args  # noqa: SLF001
            request = process_obj.name, process_obj._identity, process_obj.id  # noqa: SLF001
            fds = [theirs, berth.orders, berth.doorbell, berth.memory]
            pid = self._template.fork(request, fds)
        except BaseException:
            descriptors.close(ours)
            raise
        finally:
            descriptors.close(theirs)
        self._adopt(pid, ours)


# -- the template's own side ---------------------------------------------------------------


class _Office(NamedTuple):
    """What the template has."""

    line: socket.socket
    sentinel: int  #: the master's pidfd
    prototype: Any
    plan: Plan


def _be_template(office: _Office, *, threaded: bool) -> None:
    """In the child: fork whenever it is asked for. Does not return."""
    code = 1
    try:
        on_interrupt = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        leash.wear()
        interpreter.become_main_thread()
        interpreter.forget_imports_of_other_threads()
        if threaded or watcher.was_calling():
            interpreter.renew_std_streams()
        while (request := _receive(office.line)) is not None:
            office.line.send(_PID.pack(_fork_one(office, request, on_interrupt)))
        code = 0
    finally:
        os._exit(code)


def _receive(line: socket.socket) -> tuple[Any, list[int]] | None:
    space = socket.CMSG_SPACE(4 * array.array("i").itemsize)
    data, rights, _, _ = line.recvmsg(_REQUEST, space, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None  # the master has closed its end, or is gone
    fds = array.array("i")
    for _, _, numbers in rights:
        fds.frombytes(numbers)
    for fd in fds:
        descriptors.own(fd)
    return pickle.loads(data), list(fds)


def _fork_one(office: _Office, request: tuple[Any, list[int]], on_interrupt: Any) -> int:
    (name, identity, number), fds = request
    try:
        if len(fds) < 4:
            return -errno.EMFILE
        try:
            pid = forking.fork_sibling((*fds, office.sentinel, leash.hold()))
        except OSError as error:
            return -(error.errno or errno.EAGAIN)
        if pid == 0:
            signal.signal(signal.SIGINT, on_interrupt)
            channel, orders, doorbell, memory = fds
            process = office.prototype
            process.name = name
            process._identity = identity  # noqa: SLF001
            process._id = number  # noqa: SLF001
            process._args = (Berth(orders, doorbell, memory), office.plan)  # noqa: SLF001
            Popen.run_child(process, channel, office.sentinel, threaded=False)
        return pid
    finally:
        for fd in fds:
            descriptors.close(fd)
