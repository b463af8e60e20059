"""The programs of docs/moving-pools.md run, and print what stands below them."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests import running

PAGE = (running.ROOT / "docs" / "moving-pools.md").read_text()

#: A program, and what it prints.
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def test_every_program_of_the_page_is_here():
    """None stands there without its output."""
    assert len(EXAMPLES) == PAGE.count("```python\n") >= 6


@pytest.mark.parametrize(("program", "output"), EXAMPLES)
def test_a_program_prints_what_the_page_says(program, output):
    """And nothing else, on either stream, with every warning an error."""
    if "joblib" in program and importlib.util.find_spec("joblib") is None:
        pytest.skip("joblib is not installed: extra users-test")
    done = running.run("-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")
