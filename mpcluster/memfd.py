"""Large messages in one piece of anonymous shared memory.

A memfd has no name: it is gone with the last descriptor and the last mapping of it, so a
SIGKILL of either side, or of both, leaves nothing behind, and no resource tracker has to
clean up. The sender fills one a message and closes it when it is on its way; while it is
under way the kernel keeps it alive, and the sender may end.

The receiver maps it *privately* (copy on write). Its arrays are as writable as any, and a
child that it forks later has its own copy of them, as of all memory; with a shared mapping
the child's writes would change the parent's array.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from typing import Final

from mpcluster import descriptors

__all__ = ["ALIGNMENT", "THRESHOLD", "create", "layout", "size", "take_over"]

#: Bytes from which a message goes through a memfd. Measured there and back between two
#: processes, data read at the other end, CPython 3.11 on Linux 6.18, two cores; time through
#: the socket : time through a memfd, for an array and for plain bytes:
#: 256 KiB 0.97, 0.82; 384 KiB 0.70, 0.44; 512 KiB 1.7, 1.3; 1 MiB 2.6, 1.6; 4 MiB 2.8, 1.8;
#: 16 MiB 3.2, 2.0. A memfd costs some 250 µs before its first byte.
THRESHOLD = 1 << 19

#: Bytes. Parts begin at multiples of it: a cache line, and what Arrow and SIMD code want.
ALIGNMENT: Final = 64

#: Before Python 3.13 an `mmap` object keeps a descriptor of its own for as long as it
#: lives. So that arrays which a program collects cannot use up its descriptors
#: (pytorch#973 is that), past this many living ones the memory is copied instead.
_MOST_MAPPINGS: Final = 64
_mappings: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

#: What the kernel says when it has no memory, or this process no descriptor, for it.
_NO_ROOM: Final = frozenset(
    {errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EDQUOT, errno.EFBIG}
)
_SEALS_OF_KEPT: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_SEALS: Final = _SEALS_OF_KEPT | fcntl.F_SEAL_WRITE


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each part begins, and the size of the whole, in bytes."""
    offsets = []
    end = 0
    for size in sizes:
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        offsets.append(begin)
        end = begin + size
    return offsets, end


def create(
    parts: Sequence[Sequence[bytes | bytearray | memoryview]], *, kept: bool = False
) -> int | None:
    """Copy a message into a new memfd.

    Args:
        parts: Of each part (the pickle, then the buffers) its pieces, in order.
        kept: It will be written to again.

    Returns:
        Its descriptor, owned (see :mod:`mpcluster.descriptors`), or ``None`` where there is
        no memory or no descriptor for it.
    """
    fd = -1
    try:
        with descriptors.opening():
            fd = os.memfd_create("mpcluster", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            descriptors.own(fd)
        offsets, end = layout([size(pieces) for pieces in parts])
        os.ftruncate(fd, end)
        for offset, pieces in zip(offsets, parts, strict=True):
            at = offset
            for piece in pieces:
                at += _write(fd, piece, at)
        # Sealed, so that no sender can take the pages away under a mapping (SIGBUS).
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS_OF_KEPT if kept else _SEALS)
    except OSError as error:
        if fd >= 0:
            descriptors.close(fd)
        if error.errno not in _NO_ROOM:
            raise
        return None
    except BaseException:
        if fd >= 0:
            descriptors.close(fd)
        raise
    return fd


def take_over(fd: int, sizes: Sequence[int]) -> list[memoryview]:
    """Map a memfd that arrived: a writable view of each part.

    The memory is freed with the last view. The descriptor stays the caller's, to close.

    Raises:
        OSError, ValueError: There is no memory for it, or it is not of that size.
    """
    offsets, end = layout(sizes)
    if end > os.fstat(fd).st_size:
        raise ValueError(f"a message of {end} bytes came in {os.fstat(fd).st_size} bytes")
    whole = memoryview(_map(fd, end))
    return [whole[begin : begin + size] for begin, size in zip(offsets, sizes, strict=True)]


def _map(fd: int, size: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size, access=mmap.ACCESS_COPY, trackfd=False)
    if len(_mappings) < _MOST_MAPPINGS:
        try:
            mapping = mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        else:
            _mappings.add(mapping)
            return mapping
    return _copy(fd, size)


def _copy(fd: int, size: int) -> mmap.mmap:
    """The same bytes in private memory that needs no descriptor."""
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with memoryview(mapping) as whole:
        done = 0
        while done < size:  # the kernel reads at most 2 GiB a call
            with whole[done:] as rest:
                read = os.preadv(fd, [rest], done)
            if not read:
                raise ValueError(f"a memfd of {size} bytes ended after {done}")
            done += read
    return mapping


def _write(fd: int, piece: bytes | bytearray | memoryview, offset: int) -> int:
    """Write all of it there; its size."""
    with memoryview(piece) as whole, whole.cast("B") as flat:
        size = len(flat)
        done = 0
        while done < size:  # the kernel writes at most 2 GiB a call
            with flat[done:] as rest:
                done += os.pwrite(fd, rest, offset + done)
        return size


def size(pieces: Sequence[bytes | bytearray | memoryview]) -> int:
    """Bytes of so many pieces."""
    return sum(one.nbytes if isinstance(one, memoryview) else len(one) for one in pieces)
