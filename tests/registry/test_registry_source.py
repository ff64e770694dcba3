from __future__ import annotations

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from registry_places import (
    IMAGE,
    SECRET,
    Asking,
    asked,
    asking,
    auth_file,
    bearer_challenge,
    image_of,
    name_of,
    of,
    put,
    token,
    token_path,
)

from layermanager.config import Network, Registry
from layermanager.errors import (
    CancelledError,
    IntegrityError,
    InvalidReferenceError,
    ManifestError,
    SourceError,
    SourceTimeoutError,
)
from layermanager.oci.manifest import MAX_DOCUMENT_BYTES
from layermanager.oci.reference import parse_reference
from layermanager.testing.clock import FakeClock, PassingClock
from layermanager.testing.images import build_image, build_index
from layermanager.testing.layers import digest_of
from layermanager.testing.tls import Authority
from layermanager.testing.web import Answer, Framing, LayerServer, Stall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OTHER = image_of("another text")
BUSY = Answer(status=503, headers={"Retry-After": "7"})


@pytest.fixture
def server() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


@pytest.fixture
def other() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


@pytest.fixture
def ask(server: LayerServer) -> Iterator[Asking]:
    """Asks *server*, as nobody in particular."""
    with asking(of(Network(), server)) as one:
        yield one


def manifest(server: LayerServer, *answers: Answer) -> None:
    server.answer("/v2/app/manifests/1", *answers)


class TestImages:
    def test_are_found_by_tag(self, server: LayerServer, ask: Asking) -> None:
        reference = put(server, IMAGE)
        image = ask.resolve(reference)
        assert (image.reference, image.digest, image.config) == (
            reference,
            IMAGE.digest,
            IMAGE.config,
        )
        (layer,) = image.layers
        assert layer.url == f"docker://{name_of(server)}/app@{digest_of(IMAGE.layers[0])}"
        assert ask.fetch(layer.url) == IMAGE.layers[0]

    def test_are_asked_for_once(self, server: LayerServer, ask: Asking) -> None:
        ask.resolve(put(server, IMAGE))
        config = f"/v2/app/blobs/{digest_of(IMAGE.config)}"
        assert asked(server) == ["/v2/app/manifests/1", config]
        types = server.requests[0].headers["accept"].split(", ")
        assert types == [
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        ]
        assert "accept" not in server.requests[1].headers

    def test_have_configurations_without_a_type(self, server: LayerServer, ask: Asking) -> None:
        config = {
            "mediaType": "application/octet-stream",
            "digest": digest_of(IMAGE.config),
            "size": len(IMAGE.config),
        }
        image = build_image(IMAGE.layers, changes={"config": config})
        assert ask.resolve(put(server, image)).config == IMAGE.config

    def test_are_found_by_digest(self, server: LayerServer, ask: Asking) -> None:
        put(server, IMAGE)
        assert ask.resolve(f"{name_of(server)}/app@{IMAGE.digest}").digest == IMAGE.digest
        assert asked(server)[0] == f"/v2/app/manifests/{IMAGE.digest}"

    def test_are_found_in_an_index(self, server: LayerServer, ask: Asking) -> None:
        index = build_index([IMAGE])
        put(server, IMAGE)
        reference = put(server, index, tag="all")
        assert ask.resolve(reference).digest == IMAGE.digest
        assert f"/v2/app/manifests/{IMAGE.digest}" in asked(server)

    def test_that_are_not_there_are_named(self, server: LayerServer, ask: Asking) -> None:
        with pytest.raises(SourceError, match=f"404 Not Found: {server.url}/v2/app/manifests/1"):
            ask.resolve(f"{name_of(server)}/app:1")

    def test_of_files_are_not_in_a_registry(self, ask: Asking) -> None:
        with pytest.raises(InvalidReferenceError, match="not a reference to an image in a reg"):
            ask.source.find_image(parse_reference("oci:/a"), ask.cancellation)

    def test_have_layers_by_digest_only(self, server: LayerServer, ask: Asking) -> None:
        with pytest.raises(SourceError, match="ends with @ and its digest"):
            ask.fetch(f"docker://{name_of(server)}/app:1")


class TestTls:
    def test_is_spoken_unless_the_configuration_says_otherwise(self, server: LayerServer) -> None:
        with asking(Network(attempts=1)) as ask, pytest.raises(SourceError, match="no answer"):
            ask.resolve(put(server, IMAGE))
        assert server.requests == ()

    def test_is_verified(self, tmp_path: Path, needs_openssl: None) -> None:  # noqa: ARG002
        authority = Authority.create(tmp_path)
        with LayerServer(authority.server_context()) as secure:
            reference = put(secure, IMAGE)
            with asking(Network()) as ask, pytest.raises(SourceError, match="is not trusted"):
                ask.resolve(reference)
            with asking(Network(ca_bundle=authority.bundle)) as ask:
                assert ask.resolve(reference).digest == IMAGE.digest


class TestLies:
    """What a registry says falsely is refused by name."""

    def test_another_manifest_than_that_of_the_digest(
        self, server: LayerServer, ask: Asking
    ) -> None:
        put(server, IMAGE)
        server.add(f"/v2/app/manifests/{IMAGE.digest}", OTHER.document)
        with pytest.raises(IntegrityError, match="document digest") as caught:
            ask.resolve(f"{name_of(server)}/app@{IMAGE.digest}")
        assert (caught.value.expected, caught.value.found) == (IMAGE.digest, OTHER.digest)

    def test_another_digest_in_the_headers(self, server: LayerServer, ask: Asking) -> None:
        reference = put(server, IMAGE)
        manifest(server, Answer(IMAGE.document, headers={"Docker-Content-Digest": OTHER.digest}))
        with pytest.raises(IntegrityError, match="Docker-Content-Digest: expected"):
            ask.resolve(reference)

    def test_no_digest_in_the_headers(self, server: LayerServer, ask: Asking) -> None:
        reference = put(server, IMAGE)
        manifest(server, Answer(IMAGE.document, headers={"Docker-Content-Digest": "sha256:x"}))
        with pytest.raises(SourceError, match="Docker-Content-Digest: a sha256 digest has 64"):
            ask.resolve(reference)

    @pytest.mark.parametrize("form", ["{0}, {0}", "{0},{0}", '"{0}"', "", " ", ",", ' "{0}" , {0}'])
    def test_a_digest_in_the_headers_may_be_repeated_quoted_or_empty(
        self, server: LayerServer, ask: Asking, form: str
    ) -> None:
        reference = put(server, IMAGE)
        told = form.format(IMAGE.digest)
        manifest(server, Answer(IMAGE.document, headers={"Docker-Content-Digest": told}))
        assert ask.resolve(reference).digest == IMAGE.digest

    def test_two_digests_in_the_headers(self, server: LayerServer, ask: Asking) -> None:
        reference = put(server, IMAGE)
        told = f"{IMAGE.digest}, {OTHER.digest}"
        manifest(server, Answer(IMAGE.document, headers={"Docker-Content-Digest": told}))
        with pytest.raises(IntegrityError, match="Docker-Content-Digest: expected"):
            ask.resolve(reference)

    def test_the_digest_in_the_headers_is_no_proof(self, server: LayerServer, ask: Asking) -> None:
        put(server, IMAGE)
        headers = {"Docker-Content-Digest": IMAGE.digest}
        path = f"/v2/app/manifests/{IMAGE.digest}"
        server.answer(path, Answer(OTHER.document, headers=headers))
        with pytest.raises(IntegrityError, match="document digest"):
            ask.resolve(f"{name_of(server)}/app@{IMAGE.digest}")

    def test_an_endless_manifest(self, server: LayerServer, ask: Asking) -> None:
        reference = put(server, IMAGE)
        body = bytes(MAX_DOCUMENT_BYTES + 100_000)
        manifest(server, Answer(body, framing=Framing.CHUNKED))
        with pytest.raises(ManifestError, match=f"has more than {MAX_DOCUMENT_BYTES} bytes"):
            ask.resolve(reference)

    def test_a_longer_configuration(self, server: LayerServer, ask: Asking) -> None:
        reference = put(server, IMAGE)
        server.add(f"/v2/app/blobs/{digest_of(IMAGE.config)}", IMAGE.config + bytes(1 << 20))
        with pytest.raises(IntegrityError, match="document size") as caught:
            ask.resolve(reference)
        assert caught.value.found == f"{len(IMAGE.config) + 1} or more"

    def test_a_manifest_that_drips(self, server: LayerServer) -> None:
        reference = put(server, IMAGE)
        stall = Stall(threading.Event(), after=10)
        manifest(server, Answer(IMAGE.document, stall=stall))
        network = Network(attempts=1, read_timeout=timedelta(milliseconds=50))
        with (
            asking(of(network, server)) as ask,
            pytest.raises(SourceTimeoutError, match="timed out"),
        ):
            ask.resolve(reference)

    def test_a_web_page(self, server: LayerServer, ask: Asking) -> None:
        reference = put(server, IMAGE)
        manifest(server, Answer(b"<html>", headers={"Content-Type": "text/html"}))
        with pytest.raises(ManifestError, match=f"{reference}: manifest: not JSON"):
            ask.resolve(reference)


class TestDeadline:
    """However a server spends it, the time for one document ends."""

    NETWORK = Network(
        attempts=1, read_timeout=timedelta(hours=1), document_timeout=timedelta(seconds=60)
    )

    @pytest.mark.parametrize("after", [None, 10])
    @pytest.mark.parametrize("what", ["manifest", "configuration", "token"])
    def test_ends_a_document_that_drips(
        self, server: LayerServer, what: str, after: int | None
    ) -> None:
        reference = put(server, IMAGE)
        stall = Stall(threading.Event(), after=after)
        if what == "manifest":
            manifest(server, Answer(IMAGE.document, stall=stall))
        elif what == "configuration":
            path = f"/v2/app/blobs/{digest_of(IMAGE.config)}"
            server.answer(path, Answer(IMAGE.config, stall=stall))
        else:
            manifest(server, bearer_challenge(server))
            server.answer(token_path(), replace(token("abc" * 10), stall=stall))
        self.expect_end(server, stall, lambda ask: ask.resolve(reference))

    def test_ends_a_token_that_a_layer_waits_for(self, server: LayerServer) -> None:
        digest = digest_of(IMAGE.layers[0])
        server.answer(f"/v2/app/blobs/{digest}", bearer_challenge(server))
        stall = Stall(threading.Event(), after=None)
        server.answer(token_path(), replace(token("abc"), stall=stall))
        url = f"docker://{name_of(server)}/app@{digest}"
        self.expect_end(server, stall, lambda ask: ask.fetch(url))

    def expect_end(
        self, server: LayerServer, stall: Stall, fetch: Callable[[Asking], object]
    ) -> None:
        clock = FakeClock()
        with asking(of(self.NETWORK, server), clock=clock) as ask, ThreadPoolExecutor(1) as thread:
            fetching = thread.submit(fetch, ask)
            stall.reached.wait()
            clock.wait_for_waiters(1)
            clock.advance(timedelta(seconds=59))
            assert not fetching.done()
            clock.wait_for_waiters(1)
            clock.advance(timedelta(seconds=1))
            error = fetching.exception()
        assert isinstance(error, SourceTimeoutError)
        assert error.is_transient
        assert "not there within documentTimeoutSeconds" in str(error)


class TestFailures:
    def test_of_the_moment_are_tried_again(self, server: LayerServer) -> None:
        reference = put(server, IMAGE)
        manifest(server, BUSY, Answer(IMAGE.document))
        clock = PassingClock()
        with asking(of(Network(), server), clock=clock) as ask:
            assert ask.find(reference) == IMAGE.digest
        assert clock.waits == [7.0]

    def test_that_go_on_are_told(self, server: LayerServer) -> None:
        reference = put(server, IMAGE)
        manifest(server, BUSY)
        with (
            asking(of(Network(attempts=3), server)) as ask,
            pytest.raises(SourceError, match=r"gave up after 3 attempts .* \(3 times\)"),
        ):
            ask.find(reference)

    def test_a_document_that_breaks_off_is_asked_for_again(
        self, server: LayerServer, ask: Asking
    ) -> None:
        reference = put(server, IMAGE)
        manifest(server, Answer(IMAGE.document, truncate_at=10), Answer(IMAGE.document))
        assert ask.find(reference) == IMAGE.digest

    def test_cancelling_ends_the_wait_for_a_document(
        self, server: LayerServer, ask: Asking
    ) -> None:
        reference = put(server, IMAGE)
        stall = Stall(threading.Event(), after=10)
        manifest(server, Answer(IMAGE.document, stall=stall))

        def cancel() -> None:
            stall.reached.wait()
            ask.cancellation.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(CancelledError):
            ask.resolve(reference)
        thread.join()


class TestBlobs:
    def test_go_on_where_they_broke_off(self, server: LayerServer, ask: Asking) -> None:
        blob = IMAGE.layers[0]
        part = {"Content-Range": f"bytes 10-{len(blob) - 1}/{len(blob)}", "ETag": '"a"'}
        path = f"/v2/app/blobs/{digest_of(blob)}"
        server.answer(path, Answer(blob[10:], status=206, headers=part))
        url = f"docker://{name_of(server)}/app@{digest_of(blob)}"
        stream = ask.source.open(url, ask.cancellation, offset=10, validator='"a"')
        with closing(stream):
            assert (stream.offset, stream.size, stream.validator) == (10, len(blob), '"a"')
            assert stream.read(1 << 20) == blob[10:]
        (request,) = server.requests
        assert request.headers["range"] == "bytes=10-"
        assert request.headers["if-range"] == '"a"'

    def test_may_be_elsewhere_where_no_login_goes(
        self, server: LayerServer, other: LayerServer, tmp_path: Path
    ) -> None:
        blob = IMAGE.layers[0]
        path = f"/v2/app/blobs/{digest_of(blob)}"
        target = f"http://127.0.0.1:{other.port}/store"
        server.answer(path, bearer_challenge(server), Answer.redirect(target))
        server.answer(token_path(), token("abc"))
        other.add("/store", blob)
        with asking(of(Network(), server), auth_file(tmp_path / "auth", server)) as ask:
            assert ask.fetch(f"docker://{name_of(server)}/app@{digest_of(blob)}") == blob
        assert "authorization" not in other.requests[0].headers

    def test_elsewhere_nobody_may_ask_who_is_there(
        self, server: LayerServer, other: LayerServer, tmp_path: Path
    ) -> None:
        path = f"/v2/app/blobs/{digest_of(IMAGE.layers[0])}"
        server.answer(path, Answer.redirect(f"http://127.0.0.1:{other.port}/store"))
        other.answer("/store", bearer_challenge(other))
        with (
            asking(of(Network(), server), auth_file(tmp_path / "auth", server)) as ask,
            pytest.raises(SourceError, match="401 Unauthorized"),
        ):
            ask.fetch(f"docker://{name_of(server)}/app@{digest_of(IMAGE.layers[0])}")
        assert asked(other) == ["/store"]


class TestMirrors:
    def network(self, server: LayerServer, *mirrors: str, **settings: int) -> Network:
        registry = Registry(mirrors=mirrors, is_plain=True)
        return Network(registries={name_of(server): registry}, **settings)  # type: ignore[arg-type]  # of a test

    def test_are_asked_first(self, server: LayerServer, other: LayerServer) -> None:
        put(other, IMAGE, "cache/app")
        with asking(self.network(server, f"{other.url}/cache")) as ask:
            image = ask.resolve(f"{name_of(server)}/app:1")
        assert image.reference == f"{name_of(server)}/app:1"
        assert image.layers[0].url.startswith(f"docker://{name_of(server)}/app@")
        assert server.requests == ()

    def test_that_lack_an_image_are_passed_over(
        self, server: LayerServer, other: LayerServer
    ) -> None:
        reference = put(server, IMAGE)
        clock = PassingClock()
        with asking(self.network(server, other.url), clock=clock) as ask:
            assert ask.resolve(reference).digest == IMAGE.digest
        assert "/v2/app/manifests/1" in asked(other)
        assert clock.waits == []

    def test_that_lie_are_passed_over(self, server: LayerServer, other: LayerServer) -> None:
        put(server, IMAGE)
        put(other, IMAGE)
        other.add(f"/v2/app/manifests/{IMAGE.digest}", OTHER.document)
        other.add(f"/v2/app/blobs/{digest_of(IMAGE.config)}", OTHER.config)
        with asking(self.network(server, other.url)) as ask:
            image = ask.resolve(f"{name_of(server)}/app@{IMAGE.digest}")
        assert image.config == IMAGE.config

    def test_that_are_gone_are_no_hindrance(self, server: LayerServer) -> None:
        with LayerServer() as gone:
            pass
        reference = put(server, IMAGE)
        with asking(self.network(server, gone.url)) as ask:
            assert ask.resolve(reference).digest == IMAGE.digest


class TestTokens:
    def test_are_had_by_nobody_in_particular(self, server: LayerServer, ask: Asking) -> None:
        reference = put(server, IMAGE)
        manifest(server, bearer_challenge(server), Answer(IMAGE.document))
        server.answer(token_path(), token("abc"))
        assert ask.resolve(reference).digest == IMAGE.digest
        _, asking_for_token, *with_token = server.requests
        assert "authorization" not in asking_for_token.headers
        assert [one.headers["authorization"] for one in with_token] == ["Bearer abc"] * 2

    def test_are_had_by_who_is_known(self, server: LayerServer, tmp_path: Path) -> None:
        reference = put(server, IMAGE)
        manifest(server, bearer_challenge(server), Answer(IMAGE.document))
        server.answer(token_path(), Answer(b'{"access_token": "abc"}'))
        with asking(of(Network(), server), auth_file(tmp_path / "auth", server)) as ask:
            ask.resolve(reference)
        expected = "Basic " + base64.b64encode(f"u:{SECRET}".encode()).decode()
        assert server.requests[1].headers["authorization"] == expected
        assert server.requests[2].headers["authorization"] == "Bearer abc"

    def test_are_had_for_an_identity_token(self, server: LayerServer, tmp_path: Path) -> None:
        reference = put(server, IMAGE)
        manifest(server, bearer_challenge(server), Answer(IMAGE.document))
        server.answer("/token", token("abc"), method="POST")
        path = auth_file(tmp_path / "auth", server, identitytoken=f"{SECRET}/+")
        with asking(of(Network(), server), path) as ask:
            assert ask.resolve(reference).digest == IMAGE.digest
        request = server.requests[1]
        assert request.body.decode() == (
            "service=s&scope=repository%3Aapp%3Apull&grant_type=refresh_token"
            f"&client_id=layermanager&refresh_token={SECRET}%2F%2B"
        )
        assert "authorization" not in request.headers

    def test_are_kept_until_they_expire(self, server: LayerServer) -> None:
        reference = put(server, IMAGE)
        manifest(
            server,
            bearer_challenge(server),
            Answer(IMAGE.document),
            Answer(IMAGE.document),
            bearer_challenge(server),
            Answer(IMAGE.document),
        )
        server.answer(token_path(), token("first", expires_in=100), token("second"))
        clock = PassingClock()
        with asking(of(Network(), server), clock=clock) as ask:
            ask.resolve(reference)
            clock.wait(threading.Event(), 99)
            ask.resolve(reference)
            clock.wait(threading.Event(), 1)
            ask.resolve(reference)
        sent = [
            one.headers.get("authorization", "")
            for one in server.requests
            if one.target.startswith("/v2/app/manifests")
        ]
        assert sent == ["", "Bearer first", "Bearer first", "", "Bearer second"]

    @pytest.mark.parametrize(
        "seconds", [-1, 0, -(10**17), 10**17, 1e300, "60", "soon", None, True, [], 0.5]
    )
    def test_may_expire_at_no_time_that_makes_sense(
        self, server: LayerServer, ask: Asking, seconds: object
    ) -> None:
        reference = put(server, IMAGE)
        manifest(server, bearer_challenge(server), Answer(IMAGE.document))
        server.answer(token_path(), token("abc", expires_in=seconds))
        assert ask.resolve(reference).digest == IMAGE.digest
        assert ask.resolve(reference).digest == IMAGE.digest
        assert asked(server).count(token_path()) == 1

    @pytest.mark.parametrize(
        ("challenge", "target"),
        [
            ('Bearer realm="{0}/token"', "/token?scope=repository%3Aapp%3Apull"),
            ('Bearer realm="{0}/token",service=""', "/token?scope=repository%3Aapp%3Apull"),
            ('Bearer realm="{0}/token?a=b#part",service="s"', token_path().replace("?", "?a=b&")),
            ('Bearer realm="{0}/token#part",service="s"', token_path()),
            ('Bearer realm="{0}/token?",service="s"', token_path()),
            ('Basic realm="a, b", Bearer realm="{0}/token",service="s"', token_path()),
            ('Bearer service="s", realm="{0}/token", Basic realm="a"', token_path()),
            ('Negotiate, NTLM TlRM==, bearer REALM="{0}/token",Service=s', token_path()),
        ],
    )
    def test_are_had_from_where_a_challenge_says(
        self, server: LayerServer, ask: Asking, challenge: str, target: str
    ) -> None:
        reference = put(server, IMAGE)
        headers = {"WWW-Authenticate": challenge.format(server.url)}
        manifest(server, Answer(status=401, headers=headers), Answer(IMAGE.document))
        server.answer(target, token("abc"))
        assert ask.resolve(reference).digest == IMAGE.digest
        assert asked(server)[1] == target

    def test_without_a_service_are_had_for_an_identity_token(
        self, server: LayerServer, tmp_path: Path
    ) -> None:
        reference = put(server, IMAGE)
        headers = {"WWW-Authenticate": f'Bearer realm="{server.url}/token"'}
        manifest(server, Answer(status=401, headers=headers), Answer(IMAGE.document))
        server.answer("/token", token("abc"), method="POST")
        path = auth_file(tmp_path / "auth", server, identitytoken=SECRET)
        with asking(of(Network(), server), path) as ask:
            ask.resolve(reference)
        assert b"service" not in server.requests[1].body

    def test_are_had_though_a_helper_is_not_installed(
        self, server: LayerServer, tmp_path: Path
    ) -> None:
        reference = put(server, IMAGE)
        manifest(server, bearer_challenge(server), Answer(IMAGE.document))
        server.answer(token_path(), token("abc"))
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"credsStore": "gone"}))
        with asking(of(Network(), server), path) as ask:
            assert ask.resolve(reference).digest == IMAGE.digest

    def test_that_expire_early_are_replaced_once(self, server: LayerServer, ask: Asking) -> None:
        blob = IMAGE.layers[0]
        path = f"/v2/app/blobs/{digest_of(blob)}"
        challenge = bearer_challenge(server)
        server.answer(path, challenge, Answer(blob), challenge, Answer(blob))
        server.answer(token_path(), token("first"), token("second"))
        url = f"docker://{name_of(server)}/app@{digest_of(blob)}"
        assert ask.fetch(url) == ask.fetch(url) == blob
        sent = [one.headers.get("authorization") for one in server.requests if one.target == path]
        assert sent == [None, "Bearer first", "Bearer first", "Bearer second"]

    def test_that_are_never_right_end_the_matter(self, server: LayerServer, ask: Asking) -> None:
        reference = put(server, IMAGE)
        manifest(server, bearer_challenge(server))
        server.answer(token_path(), token("abc"))
        with pytest.raises(SourceError, match="refuses the login that it asked for: 401"):
            ask.resolve(reference)
        assert len(server.requests) == 3

    def test_that_are_refused_are_named(self, server: LayerServer, tmp_path: Path) -> None:
        reference = put(server, IMAGE)
        manifest(server, bearer_challenge(server))
        server.answer(token_path(), Answer(status=403))
        with (
            asking(of(Network(), server)) as ask,
            pytest.raises(SourceError, match="no token for nobody in particular: 403 Forbidden"),
        ):
            ask.resolve(reference)
        with (
            asking(of(Network(), server), auth_file(tmp_path / "auth", server)) as ask,
            pytest.raises(SourceError, match="no token for the login that is known: 403") as caught,
        ):
            ask.resolve(reference)
        assert SECRET not in str(caught.value)

    def test_whose_server_is_busy_are_asked_for_again(
        self, server: LayerServer, ask: Asking
    ) -> None:
        reference = put(server, IMAGE)
        challenge = bearer_challenge(server)
        manifest(server, challenge, challenge, Answer(IMAGE.document))
        server.answer(token_path(), BUSY, token("abc"))
        assert ask.find(reference) == IMAGE.digest

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            (b"", "holds no token: not JSON"),
            (b"{}", "access_token: is missing"),
            (json.dumps({"token": f"{SECRET}\r\nX: y"}).encode(), "a token may hold letters"),
            (json.dumps({"token": [SECRET]}).encode(), "token: expected a text"),
            (b" " * (1024 * 1024 + 1), "holds no token: not JSON"),
        ],
    )
    def test_that_are_none_are_refused(
        self, server: LayerServer, ask: Asking, document: bytes, message: str
    ) -> None:
        reference = put(server, IMAGE)
        manifest(server, bearer_challenge(server))
        server.answer(token_path(), Answer(document))
        with pytest.raises(SourceError, match=message) as caught:
            ask.resolve(reference)
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize(
        ("challenge", "message"),
        [
            ("", "an unknown kind: none"),
            ("Negotiate", "an unknown kind: negotiate"),
            ('Bearer realm="', "in no known way"),
            ("Bearer service=s", "does not say where to get a token"),
            ('Bearer realm="/token"', "does not say where to get a token"),
            ('Bearer realm="http://[/"', "does not say where to get a token"),
            ('Bearer realm="ftp://a/b"', "sent for a token to another scheme than http and https"),
            ('Basic realm="a"', "asks for a name and a password, and none are known"),
        ],
    )
    def test_that_are_nowhere_are_named(
        self, server: LayerServer, ask: Asking, challenge: str, message: str
    ) -> None:
        reference = put(server, IMAGE)
        manifest(server, Answer(status=401, headers={"WWW-Authenticate": challenge}))
        with pytest.raises(SourceError, match=message):
            ask.resolve(reference)

    def test_are_not_asked_for_without_tls_where_the_registry_speaks_it(
        self,
        server: LayerServer,
        tmp_path: Path,
        needs_openssl: None,  # noqa: ARG002 - it is there
    ) -> None:
        authority = Authority.create(tmp_path)
        with LayerServer(authority.server_context()) as secure:
            reference = put(secure, IMAGE)
            manifest(secure, bearer_challenge(server))
            with (
                asking(Network(ca_bundle=authority.bundle)) as ask,
                pytest.raises(SourceError, match="sent for a token from https to http"),
            ):
                ask.resolve(reference)
        assert server.requests == ()

    def test_are_not_asked_for_further_in(
        self, server: LayerServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setenv("no_proxy", "none.invalid")
        challenge = {"WWW-Authenticate": 'Bearer realm="http://169.254.169.254/token"'}
        target = "http://9.9.9.9:5000/v2/app/manifests/1"
        server.answer(target, Answer(status=401, headers=challenge))
        network = Network(registries={"9.9.9.9:5000": Registry(is_plain=True)})
        with (
            asking(network) as ask,
            pytest.raises(
                SourceError, match="sent for a token from a public address to a link-local one"
            ),
        ):
            ask.resolve("9.9.9.9:5000/app:1")
        assert len(server.requests) == 1


class TestPasswords:
    CHALLENGE = Answer(status=401, headers={"WWW-Authenticate": 'Basic realm="a"'})

    def test_are_sent_when_they_are_asked_for(self, server: LayerServer, tmp_path: Path) -> None:
        reference = put(server, IMAGE)
        manifest(server, self.CHALLENGE, Answer(IMAGE.document))
        with asking(of(Network(), server), auth_file(tmp_path / "auth", server)) as ask:
            assert ask.resolve(reference).digest == IMAGE.digest
        expected = "Basic " + base64.b64encode(f"u:{SECRET}".encode()).decode()
        sent = [one.headers.get("authorization") for one in server.requests]
        assert sent == [None, expected, expected]

    def test_that_are_wrong_are_sent_once(self, server: LayerServer, tmp_path: Path) -> None:
        reference = put(server, IMAGE)
        manifest(server, self.CHALLENGE)
        with (
            asking(of(Network(), server), auth_file(tmp_path / "auth", server)) as ask,
            pytest.raises(SourceError, match="refuses the login that it asked for") as caught,
        ):
            ask.resolve(reference)
        assert len(server.requests) == 2
        assert SECRET not in str(caught.value)

    def test_in_a_file_for_all_are_not_used(self, server: LayerServer, tmp_path: Path) -> None:
        reference = put(server, IMAGE)
        manifest(server, self.CHALLENGE)
        path = auth_file(tmp_path / "auth", server)
        path.chmod(0o644)
        with (
            asking(of(Network(), server), path) as ask,
            pytest.raises(SourceError, match=r"not asked: .* has the mode 0644"),
        ):
            ask.resolve(reference)

    def test_of_the_configuration_are_sent(self, server: LayerServer, tmp_path: Path) -> None:
        reference = put(server, IMAGE)
        path = tmp_path / "credentials"
        entry = {"username": "own", "password": "p"}
        path.write_text(json.dumps({f"http://{name_of(server)}": entry}))
        path.chmod(0o600)
        with asking(of(Network(credentials_file=path), server)) as ask:
            assert ask.resolve(reference).digest == IMAGE.digest
        expected = "Basic " + base64.b64encode(b"own:p").decode()
        assert {one.headers.get("authorization") for one in server.requests} == {expected}
