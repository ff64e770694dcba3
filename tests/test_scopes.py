from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.sources.scopes import Scope, address_of, scope_of, scope_of_name

LOCAL = "64:ff9b:1::/48"


@pytest.mark.parametrize(
    ("address", "scope"),
    [
        ("127.0.0.1", Scope.LOOPBACK),
        ("127.255.0.9", Scope.LOOPBACK),
        ("::1", Scope.LOOPBACK),
        ("::ffff:127.0.0.1", Scope.LOOPBACK),
        ("2002:7f00:1::", Scope.LOOPBACK),
        ("0.0.0.0", Scope.LOOPBACK),  # noqa: S104 - nothing is bound
        ("0.1.2.3", Scope.LOOPBACK),
        ("::", Scope.LOOPBACK),
        ("169.254.169.254", Scope.LINK_LOCAL),
        ("fe80::1", Scope.LINK_LOCAL),
        ("febf::1", Scope.LINK_LOCAL),
        ("fe80::1%eth0", Scope.LINK_LOCAL),
        ("::ffff:169.254.0.1", Scope.LINK_LOCAL),
        ("224.0.0.1", Scope.LINK_LOCAL),
        ("ff02::1", Scope.LINK_LOCAL),
        ("10.0.0.1", Scope.PRIVATE),
        ("172.16.0.1", Scope.PRIVATE),
        ("172.31.255.255", Scope.PRIVATE),
        ("192.168.1.1", Scope.PRIVATE),
        ("100.64.0.1", Scope.PRIVATE),
        ("192.0.0.1", Scope.PRIVATE),
        ("192.0.2.1", Scope.PRIVATE),
        ("192.88.99.1", Scope.PRIVATE),
        ("198.18.0.1", Scope.PRIVATE),
        ("198.51.100.1", Scope.PRIVATE),
        ("203.0.113.1", Scope.PRIVATE),
        ("240.0.0.1", Scope.PRIVATE),
        ("fd00::1", Scope.PRIVATE),
        ("fec0::1", Scope.PRIVATE),
        ("100::1", Scope.PRIVATE),
        ("5f00::1", Scope.PRIVATE),
        ("2001:2::1", Scope.PRIVATE),
        ("2001:20::1", Scope.PRIVATE),
        ("2001:db8::1", Scope.PRIVATE),
        ("3fff::1", Scope.PRIVATE),
        ("4000::1", Scope.PRIVATE),
        ("255.255.255.255", Scope.PRIVATE),
        ("9.9.9.9", Scope.PUBLIC),
        ("1.0.0.0", Scope.PUBLIC),
        ("172.32.0.1", Scope.PUBLIC),
        ("2620:fe::fe", Scope.PUBLIC),
        ("2001:200::1", Scope.PUBLIC),
    ],
)
def test_an_address_has_a_scope(address: str, scope: Scope) -> None:
    assert scope_of(address) is scope
    assert scope_of_name(address) is scope


INNER = [
    (IPv4Address("127.0.0.1"), Scope.LOOPBACK),
    (IPv4Address(0), Scope.LOOPBACK),
    (IPv4Address("169.254.169.254"), Scope.LINK_LOCAL),
    (IPv4Address("10.1.2.3"), Scope.PRIVATE),
    (IPv4Address("9.9.9.9"), Scope.PUBLIC),
    (IPv4Address("1.0.0.0"), Scope.PUBLIC),
]


def behind(prefix: str, inner: IPv4Address, *, suffix: int = 0) -> IPv6Address:
    """The address of *inner* behind *prefix* (RFC 6052, 2.2), made bit by bit."""
    network = IPv6Network(prefix)
    bits = f"{int(network.network_address):0128b}"[: network.prefixlen]
    if network.prefixlen < 96:
        bits += f"{int(inner):032b}"
        bits = f"{bits[:64]}{'0' * 8}{bits[64:]}"
        bits += f"{suffix:0128b}"[len(bits) :]
    else:
        bits += f"{int(inner):032b}"
    return IPv6Address(int(bits, 2))


@pytest.mark.parametrize(("inner", "scope"), INNER)
@pytest.mark.parametrize(
    "prefix", ["::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "2002::/16"]
)
def test_an_address_of_ipv4_within_one_of_ipv6(
    prefix: str, inner: IPv4Address, scope: Scope
) -> None:
    if prefix == "2002::/16":
        address = IPv6Address(0x2002 << 112 | int(inner) << 80 | 1)
    else:
        address = behind(prefix, inner)
    assert scope_of(str(address)) is scope


@pytest.mark.parametrize(("inner", "scope"), INNER)
def test_teredo_names_a_server_and_a_client(inner: IPv4Address, scope: Scope) -> None:
    far = int(IPv4Address("9.9.9.9"))
    turned = {one: ~one & 0xFFFFFFFF for one in (far, int(inner))}
    as_client = 0x20010000 << 96 | far << 64 | turned[int(inner)]
    as_server = 0x20010000 << 96 | int(inner) << 64 | turned[far]
    assert scope_of(str(IPv6Address(as_client))) is scope
    assert scope_of(str(IPv6Address(as_server))) is scope


PREFIXES = [
    "2001:db8::/32",
    "2001:db8:100::/40",
    "2001:db8:122::/48",
    "2001:db8:122:300::/56",
    "2001:db8:122:344::/64",
    "2001:db8:122:344::/96",
    "64:ff9b:1:fffe::/96",
    "64:ff9b:1::/48",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("inner", "scope"), INNER)
def test_a_configured_prefix_of_nat64(prefix: str, inner: IPv4Address, scope: Scope) -> None:
    address = str(behind(prefix, inner))
    assert scope_of(address, [IPv6Network(prefix)]) is scope
    assert scope_of(behind(prefix, inner, suffix=1).compressed, [IPv6Network(prefix)]) is scope
    assert scope_of_name(f"[{address}]", [IPv6Network(prefix)]) is scope
    assert scope_of("2620:fe::fe", [IPv6Network(prefix)]) is Scope.PUBLIC


@pytest.mark.parametrize(
    ("address", "inner"),
    [  # RFC 6052, 2.4
        ("2001:db8:c000:221::", "2001:db8::/32"),
        ("2001:db8:1c0:2:21::", "2001:db8:100::/40"),
        ("2001:db8:122:c000:2:2100::", "2001:db8:122::/48"),
        ("2001:db8:122:3c0:0:221::", "2001:db8:122:300::/56"),
        ("2001:db8:122:344:c0:2:2100::", "2001:db8:122:344::/64"),
        ("2001:db8:122:344::192.0.2.33", "2001:db8:122:344::/96"),
    ],
)
def test_the_examples_of_the_rfc(address: str, inner: str) -> None:
    assert behind(inner, IPv4Address("192.0.2.33")) == IPv6Address(address)


@pytest.mark.parametrize("length", [48, 56, 64, 96])
@pytest.mark.parametrize(("inner", "scope"), INNER)
def test_the_local_prefix_is_private_until_its_length_is_known(
    length: int, inner: IPv4Address, scope: Scope
) -> None:
    address = str(behind(f"64:ff9b:1::/{length}", inner))
    assert scope_of(address) <= min(scope, Scope.PRIVATE)


@given(st.ip_addresses())
def test_every_address_has_a_scope(address: IPv4Address | IPv6Address) -> None:
    assert scope_of(str(address)) in Scope


@given(st.ip_addresses(v=4))
def test_none_is_public_that_is_not_reachable_from_everywhere(address: IPv4Address) -> None:
    assert (scope_of(str(address)) is Scope.PUBLIC) <= address.is_global


def test_the_further_in_the_less() -> None:
    assert Scope.LOOPBACK < Scope.LINK_LOCAL < Scope.PRIVATE < Scope.PUBLIC


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("localhost", Scope.LOOPBACK),
        ("LocalHost.", Scope.LOOPBACK),
        ("db.localhost", Scope.LOOPBACK),
        ("[::1]", Scope.LOOPBACK),
        ("127.1", Scope.LOOPBACK),
        ("2130706433", Scope.LOOPBACK),
        ("0x7f000001", Scope.LOOPBACK),
        ("0177.0.0.1", Scope.LOOPBACK),
        ("0X7F.1", Scope.LOOPBACK),
        ("0", Scope.LOOPBACK),
        ("169.254.43518", Scope.LINK_LOCAL),
        ("10.1", Scope.PRIVATE),
        ("9.9.2313", Scope.PUBLIC),
        ("layers.example.com", None),
        ("notlocalhost", None),
        ("1.2.3.4.5", None),
        ("256.1.1.1", None),
        ("1.2.3.256", None),
        ("4294967296", None),
        ("0x", None),
        ("08.1.1.1", None),
        ("1..2", None),
        ("", None),
    ],
)
def test_a_name_that_shows_it(name: str, scope: Scope | None) -> None:
    assert scope_of_name(name) is scope


@given(st.ip_addresses(v=4))
def test_an_address_may_be_one_number(address: IPv4Address) -> None:
    assert address_of(str(int(address))) == address
    assert address_of(hex(int(address))) == address
    assert address_of(f"::ffff:{address}") == address


@given(st.text("0123456789abcdefx.:%", max_size=20))
def test_what_looks_like_an_address_is_one_or_none(name: str) -> None:
    address = address_of(name)
    assert address is None or ipaddress.ip_address(str(address)) == address


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="host"):
        scope_of("host")
