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
from typing import Final, TypeAlias

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
#: A filter of the kernel's: code, bytes to go on if so, bytes to go on if not; or a port in the
#: place of the last. One that ends exactly behind its last step lets the socket pass.
_STEP: Final = struct.Struct("=BBH")
_GO, _AT_LEAST, _AT_MOST = 1, 2, 3  # INET_DIAG_BC_JMP, INET_DIAG_BC_S_GE, INET_DIAG_BC_S_LE
_FILTER: Final = 1  # INET_DIAG_REQ_BYTECODE
_ATTRIBUTE: Final = struct.Struct("=HH")
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
        for family, state, port, host, queued, inode in _internet(ports) if ports else ():
            if state == _LISTEN:
                waiting[_address(family, host, port)] += queued
            elif inode:
                accepted.add(inode)
        accepted.update(_unix(paths) if paths else ())
    except OSError:  # no such socket here (a sandbox, a kernel without inet_diag), no /proc
        return Sockets({}, frozenset(), complete=False)
    known = {address: count for address, count in waiting.items() if address in wanted}
    return Sockets(known, frozenset(accepted), complete=True)


#: Of one socket: family, state, port, host, how many wait, inode.
_Entry: TypeAlias = tuple[int, int, bytes, bytes, int, int]


def _internet(ports: set[int]) -> Iterator[_Entry]:
    """Those with such a local port."""
    steps = _port_in(ports)
    chosen = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(steps), _FILTER) + steps
    with descriptors.opening():
        line = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        descriptors.own(line)
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            states = _OPEN | 1 << _LISTEN
            body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, states) + chosen
            size = _HEADER.size + len(body)
            line.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _DUMP, 0, 0) + body)
            yield from _entries(line)
    finally:
        descriptors.close(line)


def _port_in(ports: set[int]) -> bytes:
    """The filter: without it the kernel tells of the whole machine's connections."""
    steps, last = b"", len(ports) - 1
    for place, port in enumerate(sorted(ports)):
        for code, on in ((_AT_LEAST, 20), (_AT_MOST, 12)):  # else: the next port, or past the end
            steps += _STEP.pack(code, 8, on) + _STEP.pack(0, 0, port)
        if place < last:  # it is the one: go behind the last
            steps += _STEP.pack(_GO, 4, 20 * (last - place))
    return steps


def _entries(line: socket.socket) -> Iterator[_Entry]:
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
            yield _ENTRY.unpack_from(data, start + _HEADER.size)
            start += (size + 3) & ~3


def _address(family: int, host: bytes, port: bytes) -> Address:
    name = socket.inet_ntop(family, host[:4] if family == socket.AF_INET else host)
    return Address(socket.AddressFamily(family), name, int.from_bytes(port, "big"))


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
