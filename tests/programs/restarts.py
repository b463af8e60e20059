"""Workers die and are replaced in death callbacks, beside a main thread that never rests.

A fork copies whatever the main thread is in the middle of: a print, a log record, an
allocation, a message. No worker may hang in what it inherits of that.
"""

import logging
import os
import sys
import threading

import mpcluster as cluster

TIMES = int(sys.argv[1])
logging.basicConfig(stream=open(os.devnull, "w"), level=logging.INFO)  # noqa: SIM115
log = logging.getLogger("busy")
over = threading.Event()
deaths = 0


def target(number: int) -> None:
    log.info("a worker logs")
    print("a worker prints", file=sys.stderr)
    junk = [bytearray(1000) for _ in range(50)]
    cluster.send((number, len(junk)))


@cluster.on("death")
def restart(worker: cluster.ClusterProcess) -> None:
    global deaths
    deaths += 1
    assert worker.exitcode == 0, worker.exitcode
    if deaths + 3 < TIMES:
        cluster.fork(target, (deaths,), share_ports=deaths % 2 == 0)
    if deaths >= TIMES - 1:
        over.set()


messages = []
cluster.on("message", lambda _worker, message: messages.append(message))
sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # shared by all; what is printed is nothing
for number in range(3):
    cluster.fork(target, (-number,))
deaf = cluster.fork(threading.Event().wait)
while not over.is_set():
    print("the master prints", file=sys.stderr)
    log.info("the master logs")
    junk = [{number: bytearray(100)} for number in range(100)]
    deaf.send(b"a small message") if len(messages) % 50 else None
deaf.kill()
assert cluster.join(60)
sys.stdout.write(f"{len(messages)} messages\n")
