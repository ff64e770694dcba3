from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.sources.scopes import Scope, scope_of, scope_of_name

if TYPE_CHECKING:
    import ipaddress


@pytest.mark.parametrize(
    ("address", "scope"),
    [
        ("127.0.0.1", Scope.LOOPBACK),
        ("127.255.0.9", Scope.LOOPBACK),
        ("::1", Scope.LOOPBACK),
        ("::ffff:127.0.0.1", Scope.LOOPBACK),
        ("2002:7f00:1::", Scope.LOOPBACK),
        ("0.0.0.0", Scope.LOOPBACK),  # noqa: S104 - nothing is bound
        ("::", Scope.LOOPBACK),
        ("169.254.169.254", Scope.LINK_LOCAL),
        ("fe80::1", Scope.LINK_LOCAL),
        ("fe80::1%eth0", Scope.LINK_LOCAL),
        ("::ffff:169.254.0.1", Scope.LINK_LOCAL),
        ("224.0.0.1", Scope.LINK_LOCAL),
        ("10.0.0.1", Scope.PRIVATE),
        ("172.16.0.1", Scope.PRIVATE),
        ("192.168.1.1", Scope.PRIVATE),
        ("100.64.0.1", Scope.PRIVATE),
        ("fd00::1", Scope.PRIVATE),
        ("255.255.255.255", Scope.PRIVATE),
        ("9.9.9.9", Scope.PUBLIC),
        ("2620:fe::fe", Scope.PUBLIC),
    ],
)
def test_an_address_has_a_scope(address: str, scope: Scope) -> None:
    assert scope_of(address) is scope
    assert scope_of_name(address) is scope


@given(st.ip_addresses())
def test_every_address_has_one(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
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
        ("layers.example.com", None),
        ("notlocalhost", None),
        ("", None),
    ],
)
def test_a_name_that_shows_it(name: str, scope: Scope | None) -> None:
    assert scope_of_name(name) is scope


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="host"):
        scope_of("host")
