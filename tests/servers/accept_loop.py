"""No server at all: a thread that blocks in ``accept()``."""

import os
import socket
import sys

if __name__ == "__main__":
    with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as request:
                while request.readline().strip():
                    pass
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())
