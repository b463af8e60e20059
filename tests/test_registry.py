"""What workers ask of the master's table of shared listeners, and what they get.

The workers are stand-ins in this process; the sockets and the kernel's verdicts are real.
"""

from __future__ import annotations

import errno
import os
import pickle
import socket
from collections.abc import Iterator

import pytest

from mpcluster import descriptors
from mpcluster.address import Address, make_key
from mpcluster.messages import Bind, Bound, Holds, Release
from tests.sharers import HOST, LOCAL, Floor, free_address, is_refused, needs_ipv6, serve_one


@pytest.fixture
def floor() -> Iterator[Floor]:
    floor = Floor()
    yield floor
    floor.close()
    assert floor.clock.pending == 0


# -- sharing -------------------------------------------------------------------------------


def test_two_workers_accept_from_one_queue(floor):
    one = floor[1].bind(LOCAL, ordinal=0)
    other = floor[2].bind(LOCAL, ordinal=0)
    clients = floor.connect(one, 2)
    serve_one(one)
    serve_one(other)
    assert [client.recv(6) for client in clients] == [b"served", b"served"]


def test_the_first_asker_keeps_its_own_socket(floor):
    floor[1].bind(LOCAL, ordinal=0)
    assert floor[1].last == Bound(floor[1].last.key, None, floor[1].last.sockname)


def test_a_later_asker_gets_the_kept_socket(floor):
    floor[1].bind(LOCAL, ordinal=0)
    floor[2].bind(LOCAL, ordinal=0)
    assert floor[2].last.socket is not None


def test_the_options_of_the_first_server_are_everybodys(floor):
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    floor[1].bind(LOCAL, ordinal=0, own=own)
    other = floor[2].bind(LOCAL, ordinal=0)
    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_the_nth_port_0_of_every_worker_is_the_same(floor):
    ports = [
        [floor[n].bind(LOCAL, ordinal=ordinal).getsockname() for ordinal in (0, 1)] for n in (1, 2)
    ]
    assert ports[0] == ports[1]
    assert ports[0][0] != ports[0][1]


def test_a_random_port_can_be_shared_by_its_number(floor):
    """Node refuses this one with EADDRINUSE."""
    address = floor[1].bind(LOCAL, ordinal=0).getsockname()
    assert floor[2].bind(address).getsockname() == address


def test_a_named_port_is_shared(floor):
    address = free_address()
    floor[1].bind(address)
    assert floor[2].bind(address).getsockname() == address


def test_a_socket_that_was_bound_to_a_random_port_already_is_kept(floor):
    own = socket.socket()
    own.bind(LOCAL)
    address = own.getsockname()
    assert floor[1].bind(LOCAL, ordinal=0, own=own).getsockname() == address
    assert floor[2].bind(LOCAL, ordinal=0).getsockname() == address


def test_a_late_socket_that_was_bound_already_is_laid_over(floor):
    address = floor[1].bind(LOCAL, ordinal=0).getsockname()
    own = socket.socket()
    own.bind(LOCAL)
    assert floor[2].bind(LOCAL, ordinal=0, own=own).getsockname() == address


def test_without_a_backlog_the_master_leaves_listen_to_the_worker(floor):
    own = floor[1].bind(LOCAL, ordinal=0, listen=None)
    assert own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0


def test_udp_datagrams_reach_whoever_reads(floor):
    address = free_address(socket.SOCK_DGRAM)
    floor[1].bind(address, kind=socket.SOCK_DGRAM)
    other = floor[2].bind(address, kind=socket.SOCK_DGRAM)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"datagram", address)
        other.settimeout(10)
        assert other.recv(100) == b"datagram"


@needs_ipv6
def test_ipv6_is_shared(floor):
    address = floor[1].bind(("::1", 0), family=socket.AF_INET6, ordinal=0).getsockname()
    assert floor[2].bind(address, family=socket.AF_INET6).getsockname() == address


def test_accepted_tcp_connections_do_not_delay_small_answers(floor):
    own = floor[1].bind(LOCAL, ordinal=0)
    floor.connect(own)
    own.settimeout(10)
    accepted, _ = own.accept()
    with accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# -- errors are the kernel's, and the master's ---------------------------------------------


def test_the_same_address_twice_in_one_worker_is_in_use(floor):
    address = floor[1].bind(LOCAL, ordinal=0).getsockname()
    with pytest.raises(OSError, match="in use: {}:{}".format(*address)) as caught:
        floor[1].bind(address)
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.address == Address(socket.AF_INET, *address)


def reusing(kind: int = socket.SOCK_STREAM) -> socket.socket:
    own = socket.socket(socket.AF_INET, kind)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return own


@pytest.mark.parametrize("policy", ["shared", "slots"])
def test_further_sockets_of_one_worker_are_further_users_of_one_listener(floor, policy):
    """A queue that only the worker with the most sockets serves would outlive it unserved."""
    address = free_address()
    for ordinal in (None, 1, 2):
        floor[1].bind(address, ordinal=ordinal, own=reusing(), scheduling=policy)
    floor[2].bind(address, own=reusing(), scheduling=policy)
    (listener,) = floor.registry.listeners
    assert listener.users == {(1,), (1, -1), (1, -2), (2,)}
    floor[1].crash()
    assert listener.users == {(2,)}


def test_further_sockets_are_released_one_by_one(floor):
    address = free_address()
    own = floor[1].bind(address, own=reusing())
    key = make_key(own.family, own.type, own.proto, address, 1)
    floor[1].bind(address, ordinal=1, own=reusing())
    (listener,) = floor.registry.listeners
    floor.registry.handle((1,), Release(key))
    assert listener.users == {(1,)}
    floor[1].release()
    assert is_refused(address)


def test_further_datagram_sockets_are_listeners_of_their_own(floor):
    """What is sent to a group reaches each; the n-th of every worker is shared."""
    address = free_address(socket.SOCK_DGRAM)
    kind = socket.SOCK_DGRAM
    first = floor[1].bind(address, kind=kind, own=reusing(kind))
    second = floor[1].bind(address, kind=kind, own=reusing(kind), ordinal=1)
    assert len(floor.registry.listeners) == 2
    same = floor[2].bind(address, kind=kind, own=reusing(kind), ordinal=1)
    assert [os.path.sameopenfile(one.fileno(), same.fileno()) for one in (first, second)] == [
        False,
        True,
    ]


def test_further_datagram_sockets_are_what_the_kernel_says(floor):
    address = free_address(socket.SOCK_DGRAM)
    kind = socket.SOCK_DGRAM
    floor[1].bind(address, kind=kind)
    with pytest.raises(OSError, match="in use"):
        floor[1].bind(address, kind=kind, own=reusing(kind), ordinal=1)


def test_a_refused_second_ask_leaves_the_first_working(floor):
    own = floor[1].bind(LOCAL, ordinal=0)
    with pytest.raises(OSError, match="in use"):
        floor[1].bind(own.getsockname())
    clients = floor.connect(own)
    serve_one(own)
    assert clients[0].recv(6) == b"served"


def test_a_port_of_a_stranger_is_in_use(floor):
    with socket.socket() as stranger:
        stranger.bind(LOCAL)
        stranger.listen()
        with pytest.raises(OSError, match="in use") as caught:
            floor[1].bind(stranger.getsockname())
    assert caught.value.errno == errno.EADDRINUSE


def test_an_error_names_the_address_also_after_its_journey(floor):
    with socket.socket() as stranger:
        stranger.bind(LOCAL)
        host, port = stranger.getsockname()
        with pytest.raises(OSError, match=f"{host}:{port}") as caught:
            floor[1].bind((host, port))
    arrived = pickle.loads(pickle.dumps(caught.value))
    assert arrived.address == Address(socket.AF_INET, host, port)


def test_a_failed_address_can_be_asked_for_again(floor):
    with socket.socket() as stranger:
        stranger.bind(LOCAL)
        address = stranger.getsockname()
        with pytest.raises(OSError, match="in use"):
            floor[1].bind(address)
    assert floor[1].bind(address).getsockname() == address


def test_an_address_that_is_nobodys_here(floor):
    with pytest.raises(OSError, match=r"192\.0\.2\.1:80") as caught:
        floor[1].bind(("192.0.2.1", 80))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_failure_at_listen_keeps_nothing(floor):
    """Two sockets with SO_REUSEADDR may be bound to one port; only one may listen."""
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(LOCAL)
        address = stranger.getsockname()
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        before = own.dup()
        stranger.listen()
        with pytest.raises(OSError, match="in use"):
            floor[1].bind(address, own=own)
        before.close()
    assert floor.registry.listeners == []


def test_another_loopback_address_is_another_listener(floor):
    port = floor[1].bind(LOCAL, ordinal=0).getsockname()[1]
    assert floor[1].bind(("127.0.0.2", port)).getsockname() == ("127.0.0.2", port)


@pytest.mark.parametrize("wide", ["0.0.0.0", pytest.param("::", marks=needs_ipv6)])
def test_all_interfaces_conflict_with_one_as_the_kernel_says(floor, wide):
    port = floor[1].bind(LOCAL, ordinal=0).getsockname()[1]
    family = socket.AF_INET6 if ":" in wide else socket.AF_INET
    with pytest.raises(OSError, match="in use"):
        floor[2].bind((wide, port), family=family)


@needs_ipv6
def test_ipv4_and_ipv6_alone_are_two_listeners_on_one_port(floor):
    port = free_address()[1]
    own = socket.socket(socket.AF_INET6)
    own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    floor[1].bind(("0.0.0.0", port))
    floor[1].bind(("::", port), own=own, family=socket.AF_INET6)
    assert len(floor.registry.listeners) == 2


@pytest.mark.parametrize(
    ("scheduling", "error"), [("fastest", ValueError), (42, TypeError)], ids=str
)
def test_a_policy_that_is_none_binds_nothing(floor, scheduling, error):
    address = free_address()
    with pytest.raises(error, match="policy"):
        floor[1].bind(address, scheduling=scheduling)
    assert is_refused(address)
    assert floor.registry.listeners == []


def test_what_is_no_request_is_refused(floor):
    with pytest.raises(TypeError, match="asked"):
        floor.registry.handle((1,), object())


# -- how long a listener lives -------------------------------------------------------------


def test_it_closes_when_its_last_user_releases_it(floor):
    address = floor[1].bind(LOCAL, ordinal=0).getsockname()
    floor[1].release()
    assert is_refused(address)
    assert floor.registry.listeners == []


def test_it_closes_when_its_last_user_leaves(floor):
    address = floor[1].bind(LOCAL, ordinal=0).getsockname()
    floor[1].leave()
    assert is_refused(address)


def test_it_stays_while_another_uses_it(floor):
    floor[1].bind(LOCAL, ordinal=0)
    own = floor[2].bind(LOCAL, ordinal=0)
    floor[1].leave()
    clients = floor.connect(own)
    serve_one(own)
    assert clients[0].recv(6) == b"served"


def test_connections_wait_for_the_replacement_of_a_crashed_worker(floor):
    address = floor[1].bind(LOCAL, ordinal=0).getsockname()
    clients = floor.connect(address)
    floor[1].crash()
    clients += floor.connect(address)
    replacement = floor[2].bind(LOCAL, ordinal=0)
    for _ in clients:
        serve_one(replacement)
    assert [client.recv(6) for client in clients] == [b"served", b"served"]


def test_it_closes_when_the_grace_after_a_crash_is_over(floor):
    address = floor[1].bind(LOCAL, ordinal=0).getsockname()
    floor[1].crash()
    floor.clock.wind(30.0)
    assert is_refused(address)
    assert floor.registry.listeners == []


def test_a_replacement_ends_the_grace(floor):
    floor[1].bind(LOCAL, ordinal=0)
    floor[1].crash()
    own = floor[2].bind(LOCAL, ordinal=0)
    assert floor.clock.pending == 0
    floor.clock.wind(30.0)
    assert os.path.sameopenfile(floor[3].bind(LOCAL, ordinal=0).fileno(), own.fileno())


def test_after_the_last_one_left_by_its_will_nothing_waits_for_one_that_crashed_before(floor):
    address = floor[1].bind(LOCAL, ordinal=0).getsockname()
    floor[2].bind(LOCAL, ordinal=0)
    floor[1].crash()
    floor[2].leave()
    assert is_refused(address)


def test_a_closed_random_port_is_forgotten_by_both_its_names(floor):
    address = floor[1].bind(LOCAL, ordinal=0).getsockname()
    floor[1].leave()
    assert floor[2].bind(address).getsockname() == address
    assert floor[3].bind(LOCAL, ordinal=0).getsockname() != address


def test_a_worker_may_ask_again_for_what_it_released(floor):
    address = free_address()
    floor[1].bind(address)
    floor[2].bind(address)
    floor[1].release()
    assert floor[1].bind(address).getsockname() == address


def test_release_of_what_is_not_held_is_no_error(floor):
    assert floor.registry.handle((1,), Release(make_key(2, 1, 0, ("", 80)))) is None


def test_a_release_of_one_worker_is_not_another_ones(floor):
    own = floor[1].bind(LOCAL, ordinal=0)
    floor.registry.handle((2,), Release(floor[1].last.key))
    assert not is_refused(own.getsockname())


def test_workers_below_one_that_is_gone_are_gone_too(floor):
    address = floor[3, 1].bind(LOCAL, ordinal=0).getsockname()
    floor[3, 1].end()
    floor.registry.left((3,), crashed=False)
    assert is_refused(address)


def test_a_worker_whose_number_begins_alike_is_not_below(floor):
    own = floor[31].bind(LOCAL, ordinal=0)
    floor.registry.left((3,), crashed=False)
    assert not is_refused(own.getsockname())


def test_the_master_holds_what_it_listens_on_itself(floor):
    with socket.socket() as own:
        key = make_key(own.family, own.type, own.proto, LOCAL, 0)
        address = floor.registry.hold(Bind(key, own, listen=16)).sockname
        floor[1].bind(LOCAL, ordinal=0)
        floor[1].leave()
        assert own.getsockname() == address
    assert not is_refused(address)
    floor.registry.handle((), Release(key))
    assert is_refused(address)


def test_the_master_gets_a_copy_of_a_listener_to_close_as_it_likes(floor):
    own = floor[1].bind(LOCAL, ordinal=0)
    with socket.socket() as unbound:
        bound = floor.registry.hold(Bind(floor[1].last.key, unbound))
    bound.socket.close()
    clients = floor.connect(own)
    serve_one(floor[2].bind(LOCAL, ordinal=0))
    assert clients[0].recv(6) == b"served"


def test_close_ends_everything(floor):
    address = floor[1].bind(LOCAL, ordinal=0).getsockname()
    floor[1].end()
    floor.registry.close()
    assert is_refused(address)


def test_every_kept_descriptor_is_kept_from_children(floor):
    before = descriptors.owned()
    floor[1].bind(LOCAL, ordinal=0)
    assert len(descriptors.owned() - before) == 1
    floor[1].leave()
    assert descriptors.owned() == before


def test_its_repr_shows_who_uses_what(floor):
    own = floor[1].bind(LOCAL, ordinal=0)
    port = own.getsockname()[1]
    shown = f"<Registry [<Listener {HOST}:{port} used users=[(1,)] <Shared users=[(1,)]>>]>"
    assert repr(floor.registry) == shown


def test_what_is_no_unix_path_is_not_held(floor, tmp_path):
    floor[1].bind(LOCAL, ordinal=0)
    assert floor.registry.handle((1,), Holds(str(tmp_path / "x"))) is False
