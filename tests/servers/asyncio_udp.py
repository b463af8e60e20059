"""An asyncio datagram endpoint: each datagram is answered with itself and the pid."""

import asyncio
import os
import sys
from typing import Any


class Answer(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(b"%s %d" % (data, os.getpid()), addr)


async def main() -> None:
    address = (sys.argv[1], int(sys.argv[2]))
    await asyncio.get_running_loop().create_datagram_endpoint(Answer, local_addr=address)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
