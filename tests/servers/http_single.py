"""``http.server`` as the documentation shows it: one thread, a connection for each request."""

import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"%d" % os.getpid())

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    with HTTPServer((sys.argv[1], int(sys.argv[2])), Handler) as server:
        server.serve_forever()
