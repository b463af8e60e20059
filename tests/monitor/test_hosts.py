"""Where the page may be served, and by which names it may be asked for."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from mpcluster.monitor import hosts
from mpcluster.monitor.hosts import Place


@pytest.mark.parametrize(
    ("address", "family", "numeric", "port"),
    [
        ("127.0.0.1:9000", socket.AF_INET, "127.0.0.1", 9000),
        ("127.3.2.1:0", socket.AF_INET, "127.3.2.1", 0),
        ("9000", socket.AF_INET, "127.0.0.1", 9000),
        ("[::1]:9000", socket.AF_INET6, "::1", 9000),
    ],
)
def test_an_address_is_understood(
    address: str, family: socket.AddressFamily, numeric: str, port: int
) -> None:
    place = hosts.parse(address)
    assert (place.family, place.address, place.port) == (family, numeric, port)


def test_a_name_that_is_this_machines_own_is_as_good_as_its_address() -> None:
    place = hosts.parse("localhost:9000")
    assert place.host == "localhost"
    assert place.address in {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    "address", ["0.0.0.0:9000", "192.0.2.7:9000", "[::]:9000", "[2001:db8::1]:9"]
)
def test_an_address_that_others_can_reach_is_refused_unless_that_is_wanted(address: str) -> None:
    with pytest.raises(ValueError, match="asks for no password.*public=True"):
        hosts.parse(address)
    assert hosts.parse(address, public=True).port in {9, 9000}


@pytest.mark.parametrize(
    "address", ["", ":9000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "::1:9000", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:٣"]
)  # fmt: skip
def test_what_is_no_address_is_named_with_what_would_be_one(address: str) -> None:
    with pytest.raises(ValueError, match=r"give HOST:PORT, \[IPv6\]:PORT or a bare PORT"):
        hosts.parse(address)


@pytest.mark.parametrize("address", [9000, None, ("127.0.0.1", 9000)])
def test_what_is_no_string_is_no_address(address: Any) -> None:
    with pytest.raises(TypeError, match="must be a string"):
        hosts.parse(address)


HERE = Place(socket.AF_INET, "my-machine.lan", "127.0.0.1", 9000)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:9000", "127.0.0.1", "localhost", "localhost:1234", "LocalHost:9000", "localhost.:9000",
        "[::1]:9000", "[::1]", "192.0.2.7:80", "my-machine.lan:9000", "My-Machine.LAN",
    ],
)  # fmt: skip
def test_addresses_localhost_and_the_name_that_it_was_started_under_are_known(host: str) -> None:
    assert hosts.is_known(host, HERE)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:9000", "localhost.evil.example", "127.0.0.1.evil.example:9000",
        "notlocalhost", "", "127.0.0.1:9000:9000", "127.0.0.1@evil.example", "localhost:port",
        "my-machine.lan.evil.example", "127.0.0.1 evil.example", "[::1].evil.example",
    ],
)  # fmt: skip
def test_names_that_a_stranger_can_have_are_not(host: str) -> None:
    assert not hosts.is_known(host, HERE)
