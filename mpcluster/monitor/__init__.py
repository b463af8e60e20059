"""What can be seen of a supervisor and its workers while they run: a page, and figures.

Runs in the master and asks nothing of the workers. The modules, lowest first::

    processes, connections    what the kernel says of a process, and of sockets
    views, snapshot           one look at everything, as values; needs no extra
    rates, sampler            what happens between two looks; looks from time to time
    metrics, page, hosts      for Prometheus; for people; for whom not
    answers, server           serves it all
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpcluster.supervision import Supervisor

    from .server import Monitor

__all__ = ["start"]


def start(
    supervisor: Supervisor,
    address: str = "127.0.0.1:0",
    *,
    public: bool = False,
    program: str | None = None,
) -> Monitor:
    """Serve a page that shows a supervisor's workers. In the master.

    Also ``/status.json``, ``/metrics`` for Prometheus, and ``/healthz``, which is 200 while a
    worker serves, and 503 else. Nothing can be changed through it.

    Args:
        supervisor: Whose workers.
        address: ``HOST:PORT``, ``[IPv6]:PORT``, or ``PORT`` alone for 127.0.0.1; port 0 is any
            that is free. Closed to other machines: see ``public``.
        public: Allow an address that other machines can reach. There is no password.
        program: The name to show; that of this process's script without it.

    Returns:
        With ``.url`` and ``.stop()``; the end of the master ends it, too.

    Raises:
        EngineUnavailableError: prometheus-client is missing: ``mpcluster[monitor]`` brings it.
        NotMasterError: This is a worker.
        TypeError, ValueError: The address is none, or others can reach it.
        OSError: It is taken, or not this machine's.
    """
    from .server import Monitor

    return Monitor(supervisor, address, public=public, program=program)
