"""IP addresses that requests for clients may reach: public ones, and networks the operator allows.

An IPv6 address that carries an IPv4 address (NAT64, 6to4, Teredo, mapped and others) is judged by
what it carries: a gateway or the kernel sends the packets there.
"""

import ipaddress
from collections.abc import Iterable, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Source: IANA's registry of global unicast addresses (RFC 4291): nothing else of IPv6 is public.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

# What `is_global` of the standard library leaves open, by version.
_CLOSED = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # Azure's host agent and DNS, from within any Azure machine
            "192.0.0.0/24",  # IETF protocol assignments; 192.0.0.192 is Oracle's metadata service
            "192.88.99.0/24",  # 6to4 relays
            "2001::/23",  # IETF protocol assignments
            "2001:db8::/32",
            "3fff::/20",  # documentation, RFC 9637
        ),
    )
)

# Prefixes whose last 32 bits are an IPv4 address.
# Source: RFC 4291 2.5.5 (compatible, mapped), RFC 2765 (translated), RFC 6052 (NAT64).
_CARRIERS = tuple(
    map(
        ipaddress.IPv6Network,
        ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96"),
    )
)
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: the upper half of the interface identifier


def is_open(address: Address, allowed: Sequence[Network]) -> bool:
    """Return whether an address may be reached: it is public, or in one of the allowed networks."""
    if any(address in network for network in allowed):
        return True
    if isinstance(address, ipaddress.IPv6Address):
        carried = list(_carried(address))
        if carried:
            return all(is_open(inner, allowed) for inner in carried)
        if address not in _GLOBAL_UNICAST:
            return False
    if any(address in network for network in _CLOSED):
        return False
    return address.is_global and not address.is_multicast


def _carried(address: ipaddress.IPv6Address) -> Iterable[ipaddress.IPv4Address]:
    """Yield the IPv4 addresses inside an IPv6 address."""
    number = int(address)
    if int(address) > 1 and (
        address in _LOCAL_NAT64 or any(address in network for network in _CARRIERS)
    ):
        yield ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if number >> 32 & 0xFFFFFFFF in _ISATAP:
        yield ipaddress.IPv4Address(number & 0xFFFFFFFF)
