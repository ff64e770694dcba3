from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest
from registry_places import (
    IMAGE,
    SECRET,
    auth_file,
    image_of,
    name_of,
    of,
    plain,
    token,
    token_path,
)

from layermanager.cancellation import Cancellation
from layermanager.cli.run import run
from layermanager.config import Network
from layermanager.errors import (
    CancelledError,
    IntegrityError,
    InvalidReferenceError,
    ManifestError,
    SourceError,
)
from layermanager.images.push import push_image
from layermanager.testing.clock import PassingClock
from layermanager.testing.images import build_index, layout_files, write_files
from layermanager.testing.layers import digest_of
from layermanager.testing.web import Answer, LayerServer, Stall

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYER = IMAGE.layers[0]
CONFIG = digest_of(IMAGE.config)
DIGEST = digest_of(LAYER)
CREATED = Answer(status=201)
UPLOADS = "/v2/app/blobs/uploads/"


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxies, and no logins but those of a test."""
    for scheme in ("http", "https", "no"):
        for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


@pytest.fixture
def server() -> Iterator[LayerServer]:
    """A registry that takes what it is given."""
    with LayerServer() as server:
        for digest in (CONFIG, DIGEST):
            server.answer(f"/v2/app/blobs/{digest}", Answer(status=404), method="HEAD")
            server.answer(f"/there?a=b&digest={digest}", CREATED, method="PUT")
        begun = Answer(status=202, headers={"Location": "/there?a=b"})
        server.answer(UPLOADS, begun, method="POST")
        server.answer("/v2/app/manifests/1", CREATED, method="PUT")
        yield server


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_files(tmp_path / "layout", layout_files({"1": IMAGE}))


def push(server: LayerServer, layout: Path, cancellation: Cancellation | None = None) -> None:
    push_image(
        f"oci:{layout}:1",
        f"{name_of(server)}/app:1",
        of(Network(), server),
        clock=PassingClock(),
        cancellation=cancellation,
    )


def sent(server: LayerServer, digest: str) -> list[bytes]:
    """What was sent as the blob of this *digest*."""
    return [one.body for one in server.requests if one.target.endswith(f"digest={digest}")]


def test_blobs_come_before_the_manifest(server: LayerServer, layout: Path) -> None:
    push(server, layout)
    assert [(one.method, one.target) for one in server.requests] == [
        ("HEAD", f"/v2/app/blobs/{CONFIG}"),
        ("POST", UPLOADS),
        ("PUT", f"/there?a=b&digest={CONFIG}"),
        ("HEAD", f"/v2/app/blobs/{DIGEST}"),
        ("POST", UPLOADS),
        ("PUT", f"/there?a=b&digest={DIGEST}"),
        ("PUT", "/v2/app/manifests/1"),
    ]
    assert (sent(server, CONFIG), sent(server, DIGEST)) == ([IMAGE.config], [LAYER])
    manifest = server.requests[-1]
    assert manifest.body == IMAGE.document
    assert manifest.headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"
    assert server.connections == 1


def test_a_location_may_be_absolute_and_elsewhere_where_no_login_goes(
    server: LayerServer, layout: Path, tmp_path: Path
) -> None:
    auth_file(tmp_path / "auth.json", server)
    challenge = Answer(status=401, headers={"WWW-Authenticate": "Basic realm=a"})
    with LayerServer() as other:
        location = f"http://127.0.0.1:{other.port}/other"
        begun = Answer(status=202, headers={"Location": location})
        server.answer(f"/v2/app/blobs/{CONFIG}", challenge, Answer(status=404), method="HEAD")
        server.answer(UPLOADS, begun, method="POST")
        for digest in (CONFIG, DIGEST):
            other.answer(f"/other?digest={digest}", CREATED, method="PUT")
        push(server, layout)
        assert (sent(other, CONFIG), sent(other, DIGEST)) == ([IMAGE.config], [LAYER])
        assert all("authorization" not in one.headers for one in other.requests)
    assert all("authorization" in one.headers for one in server.requests[1:])


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "http://[::1/x", ""])
def test_a_location_that_is_none_is_refused(
    server: LayerServer, layout: Path, location: str
) -> None:
    server.answer(UPLOADS, Answer(status=202, headers={"Location": location}), method="POST")
    with pytest.raises(SourceError, match=r"sent for an upload to|takes no blobs: 202 Accepted"):
        push(server, layout)


def test_a_blob_that_was_not_taken_is_sent_from_its_beginning(
    server: LayerServer, layout: Path
) -> None:
    path = f"/there?a=b&digest={DIGEST}"
    server.answer(path, Answer(status=503), Answer(status=429), CREATED, method="PUT")
    push(server, layout)
    assert sent(server, DIGEST) == [LAYER, LAYER, LAYER]
    assert sent(server, CONFIG) == [IMAGE.config]


def test_a_login_that_ends_is_renewed(server: LayerServer, layout: Path) -> None:
    challenge = f'Bearer realm="{server.url}/token",service=s'
    refused = Answer(status=401, headers={"WWW-Authenticate": challenge})
    server.answer(UPLOADS, refused, *[Answer(status=202, headers={"Location": "/there?a=b"})] * 2,
        refused, Answer(status=202, headers={"Location": "/there?a=b"}), method="POST")  # fmt: skip
    server.answer(f"/there?a=b&digest={DIGEST}", Answer(status=401), CREATED, method="PUT")
    server.answer(token_path(actions="pull,push"), token("first"), token("second"))
    push(server, layout)
    assert sent(server, DIGEST) == [LAYER, LAYER]
    puts = [one.headers.get("authorization") for one in server.requests if one.method == "PUT"]
    assert puts == ["Bearer first", "Bearer first", "Bearer second", "Bearer second"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAYER[:-1], "blob size: expected .* bytes, found"),
        (LAYER + b"x", "blob size: expected .* bytes, found .* or more"),
        (LAYER[:-1] + b"x", "blob digest: expected"),
    ],
)
def test_what_is_not_the_blob_is_not_pushed(
    server: LayerServer, layout: Path, content: bytes, message: str
) -> None:
    (layout / f"blobs/sha256/{DIGEST.encoded}").write_bytes(content)
    with pytest.raises(IntegrityError, match=message):
        push(server, layout)
    assert server.requests[-1].target != "/v2/app/manifests/1"


def test_a_registry_that_took_something_else_is_told_of(server: LayerServer, layout: Path) -> None:
    told = Answer(status=201, headers={"Docker-Content-Digest": image_of("other").digest})
    server.answer("/v2/app/manifests/1", told, method="PUT")
    with pytest.raises(IntegrityError, match="Docker-Content-Digest: expected"):
        push(server, layout)


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("HEAD", f"/v2/app/blobs/{CONFIG}", "403 Forbidden"),
        ("POST", UPLOADS, "the registry takes no blobs: 403 Forbidden"),
        ("PUT", f"/there?a=b&digest={CONFIG}", f"does not take blob {CONFIG}: 403 Forbidden"),
        ("PUT", "/v2/app/manifests/1", "does not take the manifest: 403 Forbidden"),
    ],
)
def test_a_registry_that_takes_nothing_is_told_of(
    server: LayerServer, layout: Path, method: str, path: str, message: str
) -> None:
    server.answer(path, Answer(status=403), method=method)
    with pytest.raises(SourceError, match=message):
        push(server, layout)


def test_connections_are_used_again(server: LayerServer, layout: Path) -> None:
    there = Answer(headers={"Content-Length": "1000"})
    server.answer(f"/v2/app/blobs/{CONFIG}", there, method="HEAD")
    push(server, layout)
    assert server.connections == 1


def test_a_blob_that_is_elsewhere_is_there(server: LayerServer, layout: Path) -> None:
    for digest in (CONFIG, DIGEST):
        elsewhere = Answer.redirect("https://store.invalid/blob", 307)
        server.answer(f"/v2/app/blobs/{digest}", elsewhere, method="HEAD")
    push(server, layout)
    assert [one.method for one in server.requests] == ["HEAD", "HEAD", "PUT"]


def test_cancelling_ends_it_at_once(server: LayerServer, layout: Path) -> None:
    stall = Stall(threading.Event(), after=None)
    server.answer(f"/there?a=b&digest={DIGEST}", Answer(stall=stall), method="PUT")
    cancellation = Cancellation()

    def cancel() -> None:
        stall.reached.wait()
        cancellation.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(CancelledError):
        push(server, layout, cancellation)
    thread.join()


class TestReferences:
    def test_a_target_has_a_tag(self, layout: Path) -> None:
        target = f"localhost:5000/app@{IMAGE.digest}"
        with pytest.raises(InvalidReferenceError, match="by a tag, not by its digest"):
            push_image(f"oci:{layout}:1", target, Network())

    def test_a_target_is_a_registry(self, layout: Path) -> None:
        with pytest.raises(InvalidReferenceError, match="not a reference to an image in a reg"):
            push_image(f"oci:{layout}:1", "oci:/other:1", Network())

    def test_several_images_of_one_name_are_no_image(self, tmp_path: Path) -> None:
        files = layout_files({"1": IMAGE})
        index = json.loads(files["index.json"])
        index["manifests"] *= 2
        layout = write_files(tmp_path, {**files, "index.json": json.dumps(index).encode()})
        with pytest.raises(ManifestError, match="2 images are called so"):
            push_image(f"oci:{layout}:1", "localhost:5000/app", Network())

    def test_indexes_within_indexes_have_an_end(self, tmp_path: Path) -> None:
        image = IMAGE
        for _ in range(6):
            image = build_index([image])
        layout = write_files(tmp_path, layout_files({"1": image}))
        with pytest.raises(ManifestError, match="indexes within indexes, more than 4 deep"):
            push_image(f"oci:{layout}:1", "localhost:5000/app", Network())


class TestCommand:
    @pytest.fixture
    def config(self, server: LayerServer, tmp_path: Path) -> str:
        registries = {name: {"http": True} for name in plain(server)}
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"layerManager": {"network": {"registries": registries}}}))
        return str(path)

    def test_says_what_it_does(
        self, server: LayerServer, layout: Path, config: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        there = Answer(headers={"Content-Length": "7"})
        server.answer(f"/v2/app/blobs/{CONFIG}", there, method="HEAD")
        target = f"{name_of(server)}/app:1"
        assert run(["--config", config, "push", f"{layout}:1", target]) == 0
        out, err = capsys.readouterr()
        assert out == f"{name_of(server)}/app@{IMAGE.digest}\n"
        assert err.splitlines() == [
            f"{CONFIG[:19]}: there already",
            f"{DIGEST[:19]}: sending, {len(LAYER)} B",
            f"{DIGEST[:19]}: sent",
        ]

    def test_or_says_it_as_json(
        self, server: LayerServer, layout: Path, config: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = f"{name_of(server)}/app:1"
        source = f"{layout}@{IMAGE.digest}"
        assert run(["--config", config, "--json", "push", source, target]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document == {"ref": f"{name_of(server)}/app@{IMAGE.digest}"}

    def test_names_what_fails_but_no_secrets(
        self,
        server: LayerServer,
        layout: Path,
        config: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        auth_file(tmp_path / "auth.json", server)
        challenge = Answer(status=401, headers={"WWW-Authenticate": "Basic realm=a"})
        server.answer(f"/v2/app/blobs/{CONFIG}", challenge, method="HEAD")
        target = f"{name_of(server)}/app:1"
        assert run(["--config", config, "push", f"{layout}:1", target]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "refuses the login that it asked for: 401 Unauthorized" in err
        assert SECRET not in err
