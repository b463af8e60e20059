"""Who has how many connections open, and how many wait to be accepted: as the kernel has it.

Counted from outside, so nothing is asked of the workers and nothing escapes that is accepted
in C. The kernel lists the sockets of the machine (``sock_diag(7)``, and ``/proc/net/unix``) with
their inodes, and the descriptors of a process name the inodes of its own. A connection that
waits in a listener's queue has no inode yet.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mpcluster import descriptors
from mpcluster.address import Address

__all__ = ["Sockets", "look"]

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_ERROR, _DONE = 2, 3
_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, number, port
_REQUEST: Final = struct.Struct("=BBBBI48x")  # inet_diag_req_v2: family, protocol, …, states, id
#: inet_diag_msg: family, state, timer, retrans, the local port, (the other's,) the local
#: address, (the other's, interface, cookie, expiry,) bytes to read, bytes to write, user, inode.
_ENTRY: Final = struct.Struct("=BBxx2s2x16s16x4x8x4xI4x4xI")
_PORT: Final = struct.Struct("!H")
_PORT_AT: Final = 4  # in there
_ROOM: Final = 1 << 16

# net/tcp_states.h: as numbers and as bits of a request
_LISTEN: Final = 10
#: Accepted, and not closed by its program: ESTABLISHED, CLOSE_WAIT, and those of a program that
#: has ended its own half only (FIN_WAIT1, FIN_WAIT2, CLOSING, LAST_ACK).
_OPEN: Final = sum(1 << state for state in (1, 4, 5, 8, 9, 11))


@dataclass(frozen=True, slots=True)
class Sockets:
    """The sockets of one machine at one moment, as far as they belong to some listeners.

    Attributes:
        waiting: Connections that wait to be accepted, by the listener's address. Without it
            where the kernel does not tell.
        accepted: The inodes of the accepted connections.
        complete: All of the kernel's lists could be read.
    """

    waiting: dict[Address, int]
    accepted: frozenset[int]
    complete: bool

    def held_by(self, pid: int) -> int | None:
        """How many of the connections a process has open; None where that is not to be known."""
        if not self.complete:
            return None
        if not self.accepted:
            return 0
        try:
            return len(self.accepted & set(_inodes(pid)))
        except OSError:
            return None  # gone, or another user's by now


def look(addresses: Iterable[Address]) -> Sockets:
    """Look for the connections to these listeners."""
    wanted = set(addresses)
    ports = {address.port for address in wanted if address.port}
    paths = {str(address).encode(errors="surrogateescape") for address in wanted if address.path}
    waiting: Counter[Address] = Counter()
    accepted: set[int] = set()
    try:
        for one in _internet(ports) if ports else ():
            if one.listens:
                waiting[one.address] += one.queued
            elif one.inode:
                accepted.add(one.inode)
        accepted.update(_unix(paths) if paths else ())
    except OSError:  # no such socket here (a sandbox, a kernel without inet_diag), no /proc
        return Sockets({}, frozenset(), complete=False)
    known = {address: count for address, count in waiting.items() if address in wanted}
    return Sockets(known, frozenset(accepted), complete=True)


@dataclass(frozen=True, slots=True)
class _Socket:
    address: Address
    listens: bool
    queued: int
    inode: int


def _internet(ports: set[int]) -> Iterator[_Socket]:
    with descriptors.opening():
        line = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        descriptors.own(line)
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _OPEN | 1 << _LISTEN)
            size = _HEADER.size + len(body)
            line.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _DUMP, 0, 0) + body)
            yield from _entries(line, ports)
    finally:
        descriptors.close(line)


def _entries(line: socket.socket, ports: set[int]) -> Iterator[_Socket]:
    """The answer to one request, to its end.

    Raises:
        OSError: The kernel refuses it.
    """
    while True:
        data, start = line.recv(_ROOM), 0
        while start < len(data):
            size, kind, *_ = _HEADER.unpack_from(data, start)
            if kind == _DONE:
                return
            if kind == _ERROR:
                (error,) = struct.unpack_from("=i", data, start + _HEADER.size)
                raise OSError(-error, os.strerror(-error))
            (port,) = _PORT.unpack_from(data, start + _HEADER.size + _PORT_AT)
            if port in ports:  # most are not: the whole machine's
                yield _entry(data, start + _HEADER.size)
            start += (size + 3) & ~3


def _entry(data: bytes, start: int) -> _Socket:
    family, state, port, host, queued, inode = _ENTRY.unpack_from(data, start)
    listens = state == _LISTEN
    name = ""
    if listens:  # of a connection it is of no interest, and to spell out 10,000 takes a while
        name = socket.inet_ntop(family, host[:4] if family == socket.AF_INET else host)
    address = Address(socket.AddressFamily(family), name, int.from_bytes(port, "big"))
    return _Socket(address, listens, queued, inode)


def _unix(paths: set[bytes]) -> Iterator[int]:
    """The accepted connections of unix listeners: they have the path of theirs."""
    with open("/proc/net/unix", "rb") as file:
        for line in file:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[5] == b"03" and fields[7].rstrip(b"\n") in paths:
                yield int(fields[6])


def _inodes(pid: int) -> Iterator[int]:
    """Of the sockets that a process has open."""
    place = f"/proc/{pid}/fd"
    for name in os.listdir(place):
        try:
            target = os.readlink(f"{place}/{name}")
        except FileNotFoundError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            yield int(target[8:-1])
