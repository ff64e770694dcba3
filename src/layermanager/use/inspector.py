"""Asking about mounts without being held up: a helper process does the looking.

A request to a file system of another user may never be answered, and the process that waits for it
may not even be killed. So the helper is nothing that must end: it is no child of ours, and a helper
that does not answer is left alone, and its successor gets the next question. It ends when it is
asked nothing for a while, or when the other end of its socket is closed.

Stuck helpers must not pile up, one at each look. So a helper has a name that tells whose mounts it
looks at, and a user in whose file systems a few are stuck is not asked any more.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections import defaultdict
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from layermanager import linux
from layermanager.children import null_device
from layermanager.errors import StoreError
from layermanager.use.first_reports import FirstReports
from layermanager.use.inspection import (
    Comparison,
    Examined,
    Inspection,
    OpenedFile,
    OverlayView,
    compare,
)
from layermanager.use.mountinfo import TableExcerpt
from layermanager.use.namespaces import UNKNOWN_OWNER, BoundLayers, table_inside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Answer = Any  # JSON of our own process

_LOGGER: Final = logging.getLogger(__name__)
_LOGGER.addFilter(FirstReports())

_PATIENCE_SECONDS: Final = 10.0
_FOREIGN_SECONDS: Final = 30.0
_IDLE_SECONDS: Final = 2.0
_ATTEMPTS: Final = 3
_MAX_STUCK: Final = 4
_PENDING: Final = re.compile(rb"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)", re.MULTILINE)
_ENDED: Final = re.compile(rb"^State:\s*[ZX]", re.MULTILINE)
_KILLED: Final = 1 << (signal.SIGKILL - 1)
_RECEIVED_BYTES: Final = 64 * 1024
_BOOT: Final = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from layermanager.use.inspector import serve; "
    "serve(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])"
)


class Inspector:
    """Answers questions about mounts within a bounded time; may be used by any thread.

    Args:
        layers_dir: the layers' directory.
        patience: how many seconds one answer may take.
        foreign_seconds: how many seconds all answers about the mounts of one other user may take.
        idle_seconds: how many seconds after its last answer the helper ends.
        max_stuck: how many helpers may be stuck in file systems of one other user before its
            mounts are left alone.
    """

    def __init__(
        self,
        layers_dir: Path,
        *,
        patience: float = _PATIENCE_SECONDS,
        foreign_seconds: float = _FOREIGN_SECONDS,
        idle_seconds: float = _IDLE_SECONDS,
        max_stuck: int = _MAX_STUCK,
    ) -> None:
        self._layers_dir = layers_dir.absolute()
        self._patience = patience
        self._foreign_seconds = foreign_seconds
        self._spent: dict[int, float] = defaultdict(float)  # by user
        self._stuck: dict[int, int] = {}  # by user
        self._max_stuck = max_stuck
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._helper: _Helper | None = None

    def rest(self) -> None:
        """Let go of the helper, which ends; a later question starts another.

        One that is being asked is kept.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            kept, self._helper = self._helper, None
        finally:
            self._lock.release()
        if kept is not None:
            kept.close()

    def examine(
        self, view: OverlayView, *, is_foreign: bool, owner: int = UNKNOWN_OWNER
    ) -> Examined | None:
        """Return what the paths of an overlay tell; None if that cannot be found out in time."""
        answer = self._ask("examine", owner if is_foreign else None, view=asdict(view))
        if answer is None:
            return None
        return Examined(tuple(answer["layers"]), answer["is_vague"], answer["is_stacked"])

    def identify(
        self, path: str, *, is_foreign: bool, owner: int = UNKNOWN_OWNER
    ) -> OpenedFile | None:
        """Return what a process has open, by its *path* in ``/proc``.

        None if it was closed, or if that cannot be found out in time.
        """
        answer = self._ask("identify", owner if is_foreign else None, path=path)
        if not answer:
            return None
        return OpenedFile(**{**answer, "layers": tuple(answer["layers"])})

    def compare(
        self,
        view: OverlayView,
        places: Sequence[str],
        *,
        is_foreign: bool,
        owner: int = UNKNOWN_OWNER,
    ) -> Comparison:
        """Compare an overlay with a layer that is at one of *places*."""
        answer = self._ask(
            "compare", owner if is_foreign else None, view=asdict(view), places=[*places]
        )
        return Comparison.SILENT if answer is None else Comparison(answer)

    def table_inside(self, file: str, owner: int = UNKNOWN_OWNER) -> TableExcerpt:
        """Return what is needed of the table of the mount namespace of *file*.

        Raises:
            OSError: it cannot be read in time, or at all.
        """
        answer = self._ask("table", owner, file=file)
        if answer is None:
            raise TimeoutError("its file system does not answer")
        if isinstance(answer, list):
            raise OSError(*answer)
        return TableExcerpt(answer["text"].encode("latin-1"), frozenset(answer["others"]))

    def _ask(self, what: str, owner: int | None, **question: object) -> Answer:
        """Return the answer; None if there is none in time.

        Each other user has an own share of time: one whose mounts do not answer takes none away
        from the overlays of the rest.
        """
        name = _name_for(owner)
        text = json.dumps({"what": what, "name": name, **question}).encode() + b"\n"
        with self._lock:
            if owner is None:
                answer = self._answer(text, self._patience)
            else:
                answer = self._answer_about(owner, name, text)
        if answer is None:
            _LOGGER.warning("file systems of %s do not answer", _named(question))
            return None
        if "failed" in answer:
            raise StoreError(f"cannot tell which layers are in use: {answer['failed']}")
        if "surprise" in answer:
            _LOGGER.error("cannot look at %s: %s", _named(question), answer["surprise"])
            return None
        return answer["result"]

    def _answer_about(self, owner: int, name: str, question: bytes) -> Mapping[str, Answer] | None:
        """Return the answer about a mount of the other user *owner*, if its share allows that."""
        if owner not in self._stuck:
            self._stuck[owner] = stuck_helpers(name)
        patience = min(self._patience, self._foreign_seconds - self._spent[owner])
        if patience <= 0 or self._stuck[owner] >= self._max_stuck:
            return None
        begun = time.monotonic()
        try:
            answer = self._answer(question, patience)
        finally:
            self._spent[owner] += time.monotonic() - begun
        if answer is None:
            self._stuck[owner] += 1
        return answer

    def _answer(self, question: bytes, patience: float) -> Mapping[str, Answer] | None:
        for _ in range(_ATTEMPTS):
            # A helper that had nothing to do may just have ended, or one was killed.
            with suppress(ConnectionError):
                kept, self._helper = self._helper, None
                current = kept or _Helper(self._layers_dir, self._idle_seconds)
                answer = current.ask(question, patience)
                self._helper = None if answer is None else current
                return None if answer is None else json.loads(answer)
        raise StoreError(
            "cannot tell which layers are in use: the helper ends as soon as it starts"
        )


def stuck_helpers(name: str) -> int:
    """Return how many helpers of this *name* were killed and cannot end."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (process / "comm").read_bytes() != name.encode() + b"\n":
                continue
            status = (process / "status").read_bytes()
            was_killed = any(int(one, 16) & _KILLED for one in _PENDING.findall(status))
            is_ours = process.stat().st_uid == os.geteuid()  # other users cannot forge one
            count += was_killed and is_ours and not _ENDED.search(status)
    return count


def _name_for(owner: int | None) -> str:
    """Return the name of a helper that looks at mounts of *owner*; the kernel keeps 15 bytes."""
    return "lm-own" if owner is None else f"lm-{owner}"


class _Helper:
    """A process that answers one question at a time.

    Raises:
        StoreError: it cannot be started.
        ConnectionError: it was killed while it was started.
    """

    def __init__(self, layers_dir: Path, idle_seconds: float) -> None:
        with ExitStack() as stack:
            try:
                ours, theirs = map(stack.enter_context, socket.socketpair())
                self._process = _start(theirs.fileno(), layers_dir, idle_seconds)
            except ValueError as error:
                raise ConnectionResetError("the helper was killed") from error
            except OSError as error:
                raise StoreError(
                    f"cannot tell which layers are in use: cannot start the helper: {error}"
                ) from error
            theirs.close()
            stack.pop_all()
        self._socket = ours
        self.close = weakref.finalize(self, ours.close)

    def ask(self, question: bytes, seconds: float) -> bytes | None:
        """Return the answer; None if there is none after so many *seconds*, and never will be.

        Raises:
            ConnectionError: the process has ended.
        """
        self._socket.settimeout(seconds)
        received = bytearray()
        try:
            self._socket.sendall(question)
            while not received.endswith(b"\n"):
                piece = self._socket.recv(_RECEIVED_BYTES)
                if not piece:
                    raise ConnectionResetError
                received += piece
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            self.close()
            return None
        return bytes(received)


def _start(descriptor: int, layers_dir: Path, idle_seconds: float) -> int:
    """Start a helper that answers on the socket *descriptor*, and return its process.

    Raises:
        OSError: it cannot be started.
        ValueError: it has not come as far as to tell its number.
    """
    path = [entry for entry in sys.path if entry]
    arguments = [str(descriptor), str(idle_seconds), str(layers_dir)]
    command = [sys.executable, "-I", "-S", "-c", _BOOT, *arguments, *path]
    with null_device() as null:
        started = subprocess.run(
            command,
            cwd="/",
            stdin=null,
            stdout=subprocess.PIPE,
            stderr=null,
            pass_fds=[descriptor],
            check=False,
        )
    return int(started.stdout)


def _named(question: Mapping[str, object]) -> str:
    view = question.get("view")
    place = view["directory"] if isinstance(view, dict) else question.get("path")
    return repr(place or question.get("file"))


# The helper's side


def serve(descriptor: int, idle_seconds: float, layers_dir: str) -> None:
    """Answer questions that come by a socket, in a process of its own."""
    process = os.fork()
    if process:
        os.write(1, b"%d" % process)
        os._exit(0)
    gc.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts the manager
    os.dup2(0, 1)
    with socket.socket(fileno=descriptor) as channel, channel.makefile("rwb") as file:
        inspection = _Inspection(Path(layers_dir))
        while question := file.readline():
            file.write(json.dumps(inspection.answer(json.loads(question))).encode() + b"\n")
            file.flush()
            if not select.select([channel], [], [], idle_seconds)[0]:
                break
    os._exit(0)


class _Inspection:
    """Answers questions as JSON."""

    def __init__(self, layers_dir: Path) -> None:
        self._layers_dir = layers_dir
        self._inspection: Inspection | None = None

    def answer(self, question: Mapping[str, Answer]) -> dict[str, Answer]:
        """Return the answer, or why there is none."""
        linux.set_process_name(question["name"].encode())
        try:
            return {"result": self._result(question)}
        except (OSError, StoreError) as error:
            return {"failed": str(error)}
        except Exception:  # noqa: BLE001 - what this mount did to us must not concern the others
            return {"surprise": traceback.format_exc()}

    def _result(self, question: Mapping[str, Answer]) -> Answer:
        match question:
            case {"what": "compare", "view": view, "places": places}:
                return compare(_view(view), places)
            case {"what": "table", "file": file}:
                return _table(file, self._layers_dir)
        if self._inspection is None:
            self._inspection = Inspection(self._layers_dir)
        match question:
            case {"what": "examine", "view": view}:
                return asdict(self._inspection.examine(_view(view)))
            case {"what": "identify", "path": path}:
                opened = self._inspection.identify(path)
                return {} if opened is None else asdict(opened)
        raise ValueError(question)


def _view(document: Mapping[str, Answer]) -> OverlayView:
    return OverlayView(**{**document, "lower": tuple(document["lower"])})


def _table(file: str, layers_dir: Path) -> Answer:
    bound = BoundLayers.below(layers_dir)
    try:
        read = table_inside(file, bound)
    except OSError as error:
        return [error.errno, error.strerror]
    return {"text": read.text.decode("latin-1"), "others": [*read.others]}
