"""A program that mounts a file system which answers at first and then never again.

``silent_file_system.py MOUNT_POINT SCRIPT`` serves an empty directory by FUSE, runs *SCRIPT* in a
shell, falls silent, says ``ready`` and waits for its standard input to end. Requests are taken from
the kernel even then, so that a process that waits for an answer cannot be killed. What the script
leaves running can read its descriptor 4 to the end, which comes with that of this program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import threading
from enum import IntEnum
from typing import Final

_REQUEST_BYTES: Final = 1024 * 1024 + 4096
# The structures of <linux/fuse.h>.
_REQUEST: Final = struct.Struct("=IIQQIIII")  # length, operation, unique, and who asks for what
_ANSWER: Final = struct.Struct("=IiQ")  # length, error, unique
_INIT: Final = struct.Struct("=IIIIHHII36x")
_ATTRIBUTES: Final = struct.Struct("=QII6Q10I")
_STATISTICS: Final = struct.Struct("=5Q4I24x")


class Operation(IntEnum):
    """What the kernel may ask of an empty directory."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    STATFS = 17
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    BATCH_FORGET = 42


_ANSWERS: Final[dict[int, bytes]] = {
    Operation.INIT: _INIT.pack(7, 31, 65536, 0, 0, 0, 65536, 1),
    Operation.GETATTR: _ATTRIBUTES.pack(0, 0, 0, 1, *[0] * 8, stat.S_IFDIR | 0o755, 2, *[0] * 5),
    Operation.STATFS: _STATISTICS.pack(*[0] * 5, 4096, 255, 4096, 0),
    Operation.OPENDIR: bytes(16),
    Operation.READDIR: b"",
    Operation.RELEASEDIR: b"",
}
_ERRORS: Final[dict[int, int]] = {Operation.LOOKUP: errno.ENOENT}


def _serve(device: int, silent: threading.Event) -> None:
    while True:
        try:
            request = os.read(device, _REQUEST_BYTES)
        except OSError:
            return  # it was unmounted
        _, operation, unique, *_ = _REQUEST.unpack_from(request)
        if operation in (Operation.FORGET, Operation.BATCH_FORGET) or silent.is_set():
            continue
        body = _ANSWERS.get(operation, b"")
        error = 0 if operation in _ANSWERS else -_ERRORS.get(operation, errno.ENOSYS)
        os.write(device, _ANSWER.pack(_ANSWER.size + len(body), error, unique) + body)


def main(mount_point: str, script: str) -> None:
    """Mount, run the script, and fall silent."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"silent", os.fsencode(mount_point), b"fuse", 0, options.encode()) < 0:
        sys.exit(f"cannot mount a FUSE file system: {os.strerror(ctypes.get_errno())}")
    silent = threading.Event()
    threading.Thread(target=_serve, args=(device, silent), daemon=True).start()
    end, _ = os.pipe()  # what the script leaves behind can wait for its end
    command = ["sh", "-e", "-c", f"exec 4<&0\n{script}"]
    subprocess.run(command, stdin=end, stdout=subprocess.DEVNULL, check=True)
    os.close(end)
    silent.set()
    print("ready", flush=True)  # noqa: T201 - this is a program
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
