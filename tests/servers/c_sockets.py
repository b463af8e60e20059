"""A server whose sockets Python never sees: made, bound and accepted from in the C library.

``c_sockets.py HOST PORT [poll]``: with ``poll`` they do not block, as an event loop's.
"""

import ctypes
import os
import socket
import struct
import sys

#: This one lets other threads of the interpreter run during a call, the other one does not:
#: so do extensions that bind while they hold the interpreter's lock.
free = ctypes.CDLL(None, use_errno=True)
holding = ctypes.PyDLL(None, use_errno=True)

NONBLOCK = 0o4000
POLLIN = 1


def checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def make(
    family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, reuse: int | None = None
) -> int:
    fd = checked(free.socket(int(family), int(kind), 0))
    if reuse is not None:
        one = struct.pack("=i", 1)
        checked(free.setsockopt(fd, socket.SOL_SOCKET, reuse, one, len(one)))
    return fd


def sockaddr(address: tuple[str, int] | str) -> bytes:
    if isinstance(address, str):
        return struct.pack("=H", socket.AF_UNIX) + os.fsencode(address) + b"\0"
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    packed = socket.inet_pton(family, host)
    start = struct.pack("=H", family) + struct.pack("!H", port)
    return start + (bytes(4) + packed + bytes(4) if len(packed) == 16 else packed + bytes(8))


def bind(fd: int, address: tuple[str, int] | str) -> None:
    raw = sockaddr(address)
    checked(holding.bind(fd, raw, len(raw)))


def listen(fd: int, backlog: int = 64) -> None:
    checked(holding.listen(fd, backlog))


def connect(fd: int, address: tuple[str, int] | str) -> None:
    raw = sockaddr(address)
    checked(free.connect(fd, raw, len(raw)))


def accept(fd: int) -> int:
    return checked(free.accept(fd, None, None))


def port(fd: int) -> int:
    raw, size = ctypes.create_string_buffer(28), ctypes.c_int(28)
    checked(free.getsockname(fd, raw, ctypes.byref(size)))
    found: int = struct.unpack_from("!H", raw.raw, 2)[0]
    return found


def serve(fd: int, *, poll: bool) -> None:
    body = b"%d" % os.getpid()
    answer = (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    room = ctypes.create_string_buffer(4096)
    while True:
        if poll:
            waiting = ctypes.create_string_buffer(struct.pack("=ihh", fd, POLLIN, 0))
            free.poll(waiting, 1, -1)
        try:
            connection = accept(fd)
        except (BlockingIOError, InterruptedError):
            continue
        checked(free.recv(connection, room, len(room), 0))
        checked(free.send(connection, answer, len(answer), 0))
        free.close(connection)


if __name__ == "__main__":
    does_poll = sys.argv[3:] == ["poll"]
    listener = make(kind=socket.SOCK_STREAM | (NONBLOCK if does_poll else 0))
    bind(listener, (sys.argv[1], int(sys.argv[2])))
    listen(listener)
    serve(listener, poll=does_poll)
