"""Messages in a piece of shared memory."""

from __future__ import annotations

import errno
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcluster import descriptors, memfd

PARTS: list[list[bytes | bytearray | memoryview]] = [
    [b"pick", bytearray(b"led")],
    [memoryview(b"x" * 100)],
    [b"y" * 5000],
]
FLAT = [b"pickled", b"x" * 100, b"y" * 5000]


def sizes(flat: list[bytes]) -> list[int]:
    return [len(part) for part in flat]


@pytest.fixture
def fd() -> Iterator[int]:
    fd = memfd.create(PARTS)
    assert fd is not None
    yield fd
    descriptors.close(fd)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1 << 40), min_size=1))
def test_parts_are_aligned_and_do_not_overlap(lengths: list[int]) -> None:
    """Each part begins at a multiple of 64, at or after the end of the one before."""
    offsets, whole = memfd.layout(lengths)
    end = 0
    for offset, length in zip(offsets, lengths, strict=True):
        assert offset % memfd.ALIGNMENT == 0
        assert end <= offset < end + memfd.ALIGNMENT
        end = offset + length
    assert whole == end


def test_parts_come_out_as_they_went_in(fd: int) -> None:
    """The pieces of a part are joined."""
    assert [bytes(view) for view in memfd.take_over(fd, sizes(FLAT))] == FLAT


def test_the_views_are_writable_and_private(fd: int) -> None:
    """Who writes into his message changes nobody else's."""
    mine, yours = (memfd.take_over(fd, sizes(FLAT))[1] for _ in range(2))
    mine[0] = ord("z")
    assert yours[0] == ord("x")


def test_a_forked_child_has_its_own_copy(fd: int) -> None:
    """A child that changes an inherited array does not change its parent's."""
    view = memfd.take_over(fd, sizes(FLAT))[1]
    pid = os.fork()
    if not pid:
        view[0] = ord("z")
        os._exit(0)
    os.waitpid(pid, 0)
    assert view[0] == ord("x")


def test_a_view_outlives_the_descriptor() -> None:
    """The memory is there for as long as somebody looks at it."""
    fd = memfd.create(PARTS)
    assert fd is not None
    view = memfd.take_over(fd, sizes(FLAT))[2]
    descriptors.close(fd)
    assert bytes(view) == FLAT[2]


def test_the_memory_goes_with_the_last_view(fd: int) -> None:
    """No view, no mapping: nothing has to be closed by hand."""
    views = memfd.take_over(fd, sizes(FLAT))
    mapping = views[0].obj
    assert isinstance(mapping, mmap.mmap)
    gone = weakref.ref(mapping)
    del mapping, views[1:]
    assert gone() is not None
    views.clear()
    assert gone() is None


def test_a_sender_cannot_shrink_it_under_the_receiver(fd: int) -> None:
    """It is sealed, or a read of the mapping could end in SIGBUS."""
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


def test_sizes_beyond_its_end_are_refused(fd: int) -> None:
    """What a frame says about it is not believed."""
    with pytest.raises(ValueError, match="came in"):
        memfd.take_over(fd, [1 << 40])


def test_no_child_inherits_it(fd: int) -> None:
    """A sibling would keep the memory for its life."""
    assert fd in descriptors.owned()


def test_many_arrays_need_no_descriptors(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit of mappings that hold a descriptor (before 3.13) memory is copied."""
    monkeypatch.setattr(memfd, "_MOST_MAPPINGS", 0)
    before = len(os.listdir("/proc/self/fd"))
    views = memfd.take_over(fd, sizes(FLAT))
    assert len(os.listdir("/proc/self/fd")) == before
    assert [bytes(view) for view in views] == FLAT
    views[0][0] = 0


def raising(code: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate", "pwrite"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM, errno.EMFILE])
def test_where_there_is_no_room_there_is_no_memfd(
    call: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller sends it another way; the half-written one is closed."""
    owned = descriptors.owned()
    monkeypatch.setattr(os, call, raising(code))
    assert memfd.create(PARTS) is None
    assert descriptors.owned() == owned


def test_another_error_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """EPERM is no lack of room."""
    owned = descriptors.owned()
    monkeypatch.setattr(os, "pwrite", raising(errno.EPERM))
    with pytest.raises(PermissionError):
        memfd.create(PARTS)
    assert descriptors.owned() == owned
