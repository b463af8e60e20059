"""Messages: the workers serve, the master counts their requests and prints the sum.

::

    python examples/counter.py [PORT]
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import mpcluster as cluster

port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
workers = int(os.environ.get("WORKERS") or 2)

if cluster.is_master:
    num_reqs = 0

    def count(message: object) -> None:
        global num_reqs
        if message == {"cmd": "notifyRequest"}:
            num_reqs += 1

    @cluster.on("listening")
    def listening(worker: cluster.ClusterProcess, address: cluster.Address) -> None:
        print(f"worker {worker.pid} serves {address}", flush=True)

    for _ in range(workers):
        cluster.fork().on("message", count)

    while not cluster.join(timeout=1):
        print(f"numReqs = {num_reqs}", flush=True)

else:

    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Worker", str(os.getpid()))
            self.end_headers()
            self.wfile.write(b"hello world\n")
            cluster.send({"cmd": "notifyRequest"})

    HTTPServer(("", port), Hello).serve_forever()
