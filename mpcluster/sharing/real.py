"""What is patched, as it was: the methods of the C socket, for whoever must get past us."""

from __future__ import annotations

import _socket
import os
import socket

#: The standard library's class, also where gevent replaces the module's name for it.
Socket = socket.socket

accept = _socket.socket._accept  # type: ignore[attr-defined]  # noqa: SLF001
accept_object = socket.socket.accept
bind = _socket.socket.bind
connect = _socket.socket.connect
connect_ex = _socket.socket.connect_ex
fileno = _socket.socket.fileno
getsockname = _socket.socket.getsockname
gettimeout = _socket.socket.gettimeout
listen = _socket.socket.listen
setblocking = _socket.socket.setblocking
settimeout = _socket.socket.settimeout
shutdown = _socket.socket.shutdown

close = _socket.socket.close
finish = socket.socket._real_close  # type: ignore[attr-defined]  # noqa: SLF001
dup = socket.socket.dup
fromfd = socket.fromfd

unlink = os.unlink
remove = os.remove
