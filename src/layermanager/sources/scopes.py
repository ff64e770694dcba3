"""Scopes of addresses, so that no redirect leads further in.

A server that is asked for a layer may send its client elsewhere. It must not be able to send it
to where the server itself cannot go: to the services on the node, on its links, in its network.

The tables are here, and not those of ``ipaddress``, which differ between versions of Python. They
follow the special-purpose registries of IANA (RFC 6890).
"""

from __future__ import annotations

import enum
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ADDRESS_BYTES: Final = 4
_NUMBER: Final = re.compile(r"0x[0-9a-f]{1,8}|[0-9]{1,11}")


class Scope(enum.IntEnum):
    """How far in an address is; the lower, the further."""

    LOOPBACK = 0
    LINK_LOCAL = 1
    PRIVATE = 2
    PUBLIC = 3

    @property
    def words(self) -> str:
        """What it is called."""
        return self.name.lower().replace("_", "-")


_IPV4: Final = tuple(
    (IPv4Network(network), scope)
    for network, scope in (
        ("0.0.0.0/8", Scope.LOOPBACK),  # this host (RFC 1122, 3.2.1.3)
        ("127.0.0.0/8", Scope.LOOPBACK),
        ("169.254.0.0/16", Scope.LINK_LOCAL),
        ("224.0.0.0/4", Scope.LINK_LOCAL),  # multicast
        ("10.0.0.0/8", Scope.PRIVATE),
        ("100.64.0.0/10", Scope.PRIVATE),  # of carriers (RFC 6598)
        ("172.16.0.0/12", Scope.PRIVATE),
        ("192.0.0.0/24", Scope.PRIVATE),  # of protocols (RFC 6890)
        ("192.0.2.0/24", Scope.PRIVATE),  # documentation, as two more below
        ("192.88.99.0/24", Scope.PRIVATE),  # relays of 6to4, deprecated (RFC 7526)
        ("192.168.0.0/16", Scope.PRIVATE),
        ("198.18.0.0/15", Scope.PRIVATE),  # benchmarks (RFC 2544)
        ("198.51.100.0/24", Scope.PRIVATE),
        ("203.0.113.0/24", Scope.PRIVATE),
        ("240.0.0.0/4", Scope.PRIVATE),  # reserved, and the broadcast address
        ("0.0.0.0/0", Scope.PUBLIC),
    )
)
_IPV6: Final = tuple(
    (IPv6Network(network), scope)
    for network, scope in (
        ("::/127", Scope.LOOPBACK),  # unspecified and loopback
        ("fe80::/10", Scope.LINK_LOCAL),
        ("ff00::/8", Scope.LINK_LOCAL),  # multicast
        ("2001::/23", Scope.PRIVATE),  # of protocols (RFC 2928)
        ("2001:db8::/32", Scope.PRIVATE),  # documentation, as the next one
        ("3fff::/20", Scope.PRIVATE),
        ("2000::/3", Scope.PUBLIC),
        ("::/0", Scope.PRIVATE),  # RFC 4193 and all that is not allocated
    )
)

_WHOLE_TAIL: Final = tuple(
    map(
        IPv6Network,
        (
            "::/96",  # IPv4-compatible
            "::ffff:0:0/96",  # IPv4-mapped
            "::ffff:0:0:0/96",  # IPv4-translated (RFC 2765)
            "64:ff9b::/96",  # NAT64 (RFC 6052)
        ),
    )
)
_SIX_TO_FOUR: Final = IPv6Network("2002::/16")
_TEREDO: Final = IPv6Network("2001::/32")
_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")
_LENGTHS_WITHIN_LOCAL_NAT64: Final = (48, 56, 64, 96)  # RFC 6052, 2.2


def scope_of(address: str, nat64_prefixes: Sequence[IPv6Network] = ()) -> Scope:
    """Return the scope of an IP *address*.

    What is neither loopback, link-local nor globally reachable counts as private: the ranges of
    RFC 1918 and RFC 4193, of carriers, of documentation. An IPv6 address that holds one of IPv4
    has the scope of that one. Those of 64:ff9b:1::/48 (RFC 8215) count as private at most unless
    their prefix is among *nat64_prefixes*: its length is known to their network only.

    Args:
        address: the address, with or without a zone.
        nat64_prefixes: the prefixes of the NAT64 translators of this network.

    Raises:
        ValueError: *address* is no IP address.
    """
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv4Address):
        return _of_ipv4(parsed)
    for prefix in nat64_prefixes:
        if parsed in prefix:
            return _of_ipv4(_embedded(parsed, prefix.prefixlen))
    own = next(scope for network, scope in _IPV6 if parsed in network)
    if own is Scope.LOOPBACK:
        return own
    inner = [_of_ipv4(one) for one in _held(parsed)]
    if parsed in _LOCAL_NAT64:
        return min((own, *inner))
    return min(inner, default=own)


def scope_of_name(host: str, nat64_prefixes: Sequence[IPv6Network] = ()) -> Scope | None:
    """Return the scope of a *host* that shows it by its name alone; None for all other names.

    Behind a proxy that is all that can be known: it is the proxy that looks up names.
    """
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return Scope.LOOPBACK
    address = address_of(name)
    return None if address is None else scope_of(str(address), nat64_prefixes)


def address_of(name: str) -> IPv4Address | IPv6Address | None:
    """Return the address that *name* is to the resolver without a look-up; None if it is none.

    An IPv4 address may have fewer than four numbers, and hexadecimal or octal ones
    (inet_aton(3)). An IPv4-mapped one is returned as the IPv4 address.
    """
    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        return _of_numbers(name.split("."))
    return getattr(address, "ipv4_mapped", None) or address


def _of_ipv4(address: IPv4Address) -> Scope:
    return next(scope for network, scope in _IPV4 if address in network)


def _held(address: IPv6Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that *address* holds, by whatever reading."""
    if any(address in network for network in _WHOLE_TAIL):
        yield _embedded(address, 96)
    elif address in _SIX_TO_FOUR:
        yield IPv4Address(address.packed[2:6])
    elif address in _TEREDO:  # its server, and its client with all bits turned (RFC 4380, 4)
        yield IPv4Address(address.packed[4:8])
        yield IPv4Address(~int(address) & 0xFFFFFFFF)
    elif address in _LOCAL_NAT64:
        for length in _LENGTHS_WITHIN_LOCAL_NAT64:
            if _has_no_suffix(address, length):
                yield _embedded(address, length)


def _embedded(address: IPv6Address, length: int) -> IPv4Address:
    """Return the IPv4 address behind a prefix of that *length* (RFC 6052, 2.2)."""
    packed, begin = address.packed, length // 8
    if begin <= 8:
        packed = packed[:8] + packed[9:]  # the octet in the middle is reserved
    return IPv4Address(packed[begin : begin + _ADDRESS_BYTES])


def _has_no_suffix(address: IPv6Address, length: int) -> bool:
    """Whether all bits are 0 that RFC 6052 reserves around and behind the IPv4 address."""
    packed, begin = address.packed, length // 8
    end = begin + _ADDRESS_BYTES + (begin <= 8)
    return not packed[8] and not any(packed[end:])


def _of_numbers(words: Sequence[str]) -> IPv4Address | None:
    """Return the address of one to four numbers, of which the last one fills what is left."""
    if len(words) > _ADDRESS_BYTES or not all(map(_NUMBER.fullmatch, words)):
        return None
    try:
        *first, last = (int(word, _base(word)) for word in words)
        room = _ADDRESS_BYTES - len(first)
        return IPv4Address(bytes(first) + last.to_bytes(room, "big"))
    except (ValueError, OverflowError):
        return None


def _base(word: str) -> int:
    if word.startswith("0x"):
        return 16
    return 8 if word.startswith("0") else 10
