"""Lines of many workers on one terminal."""

from __future__ import annotations

from typing import Any

import pytest

from mpcluster.testing.output import Lines


class Config:
    """Of a run without a terminal reporter."""

    class pluginmanager:  # noqa: N801
        @staticmethod
        def getplugin(name: str) -> None:
            return None


@pytest.fixture
def lines() -> Lines:
    config: Any = Config()
    return Lines(config)


def test_a_line_is_written_when_it_is_whole_with_the_worker_in_front(lines, capsys) -> None:
    lines.write("gw0", 1, b"first ")
    lines.write("gw1", 1, b"other\n")
    assert capsys.readouterr().out == "[gw1] other\n"
    lines.write("gw0", 1, b"half\nsecond")
    assert capsys.readouterr().out == "[gw0] first half\n"
    lines.finish()
    assert capsys.readouterr().out == "[gw0] second\n"


def test_what_stdout_has_begun_stderr_does_not_complete(lines, capsys) -> None:
    lines.write("gw0", 1, b"first ")
    lines.write("gw0", 2, b"error\n")
    lines.write("gw0", 1, b"half\n")
    assert capsys.readouterr().out == "[gw0] error\n[gw0] first half\n"


def test_a_character_may_come_in_two_pieces(lines, capsys) -> None:
    euro = "\u20ac\n".encode()
    lines.write("gw0", 1, euro[:2])
    lines.write("gw0", 2, b"error\n")
    lines.write("gw0", 1, euro[2:])
    assert capsys.readouterr().out == "[gw0] error\n[gw0] \u20ac\n"
