"""Lines of the log, and how they are put together from pieces."""

from __future__ import annotations

import json

from mpcluster.cli.lines import LONGEST, Assembly, Line, as_json, as_text


def test_a_text_names_the_slot_and_the_process() -> None:
    written = as_text(Line(0.5, 4711, "hello", "stdout", slot=2, worker=9)).decode()
    assert written.endswith(".500 slot 2 (4711) | hello\n")


def test_the_masters_trouble_has_its_level() -> None:
    assert as_text(Line(0, 1, "x", level="warning")).endswith(b" master (1) | warning: x\n")
    assert as_text(Line(0, 1, "x", level="info")).endswith(b" master (1) | x\n")


def test_json_has_what_there_is_and_no_more() -> None:
    line = as_json(Line(0.5, 4711, 'say "ä"', "stderr", slot=2, worker=9))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.500Z",
        "from": "worker",
        "pid": 4711,
        "stream": "stderr",
        "slot": 2,
        "worker": 9,
        "text": 'say "ä"',
    }
    assert line.count(b"\n") == 1


def test_lines_arrive_whole_whatever_the_pieces() -> None:
    assembly = Assembly()
    text = "first\nsecond ä\r\n\nlast".encode()
    seen = [line for byte in text for line in assembly.add(bytes([byte]))]
    assert seen == ["first", "second ä", ""]
    assert list(assembly.end()) == ["last"]
    assert list(assembly.end()) == []


def test_a_line_without_an_end_is_written_in_parts() -> None:
    assembly = Assembly()
    parts = list(assembly.add(b"x" * (2 * LONGEST + 1)))
    assert [len(part) for part in parts] == [LONGEST, LONGEST]
    assert list(assembly.end()) == ["x"]


def test_bytes_that_are_no_text_are_shown() -> None:
    assert list(Assembly().add(b"\xff\n")) == ["\\xff"]
    assert b"\\udcff" in as_text(Line(0, 1, "\udcff"))
