"""Flask's own server (werkzeug)."""

import logging
import os
import sys

import flask

app = flask.Flask(__name__)


@app.get("/")
def pid() -> str:
    return str(os.getpid())


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app.run(sys.argv[1], int(sys.argv[2]))
