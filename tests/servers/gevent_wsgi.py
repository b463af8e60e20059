"""gevent's ``pywsgi``."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from gevent.pywsgi import WSGIServer


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


if __name__ == "__main__":
    WSGIServer((sys.argv[1], int(sys.argv[2])), app, log=None).serve_forever()
