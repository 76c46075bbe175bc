"""Addresses and names outside the public internet: every block's first and last address, and their neighbours."""

import ipaddress
import socket
from typing import Any

import pytest

from data_tools.network.image_fetch import FetchSetting, Guard, PrivateAddressError
from data_tools.network.special_addresses import BLOCKS, UNICAST, address_fault, host_fault


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


# Written down again here: the registries of IANA (18 July 2026), multicast, obsolete blocks, and platforms' services.
REGISTERED = words("""
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24
192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4
255.255.255.255/32 224.0.0.0/4
::1/128 ::/128 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128 2001:1::2/128 2001:1::3/128
2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28 2001:db8::/32 2002::/16
2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10
fec0::/10 ff00::/8 ::/96 ::ffff:0:0:0/96 200::/7 4000::/3 e000::/4
168.63.129.16/32 169.254.169.254/32 169.254.170.2/32 100.100.100.200/32 192.0.0.192/32 fd00:ec2::254/128
fd20:ce::254/128 161.26.0.0/16 166.8.0.0/14
""")
# Just outside of the blocks, in the public internet.
PUBLIC = words("""
1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255 169.255.0.0
172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.1.255 192.0.3.0 192.31.195.255 192.31.197.0 192.52.192.255
192.52.194.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 192.175.47.255 192.175.49.0 198.17.255.255
198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255 168.63.129.15 168.63.129.17
161.25.255.255 161.27.0.0 166.7.255.255 166.12.0.0
2000:: 2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2001:200:: 2001:db7:ffff:ffff:ffff:ffff:ffff:ffff 2001:db9::
2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2003:: 2620:4f:7fff:ffff:ffff:ffff:ffff:ffff 2620:4f:8001::
3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff 3fff:1000:: 3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
""")
EMBEDDING = ["::ffff:{}", "64:ff9b::{}"]  # the address inside decides
TUNNELS = ["::{}", "::ffff:0:{}", "64:ff9b:1::{}", "64:ff9b:1:7f00::{}"]  # refused, whatever is inside


@pytest.mark.parametrize("block", REGISTERED)
def test_first_and_last_address_of_every_block(block: str) -> None:
    network = ipaddress.ip_network(block)
    for address in (network[0], network[network.num_addresses // 2], network[-1]):
        assert address_fault(str(address)), address
        if address.version == 4:
            assert all(address_fault(form.format(address)) for form in EMBEDDING + TUNNELS), address
            assert address_fault(str(ipaddress.IPv6Address((0x2002 << 112) | int(address) << 80))), "6to4"
            assert address_fault(str(ipaddress.IPv6Address((0x20010000 << 96) | int(address) ^ 0xFFFFFFFF))), "Teredo"


@pytest.mark.parametrize("address", PUBLIC)
def test_neighbours_are_public(address: str) -> None:
    assert address_fault(address) is None
    if ":" not in address:
        assert all(address_fault(form.format(address)) is None for form in EMBEDDING)
        assert all(address_fault(form.format(address)) for form in TUNNELS)


def test_neighbours_of_all_blocks_are_listed() -> None:
    """No block of the table ends unnoticed: the address before and after is public, or in another block."""
    for network in map(ipaddress.ip_network, BLOCKS):
        for number in (int(network[0]) - 1, int(network[-1]) + 1):
            if 0 <= number < 2**network.max_prefixlen:
                neighbour = type(network[0])(number)
                known = str(neighbour) in PUBLIC or any(
                    neighbour in ipaddress.ip_network(block) for block in REGISTERED
                )
                assert known or neighbour not in UNICAST, neighbour


def test_names_of_private_networks() -> None:
    private = ["localhost", "a.localhost", "metadata.google.internal", "printer.local", "metadata", "nas.home.arpa"]
    private += ["router.lan", "db.corp", "api.default.svc", "instance-data"]
    public = ["example.org", "local.example", "internal.example.org", "home.example", "arpa.example.com"]
    assert all(host_fault(host) for host in private) and not any(host_fault(host) for host in public)


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "::127.0.0.9", "fec0::1", "168.63.129.16"])
def test_a_name_that_leads_inside_is_refused_when_it_is_connected(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are resolved once; each address is checked, also if it stands beside a public one."""
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, 80)) for found in ("93.184.216.34", address)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("a connection was made"))
    with pytest.raises(PrivateAddressError, match=r"rebound\.example leads to"):
        Guard(FetchSetting("", "", "Agent", "")).connect(("rebound.example", 80), 1)


def test_the_address_of_the_connection_itself_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that answers the check and the connection differently gains nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]
        connect = socket.create_connection
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)

        def redirected(*_: Any) -> socket.socket:
            monkeypatch.undo()
            return connect(listener.getsockname())

        monkeypatch.setattr(socket, "create_connection", redirected)
        with pytest.raises(PrivateAddressError, match="loopback"):
            Guard(FetchSetting("", "", "Agent", "")).connect(("rebound.example", 80), 1)
