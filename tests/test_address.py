"""What users write is what the kernel gets; what is wrong is told what would be right."""

from __future__ import annotations

import errno
import os
import pathlib
import pickle
import socket

import pytest

from mpcluster.address import Address, failure, make_key, parse


@pytest.mark.parametrize(
    ("given", "family", "sockaddr"),
    [
        (8000, socket.AF_INET, ("0.0.0.0", 8000)),
        (0, socket.AF_INET, ("0.0.0.0", 0)),
        (("", 8000), socket.AF_INET, ("0.0.0.0", 8000)),
        ((None, 8000), socket.AF_INET, ("0.0.0.0", 8000)),
        (["127.0.0.1", 80], socket.AF_INET, ("127.0.0.1", 80)),
        (("localhost", 80), socket.AF_INET, ("127.0.0.1", 80)),
        (("::1", 80), socket.AF_INET6, ("::1", 80, 0, 0)),
        (("0:0::1", 80, 0, 0), socket.AF_INET6, ("::1", 80, 0, 0)),
        ("/run/app.sock", socket.AF_UNIX, "/run/app.sock"),
        ("unix:/run/app.sock", socket.AF_UNIX, "/run/app.sock"),
        ("unix:///run/app.sock", socket.AF_UNIX, "/run/app.sock"),
        ("unix:app.sock", socket.AF_UNIX, os.path.abspath("app.sock")),
        ("./app.sock", socket.AF_UNIX, os.path.abspath("app.sock")),
        (pathlib.Path("app.sock"), socket.AF_UNIX, os.path.abspath("app.sock")),
        (b"/run/app.sock", socket.AF_UNIX, "/run/app.sock"),
        ("\0name", socket.AF_UNIX, b"\0name"),
    ],
)
def test_an_address_means(given, family, sockaddr):
    assert parse(given) == (family, sockaddr)


def test_a_port_alone_with_ipv6_means_all_ipv6_interfaces():
    assert parse(80, family=socket.AF_INET6) == (socket.AF_INET6, ("::", 80, 0, 0))


def test_the_family_chooses_between_the_addresses_of_a_name():
    assert parse(("localhost", 80), family=socket.AF_INET)[1] == ("127.0.0.1", 80)


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ("8000", ValueError, "did you mean 8000?"),
        ("localhost:80", ValueError, r"did you mean \('localhost', 80\)\?"),
        ("localhost", ValueError, "a path needs a slash"),
        ("", ValueError, "give"),
        ("unix:", ValueError, "empty path"),
        (("localhost",), ValueError, r"give \(host, port\)"),
        (("localhost", 1, 2, 3, 4), ValueError, r"give \(host, port\)"),
        (("localhost", "80"), TypeError, "is no int"),
        (("localhost", True), TypeError, "is no int"),
        ((8000, "localhost"), TypeError, "is no text"),
        (70000, ValueError, r"0\.\.65535"),
        (-1, ValueError, r"0\.\.65535"),
        (True, TypeError, r"give \(host, port\)"),
        (None, TypeError, r"give \(host, port\)"),
        (80.0, TypeError, r"give \(host, port\)"),
        ("/" + "long" * 30, ValueError, "too long"),
    ],
)
def test_a_wrong_address_is_told_what_is_right(given, error, told):
    with pytest.raises(error, match=told):
        parse(given)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("/run/app.sock", {"family": socket.AF_INET}),
        (80, {"family": socket.AF_UNIX}),
        (80, {"family": 12345}),
        (80, {"kind": socket.SOCK_RAW}),
        (80, {"kind": socket.SOCK_SEQPACKET}),
    ],
)
def test_options_that_do_not_fit_the_address_are_refused(given, options):
    with pytest.raises(ValueError, match=r"family|type"):
        parse(given, **options)


def test_an_unknown_host_is_named(monkeypatch):
    def unknown(*args: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(socket.gaierror) as caught:
        parse(("no.such.host", 80))
    assert "no.such.host" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((2, 1, 0, ("", 80)), (2, 1, 6, ("0.0.0.0", 80))),
        ((2, 2, 17, ("127.0.0.1", 80)), (2, 2, 0, ("localhost", 80))),
        ((10, 1, 0, ("::1", 80)), (10, 1, 0, ("0::1", 80, 0, 0))),
        ((10, 1, 0, ("", 80)), (10, 1, 0, ("::", 80))),
        ((1, 1, 0, "x.sock"), (1, 1, 0, os.path.abspath("x.sock"))),
        ((1, 1, 0, b"/x"), (1, 1, 0, "/x")),
        ((1, 1, 0, "\0x"), (1, 1, 0, b"\0x")),
    ],
)
def test_two_ways_to_say_one_address_are_one_key(one, other):
    assert make_key(*one) == make_key(*other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((2, 1, 0, ("127.0.0.1", 80)), (2, 1, 0, ("127.0.0.2", 80))),
        ((2, 1, 0, ("127.0.0.1", 80)), (2, 2, 0, ("127.0.0.1", 80))),
        ((2, 1, 0, ("", 0), 0), (2, 1, 0, ("", 0), 1)),
    ],
)
def test_two_addresses_are_two_keys(one, other):
    assert make_key(*one) != make_key(*other)


def test_a_key_has_plain_ints_so_that_it_prints_short():
    key = make_key(socket.AF_INET, socket.SOCK_STREAM, 0, ("", 80))
    assert [type(field) for field in key[:3]] == [int, int, int]


def test_port_0_needs_an_ordinal():
    with pytest.raises(ValueError, match="port 0"):
        make_key(2, 1, 0, ("", 0))


@pytest.mark.parametrize("address", [("127.0.0.1", 70000), 8000, ("127.0.0.1", "80"), (1, 2)])
def test_a_key_of_an_address_that_bind_refuses_raises_as_bind_does(address):
    with socket.socket() as sock:
        with pytest.raises((TypeError, OverflowError)) as binds:
            sock.bind(address)
        with pytest.raises(binds.type):
            make_key(2, 1, 0, address)


def test_families_that_are_not_shared_have_no_key():
    with pytest.raises(ValueError, match="not shared"):
        make_key(16, 3, 0, (0, 0))


@pytest.mark.parametrize(
    ("family", "sockname", "address", "text"),
    [
        (2, ("127.0.0.1", 80), Address(socket.AF_INET, "127.0.0.1", 80), "127.0.0.1:80"),
        (10, ("::1", 80, 0, 0), Address(socket.AF_INET6, "::1", 80), "[::1]:80"),
        (1, "/run/x", Address(socket.AF_UNIX, path="/run/x"), "/run/x"),
        (1, b"\0x", Address(socket.AF_UNIX, path="\0x"), "@x"),
    ],
)
def test_an_address_is_what_the_kernel_says(family, sockname, address, text):
    assert Address.of(family, sockname) == address
    assert str(address) == text


def test_a_sockname_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="no address"):
        Address.of(2, None)


def test_a_failure_names_the_address_and_keeps_it_through_pickling():
    address = Address(socket.AF_INET, "127.0.0.1", 80)
    error = failure(PermissionError(errno.EACCES, "Permission denied"), address)
    arrived = pickle.loads(pickle.dumps(error))
    assert isinstance(arrived, PermissionError)
    assert (arrived.errno, arrived.address) == (errno.EACCES, address)
    assert str(arrived) == "[Errno 13] Permission denied: 127.0.0.1:80"


def test_a_failure_of_the_socket_module_itself_gets_a_number():
    error = failure(OSError("AF_UNIX path too long"), Address(socket.AF_UNIX, path="/x"))
    assert error.errno == errno.ENAMETOOLONG
