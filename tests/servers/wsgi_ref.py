"""``wsgiref.simple_server``."""

import os
import sys
from collections.abc import Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]


class Silent(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    make_server(sys.argv[1], int(sys.argv[2]), app, handler_class=Silent).serve_forever()
