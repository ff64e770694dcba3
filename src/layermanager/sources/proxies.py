"""Proxies, as the environment names them, and the hosts that are reached without one (pure).

The variables are read as curl and Go (golang.org/x/net/http/httpproxy) read them. Where the two
differ, the reading is taken that more of the tools on a node share:

- a variable in lower case counts before the one in capitals, also when it is empty;
- ``.example.com`` stands for the host and all below it, as ``example.com`` does (curl); only
  ``*.example.com`` leaves out the host itself (Go).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlsplit

from layermanager.sources.scopes import address_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_SEPARATORS: Final = re.compile(r"[,\s]+")
_BRACKETED: Final = re.compile(r"\[(?P<host>[^\]]*)\](?::(?P<port>[0-9]{1,5}))?")
_PREFIX_LENGTH: Final = re.compile(r"[0-9]{1,3}")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_PORTS: Final = {"http": 80, "https": 443}
_LOOPBACK: Final = (IPv4Network("127.0.0.0/8"), IPv4Network("0.0.0.0/32"), IPv6Network("::/127"))
_MAPPED: Final = IPv6Network("::ffff:0:0/96")

_Network: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class _Hosts:
    """Hosts that one entry of ``NO_PROXY`` names.

    Attributes:
        network: the addresses; None where the entry names hosts.
        name: the host and all below it; begins with a dot where the host is left out.
        port: the only port; None for all.
    """

    network: _Network | None = None
    name: str = ""
    port: int | None = None

    def include(self, host: str, address: IPv4Address | IPv6Address | None, port: int) -> bool:
        if self.port not in {None, port}:
            return False
        if self.network is not None:
            return address is not None and address in self.network
        if address is not None:
            return False
        if self.name.startswith("."):
            return host.endswith(self.name)
        return host == self.name or host.endswith(f".{self.name}")


@dataclass(frozen=True, slots=True)
class NoProxy:
    """Hosts that are reached without a proxy: those of this node, always, and those given.

    Attributes:
        entries: what was given.
        is_all: whether all hosts were.
    """

    entries: tuple[_Hosts, ...] = ()
    is_all: bool = False

    def includes(self, host: str, port: int) -> bool:
        """Return whether *host*, a name or an address, is one of them at *port*."""
        name = _bare(host)
        if name == "localhost" or name.endswith(".localhost"):
            return True
        address = address_of(name)
        if address is not None and any(address in network for network in _LOOPBACK):
            return True
        return self.is_all or any(one.include(name, address, port) for one in self.entries)


@lru_cache(maxsize=1)
def parse_no_proxy(text: str) -> NoProxy:
    """Read the value of ``NO_PROXY``; an entry that names no host is passed over."""
    words = [word for word in _SEPARATORS.split(text.lower()) if word]
    entries = (_entry(word) for word in words)
    return NoProxy(tuple(one for one in entries if one is not None), is_all="*" in words)


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy for *url*; None where there is none.

    Raises:
        ValueError: *url* is no URL.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
    proxy = _proxy_of_scheme(parts.scheme, environment)
    if not proxy or parse_no_proxy(_variable("no_proxy", environment)).includes(host, port):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _proxy_of_scheme(scheme: str, environment: Mapping[str, str]) -> str:
    # A web server passes the header "Proxy" of its client to CGI programs as HTTP_PROXY.
    if scheme == "http" and "REQUEST_METHOD" in environment:
        return environment.get("http_proxy", "").strip()
    return _variable(f"{scheme}_proxy", environment).strip()


def _variable(name: str, environment: Mapping[str, str]) -> str:
    return environment.get(name, environment.get(name.upper(), ""))


def _entry(word: str) -> _Hosts | None:
    if "/" in word:
        network = _network(word)
        return None if network is None else _Hosts(network=network)
    host, port = word, ""
    if bracketed := _BRACKETED.fullmatch(word):
        host, port = bracketed["host"], bracketed["port"] or ""
    elif word.count(":") == 1:
        host, _, port = word.partition(":")
        if not _PORT.fullmatch(port):
            return None
    address = address_of(_bare(host))
    number = int(port) if port else None
    if address is not None:
        return _Hosts(network=ip_network(address), port=number)
    is_below_only = host.startswith("*.")
    name = _bare(host).removeprefix("*").removeprefix(".")
    if not name or "*" in name or ":" in name:
        return None
    return _Hosts(name=f".{name}" if is_below_only else name, port=number)


def _network(word: str) -> _Network | None:
    """Return the network that *word* writes as ``address/length``; None if it is none."""
    base, _, length = word.partition("/")
    if not _PREFIX_LENGTH.fullmatch(length):
        return None
    try:
        network = ip_network(f"{base.strip('[]')}/{length}", strict=False)
    except ValueError:
        return None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        inner = IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        return ip_network(f"{inner}/{network.prefixlen - _MAPPED.prefixlen}")
    return network


def _bare(host: str) -> str:
    """Return *host* as it is compared: in lower case, without brackets, zone and last dot."""
    return host.lower().strip("[]").partition("%")[0].rstrip(".")
