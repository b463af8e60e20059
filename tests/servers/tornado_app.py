"""tornado."""

import asyncio
import os
import sys

import tornado.web


class Pid(tornado.web.RequestHandler):
    def get(self) -> None:
        self.write(str(os.getpid()))


async def main() -> None:
    app = tornado.web.Application([("/", Pid)])
    app.listen(int(sys.argv[2]), sys.argv[1])
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
