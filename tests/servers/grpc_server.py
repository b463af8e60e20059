"""grpcio: everything about the socket happens in C++. Its one method answers with the pid."""

import os
import sys
from concurrent import futures
from typing import Any

import grpc


class WhoIsThere(grpc.GenericRpcHandler):
    def service(self, _details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"%d" % os.getpid())


if __name__ == "__main__":
    # Without SO_REUSEPORT, which would let strangers share the port as well.
    server = grpc.server(
        futures.ThreadPoolExecutor(2),
        handlers=[WhoIsThere()],
        options=[("grpc.so_reuseport", int(sys.argv[3:] == ["reuseport"]))],
    )
    server.add_insecure_port(f"{sys.argv[1]}:{sys.argv[2]}")
    server.start()
    server.wait_for_termination()
