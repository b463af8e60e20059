"""``python -m mpcluster``: the command."""

from __future__ import annotations

import sys

from mpcluster.cli import main

if __name__ == "__main__":
    sys.exit(main())
