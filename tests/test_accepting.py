"""The accepting master: what it passes to whom, takes back, holds, and when it stops."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import socket
from collections.abc import Iterator, Sequence

import pytest

from mpcluster import scheduling
from mpcluster.scheduling import accepting, door, line, queued
from mpcluster.scheduling.accepting import Accepting
from mpcluster.scheduling.door import REST
from mpcluster.scheduling.patience import AVOIDED, RECOVERY, TICK
from mpcluster.scheduling.round_robin import RoundRobin
from mpcluster.scheduling.shared import Shared
from mpcluster.scheduling.slots import Slots
from mpcluster.scheduling.taker import Taker
from tests.dealing import Table, owned, served_by
from tests.sharers import is_refused


class Alternating(Accepting):
    """Passes on to whoever is free; nobody is waited for."""

    def pick(self, peer: object, takers: Sequence[Taker]) -> Taker:
        return min(takers, key=lambda taker: taker.turn)


@pytest.fixture(params=[Alternating, RoundRobin])
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    yield from opened(request.param)


@pytest.fixture
def single() -> Iterator[Table]:
    """Where a worker is passed one connection at a time."""
    yield from opened(Alternating)


def opened(policy: type[Accepting]) -> Iterator[Table]:
    table = Table(policy)
    yield table
    table.close()
    assert table.clock.pending == 0
    assert table.watch.callbacks == {}


@pytest.fixture
def limited() -> Iterator[Table]:
    table = Table(RoundRobin, limit=2)
    yield table
    table.close()


# -- passing on ------------------------------------------------------------------------------


def test_a_connection_reaches_a_worker(table: Table) -> None:
    worker = table.worker()
    (client,) = table.connect()
    assert served_by(client, worker.accept())


def test_the_clients_address_travels_with_it(table: Table) -> None:
    worker = table.worker()
    (client,) = table.connect()
    worker.take()
    assert worker.taken[0].peer == client.getsockname()


def test_a_connection_over_a_unix_path_is_passed_too(tmp_path) -> None:
    table = Table(RoundRobin, path=str(tmp_path / "socket"))
    worker = table.worker()
    (client,) = table.connect()
    assert served_by(client, worker.accept())
    table.close()


def test_an_accepted_connection_blocks_as_one_of_the_kernels(table: Table) -> None:
    worker = table.worker()
    table.connect()
    assert os.get_blocking(worker.accept().fileno())


def test_an_accepted_connection_is_not_inherited_by_programs_that_are_executed(
    table: Table,
) -> None:
    worker = table.worker()
    table.connect()
    assert not worker.accept().get_inheritable()


def test_the_port_is_open_from_the_first_asker_on(table: Table) -> None:
    table.worker(listens=False)
    assert not is_refused(table.address)


def test_nothing_is_passed_to_a_program_that_does_not_listen_yet(table: Table) -> None:
    worker = table.worker(listens=False)
    (client,) = table.connect()
    assert not worker.has_one
    worker.say(line.LISTEN, 128)
    assert served_by(client, worker.accept())


def test_a_worker_is_passed_one_connection_at_a_time(single: Table) -> None:
    worker = single.worker()
    clients = single.connect(3)
    first = worker.take()
    assert not worker.has_one
    worker.say(line.ACCEPTED, first)
    assert worker.has_one
    assert served_by(clients[1], worker.accept())


def test_the_master_keeps_no_copy_of_what_was_accepted(table: Table) -> None:
    worker = table.worker()
    before = owned()
    (client,) = table.connect()
    assert owned() == before + 1
    worker.accept().close()
    assert owned() == before
    assert client.recv(1) == b""


def test_two_thousand_connections_leave_no_descriptor(table: Table) -> None:
    worker = table.worker()
    before, files = owned(), len(os.listdir("/proc/self/fd"))
    for number in range(2_000):
        with socket.socket() as client:
            client.connect(table.address)
            if number % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1] + [0] * 7))
        table.watch.settle()
        worker.accept()
        worker.connections.pop().close()
    assert (owned(), len(os.listdir("/proc/self/fd"))) == (before, files)


# -- nobody free -----------------------------------------------------------------------------


def test_with_nobody_free_the_master_does_not_accept(single: Table) -> None:
    worker = single.worker()
    single.connect(20)
    assert queued(single.listener) == 19
    worker.accept()
    assert queued(single.listener) == 18


def test_with_nobody_free_nothing_wakes_the_master(single: Table) -> None:
    """Node asks a worker that is full some 7,000 times a second."""
    single.worker()
    single.connect(1)
    single.watch.calls = 0
    single.connect(100)
    assert single.watch.calls == 0
    assert not single.watches_listener


def test_without_any_worker_the_port_is_not_watched(table: Table) -> None:
    worker = table.worker()
    assert table.watches_listener
    worker.die()
    assert not table.watches_listener


def test_one_round_accepts_a_bounded_number(table: Table) -> None:
    for _ in range(accepting.AT_ONCE + 8):
        table.worker()
    for _ in range(accepting.AT_ONCE + 8):
        client = socket.create_connection(table.address)
        table.clients.append(client)
    table.watch.callbacks[table.listener.fileno()](0)
    assert queued(table.listener) == 8


# -- nothing is lost ---------------------------------------------------------------------------


def test_what_a_dead_worker_had_not_accepted_goes_to_another(table: Table) -> None:
    first, second = table.worker(), table.worker()
    (client,) = table.connect()
    assert first.has_one
    first.die()
    assert served_by(client, second.accept())


def test_what_a_dead_worker_had_not_accepted_waits_for_a_replacement(table: Table) -> None:
    only = table.worker()
    (client,) = table.connect()
    assert only.die()
    assert table.watch.settle() == 0
    assert served_by(client, table.worker().accept())


def test_what_waits_is_served_before_what_comes_later(table: Table) -> None:
    only = table.worker()
    first, second = table.connect(2)
    only.die()
    replacement = table.worker()
    assert served_by(first, replacement.accept())
    assert served_by(second, replacement.accept())


def test_a_worker_that_died_between_taking_and_saying_so_loses_nothing(table: Table) -> None:
    first, second = table.worker(), table.worker()
    (client,) = table.connect()
    first.take()
    first.die()
    assert served_by(client, second.accept())


def test_what_a_worker_accepted_just_before_its_death_is_given_to_nobody_else(
    table: Table,
) -> None:
    first, second = table.worker(), table.worker()
    (client,) = table.connect()
    line.say(first.end, line.ACCEPTED, first.take())  # the master has not heard it yet
    first.die()
    assert not second.has_one
    assert client.recv(1) == b""


def test_a_draining_worker_gives_back_what_it_has_not_accepted(table: Table) -> None:
    first, second = table.worker(), table.worker()
    (client,) = table.connect()
    assert table.policy.drain(first.route) == []
    assert not first.has_one
    assert served_by(client, second.accept())


def test_a_draining_worker_is_passed_nothing_more(table: Table) -> None:
    first, second = table.worker(), table.worker()
    table.policy.drain(first.route)
    table.policy.drain(first.route)
    for client in [table.connect()[0] for _ in range(3)]:
        assert served_by(client, second.accept())


def test_what_a_draining_worker_is_just_accepting_stays_its_own(table: Table) -> None:
    first, second = table.worker(), table.worker()
    table.connect()
    number = first.take()
    table.policy.drain(first.route)
    first.say(line.ACCEPTED, number)
    first.leave()
    assert not second.has_one


def test_a_program_that_closes_its_listener_gives_back_what_it_has_not_accepted(
    table: Table,
) -> None:
    first, second = table.worker(), table.worker()
    (client,) = table.connect()
    first.leave()
    assert served_by(client, second.accept())


def test_what_waits_ends_with_the_listener(table: Table) -> None:
    only = table.worker()
    (client,) = table.connect()
    only.die()
    table.policy.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_to_close_it_twice_changes_nothing(table: Table) -> None:
    table.worker()
    table.policy.close()
    table.policy.close()


def test_the_last_one_says_so(table: Table) -> None:
    first, second = table.worker(), table.worker()
    assert not first.die()
    assert second.leave()


# -- out of descriptors, out of room -------------------------------------------------------------


def fail(monkeypatch: pytest.MonkeyPatch, code: int) -> list[int]:
    """Let ``accept`` fail; how often it was tried."""
    tries: list[int] = []

    def failing(listener: socket.socket) -> tuple[int, object]:
        tries.append(code)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(door, "_accept", failing)
    return tries


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_out_of_descriptors_the_master_rests_and_then_goes_on(
    table: Table, monkeypatch, caplog, code: int
) -> None:
    worker = table.worker()
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "mpcluster"):
        tries = fail(patched, code)
        (client,) = table.connect()
        assert (len(tries), table.watches_listener) == (1, False)
        table.wind(REST)
        table.wind(REST)
        assert len(tries) == 3
    assert len(caplog.records) == 1
    table.wind(REST)
    assert served_by(client, worker.accept())


def test_a_connection_that_was_aborted_in_the_queue_stops_nothing(table, monkeypatch) -> None:
    worker = table.worker()
    real, codes = door._accept, [errno.ECONNABORTED, errno.EPROTO]

    def failing_twice(listener: socket.socket) -> tuple[int, object]:
        if codes:
            raise OSError(codes.pop(), "aborted")
        return real(listener)

    monkeypatch.setattr(door, "_accept", failing_twice)
    (client,) = table.connect()
    assert served_by(client, worker.accept())


def test_what_a_worker_has_no_descriptor_for_goes_to_another(table: Table) -> None:
    first, second = table.worker(), table.worker()
    (client,) = table.connect()
    first.say(line.REFUSED, first.take())
    assert served_by(client, second.accept())


def test_what_the_only_worker_has_no_descriptor_for_is_tried_again_later(table: Table) -> None:
    only = table.worker()
    (client,) = table.connect()
    table.watch.calls = 0
    only.say(line.REFUSED, only.take())
    assert table.watch.calls == 1  # the word itself
    assert not only.has_one
    table.wind(RECOVERY)
    assert served_by(client, only.accept())


def test_where_the_kernel_has_no_room_on_the_line_another_gets_it(
    table: Table, monkeypatch, caplog
) -> None:
    first, second = table.worker(), table.worker()
    real, refused = line.hand_over, [first]

    def without_room(*args) -> None:
        if refused:
            refused.pop()
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        real(*args)

    monkeypatch.setattr(line, "hand_over", without_room)
    (client,) = table.connect()
    assert served_by(client, second.accept())
    assert "could not be passed" in caplog.text


# -- one that lets them lie ------------------------------------------------------------------------


def test_what_a_worker_lets_lie_goes_to_one_that_is_free(table: Table) -> None:
    stopped, other = table.worker(), table.worker()
    (client,) = table.connect()
    assert stopped.has_one
    table.wind(TICK)
    table.wind(TICK)
    assert not stopped.has_one
    assert served_by(client, other.accept())


def test_what_a_worker_lets_lie_goes_to_one_that_becomes_free(table: Table) -> None:
    stopped, other = table.worker(), table.worker()
    first, second = table.connect(2)
    table.wind(TICK)
    table.wind(TICK)
    assert stopped.has_one
    assert served_by(second, other.accept())
    assert served_by(first, other.accept())


def test_while_there_is_nobody_else_nobody_looks(table: Table) -> None:
    table.worker()
    table.connect()
    table.wind(TICK)
    table.wind(TICK)
    assert table.clock.pending == 0


def test_one_that_let_them_lie_is_avoided_and_after_a_while_tried_again(table: Table) -> None:
    stopped, other = table.worker(), table.worker()
    table.connect()
    for _ in range(2):
        table.wind(TICK)
    other.accept()
    for _ in range(2):
        table.connect()
        other.accept()
    for _ in range(AVOIDED):
        table.wind(TICK)
    table.connect()
    assert stopped.has_one


def test_one_that_fails_again_is_avoided_for_longer(single: Table) -> None:
    stopped, other = single.worker(), single.worker()
    for times in range(6):
        single.connect(1 if times else 2)
        if not times:
            other.accept()
        for _ in range(2):
            assert stopped.has_one
            single.wind(TICK)
        assert not stopped.has_one
        other.accept()
        for _ in range(min(AVOIDED, 2**times)):
            single.connect()
            assert not stopped.has_one
            other.accept()
            single.wind(TICK)


def test_one_that_let_them_lie_is_better_than_nobody(single: Table) -> None:
    stopped, other = single.worker(), single.worker()
    single.connect()
    for _ in range(2):
        single.wind(TICK)
    assert other.has_one
    single.connect()
    assert stopped.has_one


# -- a limit ---------------------------------------------------------------------------------------


def test_a_worker_has_no_more_connections_than_it_may(limited: Table) -> None:
    worker = limited.worker()
    limited.connect(5)
    worker.accept()
    worker.accept()
    assert not worker.has_one
    assert queued(limited.listener) == 3


def test_a_full_worker_is_not_asked_again_until_a_connection_ends(limited: Table) -> None:
    worker = limited.worker()
    limited.connect(5)
    worker.accept()
    worker.accept()
    limited.watch.calls = 0
    limited.connect(20)
    assert limited.watch.calls == 0
    worker.close_one()
    assert worker.has_one


def test_a_full_worker_leaves_connections_to_others(limited: Table) -> None:
    full, other = limited.worker(), limited.worker()
    for worker in (full, other, full):
        limited.connect()
        worker.accept()
    limited.connect()
    assert (full.has_one, other.has_one) == (False, True)


def test_the_death_of_a_full_worker_leaves_its_replacement_all_its_room(limited: Table) -> None:
    worker = limited.worker()
    limited.connect(4)
    worker.accept()
    worker.accept()
    worker.die()
    replacement = limited.worker()
    replacement.accept()
    replacement.accept()
    assert not replacement.has_one


@pytest.fixture
def unbound() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        yield sock


def test_with_a_limit_auto_lets_the_master_accept(unbound, monkeypatch) -> None:
    monkeypatch.delenv("MPCLUSTER_SCHEDULING", raising=False)
    chosen = scheduling.choose("auto", unbound, event_loop=True, max_connections=1)
    assert chosen is RoundRobin


@pytest.mark.parametrize("name", ["shared", "slots"])
def test_a_policy_that_cannot_keep_to_a_limit_refuses_it(name: str) -> None:
    with pytest.raises(ValueError, match="max_connections=5 cannot be kept"):
        scheduling.check(name, 5)


# -- who cannot be passed anything -----------------------------------------------------------------


def test_an_event_loop_that_accepts_in_c_gets_slots_and_a_warning(unbound, caplog) -> None:
    chosen = scheduling.choose("round_robin", unbound, event_loop=True, in_c=True)
    assert chosen is Slots
    assert "uvloop" in caplog.text


def test_datagrams_are_shared() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        assert scheduling.choose("round_robin", sock, event_loop=False) is Shared


def test_one_that_accepts_in_c_may_join_the_others(table: Table) -> None:
    """As when a reload brings uvloop in."""
    old = table.worker()
    listener = table.policy.add_direct((9,), None)
    table.policy.drain(old.route)
    (client,) = table.connect()
    assert listener is not None
    assert served_by(client, table_accept(listener, table))
    assert not table.policy.remove((9,), crashed=False)


def table_accept(listener: socket.socket, table: Table) -> socket.socket:
    connection, _ = listener.accept()
    table.clients.append(connection)
    return connection


def test_the_master_that_holds_it_gets_the_listener_itself(table: Table) -> None:
    assert table.policy.add((), table.listener, None) is table.listener
    assert not table.watches_listener
    assert table.policy.remove((), crashed=False)


# -- a policy of one's own, and nonsense -------------------------------------------------------------


class Failing(Accepting):
    def pick(self, peer: object, takers: Sequence[Taker]) -> Taker:
        raise RuntimeError("not today")


class Stranger(Accepting):
    def pick(self, peer: object, takers: Sequence[Taker]) -> Taker:
        return dataclasses.replace(takers[0])


@pytest.mark.parametrize("policy", [Failing, Stranger])
def test_a_policy_of_ones_own_that_fails_stops_nothing(policy: type[Accepting], caplog) -> None:
    table = Table(policy)
    worker = table.worker()
    (client,) = table.connect()
    assert served_by(client, worker.accept())
    assert policy.__name__ in caplog.text
    table.close()


class Fixed(Accepting):
    """A policy of one's own, as in docs/scheduling.md."""

    def pick(self, peer: object, takers: Sequence[Taker]) -> Taker:
        return takers[-1]


def test_a_policy_of_ones_own_needs_one_method() -> None:
    table = Table(Fixed)
    _, last = table.worker(), table.worker()
    (client,) = table.connect()
    assert served_by(client, last.accept())
    table.close()


@pytest.mark.parametrize("said", [b"?" + bytes(8), b"short"])
def test_what_is_no_word_is_logged_and_ignored(table: Table, caplog, said: bytes) -> None:
    worker = table.worker()
    worker.end.send(said)
    (client,) = table.connect()
    assert served_by(client, worker.accept())
    assert "word" in caplog.text


def test_an_acceptance_of_what_was_never_passed_is_ignored(table: Table) -> None:
    worker = table.worker()
    worker.say(line.ACCEPTED, 12345)
    (client,) = table.connect()
    assert served_by(client, worker.accept())


def test_its_repr_shows_who_takes_part(single: Table) -> None:
    first, _ = single.worker(), single.worker()
    single.policy.drain(first.route)
    single.connect()
    assert repr(single.policy) == (
        "<Alternating not accepting 0 waiting "
        "[<Taker 0:(2,) not free 1+0>, <Taker 1:(1,) draining 0+0>]>"
    )
