"""The servers of these tests: what each answers is ``PID PATH``, padded; ``/halves/...`` in two.

``/stuck`` is never answered to its end.

They know nothing of who runs them, and are what people write: ``ThreadingHTTPServer``, a
small HTTP server of asyncio's streams, uvicorn on both loops, aiohttp, Flask.
"""

from __future__ import annotations

import asyncio
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAUSE = 0.02  # seconds between the halves of an answer
PADDING = b" " * 200


def pause(path: str) -> float:
    """Seconds between the halves of this answer."""
    if path.startswith("/stuck"):
        return 3600.0
    return PAUSE if path.startswith("/halves") else 0.0


def halves(path: str) -> tuple[bytes, bytes]:
    """The body, in two parts."""
    whole = b"%d %s%s" % (os.getpid(), path.encode(), PADDING)
    return whole[:100], whole[100:]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        first, second = halves(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(first + second)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(first)
        time.sleep(pause(self.path))
        self.wfile.write(second)

    def log_message(self, *args: object) -> None:
        pass


def threads(host: str, port: int) -> None:
    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # its 5 loses handshakes to the kernel's full queue

        def handle_error(self, *args: object) -> None:
            """Say nothing of clients that are gone."""

    Server((host, port), Handler).serve_forever()


async def _speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ", 2)[1]
            first, second = halves(path)
            close = "connection: close" in head.lower()
            said = "Connection: close\r\n" if close else ""
            length = len(first + second)
            writer.write(f"HTTP/1.1 200 OK\r\n{said}Content-Length: {length}\r\n\r\n".encode())
            writer.write(first)
            await asyncio.sleep(pause(path))
            writer.write(second)
            await writer.drain()
            if close:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


def streams(host: str, port: int) -> None:
    async def serve() -> None:
        server = await asyncio.start_server(_speak, host, port)
        await server.serve_forever()

    asyncio.run(serve())


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    first, second = halves(scope["path"])
    headers = [(b"content-length", b"%d" % len(first + second))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": first, "more_body": True})
    await asyncio.sleep(pause(scope["path"]))
    await send({"type": "http.response.body", "body": second})


def _uvicorn(host: str, port: int, loop: Any) -> None:
    import uvicorn

    uvicorn.run(asgi, host=host, port=port, loop=loop, lifespan="off", log_level="warning")


def uvicorn_asyncio(host: str, port: int) -> None:
    _uvicorn(host, port, "asyncio")


def uvicorn_uvloop(host: str, port: int) -> None:
    _uvicorn(host, port, "uvloop")


def aiohttp(host: str, port: int) -> None:
    from aiohttp import web

    async def answer(request: Any) -> Any:
        first, second = halves(request.path)
        response = web.StreamResponse(headers={"Content-Length": str(len(first + second))})
        await response.prepare(request)
        await response.write(first)
        await asyncio.sleep(pause(request.path))
        await response.write(second)
        return response

    app = web.Application()
    app.router.add_get("/{rest:.*}", answer)
    web.run_app(app, host=host, port=port, print=None)


def flask(host: str, port: int) -> None:
    import logging

    from flask import Flask, Response
    from werkzeug.serving import WSGIRequestHandler

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    app = Flask(__name__)

    @app.get("/<path:rest>")
    def answer(rest: str) -> Response:
        first, second = halves(f"/{rest}")

        def parts() -> Any:
            yield first
            time.sleep(pause(f"/{rest}"))
            yield second

        return Response(parts(), headers={"Content-Length": str(len(first + second))})

    app.run(host=host, port=port, threaded=True)


def fickle(host: str, port: int) -> None:
    """``threads``, unless the file that ``FICKLE`` names says otherwise."""
    with open(os.environ["FICKLE"], encoding="ascii") as file:
        mood = file.read()
    if mood == "ends":
        raise RuntimeError("this code is broken")
    if mood == "never listens":
        time.sleep(3600)
    threads(host, port)


_UVICORN = ("uvicorn", "uvicorn.protocols.http.httptools_impl", "uvicorn.lifespan.off")

#: Each with the modules that it needs. The master imports them, or each fork would.
APPS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "threads": (threads, ()),
    "streams": (streams, ()),
    "uvicorn_asyncio": (uvicorn_asyncio, (*_UVICORN, "uvicorn.loops.asyncio")),
    "uvicorn_uvloop": (uvicorn_uvloop, ("uvloop", *_UVICORN, "uvicorn.loops.uvloop")),
    "aiohttp": (aiohttp, ("aiohttp", "aiohttp.web")),
    "flask": (flask, ("flask", "werkzeug.serving")),
    "fickle": (fickle, ()),
}
