"""No forked child keeps what is the master's."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from mpcluster import descriptors


def in_child(function: Callable[[], object]) -> str:
    """Fork, call the function in the child, return the repr of what it returned."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "raised nothing, returned nothing"
        try:
            text = repr(function())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    yield one, other
    descriptors.close(one)
    descriptors.close(other)


def test_a_child_has_closed_what_is_owned(pair):
    descriptors.own(pair[0])
    number = pair[0].fileno()
    assert in_child(lambda: is_open(number)) == "False"


def test_a_child_has_what_is_not_owned(pair):
    number = pair[0].fileno()
    assert in_child(lambda: is_open(number)) == "True"


def test_a_bare_number_is_closed_too(pair):
    number = pair[0].fileno()
    descriptors.own(number)
    assert in_child(lambda: is_open(number)) == "False"


def test_disowned_is_inherited_again(pair):
    descriptors.own(pair[0])
    descriptors.disown(pair[0])
    number = pair[0].fileno()
    assert in_child(lambda: is_open(number)) == "True"


def test_the_parent_keeps_what_it_owns(pair):
    descriptors.own(pair[0])
    in_child(lambda: None)
    pair[0].send(b"x")
    assert pair[1].recv(1) == b"x"


def test_kept_for_the_fork_of_this_thread(pair):
    descriptors.own(pair[0])
    number = pair[0].fileno()
    with descriptors.keep(number):
        assert in_child(lambda: is_open(number)) == "True"


def test_keep_names_no_more_than_it_says(pair):
    descriptors.own(pair[0])
    descriptors.own(pair[1])
    number = pair[1].fileno()
    with descriptors.keep(pair[0].fileno()):
        assert in_child(lambda: is_open(number)) == "False"


def test_keep_ends_with_its_block(pair):
    descriptors.own(pair[0])
    number = pair[0].fileno()
    with descriptors.keep(number):
        pass
    assert in_child(lambda: is_open(number)) == "False"


def test_keep_of_one_thread_is_not_another_ones(pair):
    descriptors.own(pair[0])
    number = pair[0].fileno()
    seen: list[str] = []
    with descriptors.keep(number):
        other = threading.Thread(target=lambda: seen.append(in_child(lambda: is_open(number))))
        other.start()
        other.join()
    assert seen == ["False"]


def test_what_a_child_keeps_its_own_children_do_not(pair):
    descriptors.own(pair[0])
    number = pair[0].fileno()
    with descriptors.keep(number):
        assert in_child(lambda: in_child(lambda: is_open(number))) == repr("False")


def test_an_object_in_the_child_cannot_close_a_stranger_later(pair):
    """Its number is taken by another by then; the object must not know it any more."""
    descriptors.own(pair[0])

    def child() -> bool:
        stranger = os.open(os.devnull, os.O_RDONLY)
        os.dup2(stranger, number)
        pair[0].close()
        return is_open(number)

    number = pair[0].fileno()
    assert in_child(child) == "True"


def test_a_connection_is_closed_as_an_object():
    reading, writing = multiprocessing.Pipe(duplex=False)
    descriptors.own(reading)
    try:
        assert in_child(lambda: reading.closed) == "True"
    finally:
        descriptors.close(reading)
        writing.close()


def test_an_object_closed_without_a_word_costs_no_stranger_its_descriptor():
    one, other = socket.socketpair()
    descriptors.own(one)
    number = one.fileno()
    one.close()
    os.dup2(other.fileno(), number)
    try:
        assert in_child(lambda: is_open(number)) == "True"
    finally:
        os.close(number)
        descriptors.disown(number)
        other.close()


def test_an_object_that_was_collected_costs_no_stranger_its_descriptor():
    one, other = socket.socketpair()
    descriptors.own(one)
    number = one.detach()
    del one
    try:
        assert in_child(lambda: is_open(number)) == "True"
    finally:
        descriptors.disown(number)
        os.close(number)
        other.close()


def test_a_bare_number_is_owned_whatever_was_closed_under_it_without_a_word():
    gone = socket.socket()
    number = gone.fileno()
    descriptors.own(gone)
    gone.close()
    made = os.open(os.devnull, os.O_RDONLY)
    if made != number:
        os.dup2(made, number)
        os.close(made)
    descriptors.own(number)
    assert number in descriptors.owned()
    descriptors.close(number)


def test_close_disowns(pair):
    descriptors.own(pair[0])
    number = pair[0].fileno()
    descriptors.close(pair[0])
    assert number not in descriptors.owned()


def test_close_of_a_closed_object_is_no_error(pair):
    descriptors.own(pair[0])
    descriptors.close(pair[0])
    descriptors.close(pair[0])


def test_a_closed_object_cannot_be_owned():
    closed = socket.socket()
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        descriptors.own(closed)


def test_no_other_thread_forks_while_descriptors_are_opened(pair):
    """The fork waits for the end of the block, so its child knows what was opened."""
    about_to_fork = threading.Event()
    seen: list[str] = []

    def fork() -> None:
        about_to_fork.set()
        seen.append(in_child(lambda: is_open(number)))

    with descriptors.opening():
        number = pair[0].fileno()
        forking = threading.Thread(target=fork)
        forking.start()
        about_to_fork.wait()
        descriptors.own(pair[0])  # not before the thread tries, and in time all the same
    forking.join()
    assert seen == ["False"]


def test_the_thread_that_opens_may_fork_itself(pair):
    descriptors.own(pair[0])
    number = pair[0].fileno()
    with descriptors.opening():
        assert in_child(lambda: is_open(number)) == "False"


def test_a_child_forked_inside_the_block_can_leave_it(pair):
    def child() -> str:
        inside.close()
        with descriptors.opening():
            return "left and entered again"

    inside = contextlib.ExitStack()
    with inside:
        inside.enter_context(descriptors.opening())
        assert in_child(child) == repr("left and entered again")


def test_a_child_can_use_the_table_whoever_held_the_lock(pair):
    """The lock is the forking thread's at the fork, which gives it back in the child."""

    def child() -> bool:
        done = threading.Thread(target=lambda: descriptors.own(pair[1]))
        done.start()
        done.join()
        return pair[1].fileno() in descriptors.owned()

    assert in_child(child) == "True"


def test_a_fork_gives_the_lock_back_in_the_parent():
    """After one that failed, too: `test_forking.py`."""
    in_child(lambda: None)
    entered = threading.Event()

    def enter() -> None:
        with descriptors.opening():
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered.is_set()


def test_numbers_are_owned_and_closed_together():
    numbers = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    with descriptors.opening():
        descriptors.own_numbers(*numbers)
    assert descriptors.owned() >= set(numbers)
    assert in_child(lambda: [is_open(number) for number in numbers]) == "[False, False]"
    descriptors.close_numbers(*numbers, -1)
    assert not [number for number in numbers if is_open(number)]
    assert not descriptors.owned() & set(numbers)
