"""The masters that ``serve_peers.py`` compares, each with the same app on the same loop.

Run as a program it is mpcluster's: ``python serve_masters.py ours POLICY LOOP PORT WORKERS``, or
one process by itself: ``python serve_masters.py alone - LOOP PORT 1``.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
HERE = Path(__file__).parent

# A real program imports more than this one.
for module in filter(None, os.environ.get("SERVE_IMPORTS", "").split(",")):
    importlib.import_module(module)

PADDING = b" " * 100


async def app(scope: Any, _receive: Any, send: Any) -> None:
    """Answers its process id and the path."""
    if scope["type"] != "http":
        raise RuntimeError("only HTTP here")
    body = b"%d %s%s" % (os.getpid(), scope["path"].encode(), PADDING)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def configuration(loop: str, port: int) -> Any:
    """Uvicorn with httptools, on that loop."""
    import uvicorn

    return uvicorn.Config(
        app,
        host=HOST,
        port=port,
        loop=loop,  # type: ignore[arg-type]
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="error",
    )


def serve(loop: str, port: int) -> None:
    import uvicorn

    uvicorn.Server(configuration(loop, port)).run()


def ours(policy: str, loop: str, port: int, workers: int) -> None:
    """Be a master of mpcluster; SIGHUP reloads, as everywhere."""
    import mpcluster as cluster

    configuration(loop, port).load()  # imports what each worker would import
    importlib.import_module(f"uvicorn.loops.{loop}")
    gc.collect()
    gc.freeze()  # a collection in a worker would write to every object's page
    cluster.setup(scheduling=policy)
    # min_uptime: here workers are killed twice a second, which is no crash loop.
    supervisor = cluster.supervise(serve, workers, (loop, port), min_uptime=0)
    signal.signal(signal.SIGHUP, lambda *_: supervisor.reload())
    supervisor.wait()


@dataclass(frozen=True)
class Master:
    """One way to serve the app from several processes.

    Args:
        name: As the table has it.
        command: Given port and workers, what to run.
        needs: Modules, or a program, without which it is left out.
        peer: Its requests/s are compared with ours.
    """

    name: str
    command: Callable[[int, int], list[str]]
    needs: tuple[str, ...] = ()

    @property
    def is_there(self) -> bool:
        """Is it installed?"""
        return all(importlib.util.find_spec(one) or shutil.which(one) for one in self.needs)


def _ours(policy: str, loop: str) -> Callable[[int, int], list[str]]:
    def command(port: int, workers: int) -> list[str]:
        me = str(HERE / "serve_masters.py")
        return [sys.executable, me, "ours", policy, loop, str(port), str(workers)]

    return command


def _uvicorn(loop: str) -> Callable[[int, int], list[str]]:
    def command(port: int, workers: int) -> list[str]:
        line = f"-m uvicorn serve_masters:app --host {HOST} --port {port} --workers {workers}"
        line += f" --loop {loop} --http httptools --lifespan off --no-access-log --log-level error"
        return [sys.executable, *line.split()]

    return command


def _gunicorn(worker: str, *more: str) -> Callable[[int, int], list[str]]:
    def command(port: int, workers: int) -> list[str]:
        line = f"-W ignore -m gunicorn serve_masters:app -k {worker} -w {workers} -b {HOST}:{port}"
        line += " --log-level critical --no-control-socket"
        return [sys.executable, *line.split(), *more]

    return command


def _granian(port: int, workers: int) -> list[str]:
    line = f"-m granian serve_masters:app --interface asginl --host {HOST} --port {port}"
    line += f" --workers {workers} --loop uvloop --respawn-failed-workers --no-access-log --no-log"
    return [sys.executable, *line.split()]


def _node(port: int, workers: int) -> list[str]:
    return ["node", str(HERE / "serve_node.js"), str(port), str(workers)]


OURS = "mpcluster (slots)"
SHARED = "mpcluster (shared)"
BY_MASTER = "mpcluster (round_robin, asyncio)"
UVICORN = "uvicorn --workers"
GUNICORN = "gunicorn, uvicorn's worker"

MASTERS = [
    Master(OURS, _ours("auto", "uvloop"), ("uvicorn", "uvloop", "httptools")),
    Master(UVICORN, _uvicorn("uvloop"), ("uvicorn", "uvloop", "httptools")),
    Master(GUNICORN, _gunicorn("uvicorn.workers.UvicornWorker"), ("gunicorn", "uvicorn")),
    Master("granian", _granian, ("granian", "uvloop")),
    Master("node cluster", _node, ("node",)),
    Master(SHARED, _ours("shared", "uvloop"), ("uvicorn", "uvloop", "httptools")),
    Master(BY_MASTER, _ours("round_robin", "asyncio"), ("uvicorn", "httptools")),
    Master("uvicorn --workers, asyncio", _uvicorn("asyncio"), ("uvicorn", "httptools")),
]


if __name__ == "__main__":
    what, policy, loop, port, workers = sys.argv[1:]
    if what == "ours":
        ours(policy, loop, int(port), int(workers))
    else:
        serve(loop, int(port))
