"""``share="kernel"``: listeners that are made in C or Rust, shared by way of the kernel."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mpcluster as cluster
from mpcluster.errors import ClusterError
from mpcluster.sharing import notifications, seccomp
from tests.cli.masters import Master, command, start_fixture, write  # noqa: F401
from tests.masters import ask_until_all, go_through_a_life, serving
from tests.running import PATIENCE, environment, python
from tests.servers import c_sockets

try:
    seccomp.check()
except ClusterError as error:
    REFUSED: str | None = str(error)
else:
    REFUSED = None

needs_kernel = pytest.mark.skipif(REFUSED is not None, reason=str(REFUSED))


def told(code: str) -> list[str]:
    """Run a master that forks workers of these lines; what they have told, sorted."""
    done = python(PROGRAM.format(code=code.replace("\n", "\n    ")))
    assert done.returncode == 0, done
    assert not done.stderr, done.stderr
    return sorted(done.stdout.splitlines())


PROGRAM = """
import os, socket, subprocess, sys
import mpcluster as cluster
from tests.servers import c_sockets as c

def work(number):
    {code}

def tell(what):
    os.write(1, f"{{what}}\\n".encode())

cluster.setup(share="kernel")
ends, here = [], []

def heard(worker, message):
    here.append(worker)
    if len(here) == 2:
        cluster.broadcast("both are here")

cluster.on("message", heard)
cluster.on("death", lambda worker: ends.append(worker.exitcode))
for number in (1, 2):
    cluster.fork(work, (number,))
cluster.join()
assert ends == [0, 0], ends
"""


# -- servers -----------------------------------------------------------------------------------


@needs_kernel
@pytest.mark.parametrize("how", ["block", "poll"])
@pytest.mark.parametrize("policy", ["auto", "shared", "slots", "round_robin"])
def test_two_workers_serve_one_port_from_c_and_one_that_is_killed_is_replaced(
    how: str, policy: str
) -> None:
    run_through("c_sockets", how, policy)


@needs_kernel
@pytest.mark.parametrize("policy", ["auto", "shared"])
def test_granian_embedded_shares_its_port(policy: str) -> None:
    if importlib.util.find_spec("granian") is None:
        pytest.skip("granian is not installed")
    with socket.socket() as probe:  # of 0 it would make another port in each worker
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_through("granian_embedded", "", policy, port)


@needs_kernel
def test_what_python_binds_is_shared_by_its_own_way_beside_that() -> None:
    run_through("http_server", "", "auto")


def run_through(script: str, how: str, policy: str, port: int = 0) -> None:
    env = {"MPCLUSTER_SCHEDULING": policy, "TEST_SHARE": "kernel"}
    with serving(script, "127.0.0.1", str(port), how, **env) as master:
        go_through_a_life(master)


#: Asks on a channel of its own each time, until each of the processes in argv has answered.
ASK_GRPC = """
import sys
import grpc

address, awaited, answered = sys.argv[1], set(map(int, sys.argv[2:])), set()
while answered != awaited:
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        answered.add(int(channel.unary_unary("/who/is")(b"", timeout=30)))
    assert answered <= awaited, answered
"""


@needs_kernel
@pytest.mark.parametrize("reuse", ["", "reuseport"])
def test_grpc_shares_its_port(reuse: str) -> None:
    if importlib.util.find_spec("grpc") is None:
        pytest.skip("grpcio is not installed")
    env = {"TEST_SHARE": "kernel"}
    with serving("grpc_server", "127.0.0.1", "0", reuse, **env) as master:
        first, second = master.expect("listening"), master.expect("listening")
        assert first["port"] == second["port"]
        ask_grpc(first["port"], first["pid"], second["pid"])

        os.kill(first["pid"], signal.SIGKILL)
        third = master.expect("listening")
        ask_grpc(first["port"], second["pid"], third["pid"])
        master.order("disconnect")
        master.expect("end")
        assert master.stop() == 0


def ask_grpc(port: int, *pids: int) -> None:
    subprocess.run(
        [sys.executable, "-c", ASK_GRPC, f"127.0.0.1:{port}", *map(str, pids)],
        env=environment(),
        timeout=PATIENCE,
        check=True,
    )


@needs_kernel
def test_the_command_shares_what_c_binds(start: Callable[..., Master], tmp_path: Path) -> None:
    write(tmp_path / "app.py", Path(c_sockets.__file__).read_text().replace(
        "    serve(listener", "    print('serves', port(listener), flush=True)\n    serve(listener"))  # fmt: skip
    master = start("-n", 2, "--share", "kernel", "app.py", "127.0.0.1", "0", "poll")
    first = master.serves()
    assert master.serves() == first
    master.is_ready()
    asyncio.run(ask_until_all(set(master.pids()), port=first))
    assert master.stop() == 0


def test_the_command_refuses_to_share_what_is_none(tmp_path: Path) -> None:
    write(tmp_path / "app.py", "")
    done = command("run", "--share", "rust", "app.py", directory=tmp_path)
    assert done.returncode != 0
    assert done.stderr == ("mpcluster run: share must be one of python, kernel, not 'rust'\n")


# -- what is shared, and what is not -----------------------------------------------------------


@needs_kernel
def test_the_nth_port_0_of_every_worker_is_the_same_port() -> None:
    ports = told(f"""
def server():
    fd = c.make()
    c.bind(fd, ("127.0.0.1", 0))
    c.listen(fd)
    return c.port(fd)
tell([server(), server()])
{BARRIER}
""")
    assert len(ports) == 2
    assert len(set(ports)) == 1
    assert len(set(ports[0].strip("[]").split(", "))) == 2


@needs_kernel
@pytest.mark.parametrize(
    ("address", "number"),
    [
        ('("127.0.0.1", {port})', errno.EADDRINUSE),
        ('("192.0.2.1", {port})', errno.EADDRNOTAVAIL),
        ('"/no/such/directory/socket"', errno.ENOENT),
        ('"/proc/socket"', None),
    ],
)
def test_an_error_is_the_kernels_own(address: str, number: int | None) -> None:
    """Also where the port is another program's; a worker's socket is as it was."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = address.format(port=taken.getsockname()[1])
        code = f"""
address = {address}
fd = c.make(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
for again in (1, 2):
    try:
        c.bind(fd, address)
    except OSError as error:
        tell(error.errno)
"""
        numbers = told(code)
    assert len(numbers) == 4
    assert len(set(numbers)) == 1
    if number is not None:
        assert numbers[0] == str(number)


@needs_kernel
def test_a_second_socket_of_one_worker_at_an_address_is_refused_until_the_first_is_closed() -> None:
    assert (
        told("""
fd = c.make()
c.bind(fd, ("127.0.0.1", 0))
c.listen(fd)
port = c.port(fd)
other = c.make()
try:
    c.bind(other, ("127.0.0.1", port))
except OSError as error:
    tell(error.strerror)
c.free.close(fd)
c.bind(other, ("127.0.0.1", port))
c.listen(other)
assert c.port(other) == port
""")
        == ["Address already in use"] * 2
    )


@needs_kernel
def test_a_client_that_binds_first_stays_private() -> None:
    ports = told("""
server = c.make()
c.bind(server, ("127.0.0.1", 0))
c.listen(server)
client = c.make()
c.bind(client, ("127.0.0.1", 0))
c.connect(client, ("127.0.0.1", c.port(server)))
tell(c.port(client))
""")
    assert len(set(ports)) == 2


@needs_kernel
def test_an_exclusive_listener_stays_private() -> None:
    ports = told("""
sock = cluster.listen(("127.0.0.1", 0), exclusive=True)
tell(sock.getsockname()[1])
named = cluster.listen(("127.0.0.2", sock.getsockname()[1]), exclusive=True)
assert named.getsockname()[1] == sock.getsockname()[1]
sock.close()
named.close()
""")
    assert len(set(ports)) == 2


@needs_kernel
def test_an_executed_program_binds_for_itself(tmp_path: Path) -> None:
    program = write(
        tmp_path / "program.py",
        """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1])
try:
    socket.create_server(("127.0.0.1", int(sys.argv[1])))
except OSError as error:
    print("errno", error.errno)
""",
    )
    lines = told(f"""
program = {str(program)!r}
fd = c.make()
c.bind(fd, ("127.0.0.1", 0))
c.listen(fd)
done = subprocess.run([sys.executable, program, str(c.port(fd))], capture_output=True)
port, error = done.stdout.decode().splitlines()
assert int(port) != c.port(fd)
tell(port)
tell(error)
""")
    assert lines[2:] == [f"errno {errno.EADDRINUSE}"] * 2
    assert lines[0] != lines[1]


@needs_kernel
def test_a_program_that_outlives_its_worker_binds_on_while_the_master_lives() -> None:
    done = python("""
        import os, signal, subprocess, sys
        import mpcluster as cluster

        program = '''
        import os, socket
        os.read(0, 1)
        with socket.create_server(("127.0.0.1", 0)):
            os.write(1, b"bound")
        '''.replace("\\n        ", "\\n")

        def work(told, tell):
            subprocess.Popen([sys.executable, "-c", program], stdin=told, stdout=tell)
            os._exit(0)

        cluster.setup(share="kernel")
        told, telling = os.pipe()
        hearing, tell = os.pipe()
        worker = cluster.fork(work, (told, tell))
        os.close(tell)
        worker.join()
        cluster.join()
        os.write(telling, b"!")
        assert os.read(hearing, 9) == b"bound"
    """)
    assert done.returncode == 0, done


@needs_kernel
def test_a_forked_child_of_a_worker_binds_for_itself() -> None:
    ports = told("""
fd = c.make()
c.bind(fd, ("127.0.0.1", 0))
c.listen(fd)
pid = os.fork()
if pid == 0:
    own = c.make()
    c.bind(own, ("127.0.0.1", 0))
    c.listen(own)
    tell(c.port(own))
    os._exit(0)
os.waitpid(pid, 0)
tell(c.port(fd))
""")
    assert len(set(ports)) == 3


@needs_kernel
def test_unix_paths_and_datagrams_are_shared_and_the_path_goes_with_the_last(
    tmp_path: Path,
) -> None:
    path = tmp_path / "socket"
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = f"""
fd = c.make(socket.AF_UNIX)
os.umask(0o077)
os.chdir({str(tmp_path)!r})
c.bind(fd, "socket")
c.listen(fd)
datagrams = c.make(kind=socket.SOCK_DGRAM)
c.bind(datagrams, ("127.0.0.1", {port}))
assert c.port(datagrams) == {port}
tell((os.stat("socket").st_mode & 0o777, os.fstat(fd).st_ino, os.fstat(datagrams).st_ino))
{BARRIER}
"""
    lines = told(code)
    assert lines[0] == lines[1]
    assert lines[0].startswith("(448, ")
    assert not path.exists()


#: Each worker waits for the other, so that neither's end closes what both are to share.
BARRIER = """
from threading import Event
both = Event()
cluster.on("message", lambda _: both.set())
cluster.send("here")
assert both.wait(30)
"""


# -- where it cannot be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EINVAL, r"this kernel \(.*\) is older than Linux 5.19, which it needs"),
        (errno.EPERM, r"seccomp\(2\) is refused \(Operation not permitted\)"),
        (errno.ENOSYS, r"seccomp\(2\) is refused \(Function not implemented\)"),
        (errno.EBUSY, "a filter with a listener is above this process already"),
    ],
)
def test_a_kernel_that_refuses_is_named_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(number, os.strerror(number))

    before = cluster.settings
    monkeypatch.setattr(seccomp, "_call", refuse)
    with pytest.raises(ClusterError, match=f"{says}.*; or use share='python'$"):
        cluster.setup(share="kernel")
    assert cluster.settings == before


def test_a_machine_whose_calls_are_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_MACHINES", {"s390x": seccomp._MACHINES["x86_64"]})
    with pytest.raises(ClusterError, match=r"is for Linux on s390x, and this is .*'python'"):
        seccomp.check()


@needs_kernel
def test_a_master_that_may_not_take_a_workers_sockets_says_so_in_the_worker() -> None:
    done = python("""
        import errno
        import mpcluster as cluster
        from mpcluster.sharing import seccomp

        cluster.setup(share="kernel")
        calls = seccomp._call

        def refuse(number, *args):
            if number == seccomp._PIDFD_GETFD:
                raise OSError(errno.EPERM, "Operation not permitted")
            return calls(number, *args)

        seccomp._call = refuse
        worker = cluster.fork(print, ("never",))
        worker.join()
        assert worker.exitcode == 1, worker.exitcode
    """)
    assert done.returncode == 0, done
    assert "never" not in done.stdout
    assert "ClusterError: share='kernel' is not possible here: pidfd_getfd(2) of a" in done.stderr


# -- addresses as the kernel reads them --------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "raw", "means"),
    [
        (socket.AF_INET, c_sockets.sockaddr(("127.0.0.1", 80)), ("127.0.0.1", 80)),
        (socket.AF_INET, c_sockets.sockaddr(("127.0.0.1", 80))[:15], None),
        (socket.AF_INET6, c_sockets.sockaddr(("::1", 80)), ("::1", 80, 0, 0)),
        (socket.AF_INET6, c_sockets.sockaddr(("::1", 80))[:24], ("::1", 80, 0, 0)),
        (socket.AF_INET6, c_sockets.sockaddr(("127.0.0.1", 80)), None),
        (socket.AF_UNIX, c_sockets.sockaddr("/a/b"), "/a/b"),
        (socket.AF_UNIX, c_sockets.sockaddr("/a/b")[:-1], "/a/b"),
        (socket.AF_UNIX, struct.pack("=H", socket.AF_UNIX) + b"\0a\0", b"\0a\0"),
        (socket.AF_UNIX, struct.pack("=H", socket.AF_UNIX), None),
        (socket.AF_INET, b"", None),
    ],
)
def test_an_address_is_read_as_the_kernel_reads_it(family: int, raw: bytes, means: object) -> None:
    assert notifications.parse(family, raw) == means
