"""Where a listener is: what users write, what the kernel says, what the registry files it by.

Three forms of one thing:

* what a user gives to ``cluster.listen``: ``(host, port)``, a port, a path (:func:`parse`);
* a *sockaddr*, as the socket module takes and returns it: numeric ``(host, port)``,
  ``(host, port, flowinfo, scope)``, or the path of a unix socket;
* :class:`Address`, what people get to see: in the ``listening`` event and in errors.

Runs in masters and workers alike; opens nothing. Names are resolved where the user wrote
them, in the worker, so the registry compares numbers only.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import NamedTuple, TypeAlias

from mpcluster.messages import Key

__all__ = ["Address", "SockAddr", "failure", "make_key", "parse"]

#: As the socket module has it; ``bytes`` for an abstract unix name.
SockAddr: TypeAlias = "tuple[object, ...] | str | bytes"

_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}

#: What ``getaddrinfo`` fills in for the protocol that 0 means anyway; one listener, one key.
_DEFAULT_PROTO = {
    socket.SOCK_STREAM: socket.IPPROTO_TCP,
    socket.SOCK_DGRAM: socket.IPPROTO_UDP,
}

_FORMS = "give (host, port), a bare port, a path, or 'unix:/path'"

#: Room for the path in ``sockaddr_un``, with its final zero byte.
_PATH_ROOM = 108


class Address(NamedTuple):
    """Where a listener is. ``host`` and ``port``, or ``path``; the others are ``None``."""

    family: socket.AddressFamily
    host: str | None = None
    port: int | None = None
    path: str | None = None

    @classmethod
    def of(cls, family: int, sockaddr: object) -> Address:
        """What ``getsockname()`` of a socket of this family means."""
        family = socket.AddressFamily(family)
        if isinstance(sockaddr, (str, bytes)):
            return cls(family, path=os.fsdecode(sockaddr))
        if isinstance(sockaddr, tuple) and len(sockaddr) >= 2:
            return cls(family, host=str(sockaddr[0]), port=int(sockaddr[1]))
        raise ValueError(f"{sockaddr!r} is no address of family {family.name}")

    def __str__(self) -> str:
        if self.path is not None:
            return "@" + self.path[1:] if self.path.startswith("\0") else self.path
        if self.family == socket.AF_INET6:
            return f"[{self.host}]:{self.port}"
        return f"{self.host}:{self.port}"


def failure(error: OSError, address: Address) -> OSError:
    """The same error with the address in its text and as ``.address``; both survive pickling."""
    number = error.errno
    if number is None:  # the socket module's own: "AF_UNIX path too long"
        number = errno.ENAMETOOLONG if address.path is not None else errno.EINVAL
    reason = error.strerror or str(error) or os.strerror(number)
    named = OSError(number, f"{reason}: {address}")
    named.address = address  # type: ignore[attr-defined]
    return named


def parse(
    address: object,
    *,
    family: int | None = None,
    kind: int = socket.SOCK_STREAM,
) -> tuple[socket.AddressFamily, SockAddr]:
    """Read what a user gave to ``cluster.listen``, and resolve names.

    A port alone, and an empty host, mean all IPv4 interfaces, or all IPv6 ones with
    ``family=AF_INET6``. A name that has an IPv4 address means that one, as in
    ``socket.create_server``; ``family`` chooses otherwise. Opens nothing.

    Args:
        address: ``(host, port)``, also ``(host, port, flowinfo, scope_id)``; a port; a path
            (with a slash in it, or behind ``unix:``, or a ``pathlib.Path``).
        family: ``AF_INET``, ``AF_INET6``, ``AF_UNIX``, or ``None`` for what fits.
        kind: ``SOCK_STREAM``, ``SOCK_DGRAM``; ``SOCK_SEQPACKET`` for unix paths.

    Returns:
        The family, and the numeric address or absolute path to bind.

    Raises:
        TypeError, ValueError: The address, family or type is none; the text says what is.
        socket.gaierror: The host is unknown.
    """
    chosen = _family(family)
    if isinstance(address, (str, bytes, os.PathLike)):
        path = _unix_path(address)
        if chosen not in (None, socket.AF_UNIX):
            raise ValueError(f"{address!r} is a path, and {chosen!r} has none: family=AF_UNIX")
        _check_kind(kind, unix=True)
        return socket.AF_UNIX, path
    if isinstance(address, int) and not isinstance(address, bool):
        address = ("", address)
    if not isinstance(address, (tuple, list)):
        raise TypeError(f"cannot listen on {address!r}: {_FORMS}")
    if chosen == socket.AF_UNIX:
        raise ValueError(f"{address!r} is no path, as family=AF_UNIX wants: {_FORMS}")
    _check_kind(kind, unix=False)
    _check_fields(address)
    if len(address) > 2:
        chosen = chosen or socket.AF_INET6
    if not address[0]:
        chosen = chosen or socket.AF_INET
        return chosen, _numeric(chosen, kind, (_ANY[chosen], *address[1:]))
    try:
        chosen = chosen or _preferred_family(address[0], kind)
        return chosen, _numeric(chosen, kind, tuple(address))
    except socket.gaierror as error:
        error.add_note(f"while looking up the address to listen on: {address!r}")
        raise


def make_key(
    family: int, kind: int, proto: int, address: object, ordinal: int | None = None
) -> Key:
    """What the registry files a listener by; equal for equal listeners of all workers.

    Resolves as ``socket.bind`` does: the address may hold a name, an empty host, a relative
    path. Does not open or bind anything.

    Args:
        family, kind, proto: As the socket has them.
        address: What ``bind`` was given.
        ordinal: Which of the worker's listeners on port 0 this is. For a named address the
            how-manieth further socket at it, where its options allow several; ``None`` for
            the first.

    Raises:
        OSError, TypeError, OverflowError: As ``socket.bind`` would for such an address.
        ValueError: Family unknown, or no ordinal for port 0.
    """
    if proto == _DEFAULT_PROTO.get(socket.SocketKind(kind)) and family in _ANY:
        proto = 0
    if family == socket.AF_UNIX:
        if not isinstance(address, (str, bytes, os.PathLike)):
            raise TypeError(f"{address!r} is no path")
        where: SockAddr = _absolute(os.fspath(address))
        random = False
    elif family in _ANY:
        if not isinstance(address, tuple) or not 2 <= len(address) <= 4:
            raise TypeError(f"AF_INET address must be tuple, not {address!r}")
        where = _numeric(socket.AddressFamily(family), kind, address)
        random = where[1] == 0
    else:
        raise ValueError(f"listeners of family {family!r} are not shared")
    if random and ordinal is None:
        raise ValueError(f"port 0 needs an ordinal: {address!r}")
    return (int(family), int(kind), int(proto), where, ordinal)


def _numeric(family: socket.AddressFamily, kind: int, address: tuple[object, ...]) -> SockAddr:
    """The numeric sockaddr for ``bind``'s argument; 4 fields for IPv6, 2 for IPv4."""
    host, port = address[0], address[1]
    if not isinstance(host, (str, bytes, bytearray)):
        raise TypeError(f"the host of {address!r} is no text")
    if not isinstance(port, int):
        raise TypeError(f"the port of {address!r} is no int")
    if not 0 <= port <= 65535:  # getaddrinfo would take it modulo 65536
        raise OverflowError("bind(): port must be 0-65535.")
    name = host if isinstance(host, str) else bytes(host).decode("idna")
    if name == "<broadcast>":
        name = "255.255.255.255"
    flags = 0 if name else socket.AI_PASSIVE
    found = socket.getaddrinfo(name or None, port, family, kind, 0, flags)[0][4]
    if family == socket.AF_INET6:
        return (*found[:2], *address[2:], *found[len(address) :])
    return found


def _preferred_family(host: str, kind: int) -> socket.AddressFamily:
    found = [entry[0] for entry in socket.getaddrinfo(host, 0, 0, kind, 0, 0)]
    return socket.AF_INET if socket.AF_INET in found else found[0]


def _check_fields(address: tuple[object, ...] | list[object]) -> None:
    if not 2 <= len(address) <= 4:
        raise ValueError(f"cannot listen on {address!r}: {_FORMS}")
    host, port = address[:2]
    if host is not None and not isinstance(host, str):
        raise TypeError(f"the host of {address!r} is no text: {_FORMS}")
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"the port of {address!r} is no int: {_FORMS}")
    if not 0 <= port <= 65535:
        raise ValueError(f"the port of {address!r} is not in 0..65535")


def _family(family: int | None) -> socket.AddressFamily | None:
    if family is None or family == socket.AF_UNSPEC:
        return None
    if family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        return socket.AddressFamily(family)
    raise ValueError(f"cannot listen with family={family!r}: AF_INET, AF_INET6, AF_UNIX or None")


def _check_kind(kind: int, *, unix: bool) -> None:
    fitting = [socket.SOCK_STREAM, socket.SOCK_DGRAM]
    if unix:
        fitting.append(socket.SOCK_SEQPACKET)
    if kind not in fitting:
        names = " or ".join(one.name for one in fitting)
        raise ValueError(f"cannot share a listener with type={kind!r}: {names}")


def _unix_path(given: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str | bytes:
    """The absolute path (or abstract name) that the user means."""
    text = os.fsdecode(given)
    if isinstance(given, str):
        if text.startswith("unix:"):
            text = text.removeprefix("unix:")
            if text.startswith("//"):  # unix:///run/app.sock, a URL
                text = text.removeprefix("//")
        elif "/" not in text and not text.startswith("\0"):
            # "8000", "localhost:8000", "localhost": no file of that name is meant.
            host, colon, port = text.rpartition(":")
            hint = ""
            if port.isdecimal():
                hint = f"; did you mean {(host, int(port)) if colon else int(port)!r}?"
            raise ValueError(
                f"cannot listen on {given!r}: {_FORMS}; a path needs a slash, as in "
                f"{'./' + text!r}{hint}"
            )
    if not text:
        raise ValueError(f"cannot listen on {given!r}, an empty path: {_FORMS}")
    path = _absolute(text)
    if len(os.fsencode(path)) >= _PATH_ROOM:
        raise ValueError(
            f"the path {path!r} is too long for a unix socket: {len(os.fsencode(path))} bytes, "
            f"at most {_PATH_ROOM - 1} fit"
        )
    return path


def _absolute(path: str | bytes) -> str | bytes:
    """Absolute without following links; an abstract name as bytes, as ``getsockname`` has it."""
    encoded = os.fsencode(path)
    if encoded[:1] in (b"\0", b""):
        return encoded
    return os.path.abspath(os.fsdecode(path))
