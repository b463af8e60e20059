"""A master with workers that serve, wait, spin in Python and spin in C, then wait for its end.

It prints the pids of its workers, one of a worker's own worker among them, when all are at it.
"""

import os
import re
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import mpcluster as cluster


def serve() -> None:
    cluster.send(os.getpid())
    HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler).serve_forever()


def wait() -> None:
    cluster.send(os.getpid())
    threading.Event().wait()


def spin_in_python() -> None:
    cluster.send(os.getpid())
    while True:
        pass


def spin_in_c() -> None:
    """Hold the interpreter's lock, deaf to every signal handler."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cluster.send(os.getpid())
    re.match(r"(a|aa)+$", "a" * 100 + "b")


def have_a_worker() -> None:
    nested = cluster.ClusterProcess(target=spin_in_c)
    nested.on("message", cluster.send)
    nested.start()
    wait()


TARGETS = (serve, wait, spin_in_python, spin_in_c, have_a_worker)

if cluster.is_master:
    pids: list[object] = []
    complete = threading.Event()

    @cluster.on("message")
    def on_message(_worker: cluster.ClusterProcess, pid: object) -> None:
        pids.append(pid)
        if len(pids) == len(TARGETS) + 1:
            complete.set()

    for target in TARGETS:
        cluster.fork(target)
    complete.wait()
    sys.stdout.write(" ".join(map(str, pids)) + "\n")
    sys.stdout.flush()
    while True:
        signal.pause()
