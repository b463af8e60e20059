"""What the master answers when the kernel asks about a worker's ``bind`` and ``listen``.

For workers with ``share="kernel"``, whose sockets may be made in C or Rust. The worker is stopped
in the call; the master takes a copy of its socket and donates it to the registry, as a worker
does for what Python binds (:mod:`~mpcluster.sharing.binding`), and lays the kept one over the
worker's descriptor where that is another. So:

* a named address is shared at ``bind``;
* port 0 is the kernel's at ``bind``, for it may be a client's, and is shared at ``listen``;
* all else passes: other families, what is bound already, and other processes that are under the
  same filter, because the worker has forked or executed them.

An answerer lives in the watcher's thread of the master, and answers as long as anybody is under
the filter, beyond the worker's death: a call that nobody answers fails with ``ENOSYS``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from mpcluster import descriptors, watcher
from mpcluster.address import SockAddr, make_key
from mpcluster.logs import logger
from mpcluster.messages import Bind, Bound, Key, Laid, Notifies, Release

from . import binding, seccomp

__all__ = ["Answerer", "parse"]

#: Seconds between two looks whether the worker has closed what it listened on: of that the kernel
#: tells nobody.
LOOK: Final = 1.0

#: Of port 0, the n-th of a worker's; apart from those that Python counts in the worker itself.
FIRST_ORDINAL: Final = 1 << 16

#: ``bind`` takes a longer address for an error, and so does the kernel.
_LONGEST: Final = 128

#: Sockets on port 0, or private ones, after which those that are closed are sorted out.
_MANY: Final = 64

#: The answers: let the kernel do it; done, with 0 or an errno.
_PASS: Final = None
_DONE: Final = 0


@dataclass(slots=True, eq=False)
class _Entry:
    """A listener that the worker uses over sockets made in C."""

    key: Key  # what the registry was asked for
    named: Key  # the same, or, for port 0, the port that it has: where places are counted
    place: int | None
    fd: int
    inode: int
    is_stream: bool
    sockname: object
    told: bool = False


class Answerer:
    """Who answers the kernel for one worker. In the watcher's thread of the root master.

    Args:
        notifies: What the worker has sent; its listener is closed at the end.
        pid: The worker's.
        pidfd: The same.
        ask: Asks the registry in the worker's name, and raises its error.
        is_shared: ``is_shared(type, sockname)``: does the worker use that already?
        tell: Tells the worker what was done.
        is_leaving: Has it been asked to leave, or ended? What it closes then, the registry hears
            from elsewhere.

    Raises:
        ClusterError: The master may not take descriptors of its worker.
    """

    def __init__(
        self,
        notifies: Notifies,
        *,
        pid: int,
        pidfd: int,
        ask: Callable[[object], object],
        is_shared: Callable[[int, object], bool],
        tell: Callable[[Laid], object],
        is_leaving: Callable[[], bool],
    ) -> None:
        self._listener = notifies.listener
        self._pid, self._pidfd = pid, pidfd
        self._ask, self._tell = ask, tell
        self._is_shared, self._is_leaving = is_shared, is_leaving
        self._is_over = False
        self._entries: list[_Entry] = []
        self._undecided: dict[int, tuple[object, ...]] = {}  # on port 0: their address, by inode
        self._private: set[int] = set()
        self._upcoming: dict[Key, int] = {}
        self._many = _MANY
        self._timer: watcher.Timer | None = None
        with descriptors.opening():
            descriptors.own(self._listener)
        try:
            seccomp.may_take(pidfd, notifies.number)
            watcher.current().add(self._listener.fileno(), self._on_ready)
        except BaseException:
            descriptors.close(self._listener)
            raise

    def __repr__(self) -> str:
        return f"<Answerer of {self._pid} {[entry.key for entry in self._entries]!r}>"

    def exempt(self, inode: int) -> None:
        """This socket of the worker's is private, whatever becomes of it."""
        self._private.add(inode)
        self._sort_out()

    def leave(self) -> None:
        """The worker is gone. Who is left of those that it has started is let pass."""
        self._is_over = True
        self._entries.clear()
        if self._timer is not None:
            self._timer.cancel()

    # -- the kernel asks -----------------------------------------------------------------------

    def _on_ready(self, events: int) -> None:
        if not events & select.EPOLLIN:
            if events & select.EPOLLHUP:  # nobody is under the filter any more
                watcher.current().remove(self._listener.fileno())
                descriptors.close(self._listener)
            return
        listener = self._listener.fileno()
        asked = seccomp.receive(listener)
        if asked is None:
            return
        verdict: int | None = _PASS
        try:
            verdict = self._judge(asked)
        except OSError as error:
            verdict = error.errno or errno.EINVAL
        except Exception:  # noqa: BLE001  # not worth the worker's life
            logger().exception("worker %d binds for itself alone", self._pid)
        if verdict is _PASS:
            seccomp.let_pass(listener, asked.number)
        else:
            seccomp.respond(listener, asked.number, verdict)

    def _judge(self, asked: seccomp.Notification) -> int | None:
        number = asked.args[0] & 0xFFFFFFFF
        if self._is_over or not os.path.exists(f"/proc/{self._pid}/task/{asked.thread}"):
            return _PASS
        try:
            with descriptors.opening():
                taken = seccomp.take_socket(self._pidfd, number)
                descriptors.own(taken)
        except OSError:
            return _PASS  # no socket: the kernel says so better
        try:
            inode = os.fstat(taken.fileno()).st_ino
            if inode in self._private or not binding.is_sharable(taken):
                return _PASS
            if asked.is_bind:
                return self._bind(asked, number, taken, inode)
            return self._listen(asked, number, taken, inode)
        finally:
            descriptors.close(taken)

    def _bind(
        self, asked: seccomp.Notification, number: int, taken: socket.socket, inode: int
    ) -> int | None:
        if _is_bound(taken):
            return _PASS  # EINVAL
        _, address, size = asked.args[:3]
        try:
            raw = seccomp.read_memory(asked.thread, address, min(size & 0xFFFFFFFF, _LONGEST))
        except OSError:
            return _PASS  # EFAULT
        where = parse(taken.family, raw)
        if where is None:
            return _PASS
        if isinstance(where, tuple) and where[1] == 0:
            if taken.type == socket.SOCK_STREAM:
                self._undecided[inode] = where
                self._sort_out()
            return _PASS
        if isinstance(where, str):
            where = os.path.join(os.readlink(f"/proc/{self._pid}/cwd"), where)
        self._look()  # what was closed must not count as still in use
        key = make_key(taken.family, taken.type, taken.proto, where)
        place = self._next_place(key) if binding.allows_several(taken) else None
        entry = _Entry(
            (*key[:4], place or None), key, place, number, inode, _is_stream(taken), where
        )
        self._share(asked, taken, entry, backlog=None)
        if not entry.is_stream:
            self._announce(entry)
        return _DONE

    def _listen(
        self, asked: seccomp.Notification, number: int, taken: socket.socket, inode: int
    ) -> int | None:
        (backlog,) = struct.unpack("=i", struct.pack("=I", asked.args[1] & 0xFFFFFFFF))
        entry = next((one for one in self._entries if one.inode == inode), None)
        if entry is not None:
            # Here, not there: who hears that it listens may connect at once.
            taken.listen(backlog)
            self._announce(entry)
            return _DONE
        address = self._undecided.pop(inode, None)
        sockname = taken.getsockname()
        if address is None or self._is_shared(taken.type, sockname):
            return _PASS  # of Python's sharing, or of no kind that is shared
        self._look()
        kind = make_key(taken.family, taken.type, taken.proto, address, 0)
        ordinal = self._upcoming.get(kind, 0)
        self._upcoming[kind] = ordinal + 1
        named = make_key(taken.family, taken.type, taken.proto, sockname)
        place = 0 if binding.allows_several(taken) else None
        key = (*kind[:4], FIRST_ORDINAL + ordinal)
        entry = _Entry(key, named, place, number, inode, _is_stream(taken), sockname)
        try:
            self._share(asked, taken, entry, backlog=max(backlog, 0))
        except BaseException:
            self._undecided[inode] = address
            raise
        entry.named = make_key(taken.family, entry.key[1], entry.key[2], entry.sockname)
        self._announce(entry)
        return _DONE

    def _share(
        self,
        asked: seccomp.Notification,
        taken: socket.socket,
        entry: _Entry,
        *,
        backlog: int | None,
    ) -> None:
        """Have the registry keep it, or lay over it what is kept.

        Raises:
            OSError: The registry's; the worker's socket is what it was.
        """
        flags = fcntl.fcntl(taken, fcntl.F_GETFL)
        family = taken.family
        with descriptors.opening():
            donation = taken.dup()  # the registry keeps or closes it
            descriptors.own(donation)
        bind = Bind(
            key=entry.key,
            socket=donation,
            listen=backlog,
            mode=binding.mode_of_new_files(self._pid) if family == socket.AF_UNIX else None,
            event_loop=bool(flags & os.O_NONBLOCK),
            in_c=entry.is_stream,
        )
        bound = cast(Bound, self._ask(bind))
        entry.sockname = bound.sockname
        if bound.socket is not None:
            # O_NONBLOCK belongs to the open file; who shares it runs the same program.
            fcntl.fcntl(bound.socket, fcntl.F_SETFL, flags)
            try:
                seccomp.lay_over(
                    self._listener.fileno(),
                    asked.number,
                    bound.socket.fileno(),
                    entry.fd,
                    cloexec=self._closes_on_exec(entry.fd),
                )
            except OSError:
                self._ask(Release(entry.key))
                raise
            entry.inode = os.fstat(bound.socket.fileno()).st_ino
        self._entries.append(entry)
        if self._timer is None or self._timer.is_cancelled:
            self._timer = watcher.current().call_later(LOOK, self._look_again)

    def _announce(self, entry: _Entry) -> None:
        if not entry.told:
            entry.told = True
            family = entry.key[0]
            self._tell(Laid(family, entry.sockname, entry.fd, entry.inode, entry.is_stream))

    def _next_place(self, key: Key) -> int:
        taken = {entry.place for entry in self._entries if entry.named == key}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def _closes_on_exec(self, number: int) -> bool:
        with open(f"/proc/{self._pid}/fdinfo/{number}", encoding="ascii") as info:
            for line in info:
                if line.startswith("flags:"):
                    return bool(int(line.split()[1], 8) & os.O_CLOEXEC)
        return False

    # -- what the worker has closed ------------------------------------------------------------

    def _look_again(self) -> None:
        self._timer = None
        self._look()
        if self._entries and not self._is_over:
            self._timer = watcher.current().call_later(LOOK, self._look_again)

    def _look(self) -> None:
        """Release what the worker has closed, if it does not just leave."""
        if not self._entries or self._is_over or self._is_leaving():
            return
        if all(self._is_at(entry.inode, entry.fd) for entry in self._entries):
            return
        still_open = self._open_sockets()
        if still_open is None:
            return
        closed = [entry for entry in self._entries if entry.inode not in still_open]
        self._entries = [entry for entry in self._entries if entry.inode in still_open]
        for entry in closed:
            self._ask(Release(entry.key))
        kinds = {(*entry.key[:4], 0) for entry in self._entries}
        self._upcoming = {kind: n for kind, n in self._upcoming.items() if kind in kinds}

    def _sort_out(self) -> None:
        """Forget sockets that are closed, when there are many."""
        if len(self._undecided) + len(self._private) < self._many:
            return
        still_open = self._open_sockets()
        if still_open is not None:
            self._undecided = {n: one for n, one in self._undecided.items() if n in still_open}
            self._private &= still_open
        self._many = _MANY + 2 * (len(self._undecided) + len(self._private))

    def _is_at(self, inode: int, number: int) -> bool:
        try:
            return os.readlink(f"/proc/{self._pid}/fd/{number}") == f"socket:[{inode}]"
        except OSError:
            return False

    def _open_sockets(self) -> set[int] | None:
        """The inodes of its sockets; ``None``: it has nothing open, for it is just ending."""
        found: set[int] = set()
        try:
            names = os.listdir(f"/proc/{self._pid}/fd")
        except OSError:
            return None
        for name in names:
            try:
                target = os.readlink(f"/proc/{self._pid}/fd/{name}")
            except OSError:
                continue
            if target.startswith("socket:["):
                found.add(int(target[8:-1]))
        return found or None  # its channel is one


def parse(family: int, raw: bytes) -> SockAddr | None:
    """Read a ``sockaddr`` as the kernel would; ``None``: it is to judge of it itself.

    That is: too short, of another family than the socket, or a unix one without a name, for
    which the kernel makes one up.
    """
    if len(raw) < 2 or struct.unpack_from("=H", raw)[0] != family:
        return None
    if family == socket.AF_UNIX:
        name = raw[2:]
        if name[:1] == b"\0":
            return name
        return os.fsdecode(name.split(b"\0", 1)[0]) or None
    if family == socket.AF_INET and len(raw) >= 16:
        (port,) = struct.unpack_from("!H", raw, 2)
        return socket.inet_ntop(socket.AF_INET, raw[4:8]), port
    if family == socket.AF_INET6 and len(raw) >= 24:
        port, flow = struct.unpack_from("!HI", raw, 2)
        (scope,) = struct.unpack_from("=I", raw.ljust(28, b"\0"), 24)
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), port, flow, scope
    return None


def _is_stream(sock: socket.socket) -> bool:
    return sock.type != socket.SOCK_DGRAM


def _is_bound(sock: socket.socket) -> bool:
    name: Any = sock.getsockname()
    return name[1] != 0 if isinstance(name, tuple) else bool(name)
