"""Where in the world an address is, so that no redirect leads further in.

A server that is asked for a layer may send its client elsewhere. It must not be able to send it
to where the server itself cannot go: to the services on the node, on its links, in its network.
"""

from __future__ import annotations

import enum
import ipaddress


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


def scope_of(address: str) -> Scope:
    """The scope of an IP *address*.

    What is neither loopback, link-local nor globally reachable counts as private: the ranges of
    RFC 1918 and RFC 4193, of carriers, of documentation. An IPv6 address that holds one of IPv4
    has the scope of that one.

    Raises:
        ValueError: *address* is no IP address.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is not None:
            parsed = inner
    if parsed.is_loopback or parsed.is_unspecified:
        return Scope.LOOPBACK
    if parsed.is_link_local or parsed.is_multicast:
        return Scope.LINK_LOCAL
    return Scope.PUBLIC if parsed.is_global else Scope.PRIVATE


def scope_of_name(host: str) -> Scope | None:
    """The scope of a *host* that shows it by its name alone; None for all other names.

    Behind a proxy that is all that can be known: it is the proxy that looks up names.
    """
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return Scope.LOOPBACK
    try:
        return scope_of(name)
    except ValueError:
        return None
