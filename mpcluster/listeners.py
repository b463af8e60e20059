"""One shared listener: bound, kept, used and closed by the master.

Its life::

    open ──► used ──► closed          the last user left by its own will
               │ ▲
               │ └── somebody asks again
               ▼
             waiting ──► closed       the last user crashed; ``grace`` seconds went by

The master's own hold counts as a use. Connections that come while a listener waits stay in
the kernel's queue, for the replacement to accept.

Runs in the master's watcher thread only, so nothing here is locked.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, MutableMapping

from mpcluster import descriptors, watcher
from mpcluster.address import Address, failure, make_key
from mpcluster.bequest import Bequest
from mpcluster.messages import Bind, Bound, Key, Route
from mpcluster.scheduling import MASTER, POLICIES, Kept, choose
from mpcluster.scheduling.base import CallLater, Policy, PolicyFactory, Timer, Watch, adopt
from mpcluster.scheduling.line import Line
from mpcluster.scheduling.shared import Shared
from mpcluster.unixpath import UnixPath, bind_path

__all__ = ["Listener", "inherited"]

#: ``SD_LISTEN_FDS_START`` of ``sd_listen_fds(3)``.
_FIRST_INHERITED = 3


class Listener:
    """A bound address, the policy that spreads its connections, and who uses it.

    Args:
        kept: The bound socket; the listener closes it, on failure here, too.
        policy: Spreads the connections; the first asker has chosen it for all.
        path: Where it is a unix path that was bound here.
        call_later: As in :class:`~mpcluster.scheduling.Kept`.
        grace: Seconds to wait for a replacement after the last user crashed.
        watch: As there; this process's watcher, without one.
        max_connections: As there.
        on_end: Called once, after it closed by itself.
    """

    def __init__(
        self,
        kept: socket.socket,
        policy: PolicyFactory,
        *,
        path: UnixPath | None = None,
        call_later: CallLater,
        grace: float,
        watch: Watch | None = None,
        max_connections: int | None = None,
        on_end: Callable[[Listener], None],
    ) -> None:
        self._kept = adopt(kept)
        self._path = path
        self._call_later = call_later
        self._grace = grace
        self._on_end = on_end
        self._max_connections = max_connections
        self._timer: Timer | None = None
        self._users: set[Route] = set()
        #: It was handed down bound to ``::``, and serves whoever asks for ``0.0.0.0``, too.
        self.takes_ipv4 = False
        self.closed = False
        self.sockname: object = kept.getsockname()
        self.address = Address.of(kept.family, self.sockname)
        #: What it is filed by; beside it, whatever it was asked for by (port 0).
        self.key = make_key(kept.family, kept.type, kept.proto, self.sockname)
        try:
            watch = watch or watcher.current()
            self._policy: Policy = policy(Kept(kept, call_later, grace, watch, max_connections))
        except BaseException:
            self._release_kept()
            raise

    @classmethod
    def open(
        cls,
        bind: Bind,
        *,
        call_later: CallLater,
        grace: float,
        watch: Watch | None = None,
        on_end: Callable[[Listener], None],
    ) -> Listener:
        """Bind the asker's own socket, the very open file description, and keep it.

        One that is bound already (to a port 0 that turned out to be a server's) is kept as
        it is. ``bind.socket`` is the listener's when this returns; when it raises it is
        closed.

        Raises:
            OSError: The kernel's verdict, with ``.address``.
            ValueError, TypeError: ``bind.scheduling`` is no policy; nothing was bound.
        """
        donated = bind.socket
        where = bind.key[3]
        path = None
        try:
            policy = choose(
                bind.scheduling,
                donated,
                event_loop=bind.event_loop,
                in_c=bind.in_c,
                max_connections=bind.max_connections,
            )
            if not _is_bound(donated, bind.key):
                if isinstance(where, str):
                    path = bind_path(donated, where, bind.mode)
                else:
                    donated.bind(where)
        except OSError as error:
            descriptors.close(donated)
            raise failure(error, Address.of(bind.key[0], where)) from None
        except (TypeError, ValueError):
            descriptors.close(donated)
            raise
        return cls(
            donated,
            policy,
            path=path,
            call_later=call_later,
            grace=grace,
            watch=watch,
            max_connections=bind.max_connections,
            on_end=on_end,
        )

    @classmethod
    def inherit(
        cls,
        handed_down: socket.socket,
        *,
        call_later: CallLater,
        grace: float,
        watch: Watch | None = None,
        scheduling: object = None,
        max_connections: int | None = None,
        on_end: Callable[[Listener], None],
    ) -> Listener:
        """Keep a socket of :func:`inherited`, held by the master. Its path is not ours.

        It listens already, so ``slots`` cannot be had.
        """
        policy = choose(scheduling, handed_down, event_loop=False, max_connections=max_connections)
        listener = cls(
            handed_down,
            policy,
            call_later=call_later,
            grace=grace,
            watch=watch,
            max_connections=max_connections,
            on_end=on_end,
        )
        listener._policy.add(MASTER, handed_down, None)
        listener._users.add(MASTER)
        listener.takes_ipv4 = _takes_ipv4(handed_down)
        return listener

    @classmethod
    def succeed(
        cls,
        left: Bequest,
        *,
        call_later: CallLater,
        grace: float,
        watch: Watch | None = None,
        on_end: Callable[[Listener], None],
    ) -> Listener:
        """Go on with a listener of the master before this one; see :meth:`settle`.

        Raises:
            OSError: Its sockets were not handed down.
        """
        kept, *further = (socket.socket(fileno=fd) for fd in left.fds)
        listener = cls(
            kept,
            POLICIES.get(left.policy, Shared),
            path=None if left.path is None else UnixPath(left.path, kept.type),
            call_later=call_later,
            grace=grace,
            watch=watch,
            max_connections=left.max_connections,
            on_end=on_end,
        )
        listener._policy.succeed(further)
        if left.held:
            listener._policy.add(MASTER, kept, None)
            listener._users.add(MASTER)
        listener.takes_ipv4 = left.takes_ipv4
        return listener

    def settle(self) -> None:
        """The master before this one has let go; who does not use it by now has time to ask."""
        self._policy.settle()
        if not self._users and self._timer is None:
            self._timer = self._call_later(self._grace, self._end)

    def bequeath(self, keys: Iterable[Key]) -> Bequest:
        """What the next master has to know of it, filed by ``keys``."""
        name = next((name for name, one in POLICIES.items() if one is type(self._policy)), None)
        return Bequest(
            keys=tuple(keys),
            policy=name or "shared",  # one of the user's own cannot travel
            fds=(self._kept.fileno(), *(one.fileno() for one in self._policy.bequeath())),
            held=MASTER in self._users,
            takes_ipv4=self.takes_ipv4,
            path=None if self._path is None else self._path.path,
            max_connections=self._max_connections,
        )

    def let_go(self) -> None:
        """The next master has taken over: the path is its, and so are the connections to come."""
        self._path = None
        self._policy.let_go()

    @property
    def in_hand(self) -> int:
        """As :attr:`mpcluster.scheduling.Policy.in_hand`."""
        return 0 if self.closed else self._policy.in_hand

    def __repr__(self) -> str:
        state = "closed" if self.closed else "used" if self._users else "waiting"
        return f"<Listener {self.address} {state} users={sorted(self._users)} {self._policy!r}>"

    @property
    def policy(self) -> str:
        """The name of the policy that spreads its connections, or of the class of one's own."""
        kind = type(self._policy)
        return next((name for name, one in POLICIES.items() if one is kind), kind.__name__)

    @property
    def users(self) -> frozenset[Route]:
        """Who uses it; ``()`` is the master."""
        return frozenset(self._users)

    def add(self, route: Route, bind: Bind) -> Bound:
        """Let ``route`` use it. ``bind.socket`` is kept or closed, also when this raises.

        Raises:
            OSError: ``EADDRINUSE`` if ``route`` uses it already, as two listeners on one
                address in one program; the kernel's verdict, else. With ``.address``.
        """
        offered = bind.socket
        chosen: socket.socket | None = None
        try:
            if route in self._users:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            if self._path is not None:
                self._path.restore()
            if bind.in_c:
                chosen = self._policy.add_direct(route, bind.listen)
            if chosen is None:
                chosen = self._policy.add(route, offered, bind.listen)
        except OSError as error:
            raise failure(error, self.address) from None
        finally:
            if offered is not chosen and offered is not self._kept:
                descriptors.close(offered)
        self._users.add(route)
        self._stop_waiting()
        # The asker's own socket, bound and perhaps listening by now, needs no second copy.
        given = None if chosen is offered else chosen
        sockname = self.sockname if bind.key[0] == self._kept.family else bind.key[3]
        is_line = isinstance(given, Line)
        return Bound(bind.key, given, sockname, is_line, is_line and self._policy.counts)

    def remove(self, route: Route, *, crashed: bool) -> None:
        """``route`` does not use it any more; as the last it closes it, or makes it wait."""
        if route not in self._users:
            return
        self._users.discard(route)
        if not self._policy.remove(route, crashed=crashed):
            return
        if not crashed:
            self._end()
        elif self._timer is None:
            self._timer = self._call_later(self._grace, self._end)

    def drain(self, route: Route) -> list[socket.socket]:
        """As :meth:`mpcluster.scheduling.Policy.drain`."""
        return self._policy.drain(route) if route in self._users else []

    def holds(self, path: str) -> bool:
        """Is this the unix path of this listener, be it bound here or handed down?"""
        if self._path is not None:
            return self._path.holds(path)
        return isinstance(self.sockname, str) and _same_place(self.sockname, path)

    def close(self) -> None:
        """Close the kept sockets and remove the path. Idempotent."""
        self._stop_waiting()
        if self.closed:
            return
        self.closed = True
        self._users.clear()
        self._policy.close()
        self._release_kept()

    def _end(self) -> None:
        self.close()
        self._on_end(self)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _release_kept(self) -> None:
        descriptors.close(self._kept)  # again, for a policy of the user's own that forgot
        if self._path is not None:
            self._path.remove()


def inherited(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that a service manager has handed down: ``LISTEN_FDS`` and its companions.

    As ``sd_listen_fds(3)``: numbers from 3 on, if ``LISTEN_PID`` is this process; the three
    variables are removed, for they would mislead the children. What is no socket of a
    family that can be shared is left alone.
    """
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)  # an address says which is which
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for number in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)):
        try:
            handed_down = socket.socket(fileno=number)
        except OSError:
            continue  # no socket
        if _has_address(handed_down):
            found.append(adopt(handed_down))
        else:
            handed_down.detach()
    return found


def _same_place(held: str, path: str) -> bool:
    if os.path.abspath(held) == path:
        return True
    try:
        return os.path.samestat(os.lstat(held), os.lstat(path))
    except OSError:
        return False


def _has_address(sock: socket.socket) -> bool:
    if sock.family == socket.AF_UNIX:
        return bool(sock.getsockname())
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] != 0


def _takes_ipv4(handed_down: socket.socket) -> bool:
    """Streams only: a datagram's sender could not be told in the form of the other family."""
    return (
        handed_down.family == socket.AF_INET6
        and handed_down.type == socket.SOCK_STREAM
        and handed_down.getsockname()[0] == "::"
        and not handed_down.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )


def _is_bound(donated: socket.socket, key: Key) -> bool:
    """Does it have the port already that was left open by the key, or the key's address?"""
    return _has_address(donated) and (key[4] is not None or donated.getsockname() == key[3])
