"""The pool and the executor that are tested here: ours, or those that the environment names.

A regression test that was never seen to fail shows nothing. The tests of known defects, and the
matrix of crashes, can therefore be run on the pools that have them::

    export MPCLUSTER_TEST_POOL=multiprocessing.pool:Pool
    python -m pytest tests/pool/test_known_defects.py --timeout 10
"""

from __future__ import annotations

import importlib
import os
from typing import Any

POOL = "MPCLUSTER_TEST_POOL"
EXECUTOR = "MPCLUSTER_TEST_EXECUTOR"

OURS = {POOL: "mpcluster:ClusterPool", EXECUTOR: "mpcluster:ClusterExecutor"}

STANDARD_POOL = "multiprocessing.pool:Pool"
STANDARD_EXECUTOR = "concurrent.futures:ProcessPoolExecutor"


def _load(variable: str) -> Any:
    module, _, name = os.environ.get(variable, OURS[variable]).partition(":")
    return getattr(importlib.import_module(module), name)


def make_pool(*args: Any, **kwargs: Any) -> Any:
    """A new pool of the class under test."""
    return _load(POOL)(*args, **kwargs)


def make_executor(*args: Any, **kwargs: Any) -> Any:
    """A new executor of the class under test."""
    return _load(EXECUTOR)(*args, **kwargs)


def is_ours() -> bool:
    return all(os.environ.get(variable, ours) == ours for variable, ours in OURS.items())
