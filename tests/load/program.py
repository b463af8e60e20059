"""A supervised server, for these tests: ``program.py APP WORKERS [RULES]``.

What happens it prints as JSON, a line each. On its standard input: ``reload``, ``scale N``, ``stop``
and ``status``. It ends with its input, or when the supervisor has stopped.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading

import mpcluster as cluster
from tests.load.apps import APPS


def say(event: str, **what: object) -> None:
    # In one piece, and past the buffers: workers are forked in other threads.
    os.write(1, json.dumps({"event": event, **what}).encode() + b"\n")


def main(app: str, workers: str, rules: str = "{}") -> None:
    @cluster.on("listening")
    def listening(worker, address) -> None:
        say("listening", pid=worker.pid, port=address.port)

    @cluster.on("death")
    def died(worker) -> None:
        say(
            "death",
            pid=worker.pid,
            exitcode=worker.exitcode,
            asked=worker.exited_after_disconnect,
        )

    serve, modules = APPS[app]
    for module in modules:
        importlib.import_module(module)
    supervisor = cluster.supervise(serve, int(workers), ("127.0.0.1", 0), **json.loads(rules))
    supervisor.on("ready", lambda worker: say("ready", pid=worker.pid))
    supervisor.on(
        "reload", lambda error: say("reload", error=None if error is None else str(error))
    )
    supervisor.on("failed", lambda reason: say("failed", reason=reason))
    supervisor.on("stopped", lambda: say("stopped"))

    def obey() -> None:
        with open(0, "rb", buffering=0, closefd=False) as orders:
            for line in orders:
                match line.decode().split():
                    case ["reload"]:
                        supervisor.reload()
                    case ["scale", count]:
                        supervisor.scale(int(count))
                    case ["status"]:
                        say("status", slots=[(one.slot, one.pid) for one in supervisor.status()])
                    case ["stop"]:
                        supervisor.stop()
                    case other:
                        raise ValueError(other)
        supervisor.stop()

    threading.Thread(target=obey, daemon=True).start()
    try:
        supervisor.wait()
    except cluster.SupervisionError:
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
