"""waitress."""

import os
import sys
from collections.abc import Iterable
from typing import Any

import waitress


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


if __name__ == "__main__":
    waitress.serve(app, host=sys.argv[1], port=int(sys.argv[2]), _quiet=True)
