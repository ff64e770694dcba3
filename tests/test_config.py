from __future__ import annotations

import json
from dataclasses import fields
from datetime import timedelta
from ipaddress import IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.config import (
    DEFAULT_WORKING_DIR,
    REMOVE_CACHED_LAYERS_PERIOD,
    Config,
    Network,
    Registry,
    TlsVersion,
    load_config,
)
from layermanager.errors import ConfigError
from layermanager.model import Limits


def load(directory: Path, document: object) -> Config:
    path = directory / "config.json"
    path.write_text(json.dumps(document))
    return load_config(path)


def test_without_a_file_all_is_default() -> None:
    config = load_config(None)
    assert config == Config(DEFAULT_WORKING_DIR)
    assert config.layers_dir == DEFAULT_WORKING_DIR / "layers"
    assert config.download_dir == DEFAULT_WORKING_DIR / "download"
    assert config.extract_dir == DEFAULT_WORKING_DIR / "extract"
    assert config.database == DEFAULT_WORKING_DIR / "servicemanager.db"
    assert config.layers_part_limit == 0
    assert config.layer_ttl == timedelta(days=30)
    assert config.remove_cached_layers_period == REMOVE_CACHED_LAYERS_PERIOD == timedelta(hours=24)
    assert config.parallel_installs >= 1


def test_an_empty_document_is_all_default(tmp_path: Path) -> None:
    assert load(tmp_path, {}) == load_config(None)


def test_the_file_of_an_aos_node_is_used_as_it_is(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        {
            "iamServerUrl": "aosiam:8090",
            "workingDir": "/var/aos/workdirs/sm",
            "layersDir": "/var/aos/layers",
            "layersPartLimit": 40,
            "downloadDir": "/var/aos/download",
            "extractDir": "/var/aos/extract",
            "layerTtlDays": 15,
            "monitoring": {"pollPeriod": "35s"},
        },
    )
    assert config == Config(
        Path("/var/aos/workdirs/sm"),
        layers_dir=Path("/var/aos/layers"),
        layers_part_limit=40,
        download_dir=Path("/var/aos/download"),
        extract_dir=Path("/var/aos/extract"),
        layer_ttl_days=15,
    )
    assert config.database == Path("/var/aos/workdirs/sm/servicemanager.db")


def test_our_own_settings_are_read(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        {
            "layerManager": {
                "removeCachedLayersPeriodSeconds": 0.5,
                "parallelInstalls": 3,
                "durable": False,
                "network": {
                    "connectTimeoutSeconds": 5,
                    "readTimeoutSeconds": 7,
                    "minimumRate": 8,
                    "transferTimeoutSeconds": 9,
                    "documentTimeoutSeconds": 11,
                    "attempts": 10,
                    "retryDelaySeconds": 11,
                    "longestRetryDelaySeconds": 12,
                    "rateLimit": 13,
                    "spoolBytes": 14,
                    "caBundle": "/etc/ca.pem",
                    "clientCertificate": "node.pem",
                    "clientKey": "node.key",
                    "minimumTlsVersion": "1.3",
                    "credentialsFile": "credentials.json",
                    "netrcFile": "/root/.netrc",
                },
                "limits": {"unpackedBytes": 123, "entries": 45},
            }
        },
    )
    assert config == Config(
        DEFAULT_WORKING_DIR,
        remove_cached_layers_period=timedelta(milliseconds=500),
        parallel_installs=3,
        durable=False,
        network=Network(
            connect_timeout=timedelta(seconds=5),
            read_timeout=timedelta(seconds=7),
            minimum_rate=8,
            transfer_timeout=timedelta(seconds=9),
            document_timeout=timedelta(seconds=11),
            attempts=10,
            retry_delay=timedelta(seconds=11),
            longest_retry_delay=timedelta(seconds=12),
            rate_limit=13,
            spool_bytes=14,
            ca_bundle=Path("/etc/ca.pem"),
            client_certificate=DEFAULT_WORKING_DIR / "node.pem",
            client_key=DEFAULT_WORKING_DIR / "node.key",
            minimum_tls_version=TlsVersion.TLS_1_3,
            credentials_file=DEFAULT_WORKING_DIR / "credentials.json",
            netrc_file=Path("/root/.netrc"),
        ),
        limits=Limits(unpacked_bytes=123, entries=45),
    )


def test_every_limit_can_be_set(tmp_path: Path) -> None:
    def key_of(name: str) -> str:
        first, *others = name.split("_")
        return first + "".join(map(str.capitalize, others))

    limits = {key_of(limit.name): number for number, limit in enumerate(fields(Limits), start=1)}
    config = load(tmp_path, {"layerManager": {"limits": limits}})
    assert [getattr(config.limits, limit.name) for limit in fields(Limits)] == list(limits.values())


def test_relative_directories_are_below_the_working_directory(tmp_path: Path) -> None:
    config = load(tmp_path, {"workingDir": str(tmp_path), "layersDir": "a", "downloadDir": "b/c"})
    assert config.layers_dir == tmp_path / "a"
    assert config.download_dir == tmp_path / "b/c"
    assert config.extract_dir == tmp_path / "extract"


def test_a_working_directory_is_made_absolute_and_may_be_a_text() -> None:
    config = Config("somewhere")  # type: ignore[arg-type] # as callers without types give it
    assert config.working_dir == Path.cwd() / "somewhere"
    assert config.layers_dir == Path.cwd() / "somewhere/layers"


def test_the_caller_overrides_the_working_directory(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"workingDir": "/elsewhere", "extractDir": "/kept"}')
    config = load_config(path, working_dir=tmp_path)
    assert config.working_dir == tmp_path
    assert config.layers_dir == tmp_path / "layers"
    assert config.extract_dir == Path("/kept")
    assert load_config(None, working_dir=tmp_path).working_dir == tmp_path


def test_a_time_to_live_beyond_all_calendars_is_forever(tmp_path: Path) -> None:
    assert load(tmp_path, {"layerTtlDays": 2**64 - 1}).layer_ttl == timedelta.max - timedelta(
        days=1
    ) + timedelta(microseconds=1)
    assert load(tmp_path, {"layerTtlDays": 0}).layer_ttl == timedelta(0)


def network(members: dict[str, object]) -> object:
    return {"layerManager": {"network": members}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the document: expected an object, found an array"),
        ({"workingDir": 1}, "workingDir: expected a text, found a number"),
        ({"workingDir": "/a\0b"}, r"workingDir: holds U\+0000, which is no character"),
        ({"layersDir": []}, "layersDir: expected a text, found an array"),
        ({"layersPartLimit": 101}, "layersPartLimit: must be 0 to 100, not 101"),
        ({"layersPartLimit": -1}, "layersPartLimit: must be 0 to 100, not -1"),
        ({"layersPartLimit": "50"}, "layersPartLimit: expected an integer, found a text"),
        ({"layerTtlDays": -1}, "layerTtlDays: must be 0 to 18446744073709551615, not -1"),
        ({"layerTtlDays": 1.5}, "layerTtlDays: expected an integer, found a number"),
        ({"layerManager": []}, "layerManager: expected an object, found an array"),
        ({"layerManager": {"paralelInstalls": 1}}, "layerManager.paralelInstalls: unknown key"),
        ({"layerManager": {"durable": 1}}, "durable: expected true or false, found a number"),
        ({"layerManager": {"parallelInstalls": 0}}, "parallelInstalls: must be at least 1, not 0"),
        (network({"tls": "1.2"}), "layerManager.network.tls: unknown key"),
        (
            {"layerManager": {"network": {"minimumTlsVersion": "1.1"}}},
            "network.minimumTlsVersion: must be 1.2 or 1.3, not '1.1'",
        ),
        (network({"attempts": 0}), "attempts: must be at least 1, not 0"),
        ({"layerManager": {"limits": {"bytes": 1}}}, "layerManager.limits.bytes: unknown key"),
        ({"layerManager": {"limits": {"entries": 0}}}, "limits.entries: must be at least 1, not 0"),
        (
            {"layerManager": {"network": {"readTimeoutSeconds": "1"}}},
            "readTimeoutSeconds: expected a number",
        ),
        (
            {"layerManager": {"network": {"readTimeoutSeconds": 0}}},
            "readTimeoutSeconds must be more than 0",
        ),
        (
            {"layerManager": {"network": {"readTimeoutSeconds": 1e-9}}},
            "readTimeoutSeconds must be more than 0",
        ),
        (
            {"layerManager": {"network": {"connectTimeoutSeconds": -1}}},
            "connectTimeoutSeconds: must be 0 to",
        ),
        (
            {"layerManager": {"network": {"connectTimeoutSeconds": 1e300}}},
            "connectTimeoutSeconds: must be 0 to",
        ),
        (
            {"layerManager": {"removeCachedLayersPeriodSeconds": 10**400}},
            "a number of 401 digits: an integer has at most 64 bits",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_file(
    tmp_path: Path, document: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, document)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        ("1e999", "a number that is out of range: 1e999"),
        ("-1e999", "a number that is out of range: -1e999"),
        ("86400000000000", "removeCachedLayersPeriod"),
        ("0.0000001", "removeCachedLayersPeriod"),
    ],
)
def test_no_number_of_seconds_is_more_than_an_error(
    tmp_path: Path, seconds: str, message: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(f'{{"layerManager": {{"removeCachedLayersPeriodSeconds": {seconds}}}}}')
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_what_is_not_json_is_an_error_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"workingDir": ')
    with pytest.raises(ConfigError, match="not JSON") as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        load_config(tmp_path / "missing.json")
    assert "missing.json" in str(caught.value)
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "members",
    [
        {"layers_part_limit": 101},
        {"layers_part_limit": -1},
        {"layer_ttl_days": -1},
        {"parallel_installs": 0},
        {"remove_cached_layers_period": timedelta(0)},
    ],
)
def test_a_program_may_not_say_what_a_file_may_not(members: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Config(Path("/x"), **members)  # type: ignore[arg-type] # a table of wrong members


@pytest.mark.parametrize(
    "members",
    [
        {"connect_timeout": timedelta(0)},
        {"read_timeout": timedelta(seconds=-1)},
        {"transfer_timeout": timedelta(days=366)},
        {"document_timeout": timedelta(0)},
        {"document_timeout": timedelta(days=2)},
        {"retry_delay": timedelta(0)},
        {"longest_retry_delay": timedelta(days=2)},
        {"attempts": 0},
        {"minimum_rate": -1},
        {"rate_limit": -1},
        {"spool_bytes": -1},
        {"client_key": Path("/key.pem")},
    ],
)
def test_nor_of_the_network(members: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Network(**members)  # type: ignore[arg-type] # a table of wrong members


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "workingDir",
                        "layersDir",
                        "layersPartLimit",
                        "layerTtlDays",
                        "layerManager",
                        "removeCachedLayersPeriodSeconds",
                        "parallelInstalls",
                        "durable",
                        "network",
                        "caBundle",
                        "minimumTlsVersion",
                        "limits",
                        "entries",
                        "other",
                    ]
                ),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_any_document_is_a_configuration_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, document: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(document))
    try:
        config = load_config(path)
    except ConfigError:
        return
    assert config.layers_dir.is_absolute()


def registries(members: dict[str, object]) -> object:
    return network({"registries": members})


@pytest.mark.parametrize(
    "prefix",
    [
        "64:ff9b:1::/96",
        "2001:db8::/32",
        "2001:db8:100::/40",
        "2001:db8:122::/48",
        "2001:db8:122:300::/56",
        "2001:db8:122:344::/64",
    ],
)
def test_prefixes_of_nat64_can_be_named(tmp_path: Path, prefix: str) -> None:
    config = load(tmp_path, network({"nat64Prefixes": [prefix]}))
    assert config.network.nat64_prefixes == (IPv6Network(prefix),)


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ("2001:db8::/96", "nat64Prefixes: expected an array of texts"),
        ([1], r"nat64Prefixes\[0\]: expected a text"),
        (["x"], "nat64Prefixes: not an IPv6 prefix: 'x'"),
        (["10.0.0.0/8"], "nat64Prefixes: not an IPv6 prefix: '10.0.0.0/8'"),
        (["2001:db8::1/96"], "nat64Prefixes: not an IPv6 prefix: .* has host bits set"),
        (["2001:db8::/80"], "nat64Prefixes: 2001:db8::/80: the length must be one of 32, 40, 48"),
        (["2001:db8::"], "nat64Prefixes: 2001:db8::/128: the length must be one of"),
        (["2001:db8:0:0:ff00::/96"], "nat64Prefixes: .*: bits 64 to 71 must be 0"),
    ],
)
def test_what_is_no_prefix_of_nat64_is_refused(
    tmp_path: Path, prefixes: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, network({"nat64Prefixes": prefixes}))


def test_registries_may_have_mirrors_or_speak_http(tmp_path: Path) -> None:
    mirrors = ["https://mirror.example", "http://192.0.2.1:5000/cache/hub"]
    config = load(
        tmp_path,
        registries({"docker.io": {"mirrors": mirrors}, "localhost:5000": {"http": True}}),
    )
    assert config.network.registries == {
        "docker.io": Registry(mirrors=tuple(mirrors)),
        "localhost:5000": Registry(is_plain=True),
    }


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"r.example": {"mirror": []}}, "registries.r.example.mirror: unknown key"),
        ({"r.example": {"http": "yes"}}, "registries.r.example.http: expected true or false"),
        ({"r.example": []}, "registries.r.example: expected an object"),
        ({"r.example": {"mirrors": "m"}}, "mirrors: expected an array"),
        ({"r example": {}}, "registries: not a registry: 'r example'"),
        ({"": {}}, "registries: not a registry: ''"),
        ({"https://r.example": {}}, "registries: not a registry: 'https://r.example'"),
        ({"r.example/app": {}}, "which means r.example by it"),
        ({"registry": {}}, "which means docker.io by it"),
        ({"index.docker.io": {}}, "which means docker.io by it"),
        *(
            ({"r.example": {"mirrors": [mirror]}}, "mirrors: expected http:// or https://")
            for mirror in (
                "",
                "m.example",
                "m.example:5000",
                "ftp://m.example",
                "https://",
                "https:///cache",
                "https://m.example?a",
                "https://m.example#a",
                "https://m.example/Cache",
                "https://m.example/a//b",
                "https://user:hunter2@m.example",
                "https://m",
                "https://[::1",
            )
        ),
    ],
)
def test_registries_that_cannot_be_are_refused(
    tmp_path: Path, members: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, registries(members))
    assert "hunter2" not in str(caught.value)
