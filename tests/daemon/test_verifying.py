from __future__ import annotations

import os
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from layermanager.cancellation import Cancellation
from layermanager.daemon.state_sources import Fetched
from layermanager.daemon.verifying import verify
from layermanager.errors import CancelledError, SignatureError

if TYPE_CHECKING:
    from pathlib import Path

FETCHED = Fetched("1", b"the document", b"the signature")


def test_the_program_sees_both_and_is_believed() -> None:
    script = '[ "$(cat "$1")$(cat "$2")" = "the documentthe signature" ]'
    verify(["sh", "-c", script, "sh", "{document}", "{signature}"], FETCHED, Cancellation())


def test_what_it_says_is_told() -> None:
    with pytest.raises(SignatureError, match=r"sh refuses it \(status 3\): by nobody"):
        verify(["sh", "-c", "echo by nobody >&2; exit 3; {document}"], FETCHED, Cancellation())


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(SignatureError, match="cannot run /no/such/program"):
        verify(["/no/such/program", "{document}"], FETCHED, Cancellation())


def test_it_ends_with_the_daemon(tmp_path: Path) -> None:
    began = tmp_path / "began"
    cancellation = Cancellation()
    failures: list[Exception] = []

    def run() -> None:
        try:
            verify(
                ["sh", "-c", 'echo > "$1"; exec sleep 600', "sh", str(began)], FETCHED, cancellation
            )
        except CancelledError as error:
            failures.append(error)

    os.mkfifo(began)
    thread = threading.Thread(target=run)
    thread.start()
    began.read_bytes()  # returns when the program has written
    cancellation.cancel()
    thread.join()
    assert len(failures) == 1


def test_it_ends_at_once_where_the_daemon_is_ending() -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(CancelledError):
        verify(["sleep", "600"], FETCHED, cancellation)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to sign")
@pytest.mark.parametrize("is_genuine", [True, False])
def test_a_real_signature(tmp_path: Path, is_genuine: bool) -> None:
    key, public, document, signature = (tmp_path / name for name in ("key", "pub", "d", "s"))
    document.write_bytes(FETCHED.document)

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    openssl("genpkey", "-algorithm", "ed25519", "-out", key)
    openssl("pkey", "-in", key, "-pubout", "-out", public)
    openssl("pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", document, "-out", signature)
    content = FETCHED.document if is_genuine else b"the Document"
    fetched = Fetched("1", content, signature.read_bytes())
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin"]
    command += ["-in", "{document}", "-sigfile", "{signature}"]
    if is_genuine:
        verify(command, fetched, Cancellation())
        return
    with pytest.raises(SignatureError, match="Signature Verification Failure"):
        verify(command, fetched, Cancellation())
