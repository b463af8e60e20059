"""Which socket of a ``SO_REUSEPORT`` group gets a new connection: a classic BPF program.

Needs no privilege (Linux 4.5). The program returns an index into the group; the kernel's
index is the order in which the sockets were given to ``listen()``. Attaching replaces the
program that was there, in one step, for the whole group.
"""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Sequence

__all__ = ["program", "steer"]

#: ``SO_ATTACH_REUSEPORT_CBPF`` of ``asm-generic/socket.h``; the socket module lacks it.
_ATTACH = 51

# <linux/bpf_common.h>, <linux/filter.h>
_LD_W_ABS = 0x20
_ALU_MOD_K = 0x94
_JMP_JEQ_K = 0x15
_RET_K = 0x06
_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM: reads a random number, not the packet


def program(indices: Sequence[int]) -> bytes:
    """A program that returns one of ``indices``, each as likely: ``struct sock_filter``s."""
    if not indices:
        raise ValueError("a program that names no socket would leave the choice to a hash")
    code = [(_LD_W_ABS, 0, 0, _RANDOM), (_ALU_MOD_K, 0, 0, len(indices))]
    for n, index in enumerate(indices):
        code.append((_JMP_JEQ_K, 0, 1, n))  # equal: next instruction; else skip one
        code.append((_RET_K, 0, 0, index))
    code.append((_RET_K, 0, 0, indices[-1]))  # not reached; a program must end in a return
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def steer(member: socket.socket, indices: Sequence[int]) -> None:
    """Give the group's new connections to the sockets with these indices only.

    Does not touch connections that wait in a queue already.

    Args:
        member: Any listening socket of the group.
        indices: Positions in the order of ``listen()``, at least one.

    Raises:
        OSError: The kernel will not: no such option, or forbidden.
    """
    code = array.array("B", program(indices))
    where, size = code.buffer_info()
    fprog = struct.pack("HP", size // 8, where)  # struct sock_fprog: length, pointer
    member.setsockopt(socket.SOL_SOCKET, _ATTACH, fprog)
