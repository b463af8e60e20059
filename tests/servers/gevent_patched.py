"""gevent's ``pywsgi`` in a program where all else waits in gevent's loop, too."""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterable  # noqa: E402
from typing import Any  # noqa: E402

from gevent.pywsgi import WSGIServer  # noqa: E402


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


if __name__ == "__main__":
    WSGIServer((sys.argv[1], int(sys.argv[2])), app, log=None).serve_forever()
