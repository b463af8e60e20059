"""mpcluster's logger, without ``logging`` where nobody logs.

A program that only starts and joins processes need not have that module: each import is
memory that every fork copies the tables of, and what it registers for forks runs in every child.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

__all__ = ["logger"]


def logger() -> logging.Logger:
    """Return the logger ``mpcluster``."""
    import logging

    return logging.getLogger("mpcluster")
