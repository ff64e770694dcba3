from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layermanager.sources.proxies import parse_no_proxy, proxy_for

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

PROXY = "http://proxy.example:3128"


def is_direct(no_proxy: str, url: str) -> bool:
    """Whether *url* is asked for without the proxy."""
    return proxy_for(url, {"http_proxy": PROXY, "https_proxy": PROXY, "no_proxy": no_proxy}) is None


@pytest.mark.parametrize(
    ("no_proxy", "direct", "by_proxy"),
    [
        ("", [], ["http://example.com/", "https://10.0.0.1/"]),
        ("*", ["http://example.com/", "https://10.0.0.1:1/", "http://[2001:db8::1]/"], []),
        ("a, *", ["http://example.com/"], []),
        (
            "example.com",
            ["http://example.com/", "https://EXAMPLE.com:8443/", "http://a.b.example.com./"],
            ["http://notexample.com/", "http://example.com.org/", "http://com/"],
        ),
        ("example.com.", ["http://example.com/", "http://a.example.com/"], []),
        (".example.com", ["http://example.com/", "http://a.example.com/"], ["http://xexample.com/"]),
        ("*.example.com", ["http://a.example.com/", "http://a.b.example.com/"], ["http://example.com/"]),
        ("EXAMPLE.com", ["http://a.Example.COM/"], []),
        (
            "example.com:8080",
            ["http://example.com:8080/", "http://a.example.com:8080/"],
            ["http://example.com/", "https://example.com:8443/"],
        ),
        ("example.com:80,b:443", ["http://example.com/", "https://b/"], ["https://example.com/"]),
        ("10.0.0.0/8", ["http://10.255.0.1/", "http://[::ffff:10.1.1.1]/"], ["http://11.0.0.1/"]),
        ("10.1.2.3/8", ["http://10.255.0.1/"], ["http://11.0.0.1/"]),
        (
            "127.0.0.0/8,10.0.0.0/8,192.168.0.0/16",
            ["http://10.0.0.1:5000/", "http://192.168.9.9/"],
            ["http://172.16.0.1/", "http://10.example.com/"],
        ),
        ("2001:db8::/32", ["http://[2001:db8:1::1]:80/"], ["http://[2001:db9::1]/"]),
        ("[2001:db8::]/32", ["http://[2001:db8:1::1]:80/"], ["http://[2001:db9::1]/"]),
        ("::ffff:10.0.0.0/104", ["http://10.1.1.1/"], ["http://11.0.0.1/"]),
        ("0.0.0.0/0", ["http://9.9.9.9/"], ["http://[2001:db8::1]/", "http://example.com/"]),
        ("10.0.0.1", ["http://10.0.0.1:99/", "http://10.1/"], ["http://10.0.0.2/", "http://x.10.0.0.1/"]),
        ("10.0.0.1:80", ["http://10.0.0.1/"], ["http://10.0.0.1:81/"]),
        ("2001:db8::1", ["http://[2001:db8::1]:1/", "http://[2001:DB8:0::1]/"], ["http://[2001:db8::2]/"]),
        ("[2001:db8::1]", ["http://[2001:db8::1]:1/"], ["http://[2001:db8::2]/"]),
        ("[2001:db8::1]:80", ["http://[2001:db8::1]/"], ["http://[2001:db8::1]:81/"]),
        ("fe80::1", ["http://[fe80::1%25eth0]/"], []),
        (" a.example \t b.example,,c.example ", ["http://a.example/", "http://c.example/"], ["http://d/"]),
        ("0.1", [], ["http://10.0.0.1/"]),
        (
            ":80,/8,a:b,10.0.0.0/99,10.0.0.0/,10/8,[::1,x]:1,a*b,*:80,::/x,[]:5,.,*.,10.0.0.0/255.0.0.0",
            [],
            ["http://a:80/", "http://10.0.0.1/", "http://b/", "http://axb/"],
        ),
    ],
)  # fmt: skip
def test_hosts_without_a_proxy(no_proxy: str, direct: list[str], by_proxy: list[str]) -> None:
    assert {url: is_direct(no_proxy, url) for url in (*direct, *by_proxy)} == {
        **dict.fromkeys(direct, True),
        **dict.fromkeys(by_proxy, False),
    }


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.255.0.9", "[::1]", "[::]"),
        *("127.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0"),  # noqa: S104
    ],
)
def test_this_node_is_never_asked_by_a_proxy(host: str) -> None:
    assert is_direct("", f"http://{host}:5000/v2/")
    assert is_direct("other.example", f"https://{host}/")


@pytest.mark.parametrize("host", ["localhost.example", "xlocalhost", "128.0.0.1", "[::2]"])
def test_other_hosts_are(host: str) -> None:
    assert not is_direct("", f"http://{host}/")


@pytest.mark.parametrize(
    ("environment", "http", "https"),
    [
        ({}, None, None),
        ({"http_proxy": "http://a:1"}, "http://a:1", None),
        ({"HTTP_PROXY": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "http://a:1", "http://b:1"),
        ({"http_proxy": "http://a:1", "HTTP_PROXY": "http://b:1"}, "http://a:1", None),
        ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, None, "http://a:1"),
        ({"http_proxy": "", "HTTP_PROXY": "http://b:1"}, None, None),
        ({"http_proxy": "a:1"}, "http://a:1", None),
        ({"http_proxy": " http://a:1 "}, "http://a:1", None),
        ({"all_proxy": "http://a:1"}, None, None),
        ({"HTTP_PROXY": "http://client:1", "REQUEST_METHOD": "GET"}, None, None),
        ({"http_proxy": "http://a:1", "REQUEST_METHOD": "GET"}, "http://a:1", None),
        ({"http_proxy": "http://a:1", "NO_PROXY": "h"}, None, None),
        ({"http_proxy": "http://a:1", "NO_PROXY": "h", "no_proxy": ""}, "http://a:1", None),
        ({"http_proxy": "http://a:1", "NO_PROXY": "x", "no_proxy": "h"}, None, None),
    ],
)
def test_variables(environment: dict[str, str], http: str | None, https: str | None) -> None:
    assert proxy_for("http://h/", environment) == http
    assert proxy_for("https://h/", environment) == https


labels = st.text("abz09-", min_size=1, max_size=8).filter(lambda text: not text[0].isdigit())
names = st.lists(labels, min_size=2, max_size=5).map(".".join)


@given(names, names, st.integers(1, 65535), st.sampled_from([",", " ", ", ", ",,"]))
def test_a_name_stands_for_itself_and_what_is_below(
    name: str, other: str, port: int, separator: str
) -> None:
    hosts = parse_no_proxy(f"first{separator}{name}")
    assert hosts.includes(name, port)
    assert hosts.includes(f"{other}.{name}", port)
    assert hosts.includes(other, port) == (other == name or other.endswith(f".{name}"))


addresses = st.ip_addresses(v=4) | st.ip_addresses(v=6, network="2000::/3")


@given(addresses, st.integers(0, 128), st.integers(1, 65535))
def test_a_network_stands_for_its_addresses(
    address: IPv4Address | IPv6Address, length: int, port: int
) -> None:
    hosts = parse_no_proxy(f"{address}/{min(length, address.max_prefixlen)}")
    assert hosts.includes(f"{address}", port)
    assert hosts.includes(f"[{address}]", port)
    assert not hosts.includes("layers.example", port)


@given(st.ip_addresses(v=4, network="10.0.0.0/8"), st.integers(0, 128))
def test_a_network_of_mapped_addresses_is_one_of_ipv4(address: IPv4Address, length: int) -> None:
    hosts = parse_no_proxy(f"::ffff:{address}/{length}")
    assert hosts.includes(f"{address}", 443) == (length >= 96)
    assert hosts.includes(f"::ffff:{address}", 443) == (length >= 96)


@given(st.text("abc.*:/[]%0189-, \t", max_size=40) | st.text(max_size=20), st.text(max_size=20))
@example("[", "[")
@example("٣", "٣")
def test_whatever_is_written_something_is_read(no_proxy: str, host: str) -> None:
    hosts = parse_no_proxy(no_proxy)
    hosts.includes(host, 80)
    assert hosts.includes("localhost", 80)
    assert hosts.includes("127.0.0.1", 443)
