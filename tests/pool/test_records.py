"""The form of orders and answers."""

from __future__ import annotations

import os
import pickle
import socket

import numpy as np
import pytest

from mpcluster import memfd, pickling
from mpcluster.pool import records
from mpcluster.pool.records import HEADER, Stream


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs:
        stream = Stream(theirs, "a test", memoryview(bytearray(512)).cast("Q"), 0)
        yield ours, stream
        stream.close()


def record(number: int, value: object) -> bytes:
    data = pickle.dumps(value)
    return HEADER.pack(records.VALUE, 0, number, len(data)) + data


def read(stream: Stream) -> list[tuple[int, object]]:
    return [(number, records.load(payload)) for _, _, number, payload in stream.next_records()]


def test_many_records_in_one_write_are_cut_apart(pair):
    ours, stream = pair
    ours.send(b"".join(record(n, [n]) for n in range(100)))
    seen = []
    while len(seen) < 100:
        seen += read(stream)
    assert seen == [(n, [n]) for n in range(100)]


def test_a_record_may_come_byte_by_byte(pair):
    ours, stream = pair
    seen = []
    for byte in record(1, "a") + record(2, "b"):
        ours.send(bytes([byte]))
        seen += read(stream)
    assert seen == [(1, "a"), (2, "b")]


def test_the_end_in_the_middle_of_a_record_is_the_end(pair):
    ours, stream = pair
    ours.send(record(1, "a") + record(2, "b" * 1000)[:500])
    assert read(stream) == [(1, "a")]
    ours.close()
    assert read(stream) == []
    assert stream.over


@pytest.mark.parametrize("size", [10_000, memfd.THRESHOLD])
def test_a_large_buffer_travels_beside_its_pickle_and_stays_writable(pair, size):
    ours, stream = pair
    array = np.frombuffer(bytearray(os.urandom(size)), dtype=np.uint8)
    outgoing = records.parcel(records.VALUE, 0, 5, pickling.dump(array))
    assert sum(map(len, outgoing.pieces)) < size + 1000
    while outgoing.sent < outgoing.size:
        outgoing.write(ours)
    ((number, arrived),) = read(stream)
    assert number == 5
    assert np.array_equal(arrived, array)
    arrived[0] = 1


def test_a_socket_travels_in_a_parcel(pair):
    ours, stream = pair
    a, b = socket.socketpair()
    with a, b:
        outgoing = records.parcel(records.VALUE, 0, 1, pickling.dump(b))
        outgoing.write(ours)
        ((_, arrived),) = read(stream)
        with arrived:
            a.send(b"hello")
            assert arrived.recv(5) == b"hello"


def test_a_parcel_that_nobody_wants_leaves_no_descriptor(pair):
    ours, stream = pair
    a, b = socket.socketpair()
    with a, b:
        records.parcel(records.VALUE, 0, 1, pickling.dump(b)).write(ours)
    ((_, _, _, payload),) = stream.next_records()
    records.drop(payload)
