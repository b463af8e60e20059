"""A master for the tests of servers: workers that run an unmodified script, kept at strength.

``python serving_master.py COUNT SCRIPT ARGUMENT...``. What happens it prints as JSON, a line
each; ``disconnect`` on its standard input makes all workers leave, ``disconnect PID`` one,
and puts another in its place. ``TEST_SHARE`` is the setting ``share``.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

import mpcluster as cluster

_stopping = False


def say(event: str, **what: object) -> None:
    # Not print(): a worker that is forked in its midst has the half line in its buffer, too.
    os.write(1, json.dumps({"event": event, **what}).encode() + b"\n")


def master(count: int) -> None:
    cluster.setup(share=os.environ.get("TEST_SHARE", "python"))

    @cluster.on("listening")
    def listening(worker, address) -> None:
        say("listening", pid=worker.pid, port=address.port, path=address.path)

    @cluster.on("disconnect")
    def disconnected(worker) -> None:
        say("disconnect", pid=worker.pid)

    @cluster.on("death")
    def died(worker) -> None:
        say(
            "death",
            pid=worker.pid,
            exitcode=worker.exitcode,
            asked=worker.exited_after_disconnect,
        )
        if not _stopping:
            cluster.fork()

    for _ in range(count):
        cluster.fork()
    # Not sys.stdin: a child that is forked while its lock is held could not close its own.
    with open(0, "rb", buffering=0, closefd=False) as commands:
        for line in commands:
            obey(*line.decode().split())


def obey(verb: str, pid: str | None = None) -> None:
    global _stopping
    assert verb == "disconnect"
    if pid is None:
        _stopping = True
        cluster.disconnect(lambda: say("end"))
    else:
        for worker in list(cluster.workers.values()):
            if worker.pid == int(pid):
                worker.disconnect()


if cluster.is_master:
    master(int(sys.argv[1]))
else:
    script = sys.argv[2]
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(script, run_name="__main__")
