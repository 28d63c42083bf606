"""Which addresses are open: a list of closed ones in every form that reaches them."""

import ipaddress

import pytest

from server.delivery.addresses import Address, is_open

CLOSED_V4 = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",  # Alibaba's metadata service
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # Azure's host agent
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",  # credentials of ECS tasks
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.0.10",
    "192.0.0.170",
    "192.0.0.192",  # Oracle's metadata service
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.168.255.255",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
CLOSED_V6 = [
    "::",
    "::1",
    "64:ff9b:1::1",
    "64:ff9b:1:ffff::10.0.0.1",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "3fff::1",
    "3fff:fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # Amazon's metadata service
    "fd20:ce::254",  # Google's
    "fe80::1",
    "fe80::a9fe:a9fe",
    "fec0::1",
    "ff02::1",
    "ff05::2",
    "2606:4700::5efe:10.0.0.1",
    "2606:4700::200:5efe:169.254.169.254",
]
OPEN = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "168.63.129.15",
    "172.32.0.1",
    "192.0.1.1",
    "2606:4700:4700::1111",
    "2a00:1450:4001:81b::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
]


def _forms(inner: str) -> list[Address]:
    """Return an IPv4 address, and the IPv6 addresses that carry it."""
    number = int(ipaddress.IPv4Address(inner))
    teredo_client = (0x20010000 << 96) | (0x08080808 << 64) | (number ^ 0xFFFFFFFF)
    teredo_server = (0x20010000 << 96) | (number << 64) | (0x08080808 ^ 0xFFFFFFFF)
    return [
        ipaddress.IPv4Address(inner),
        ipaddress.IPv6Address(0xFFFF << 32 | number),  # mapped
        ipaddress.IPv6Address(number),  # compatible
        ipaddress.IPv6Address(0xFFFF << 48 | number),  # translated
        ipaddress.IPv6Address(f"64:ff9b::{inner}"),
        ipaddress.IPv6Address(0x2002 << 112 | number << 80),
        ipaddress.IPv6Address(teredo_client),
        ipaddress.IPv6Address(teredo_server),
    ]


ALL_CLOSED = [form for inner in CLOSED_V4 for form in _forms(inner)]
ALL_CLOSED += [ipaddress.ip_address(text) for text in CLOSED_V6]


def test_the_list_is_long() -> None:
    assert len({str(address) for address in ALL_CLOSED}) >= 250


@pytest.mark.parametrize("address", ALL_CLOSED, ids=str)
def test_an_address_inside_is_closed_in_every_form(address: Address) -> None:
    assert not is_open(address, [])


@pytest.mark.parametrize("text", OPEN)
def test_public_addresses_are_open(text: str) -> None:
    assert is_open(ipaddress.ip_address(text), [])


@pytest.mark.parametrize("address", _forms("10.1.2.3")[:6], ids=str)
def test_an_allowed_network_is_open_in_every_form(address: Address) -> None:
    assert is_open(address, [ipaddress.ip_network("10.1.0.0/16")])
    assert not is_open(address, [ipaddress.ip_network("10.2.0.0/16")])
