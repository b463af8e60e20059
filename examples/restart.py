"""A web server on every core: one port, and a worker that dies is replaced.

::

    python examples/restart.py [PORT]
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import mpcluster as cluster

port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
workers = int(os.environ.get("WORKERS") or os.cpu_count() or 1)

if cluster.is_master:
    for _ in range(workers):
        cluster.fork()

    @cluster.on("listening")
    def listening(worker: cluster.ClusterProcess, address: cluster.Address) -> None:
        print(f"worker {worker.pid} serves {address}", flush=True)

    @cluster.on("death")
    def restart(worker: cluster.ClusterProcess) -> None:
        print(f"worker {worker.pid} died. restart...", flush=True)
        cluster.fork()

else:

    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Worker", str(os.getpid()))
            self.end_headers()
            self.wfile.write(b"hello world\n")
            cluster.send({"cmd": "notifyRequest"})

    HTTPServer(("", port), Hello).serve_forever()
