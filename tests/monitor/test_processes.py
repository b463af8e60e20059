"""What the kernel says of a process, beside what is known of it here."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import subprocess
import sys

from mpcluster.monitor.processes import Usage, usage


def test_of_this_process_it_tells_what_the_process_knows_itself() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    seen = usage(os.getpid(), parent=os.getppid())
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert seen.cpu is not None
    tick = 2 / os.sysconf("SC_CLK_TCK")  # user and system time, each cut to whole ticks
    assert before.ru_utime + before.ru_stime - tick <= seen.cpu
    assert seen.cpu <= after.ru_utime + after.ru_stime + tick
    assert seen.threads == len(os.listdir("/proc/self/task"))
    # With the one by which the table was read.
    assert seen.descriptors in {len(os.listdir("/proc/self/fd")) + one for one in (-1, 0)}


def test_own_memory_is_a_part_of_the_proportional_and_that_of_all() -> None:
    seen = usage(os.getpid())
    assert seen.own is not None
    assert seen.proportional is not None
    assert seen.resident is not None
    assert 0 < seen.own <= seen.proportional <= seen.resident
    assert seen.shared == seen.resident - seen.own


def test_memory_that_only_this_process_has_is_its_own() -> None:
    before = usage(os.getpid()).own
    page = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page.write(b"x" * (8 << 20))
    after = usage(os.getpid()).own
    page.close()
    assert before is not None
    assert after is not None
    assert after - before > 7 << 20


def test_a_name_that_looks_like_other_fields_misleads_nobody() -> None:
    program = "open('/proc/self/comm', 'w').write(') R 1 2 3 ('); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        seen = usage(child.pid, parent=os.getpid())
        child.communicate(b"\n")
    assert seen.threads == 1


def test_of_one_that_is_gone_or_somebody_elses_nothing_is_known() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert usage(child.pid) == Usage()
    assert usage(os.getpid(), parent=os.getpid()) == Usage()
    assert Usage().shared is None


def test_of_a_zombie_only_its_time_is_known() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    seen = usage(child, parent=os.getpid())
    os.waitpid(child, 0)
    assert seen.cpu is not None
    assert (seen.proportional, seen.own) == (None, None)


def test_a_stopped_process_is_seen_as_well_as_any() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    seen = usage(child.pid, parent=os.getpid())
    child.kill()
    child.communicate()
    assert seen.resident is not None
