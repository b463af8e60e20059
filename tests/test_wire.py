"""The form of a frame, and what is made of bytes that have none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcluster import wire
from mpcluster.wire import HEADER, Kind, MalformedFrame

SIZES = st.lists(st.integers(1, 1 << 40), min_size=1, max_size=8)


def parse(frame: bytes) -> tuple[Kind, int, wire.Shape | None]:
    return wire.parse(bytearray(frame), 0)


@settings(deadline=None)
@given(st.sampled_from([Kind.USER, Kind.CONTROL]), st.integers(1, 1 << 40))
def test_a_plain_frame_says_whom_it_is_for_and_how_long_it_is(kind: Kind, body: int) -> None:
    """The header of a message that is one pickle comes back as it was."""
    assert parse(wire.header(kind, body)) == (kind, body, None)


@settings(deadline=None)
@given(SIZES, st.integers(0, wire.MAX_DESCRIPTORS))
def test_the_sizes_of_an_inline_frame_come_back(sizes: list[int], descriptors: int) -> None:
    """What the pickle measures is what the table leaves over."""
    table = wire.table(sizes[1:])
    body = len(table) + sum(sizes)
    frame = wire.header(Kind.USER, body, buffers=len(sizes) - 1, descriptors=descriptors)
    _, length, shape = parse(frame)
    assert length == body
    if shape is not None:
        assert shape == (False, descriptors, len(sizes) - 1)
        assert shape.table == len(table)


@settings(deadline=None)
@given(SIZES, st.integers(1, wire.MAX_DESCRIPTORS))
def test_the_sizes_of_a_memory_frame_come_back(sizes: list[int], descriptors: int) -> None:
    """A frame that points into a memfd holds all sizes itself."""
    frame = wire.memory_frame(Kind.CONTROL, sizes, descriptors)
    kind, length, shape = parse(frame)
    assert shape == (True, descriptors, len(sizes) - 1)
    assert (kind, HEADER.size + length) == (Kind.CONTROL, len(frame))
    assert wire.untable(shape, memoryview(frame)[HEADER.size :]) == sizes


@settings(deadline=None)
@given(st.integers(0, (1 << 64) - 1))
def test_an_acknowledgement_comes_back(size: int) -> None:
    """It is a frame of its own, with its number in the body."""
    frame = wire.acknowledgement(size)
    assert parse(frame) == (Kind.ACK, 8, None)
    assert wire.amount(memoryview(frame)[HEADER.size :]) == size


@settings(deadline=None)
@given(st.binary(min_size=HEADER.size, max_size=200).filter(lambda b: b[:4] != b"mpc\x01"))
def test_random_bytes_are_no_frame(data: bytes) -> None:
    """Nothing without the magic number passes."""
    with pytest.raises(MalformedFrame):
        parse(data)


@pytest.mark.parametrize(
    ("kind", "where", "descriptors", "buffers", "body"),
    [
        pytest.param(0, 0, 0, 0, 9, id="unknown kind"),
        pytest.param(200, 0, 0, 0, 9, id="kind out of range"),
        pytest.param(1, 2, 1, 0, 9, id="unknown place"),
        pytest.param(1, 0, 0, 0, 0, id="no body"),
        pytest.param(1, 0, 0, 2, 16, id="a table and no pickle"),
        pytest.param(1, 0, 0, (1 << 32) - 1, 100, id="a table longer than the body"),
        pytest.param(1, 1, 0, 0, 8, id="in memory without a descriptor"),
        pytest.param(1, 1, 1, 0, 9, id="in memory with a tail"),
        pytest.param(1, 0, wire.MAX_DESCRIPTORS + 1, 0, 9, id="too many descriptors"),
        pytest.param(3, 0, 0, 0, 7, id="short acknowledgement"),
        pytest.param(3, 0, 1, 0, 8, id="acknowledgement with a descriptor"),
        pytest.param(3, 1, 1, 0, 8, id="acknowledgement in memory"),
    ],
)
def test_a_header_that_does_not_add_up_is_refused(
    kind: int, where: int, descriptors: int, buffers: int, body: int
) -> None:
    """The magic number alone does not make a frame."""
    with pytest.raises(MalformedFrame):
        parse(HEADER.pack(b"mpc\x01", kind, where, descriptors, buffers, body))


@settings(deadline=None)
@given(st.binary(min_size=HEADER.size - 4, max_size=HEADER.size - 4))
def test_any_header_is_either_sound_or_malformed(rest: bytes) -> None:
    """With the magic number and random fields nothing else than MalformedFrame is raised."""
    try:
        kind, body, shape = parse(b"mpc\x01" + rest)
    except MalformedFrame:
        return
    assert kind in Kind
    assert body > 0
    assert shape is None or shape.table <= body


def test_sizes_beyond_the_body_are_refused() -> None:
    """A table cannot promise buffers that the body has no room for."""
    shape = wire.Shape(in_memory=False, descriptors=0, buffers=1)
    body = wire.table([1 << 50]) + b"pickle"
    with pytest.raises(MalformedFrame):
        wire.untable(shape, memoryview(body))


def test_the_kinds_are_distinct_on_the_wire() -> None:
    """No header of one kind is the header of another."""
    headers = [wire.header(kind, 8) for kind in Kind]
    assert all(one != other for one, other in itertools.combinations(headers, 2))


@settings(deadline=None)
@given(st.integers(0, (1 << 64) - 1))
def test_a_position_comes_back(position: int) -> None:
    """A SYNC frame is its number and nothing else."""
    frame = wire.sync(position)
    assert parse(frame) == (Kind.SYNC, 8, None)
    assert wire.amount(memoryview(frame)[HEADER.size :]) == position


def test_a_lane_comes_with_one_descriptor() -> None:
    """It is the only form of its kind."""
    assert parse(wire.lane()) == (Kind.LANE, 1, (False, 1, 0))
    for bad in (wire.header(Kind.LANE, 1), wire.header(Kind.LANE, 1, descriptors=2)):
        with pytest.raises(MalformedFrame):
            parse(bad)
