"""The system calls behind ``share="kernel"``: hearing of ``bind`` and ``listen`` from the kernel.

A filter of seccomp(2) in the worker stops each thread that calls ``bind(2)`` or ``listen(2)``
until somebody has answered for the kernel; every other call passes at full speed. Who answers
holds the *listener*, a descriptor: it reads a :class:`Notification`, may take the socket that
the call is about (pidfd_getfd(2)), lay another over it, and then lets the kernel do the call
after all, or gives its result.

What is asked for is from ``linux/seccomp.h``, ``linux/filter.h`` and ``linux/audit.h``. Linux
5.19 is the first where a signal does not take back a call that is being answered.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mpcluster.errors import ClusterError

__all__ = [
    "Notification",
    "check",
    "install",
    "lay_over",
    "let_pass",
    "may_take",
    "read_memory",
    "receive",
    "respond",
    "take_socket",
]


class _Machine(NamedTuple):
    audit: int  # AUDIT_ARCH_*: another ABI's numbers mean other calls
    seccomp: int
    bind: int
    listen: int


_MACHINES: Final = {
    "x86_64": _Machine(0xC000003E, 317, 49, 50),
    "aarch64": _Machine(0xC00000B7, 277, 200, 201),
}

_PIDFD_GETFD: Final = 438  # on both
_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER: Final = 1

#: TSYNC: all threads of the process. SPEC_ALLOW: no mitigation that would slow the rest down.
#: NEW_LISTENER, which with TSYNC wants TSYNC_ESRCH. WAIT_KILLABLE_RECV: from its reception on
#: only a fatal signal ends the wait for an answer.
_FLAGS: Final = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5

_ALLOW: Final = 0x7FFF0000
_NOTIFY: Final = 0x7FC00000

#: ioctl: SECCOMP_IOCTL_NOTIF_RECV, _SEND and _ADDFD.
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_ADD: Final = 0x40182103

_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_SETFD: Final = 1  # SECCOMP_ADDFD_FLAG_SETFD

#: More than ``struct seccomp_notif`` has, and than a kernel to come will give it.
_ROOM: Final = 256


@dataclass(frozen=True, slots=True)
class Notification:
    """A thread that waits in ``bind`` or ``listen``.

    Attributes:
        number: What it is answered by.
        thread: Its id.
        is_bind: Or else ``listen``.
        args: Of the call: descriptor, address, length; or descriptor, backlog.
    """

    number: int
    thread: int
    is_bind: bool
    args: tuple[int, ...]


# -- is it possible here? --------------------------------------------------------------------


def check() -> None:
    """Look whether this process and its children could do it. Changes nothing.

    Raises:
        ClusterError: They could not; the text says why, and what to do.
    """
    machine = _machine()
    try:
        # Without a filter: EFAULT of a kernel that knows the flags, EINVAL of one that does not.
        _call(machine.seccomp, _SET_MODE_FILTER, _FLAGS, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise unavailable("seccomp(2)", error) from None
    own = os.pidfd_open(os.getpid())
    try:
        os.close(_call(_PIDFD_GETFD, own, own, 0))
    except OSError as error:
        raise unavailable("pidfd_getfd(2)", error) from None
    finally:
        os.close(own)


def unavailable(what: str, error: OSError) -> ClusterError:
    """The error that says what is missing."""
    if error.errno == errno.EINVAL:
        why = f"this kernel ({os.uname().release}) is older than Linux 5.19, which it needs"
    elif error.errno == errno.EBUSY:
        why = "a filter with a listener is above this process already: a container's, perhaps"
    else:
        why = (
            f"{what} is refused ({os.strerror(error.errno or 0)}), as by the default profile of "
            "some containers: allow seccomp, pidfd_getfd and ptrace access to children there "
            "(CAP_SYS_PTRACE, or a seccomp profile that has them)"
        )
    return ClusterError(f"share='kernel' is not possible here: {why}; or use share='python'")


# -- in the worker ---------------------------------------------------------------------------


def install() -> int:
    """Stop ``bind`` and ``listen`` of this process, and of all that it will fork or execute.

    For good: it cannot be undone. Until somebody answers, those calls wait.

    Returns:
        The listener, close-on-exec.

    Raises:
        ClusterError: The kernel refuses; nothing has changed.
    """
    import ctypes

    machine = _machine()
    program = ctypes.create_string_buffer(_program(machine))
    header = struct.pack("HP", len(program.raw) // 8, ctypes.addressof(program))
    place = ctypes.create_string_buffer(header)
    given = machine.seccomp, _SET_MODE_FILTER, _FLAGS, ctypes.addressof(place)
    try:
        try:
            return _call(*given)
        except OSError as error:
            if error.errno != errno.EACCES:
                raise
        # Without CAP_SYS_ADMIN: a program with more rights must not be started under a filter.
        if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            error_number = ctypes.get_errno()
            raise OSError(error_number, os.strerror(error_number))
        return _call(*given)
    except OSError as error:
        raise unavailable("seccomp(2)", error) from None


def _program(machine: _Machine) -> bytes:
    """The filter: of this machine's own ABI two calls notify, all else is allowed."""
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    instructions = (
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 0, 3, machine.audit),
        (load, 0, 0, 0),  # seccomp_data.nr
        (equal, 2, 0, machine.bind),
        (equal, 1, 0, machine.listen),
        (give, 0, 0, _ALLOW),
        (give, 0, 0, _NOTIFY),
    )
    return b"".join(struct.pack("HBBI", *one) for one in instructions)


# -- who answers -----------------------------------------------------------------------------


def receive(listener: int) -> Notification | None:
    """The next that waits; ``None``: its thread has gone. For a listener that is readable."""
    room = bytearray(_ROOM)
    try:
        fcntl.ioctl(listener, _RECEIVE, room)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    number, thread, _, call = struct.unpack_from("=QIIi", room)
    args = struct.unpack_from("=6Q", room, 32)
    return Notification(number, thread, call == _machine().bind, args)


def let_pass(listener: int, number: int) -> bool:
    """Let the kernel do the call after all; False if nobody waits for it any more."""
    return _answer(listener, struct.pack("=QqiI", number, 0, 0, _CONTINUE))


def respond(listener: int, number: int, error: int = 0) -> bool:
    """Let the call return 0, or fail with that errno; False if nobody waits any more."""
    return _answer(listener, struct.pack("=QqiI", number, 0, -error, 0))


def _answer(listener: int, answer: bytes) -> bool:
    try:
        fcntl.ioctl(listener, _SEND, answer)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def lay_over(listener: int, number: int, source: int, target: int, *, cloexec: bool) -> None:
    """In the process that waits, make ``target`` the same open file as our ``source``.

    Raises:
        OSError: ENOENT: it waits no more. EBADF, EMFILE: there is no room for that number.
    """
    flags = os.O_CLOEXEC if cloexec else 0
    fcntl.ioctl(listener, _ADD, struct.pack("=QIIII", number, _SETFD, source, target, flags))


def take_socket(pidfd: int, number: int) -> socket.socket:
    """A copy of another process's socket; close-on-exec.

    Raises:
        OSError: EPERM, ENOSYS: that is not allowed here. ESRCH, EBADF: it is gone. ENOTSOCK:
            it is no socket.
    """
    fd = _call(_PIDFD_GETFD, pidfd, number, 0)
    try:
        return socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise


def may_take(pidfd: int, number: int) -> None:
    """Try :func:`take_socket` on whatever descriptor that is.

    Raises:
        ClusterError: It is not allowed here.
    """
    try:
        os.close(_call(_PIDFD_GETFD, pidfd, number, 0))
    except OSError as error:
        raise unavailable("pidfd_getfd(2) of a worker's descriptor", error) from None


def read_memory(pid: int, address: int, size: int) -> bytes:
    """Bytes of another process's memory.

    Raises:
        OSError: There are none, or they are not ours to read.
    """
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(memory, size, address)
    except OverflowError:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from None
    finally:
        os.close(memory)


# -- the C library ---------------------------------------------------------------------------


def _machine() -> _Machine:
    name = os.uname().machine
    if sys.platform != "linux" or name not in _MACHINES or sys.maxsize < 2**32:
        raise ClusterError(
            f"share='kernel' is for Linux on {' and '.join(_MACHINES)}, and this is "
            f"{sys.platform} on {name}; use share='python'"
        )
    return _MACHINES[name]


@functools.cache
def _libc() -> Any:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def _call(number: int, *args: int) -> int:
    import ctypes

    result = int(_libc().syscall(ctypes.c_long(number), *map(ctypes.c_long, args)))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
