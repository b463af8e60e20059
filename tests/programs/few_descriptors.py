"""Fork with few descriptors left: each fork works, or raises and leaves nothing behind."""

import errno
import gc
import os
import resource
import signal
import sys

import mpcluster as cluster
from mpcluster import descriptors

SPARE = int(sys.argv[1])


def count() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def end(workers: list[cluster.ClusterProcess]) -> None:
    for worker in workers:
        worker.kill()
    workers.clear()
    assert cluster.join(30)
    assert not cluster.workers


cluster.on("death", lambda _worker: None)
end([cluster.fork(signal.pause)])  # what a master makes once and keeps
before, owned = count(), descriptors.owned()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + SPARE, hard))
workers: list[cluster.ClusterProcess] = []
try:
    while len(workers) < 50:
        workers.append(cluster.fork(signal.pause))
except OSError as error:
    assert error.errno == errno.EMFILE, error  # noqa: PT017
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
assert len(workers) < 50
end(workers)
assert descriptors.owned() == owned, (descriptors.owned() - owned, owned - descriptors.owned())
left = count() - before
sys.stdout.write("nothing left\n" if not left else f"{left} descriptors\n")
