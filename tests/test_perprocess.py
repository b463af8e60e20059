"""What a process has once, and a forked child begins without."""

from __future__ import annotations

import os

import pytest

from mpcluster import perprocess


def in_child(check: object) -> bool:
    """Ask a forked child."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if check() else 1  # type: ignore[operator]
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_child_begins_with_nothing_and_may_ask_what_its_parent_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(perprocess.mine(), "a test", "the parent's")
    assert in_child(lambda: not perprocess.mine())
    assert in_child(lambda: perprocess.before()["a test"] == "the parent's")
    assert perprocess.mine()["a test"] == "the parent's"


def test_a_grandchild_is_told_of_its_own_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(perprocess.mine(), "a test", "the grandparent's")

    def child() -> bool:
        perprocess.mine()["a test"] = "the parent's"
        return in_child(lambda: perprocess.before()["a test"] == "the parent's")

    assert in_child(child)
