"""Values as people write them."""

from __future__ import annotations

import os

import pytest

from mpcluster.cli import units


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(30, 30), (0.5, 0.5), ("30", 30), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1D", 86400)],
)
def test_a_time_has_a_unit_or_is_in_seconds(written: object, seconds: float) -> None:
    assert units.seconds(written) == seconds


@pytest.mark.parametrize("written", ["", "soon", "5x", "-3", -1, True, None, "1 2"])
def test_what_is_no_time_is_refused_with_the_form(written: object) -> None:
    with pytest.raises(ValueError, match="a time is a number of seconds, or as 90s"):
        units.seconds(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [(5, 5), ("500M", 500 << 20), ("1.5G", 3 << 29), ("2KiB", 2048), ("7 mb", 7 << 20), ("9B", 9)],
)
def test_a_size_has_a_unit_or_is_in_bytes(written: object, size: int) -> None:
    assert units.size(written) == size


@pytest.mark.parametrize("written", ["much", "5X", False, [], "-1M"])
def test_what_is_no_size_is_refused_with_the_form(written: object) -> None:
    with pytest.raises(ValueError, match="a size is a number of bytes, or as 500M"):
        units.size(written)


def test_auto_is_one_worker_a_processor() -> None:
    assert units.workers("auto") == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("written", [0, "-1", "many", 1.5])
def test_what_is_no_number_of_workers_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="1 or more, or auto"):
        units.workers(written)


def test_texts_are_one_or_several() -> None:
    assert units.texts("a") == ["a"]
    assert units.texts(["a", "b"]) == ["a", "b"]
    with pytest.raises(ValueError, match="a text is wanted, not 3"):
        units.texts([3])
