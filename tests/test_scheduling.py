"""How connections are spread: which policy, and what each does with joins, deaths, drains."""

from __future__ import annotations

import errno
import logging
import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from mpcluster import descriptors, scheduling
from mpcluster.messages import Bind, Release
from mpcluster.scheduling import Policy, queued, slots, steering
from mpcluster.scheduling.shared import Shared
from mpcluster.scheduling.slots import Slots
from tests.sharers import LOCAL, Floor, is_refused, needs_ipv6, serve_one

SLOTS = {"scheduling": "slots", "ordinal": 0}

linux = pytest.mark.skipif(sys.platform != "linux", reason="SO_REUSEPORT groups are Linux's")


@pytest.fixture
def floor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Floor]:
    monkeypatch.delenv("MPCLUSTER_SCHEDULING", raising=False)
    floor = Floor()
    yield floor
    floor.close()
    assert floor.clock.pending == 0


def policy_of(floor: Floor) -> Policy:
    (listener,) = floor.registry.listeners
    return listener._policy


# -- the choice ------------------------------------------------------------------------------


@pytest.fixture
def unbound(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.delenv("MPCLUSTER_SCHEDULING", raising=False)
    with socket.socket() as sock:
        yield sock


@linux
@pytest.mark.parametrize(
    ("wanted", "event_loop", "policy"),
    [
        (None, False, Shared),
        (None, True, Slots),
        ("auto", False, Shared),
        ("auto", True, Slots),
        ("shared", True, Shared),
        ("slots", False, Slots),
    ],
)
def test_a_policy_is_chosen_by_name(unbound, wanted, event_loop, policy):
    assert scheduling.choose(wanted, unbound, event_loop=event_loop) is policy


@linux
def test_the_environment_names_the_default(unbound, monkeypatch):
    monkeypatch.setenv("MPCLUSTER_SCHEDULING", "slots")
    assert scheduling.choose(None, unbound, event_loop=False) is Slots


def test_a_name_that_was_given_is_stronger_than_the_environment(unbound, monkeypatch):
    monkeypatch.setenv("MPCLUSTER_SCHEDULING", "slots")
    assert scheduling.choose("shared", unbound, event_loop=True) is Shared


def test_an_unknown_name_is_told_the_choices(unbound):
    with pytest.raises(ValueError, match="'auto', 'shared', 'slots'"):
        scheduling.choose("fastest", unbound, event_loop=False)


def test_an_unknown_name_in_the_environment_is_told_where_it_stands(monkeypatch):
    monkeypatch.setenv("MPCLUSTER_SCHEDULING", "fastest")
    with pytest.raises(ValueError, match="MPCLUSTER_SCHEDULING"):
        scheduling.check(None)


def test_what_cannot_be_a_policy_is_refused():
    with pytest.raises(TypeError, match="no scheduling policy"):
        scheduling.check(42)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_UNIX, socket.SOCK_DGRAM),
    ],
)
def test_slots_are_shared_where_there_can_be_none(family, kind):
    with socket.socket(family, kind) as sock:
        assert scheduling.choose("slots", sock, event_loop=True) is Shared


def test_a_socket_that_listens_already_is_shared(unbound):
    unbound.bind(LOCAL)
    unbound.listen()
    assert scheduling.choose("slots", unbound, event_loop=True) is Shared


def test_all_workers_of_one_address_use_the_policy_of_its_first_asker(floor):
    floor[1].bind(LOCAL, ordinal=0, scheduling="shared")
    floor[2].bind(LOCAL, ordinal=0, scheduling="slots", event_loop=True)
    assert repr(policy_of(floor)) == "<Shared users=[(1,), (2,)]>"


class Counting(Shared):
    """A policy of a user's own."""


def test_a_policy_of_ones_own(floor):
    floor[1].bind(LOCAL, ordinal=0, scheduling=Counting)
    assert type(policy_of(floor)) is Counting


class Broken(Shared):
    def add(self, *args: object) -> socket.socket:
        raise RuntimeError("not today")


def test_a_policy_of_ones_own_that_fails_keeps_nothing(floor):
    before = descriptors.owned()
    with pytest.raises(RuntimeError, match="not today"):
        floor[1].bind(LOCAL, ordinal=0, scheduling=Broken)
    assert descriptors.owned() == before
    assert floor.registry.listeners == []


def never(kept: object) -> Policy:
    raise RuntimeError("not at all")


def test_a_policy_of_ones_own_that_cannot_be_made_keeps_nothing(floor):
    before = descriptors.owned()
    with pytest.raises(RuntimeError, match="not at all"):
        floor[1].bind(LOCAL, ordinal=0, scheduling=never)
    assert descriptors.owned() == before


class Forgetful(Shared):
    def close(self) -> None:
        """Does not close its sockets."""


def test_a_policy_of_ones_own_that_forgets_to_close_leaves_no_listener(floor):
    address = floor[1].bind(LOCAL, ordinal=0, scheduling=Forgetful).getsockname()
    floor[1].leave()
    assert is_refused(address)


# -- shared ----------------------------------------------------------------------------------


def test_shared_has_nothing_to_drain(floor):
    floor[1].bind(LOCAL, ordinal=0)
    assert floor.registry.drain((1,)) == []


# -- steering --------------------------------------------------------------------------------


def run(code: bytes, random: int) -> int:
    """What the program returns for this random number: the four instructions that it may use."""
    instructions = list(struct.iter_unpack("HBBI", code))
    at = accumulator = 0
    while True:
        opcode, if_equal, if_not, operand = instructions[at]
        at += 1
        if opcode == 0x20:
            assert operand == 0xFFFFF038
            accumulator = random
        elif opcode == 0x94:
            accumulator %= operand
        elif opcode == 0x15:
            at += if_equal if accumulator == operand else if_not
        elif opcode == 0x06:
            return operand
        else:
            raise AssertionError(hex(opcode))


@pytest.mark.parametrize("indices", [[0], [3], [0, 1], [1, 4, 7], list(range(64))])
def test_a_program_deals_evenly_between_the_slots_that_it_names(indices):
    code = steering.program(indices)
    dealt = [run(code, number) for number in range(10 * len(indices))]
    assert dealt == indices * 10


def test_a_program_that_names_none_is_refused():
    with pytest.raises(ValueError, match="names no socket"):
        steering.program([])


# -- slots -----------------------------------------------------------------------------------


def queues(floor: Floor) -> list[int]:
    policy = policy_of(floor)
    assert isinstance(policy, Slots)
    return [queued(slot.socket) for slot in policy._slots]


@linux
class TestSlots:
    def test_every_worker_has_a_queue_of_its_own(self, floor):
        one = floor[1].bind(LOCAL, **SLOTS, listen=128)
        floor[2].bind(LOCAL, **SLOTS, listen=128)
        clients = floor.connect(one, 64)  # all in one queue: once in 2 ** 63 runs
        waiting = queues(floor)
        assert sum(waiting) == len(clients)
        assert min(waiting) > 0

    def test_the_kernel_has_the_slots_in_the_masters_order(self, floor):
        sockets = [floor[n].bind(LOCAL, **SLOTS, listen=128) for n in range(4)]
        for n in range(4):
            steering.steer(sockets[0], [n])
            floor.connect(sockets[0], n + 1)
        assert queues(floor) == [1, 2, 3, 4]

    def test_every_asker_keeps_its_own_socket(self, floor):
        for n in (1, 2, 3):
            floor[n].bind(LOCAL, **SLOTS)
            assert floor[n].last.socket is None

    def test_a_stranger_who_has_the_port_already_keeps_it(self, floor):
        """The first bind is without SO_REUSEPORT, even where the stranger has it."""
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            stranger.bind(LOCAL)
            stranger.listen()
            with pytest.raises(OSError, match="in use") as caught:
                floor[1].bind(stranger.getsockname(), scheduling="slots")
        assert caught.value.errno == errno.EADDRINUSE

    def test_a_stranger_who_comes_later_does_not_get_the_port(self, floor):
        floor[1].bind(LOCAL, **SLOTS)
        own = floor[2].bind(LOCAL, **SLOTS)
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(own.getsockname())

    def test_the_master_listens_though_the_worker_said_nothing_of_it(self, floor):
        """The kernel's index is the order of listen(), so it cannot be left to workers."""
        own = floor[1].bind(LOCAL, **SLOTS, listen=None)
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1

    def test_a_worker_may_listen_again(self, floor):
        one = floor[1].bind(LOCAL, **SLOTS)
        floor[2].bind(LOCAL, **SLOTS).listen(5)
        one.listen(5)
        steering.steer(one, [1])
        floor.connect(one, 3)
        assert queues(floor) == [0, 3]

    def test_a_socket_that_was_bound_already_gets_a_slot(self, floor):
        """Its port is another; one is made in its place, with the options of the first."""
        first = socket.socket()
        first.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        address = floor[1].bind(LOCAL, **SLOTS, own=first).getsockname()
        own = socket.socket()
        own.bind(LOCAL)
        assert floor[2].bind(LOCAL, **SLOTS, own=own).getsockname() == address
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert queues(floor) == [0, 0]

    def test_where_no_further_slot_can_be_bound_workers_share_one(self, floor, monkeypatch, caplog):
        monkeypatch.setattr(slots, "_join", lambda *args: False)
        one = floor[1].bind(LOCAL, **SLOTS)
        with caplog.at_level(logging.WARNING, "mpcluster"):
            other = floor[2].bind(LOCAL, **SLOTS)
        clients = floor.connect(one, 2)
        serve_one(one)
        serve_one(other)
        assert [client.recv(6) for client in clients] == [b"served", b"served"]
        assert "no further slot" in caplog.text

    @needs_ipv6
    def test_ipv6_has_slots(self, floor):
        address = ("::1", 0)
        one = floor[1].bind(address, **SLOTS, family=socket.AF_INET6)
        other = floor[2].bind(address, **SLOTS, family=socket.AF_INET6)
        assert one.getsockname() == other.getsockname()
        assert queues(floor) == [0, 0]

    def test_a_replacement_inherits_the_queue_of_its_predecessor(self, floor):
        address = floor[1].bind(LOCAL, **SLOTS).getsockname()
        clients = floor.connect(address, 3)
        floor[1].crash()
        replacement = floor[2].bind(LOCAL, **SLOTS)
        for _ in clients:
            serve_one(replacement)
        assert [client.recv(6) for client in clients] == [b"served"] * 3

    def test_new_connections_avoid_the_slot_of_a_dead_worker(self, floor):
        floor[1].bind(LOCAL, **SLOTS)
        own = floor[2].bind(LOCAL, **SLOTS, listen=128)
        floor[1].crash()
        floor.connect(own, 40)
        assert queues(floor) == [0, 40]

    def test_with_all_workers_dead_connections_wait_for_the_first_replacement(self, floor):
        address = floor[1].bind(LOCAL, **SLOTS, listen=128).getsockname()
        floor[2].bind(LOCAL, **SLOTS, listen=128)
        floor[1].crash()
        floor[2].crash()
        floor.connect(address, 40)
        replacement = floor[3].bind(LOCAL, **SLOTS)
        assert queued(replacement) == 40

    def test_the_longest_queue_is_inherited_first(self, floor):
        sockets = [floor[n].bind(LOCAL, **SLOTS) for n in range(3)]
        for n, times in enumerate([1, 2, 0]):
            steering.steer(sockets[0], [n])
            floor.connect(sockets[0], times)
        floor[0].crash()
        floor[1].crash()
        assert queued(floor[3].bind(LOCAL, **SLOTS)) == 2

    def test_as_many_slots_as_there_were_users_at_once(self, floor):
        floor[0].bind(LOCAL, **SLOTS)
        for n in range(1, 20):
            floor[n].bind(LOCAL, **SLOTS)
            floor[n].leave() if n % 2 else floor[n].crash()
        assert len(queues(floor)) == 2

    def test_a_queue_that_nobody_came_for_ends_after_the_grace(self, floor):
        own = floor[1].bind(LOCAL, **SLOTS)
        floor[2].bind(LOCAL, **SLOTS)
        steering.steer(own, [0])
        clients = floor.connect(own, 2)
        floor[1].crash()
        floor.clock.wind(30.0)
        for client in clients:
            with pytest.raises(ConnectionResetError):
                client.recv(1)

    def test_a_queue_that_somebody_came_for_does_not_end(self, floor):
        own = floor[1].bind(LOCAL, **SLOTS)
        floor[2].bind(LOCAL, **SLOTS)
        steering.steer(own, [0])
        floor.connect(own, 2)
        floor[1].crash()
        replacement = floor[3].bind(LOCAL, **SLOTS)
        floor.clock.wind(30.0)
        assert queued(replacement) == 2

    def test_a_slot_left_by_will_keeps_its_queue_for_the_grace_too(self, floor):
        own = floor[1].bind(LOCAL, **SLOTS)
        floor[2].bind(LOCAL, **SLOTS)
        steering.steer(own, [0])
        floor.connect(own, 2)
        floor[1].leave()
        assert queued(floor[3].bind(LOCAL, **SLOTS)) == 2

    def test_it_closes_when_the_last_user_leaves(self, floor):
        address = floor[1].bind(LOCAL, **SLOTS).getsockname()
        floor[2].bind(LOCAL, **SLOTS)
        floor[1].leave()
        floor[2].leave()
        assert is_refused(address)

    def test_it_closes_when_the_grace_after_the_last_crash_is_over(self, floor):
        address = floor[1].bind(LOCAL, **SLOTS).getsockname()
        floor[1].crash()
        floor.clock.wind(30.0)
        assert is_refused(address)

    def test_every_kept_descriptor_is_kept_from_children(self, floor):
        before = descriptors.owned()
        for n in range(3):
            floor[n].bind(LOCAL, **SLOTS)
        assert len(descriptors.owned() - before) == 3

    def test_a_draining_worker_gets_no_new_connection(self, floor):
        floor[1].bind(LOCAL, **SLOTS)
        own = floor[2].bind(LOCAL, **SLOTS, listen=128)
        floor.registry.drain((1,))
        floor.connect(own, 40)
        assert queues(floor) == [0, 40]

    def test_a_drain_names_the_queue_to_wait_for(self, floor):
        own = floor[1].bind(LOCAL, **SLOTS)
        floor[2].bind(LOCAL, **SLOTS)
        steering.steer(own, [0])
        floor.connect(own, 1)
        (its_own,) = floor.registry.drain((1,))
        assert queued(its_own) == 1
        serve_one(own)
        assert queued(its_own) == 0

    def test_while_the_only_worker_drains_connections_wait_for_its_replacement(self, floor):
        own = floor[1].bind(LOCAL, **SLOTS)
        floor.registry.drain((1,))
        floor.connect(own, 3)
        assert queues(floor) == [0, 3]
        assert queued(floor[2].bind(LOCAL, **SLOTS)) == 3

    def test_a_drain_steers_away_from_the_workers_below(self, floor):
        floor[3, 1].bind(LOCAL, **SLOTS)
        own = floor[4].bind(LOCAL, **SLOTS, listen=128)
        floor.registry.drain((3,))
        floor.connect(own, 40)
        assert queues(floor) == [0, 40]

    def test_a_worker_that_drains_gets_no_connection_by_what_it_binds_meanwhile(self, floor):
        own = floor[1].bind(LOCAL, **SLOTS, listen=128)
        floor.registry.drain((2,))
        floor[2].bind(LOCAL, **SLOTS, listen=128)
        floor.connect(own, 40)
        assert queues(floor) == [40, 0]

    def test_a_worker_that_has_drained_and_left_is_forgotten(self, floor):
        own = floor[1].bind(LOCAL, **SLOTS, listen=128)
        floor.registry.drain((2,))
        floor[2].leave()
        floor[2].bind(LOCAL, **SLOTS, listen=128)
        steered = repr(policy_of(floor)).partition("steered=")[2]
        assert own.getsockname()
        assert steered == "[0, 1]>"

    def test_a_drain_twice_changes_nothing(self, floor):
        own = floor[1].bind(LOCAL, **SLOTS)
        assert len(floor.registry.drain((1,))) == 1
        assert len(floor.registry.drain((1,))) == 1
        assert queues(floor) == [0, 0]
        floor.connect(own, 1)
        assert queues(floor) == [0, 1]

    def test_the_master_that_holds_it_takes_no_connections_from_workers(self, floor):
        with socket.socket() as own:
            floor[1].bind(LOCAL, **SLOTS, listen=128)
            key = floor[1].last.key
            floor.registry.hold(Bind(key, own)).socket.close()
            floor.connect(floor[1].last.sockname, 40)
            assert queues(floor) == [40]
        floor[1].leave()
        assert not is_refused(floor[1].last.sockname)
        floor.registry.handle((), Release(key))
        assert is_refused(floor[1].last.sockname)

    def test_connections_wait_as_long_as_the_master_holds_it(self, floor):
        floor[1].bind(LOCAL, **SLOTS)
        key, address = floor[1].last.key, floor[1].last.sockname
        with socket.socket() as own:
            floor.registry.hold(Bind(key, own)).socket.close()
        floor[1].crash()
        floor.connect(address, 2)
        floor.clock.wind(300.0)
        assert queued(floor[2].bind(LOCAL, **SLOTS)) == 2

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_a_slot_that_was_shut_down_leaves_the_others_in_their_order(self, floor, which):
        """The kernel moves its last socket into the gap; programs name the new places."""
        sockets = [floor[n].bind(LOCAL, **SLOTS, listen=128) for n in range(3)]
        sockets[which].shutdown(socket.SHUT_RDWR)
        floor[which].leave()
        rest = [n for n in range(3) if n != which]
        floor.registry.drain((rest[0],))
        floor.connect(sockets[rest[1]], 40)
        assert queued(sockets[rest[1]]) == 40

    def test_a_socket_that_turned_out_to_be_a_clients_is_parted_with(self, floor):
        floor[1].bind(LOCAL, **SLOTS)
        own = floor[2].bind(LOCAL, **SLOTS)
        own.shutdown(socket.SHUT_RDWR)
        with socket.socket() as server:
            server.bind(LOCAL)
            server.listen()
            own.connect(server.getsockname())
            floor.registry.handle((2,), Release(floor[2].last.key))
            assert queues(floor) == [0]

    def test_an_address_whose_every_slot_was_shut_down_works_again(self, floor):
        own = floor[1].bind(LOCAL, **SLOTS)
        floor[2].bind(LOCAL, **SLOTS)
        for sharer in (floor[1], floor[2]):
            (its_own,) = sharer.sockets.values()
            its_own.shutdown(socket.SHUT_RDWR)
        again = floor[3].bind(LOCAL, **SLOTS)
        clients = floor.connect(own.getsockname())
        serve_one(again)
        assert clients[0].recv(6) == b"served"

    def test_where_the_kernel_refuses_a_program_its_hash_spreads(self, floor, monkeypatch, caplog):
        def refuse(*args: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(slots, "steer", refuse)
        with caplog.at_level(logging.WARNING, "mpcluster"):
            own = floor[1].bind(LOCAL, **SLOTS, listen=128)
            floor[2].bind(LOCAL, **SLOTS, listen=128)
        floor.connect(own, 64)
        assert sum(queues(floor)) == 64
        assert "cannot steer" in caplog.text

    def test_its_repr_shows_every_slot(self, floor):
        floor[1].bind(LOCAL, **SLOTS)
        floor[2].bind(LOCAL, **SLOTS)
        floor[3].bind(LOCAL, **SLOTS)
        floor[1].crash()
        floor.registry.drain((2,))
        assert repr(policy_of(floor)) == "<Slots 0:free 1:draining 2:live steered=[2]>"
