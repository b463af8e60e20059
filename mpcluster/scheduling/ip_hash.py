"""``ip_hash``: all connections of one client address go to the same worker.

For servers that keep something about a client in memory: sessions, a cache, a WebSocket's
fallback to polling. It holds as long as the workers do. When one dies its clients alone move
to others, and its replacement, which gets its slot, gets them back; a rolling reload hands
each slot to the new worker. Behind a proxy every client has the proxy's address: then it is
the proxy that has to do this.

Rendezvous hashing (Thaler and Ravishankar, 1998): a client goes to the slot whose hash with
its address is the highest, so that a slot which comes or goes moves no other client.

A connection waits for its worker, be that busy. So that it does not go on without bound, the
port accepts nothing more while 128 wait; the kernel's queue holds the others.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence
from hashlib import blake2b

from mpcluster.scheduling.accepting import Accepting
from mpcluster.scheduling.taker import Taker

__all__ = ["IpHash", "slot_of"]


class IpHash(Accepting):
    """The worker whose slot hashes highest with the client's address."""

    sticky = True

    def pick(self, peer: object, takers: Sequence[Taker]) -> Taker:
        """Whose client it is. One without an address belongs to the first."""
        if not (isinstance(peer, tuple) and peer):
            return takers[0]
        return takers[slot_of(peer[0], tuple(taker.slot for taker in takers))]


@functools.lru_cache(maxsize=4096)
def slot_of(host: str, slots: tuple[int, ...]) -> int:
    """Which of ``slots`` (its index) a client belongs to. The port does not count.

    An IPv4 client of a dual-stack listener is the same as one of an IPv4 listener.
    """
    address = ipaddress.ip_address(host.partition("%")[0])  # without its zone
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    packed = address.packed

    def weight(index: int) -> bytes:
        return blake2b(packed + slots[index].to_bytes(4), digest_size=8).digest()

    return max(range(len(slots)), key=weight)
