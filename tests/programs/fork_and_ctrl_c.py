"""A Ctrl-C in the middle of a fork: when all is prepared, and the kernel is about to copy."""

import ctypes
import functools
import os
import signal

# Registered before everybody else's, so it runs after them; and without bytecode, at whose end
# the interpreter would look for signals.
RAISE = functools.partial(ctypes.CDLL(None)["raise"], signal.SIGINT)
os.register_at_fork(before=RAISE)

import threading  # noqa: E402

from mpcluster import descriptors, forking  # noqa: E402

ME = os.getpid()
for _ in range(20):
    try:
        pid = forking.fork()
        if pid == 0:
            os._exit(0)
    except KeyboardInterrupt:
        if os.getpid() != ME:
            os._exit(3)

codes = []
while True:
    try:
        codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
    except ChildProcessError:
        break


def use_the_locks() -> None:
    with descriptors.opening():
        import colorsys  # noqa: F401  # takes the lock of imports


thread = threading.Thread(target=use_the_locks, daemon=True)
thread.start()
thread.join(30)
print("children", sorted(set(codes)), "locks", "taken" if thread.is_alive() else "free")
