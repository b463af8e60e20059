"""A supervised fleet of workers that serve, and a page on which to watch it.

::

    pip install 'mpcluster[monitor]'
    python examples/fleet.py [PORT [MONITOR]]

Then open the page that it prints, http://127.0.0.1:9000/ unless MONITOR says otherwise; kill a
worker; send the master SIGHUP for a reload. The same page has /status.json, /metrics and /healthz.
"""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mpcluster as cluster
from mpcluster import monitor

port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
page = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:9000"
workers = int(os.environ.get("WORKERS") or 2)


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"hello world\n"
        self.send_response(200)
        self.send_header("Worker", str(os.getpid()))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        cluster.send({"path": self.path})

    def log_message(self, *args: object) -> None:
        """One line a request would be much."""


def serve() -> None:
    ThreadingHTTPServer(("", port), Hello).serve_forever()


if cluster.is_master:

    @cluster.on("listening")
    def listening(worker: cluster.ClusterProcess, address: cluster.Address) -> None:
        print(f"worker {worker.pid} serves {address}", flush=True)

    @cluster.on("death")
    def death(worker: cluster.ClusterProcess) -> None:
        print(f"worker {worker.pid} has ended: {worker.exitcode}", flush=True)

    @cluster.on("message")
    def message(*_: object) -> None:
        """What the workers say is only counted here, by the monitor."""

    supervisor = cluster.supervise(serve, workers, drain_timeout=10)
    signal.signal(signal.SIGHUP, lambda *_: supervisor.reload())
    watched = monitor.start(supervisor, page)
    print(f"watch it at {watched.url}", flush=True)
    supervisor.wait()
