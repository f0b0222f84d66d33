"""Addresses: which are those of the public Internet, and which count as those of one client."""

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_IPV4_WITHIN: Final = (
    ipaddress.IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052
    ipaddress.IPv6Network("::/96"),  # IPv4-compatible, RFC 4291 §2.5.5.1
)
_INTERNAL: Final = (
    ipaddress.IPv6Network("fec0::/10"),  # site-local, RFC 3879
    # An IPv4 address is within these too, where the network decides: NAT64 of one's own (RFC 8215),
    # and SIIT (RFC 2765).
    ipaddress.IPv6Network("64:ff9b:1::/48"),
    ipaddress.IPv6Network("::ffff:0:0:0/96"),
)
_IPV6_PREFIX: Final = 64
"""One customer has at least so many IPv6 addresses to himself (RFC 6177)."""
_MAPPED: Final = "::ffff:"
_6TO4: Final = ipaddress.IPv6Network("2002::/16")
_TEREDO: Final = ipaddress.IPv6Network("2001::/32")


def is_internal(address: Address) -> bool:
    """Whether an address isn't one of the public Internet.

    IPv4 within IPv6 counts as what it is.
    """
    address = unwrapped(address)
    is_public = address.is_global and not address.is_multicast
    return not is_public or any(address in network for network in _INTERNAL)


def unwrapped(address: Address) -> Address:
    """The IPv4 address within an IPv6 one, where a gateway on the way would unpack it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if any(address in network for network in _IPV4_WITHIN) and int(address) > 1:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _6TO4 and address.sixtofour is not None:
        return address.sixtofour
    if address in _TEREDO and address.teredo is not None:
        return address.teredo[1]
    return address


def network_of(address: str) -> str:
    """What counts as one address: IPv4 as it is, of IPv6 the first 64 bits."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, _IPV6_PREFIX), strict=False))


def plain_address(address: str) -> str:
    """A client's address without the IPv6 around its IPv4 that a socket for both puts there."""
    inner = address.removeprefix(_MAPPED)
    return inner if "." in inner and ":" not in inner else address
