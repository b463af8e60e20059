"""Unix paths, and sockets that were handed down: what is particular to one listener."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from mpcluster import unixpath
from mpcluster.messages import Holds
from mpcluster.scheduling.shared import Shared
from tests.sharers import LOCAL, Floor, modes_before_chmod, needs_ipv6, serve_one

UNIX = {"family": socket.AF_UNIX}
KINDS = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]


@pytest.fixture
def floor() -> Iterator[Floor]:
    floor = Floor()
    yield floor
    floor.close()
    assert floor.clock.pending == 0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


def dead_socket(path: str, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(path)


# -- unix paths ----------------------------------------------------------------------------


def test_a_unix_path_is_shared(floor, path):
    one = floor[1].bind(path, **UNIX)
    other = floor[2].bind(path, **UNIX)
    clients = floor.connect(path, 2)
    serve_one(one)
    serve_one(other)
    assert [client.recv(6) for client in clients] == [b"served", b"served"]


def test_a_unix_datagram_path_is_shared(floor, path):
    floor[1].bind(path, **UNIX, kind=socket.SOCK_DGRAM)
    other = floor[2].bind(path, **UNIX, kind=socket.SOCK_DGRAM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"datagram", path)
    other.settimeout(10)
    assert other.recv(100) == b"datagram"


def test_an_abstract_name_is_shared(floor):
    name = f"\0mpcluster-{os.getpid()}-{os.urandom(4).hex()}"
    one = floor[1].bind(name, **UNIX)
    assert floor[2].bind(name, **UNIX).getsockname() == one.getsockname() == name.encode()


def test_the_same_path_twice_in_one_worker_is_in_use(floor, path):
    floor[1].bind(path, **UNIX)
    with pytest.raises(OSError, match=path) as caught:
        floor[1].bind(path, **UNIX)
    assert caught.value.errno == errno.EADDRINUSE


def test_the_path_is_removed_when_the_last_user_leaves(floor, path):
    floor[1].bind(path, **UNIX)
    floor[1].leave()
    assert os.listdir(os.path.dirname(path)) == []


def test_the_path_stays_while_another_uses_it(floor, path):
    floor[1].bind(path, **UNIX)
    floor[2].bind(path, **UNIX)
    floor[1].leave()
    assert os.path.exists(path)


def test_a_path_that_is_somebody_elses_by_now_is_not_removed(floor, path):
    floor[1].bind(path, **UNIX)
    os.unlink(path)
    Path(path).write_text("another's")
    floor[1].leave()
    assert Path(path).read_text() == "another's"


def test_a_forked_child_never_removes_the_path(floor, path):
    floor[1].bind(path, **UNIX)
    pid = os.fork()
    if pid == 0:
        try:
            floor.registry.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.path.exists(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_left_by_a_dead_program_is_taken_over(floor, path, kind):
    dead_socket(path, kind)
    assert floor[1].bind(path, **UNIX, kind=kind).getsockname() == path


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_master_left_is_taken_over_and_removed(floor, path, kind):
    dead_socket(path, kind)
    os.link(path, str(Path(path).with_name(".s.held")))
    floor[1].bind(path, **UNIX, kind=kind)
    floor[1].leave()
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_where_somebody_answers_is_in_use(floor, path, kind):
    with socket.socket(socket.AF_UNIX, kind) as alive:
        alive.bind(path)
        if kind != socket.SOCK_DGRAM:
            alive.listen()
        with pytest.raises(OSError, match="in use") as caught:
            floor[1].bind(path, **UNIX, kind=kind)
        assert os.path.exists(path)
    assert caught.value.errno == errno.EADDRINUSE


def test_a_program_with_a_full_queue_still_answers(floor, path):
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(path)
        alive.listen(0)
        floor.connect(path)
        with pytest.raises(OSError, match="in use"):
            floor[1].bind(path, **UNIX)


def test_a_path_that_another_takes_over_at_the_same_moment_is_in_use(floor, path, monkeypatch):
    """Between the knock at the dead socket and its removal; by the same inode number, mostly."""
    dead_socket(path)
    dead = os.lstat(path)
    with socket.socket(socket.AF_UNIX) as quicker:

        def knock(*_: object) -> bool:
            os.unlink(path)
            quicker.bind(path)
            quicker.listen()
            while os.lstat(path).st_ctime_ns == dead.st_ctime_ns:
                os.chmod(path, 0o600)  # until the file system's clock has moved
            return False

        monkeypatch.setattr(unixpath, "_answers", knock)
        with pytest.raises(OSError, match="in use"):
            floor[1].bind(path, **UNIX)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_a_living_socket_of_another_kind_is_not_taken_over(floor, path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as alive:
        alive.bind(path)
        with pytest.raises(OSError, match="in use"):
            floor[1].bind(path, **UNIX)


def test_a_file_that_is_no_socket_is_never_removed(floor, path):
    Path(path).write_text("precious")
    with pytest.raises(OSError, match="no socket") as caught:
        floor[1].bind(path, **UNIX)
    assert caught.value.errno == errno.EADDRINUSE
    assert Path(path).read_text() == "precious"


def test_a_file_in_the_place_of_the_hidden_link_is_never_removed(floor, path):
    hidden = Path(path).with_name(".s.held")
    hidden.write_text("precious")
    floor[1].bind(path, **UNIX)
    floor[1].leave()
    assert hidden.read_text() == "precious"


def test_no_such_directory_is_told_with_the_path(floor, path):
    with pytest.raises(FileNotFoundError, match=path):
        floor[1].bind(path + "/x", **UNIX)


def test_a_path_that_a_server_removed_before_it_binds_is_put_back(floor, path):
    floor[1].bind(path, **UNIX)
    os.unlink(path)
    own = floor[2].bind(path, **UNIX)
    clients = floor.connect(path)
    serve_one(own)
    assert clients[0].recv(6) == b"served"


def test_a_path_that_somebody_took_meanwhile_is_in_use(floor, path):
    floor[1].bind(path, **UNIX)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(path)
        stranger.listen()
        with pytest.raises(OSError, match="in use"):
            floor[2].bind(path, **UNIX)


def test_a_removed_path_without_hard_links_is_told(floor, path, monkeypatch):
    def no_links(*args: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    floor[1].bind(path, **UNIX)
    os.unlink(path)
    with pytest.raises(FileNotFoundError, match="was removed"):
        floor[2].bind(path, **UNIX)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777])
def test_the_mode_is_the_paths_whatever_the_umask(floor, path, mode):
    before = os.umask(0o077)
    try:
        floor[1].bind(path, **UNIX, mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_a_path_is_never_open_to_more_than_its_mode_says(floor, path):
    """Not even before what the umask took away is given back."""
    with modes_before_chmod() as modes:
        floor[1].bind(path, **UNIX, mode=0o600)
    assert modes == [0o600]


class Refusing(Shared):
    def add(self, *_: object) -> NoReturn:
        raise ValueError("on purpose")


class Unmade(Shared):
    def __init__(self, _kept: object) -> None:
        raise ValueError("on purpose")


@pytest.mark.parametrize("policy", [Refusing, Unmade])
def test_a_failure_after_the_bind_leaves_no_path(floor, path, policy):
    with pytest.raises(ValueError, match="on purpose"):
        floor[1].bind(path, **UNIX, scheduling=policy)
    assert os.listdir(os.path.dirname(path)) == []


def test_a_path_waits_for_the_replacement_of_a_crashed_worker(floor, path):
    floor[1].bind(path, **UNIX)
    floor[1].crash()
    clients = floor.connect(path)
    serve_one(floor[2].bind(path, **UNIX))
    assert clients[0].recv(6) == b"served"


def test_the_registry_knows_the_paths_that_it_holds(floor, path):
    floor[1].bind(path, **UNIX)
    assert floor.registry.handle((2,), Holds(path)) is True


def test_the_registry_knows_a_held_path_by_another_name(floor, path, tmp_path):
    floor[1].bind(path, **UNIX)
    (tmp_path / "link").symlink_to(tmp_path)
    assert floor.registry.handle((2,), Holds(str(tmp_path / "link" / "s"))) is True


def test_the_registry_knows_a_held_path_while_it_is_removed(floor, path):
    floor[1].bind(path, **UNIX)
    os.unlink(path)
    assert floor.registry.handle((2,), Holds(path)) is True


def test_another_path_is_not_held(floor, path):
    floor[1].bind(path, **UNIX)
    dead_socket(path + "x")
    assert floor.registry.handle((2,), Holds(path + "x")) is False


def test_a_path_is_not_held_after_its_last_user(floor, path):
    floor[1].bind(path, **UNIX)
    floor[1].leave()
    assert floor.registry.handle((2,), Holds(path)) is False


# -- sockets that a service manager hands down ----------------------------------------------


def handed_down(*sockets: socket.socket, program: str, pid: str = "str(os.getpid())") -> str:
    """Run a program of its own with these as descriptors 3, 4, …; what it printed."""
    launcher = textwrap.dedent(
        """
        import os, sys
        given = [int(number) for number in sys.argv[2:]]
        moved = [os.dup(number) for number in given]  # out of the way of 3, 4, ...
        moved = [os.dup2(number, 100 + n) for n, number in enumerate(moved)]
        for n, number in enumerate(moved):
            os.dup2(number, 3 + n, inheritable=True)
        os.environ.update(
            LISTEN_FDS=str(len(given)), LISTEN_PID=PID, LISTEN_FDNAMES="web:spare"
        )
        os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
        """
    ).replace("PID=PID", f"PID={pid}")
    prologue = """
import os, socket
from tests.sharers import Floor, serve_one
floor = Floor()
taken = floor.registry.inherit()
"""
    numbers = [sock.fileno() for sock in sockets]
    done = subprocess.run(
        [sys.executable, "-c", launcher, prologue + textwrap.dedent(program), *map(str, numbers)],
        pass_fds=numbers,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(LOCAL)
        sock.listen()
        yield sock


def test_a_socket_handed_down_is_used_for_its_address(listening):
    with socket.create_connection(listening.getsockname()) as client:
        program = f"serve_one(floor[1].bind({listening.getsockname()!r}))"
        handed_down(listening, program=program)
        assert client.recv(6) == b"served"


@pytest.fixture
def dual_stack() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        sock.listen()
        yield sock


@needs_ipv6
def test_a_dual_stack_socket_handed_down_is_used_for_all_ipv4_interfaces(dual_stack):
    port = dual_stack.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        program = f"""
            one = floor[1].bind(("0.0.0.0", {port}), sockname=("0.0.0.0", {port}))
            two = floor[2].bind(("0.0.0.0", {port}), sockname=("0.0.0.0", {port}))
            serve_one(socket.socket(fileno=two.detach()))
        """
        handed_down(dual_stack, program=program)
        assert client.recv(6) == b"served"


@needs_ipv6
def test_a_server_that_binds_both_families_gets_the_dual_stack_socket_for_both(dual_stack):
    port = dual_stack.getsockname()[1]
    program = f"""
        floor[1].bind(("0.0.0.0", {port}), sockname=("0.0.0.0", {port}))
        floor[1].bind(("::", {port}), family=socket.AF_INET6)
        print(taken[0].users == {{(), (1,), (1, 0)}})
        floor[1].release()
        print(taken[0].users == {{()}}, taken[0].closed)
    """
    assert handed_down(dual_stack, program=program).split() == ["True", "True", "False"]


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_dual_stack_socket_handed_down_is_not_used_for_one_interface(dual_stack, host):
    """The kernel would not allow it, and whoever binds one interface wants no other's."""
    port = dual_stack.getsockname()[1]
    family = "AF_INET6" if ":" in host else "AF_INET"
    program = f"""
        try:
            floor[1].bind(({host!r}, {port}), family=socket.{family})
        except OSError as error:
            print(error.errno)
    """
    assert handed_down(dual_stack, program=program) == str(errno.EADDRINUSE)


@needs_ipv6
def test_a_socket_handed_down_for_ipv6_alone_leaves_ipv4_to_others(dual_stack):
    with socket.socket(socket.AF_INET6) as alone:
        alone.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        alone.bind(("::", 0))
        alone.listen()
        address = ("0.0.0.0", alone.getsockname()[1])
        program = f"print(floor[1].bind({address!r}).family.name)"
        assert handed_down(alone, program=program) == "AF_INET"


def test_a_socket_handed_down_is_held_by_the_master(listening):
    program = f"""
    floor[1].bind({listening.getsockname()!r})
    floor[1].leave()
    floor[2].bind({listening.getsockname()!r})
    print(floor[2].last.socket is not None, taken)
    """
    address = "{}:{}".format(*listening.getsockname())
    users = "users=[(), (2,)]"
    shown = f"True [<Listener {address} used {users} <Shared {users}>>]"
    assert handed_down(listening, program=program) == shown


def test_the_path_of_a_socket_handed_down_is_not_ours_to_remove(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        handed_down(listening, program="floor.close()")
    assert os.path.exists(path)


def test_the_path_of_a_socket_handed_down_is_held(path):
    """Servers remove the path that they are to bind; nobody could put this one back."""
    program = f"""
    from mpcluster.messages import Holds
    os.symlink({os.path.dirname(path)!r}, {path + ".dir"!r})
    names = [{path!r}, {path + ".dir/" + os.path.basename(path)!r}, "/dev/null"]
    print([floor.registry.handle((1,), Holds(name)) for name in names])
    """
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        assert handed_down(listening, program=program) == "[True, True, False]"


def test_the_variables_are_removed_once_read(listening):
    program = "print([name for name in os.environ if name.startswith('LISTEN_')])"
    assert handed_down(listening, program=program) == "[]"


def test_sockets_for_another_process_are_left_alone(listening):
    program = "print(taken, os.fstat(3) and 'open')"
    assert handed_down(listening, program=program, pid="'1'") == "[] open"


def test_programs_that_are_executed_do_not_get_it_too(listening):
    assert handed_down(listening, program="print(os.get_inheritable(3))") == "False"


def test_what_is_no_listener_is_left_alone(listening):
    with socket.socket() as unbound:
        program = "print(len(taken), os.fstat(3) and 'open')"
        assert handed_down(unbound, listening, program=program) == "1 open"


def test_without_the_variables_there_is_nothing(floor):
    assert floor.registry.inherit({}) == []
