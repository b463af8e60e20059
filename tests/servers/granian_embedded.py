"""granian's embedded server: the socket is made in Rust."""

import asyncio
import os
import sys
from typing import Any

from granian.constants import Interfaces
from granian.server.embed import Server


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    headers = [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})


if __name__ == "__main__":
    server = Server(
        app,
        address=sys.argv[1],
        port=int(sys.argv[2]),
        interface=Interfaces.ASGINL,
        log_enabled=False,
    )
    asyncio.run(server.serve())
