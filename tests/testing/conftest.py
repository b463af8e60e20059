from __future__ import annotations

from pathlib import Path

import pytest

from tests.testing.suites import Suite


@pytest.fixture(params=["fork", "collect"])
def suite(request: pytest.FixtureRequest, tmp_path: Path) -> Suite:
    """A suite that is run in both modes."""
    return Suite(tmp_path, request.param)


@pytest.fixture
def forked(tmp_path: Path) -> Suite:
    return Suite(tmp_path, "fork")


@pytest.fixture
def collected(tmp_path: Path) -> Suite:
    return Suite(tmp_path, "collect")
