"""Where the page is served, and by what name it may be asked for.

It is for those who are on the machine. A page of a stranger, open in their browser, can send
requests to it as well, under a name of the stranger's that points here (DNS rebinding), and
would then read what is answered. So a request names its host by an address, by ``localhost``,
or by the name under which the page was started; under any other it is refused.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

__all__ = ["Place", "is_known", "parse"]

_FORMS = "give HOST:PORT, [IPv6]:PORT or a bare PORT, for instance 127.0.0.1:9000"


@dataclass(frozen=True, slots=True)
class Place:
    """Where to serve.

    Attributes:
        family: Of the socket.
        host: As it was given: a name, or an address.
        address: Its numeric address.
        port: 0 for any that is free.
    """

    family: socket.AddressFamily
    host: str
    address: str
    port: int

    def is_that_of(self, listening: socket.socket) -> bool:
        """Does this socket listen here?"""
        if listening.family != self.family:
            return False
        address, port, *_ = listening.getsockname()
        return address == self.address and self.port in {0, port}


def parse(address: str, *, public: bool = False) -> Place:
    """Understand where to serve.

    Args:
        address: ``HOST:PORT``, ``[IPv6]:PORT``, or ``PORT`` alone for 127.0.0.1.
        public: Other addresses than those of this machine to itself are allowed.

    Raises:
        TypeError: It is no string.
        ValueError: It is no address; or one that others could reach, and ``public`` is not set.
        OSError: There is no such host.
    """
    if not isinstance(address, str):
        raise TypeError(f"the monitor's address must be a string, not {address!r}; {_FORMS}")
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or (colon and not host):
        raise ValueError(f"{address!r} is no address for the monitor; {_FORMS}")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError(f"{address!r} has no port for the monitor; {_FORMS}")
    host = host or "127.0.0.1"
    family, *_, found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    numeric = str(found[0])
    if not public and not ipaddress.ip_address(numeric.partition("%")[0]).is_loopback:
        raise ValueError(
            f"the monitor would be open to everybody who can reach {host}:{port}: it shows what "
            "the program does and asks for no password. Take 127.0.0.1, and reach it through "
            "ssh -L; or say public=True, with something in front of it that asks who is there"
        )
    return Place(socket.AddressFamily(family), host, numeric, int(port))


def is_known(host: str, place: Place) -> bool:
    """May a request name its host so? ``host``: as in the header, with or without a port."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):  # no port, maybe an IPv6 address alone
        name, port = host, ""
    if port and not (port.isascii() and port.isdigit()):
        return False
    name = name.rstrip(".").lower()
    if name == "localhost" or name == place.host.lower():
        return True
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True  # nobody can make an address point elsewhere
