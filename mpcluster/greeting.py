"""The first thing that a worker says: the frame of :class:`mpcluster.messages.Online`.

It is a constant, and so neither who says it nor who hears it needs a channel for it, or what
a channel is made of: a plain process that is started and joined says nothing else. It is
a frame as :mod:`mpcluster.wire` has them, and a channel that is there already reads it as any.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["ONLINE"]

#: Written by hand: "call mpcluster.messages.Online with an empty tuple" in protocol 0.
_PICKLE: Final = b"cmpcluster.messages\nOnline\n)R."

ONLINE: Final = struct.pack("=4sBBHIQ", b"mpc\x01", 2, 0, 0, 0, len(_PICKLE)) + _PICKLE
