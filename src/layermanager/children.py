"""Standard files of child processes.

Some versions of Python (3.11.2 is one) leave a file open that ``subprocess`` made for a child,
where descriptors run out while it makes the next one. So no child is given more than one ``PIPE``
or ``DEVNULL``: the other files are those from here.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def null_device() -> Iterator[int]:
    """Open the null device, for what a child shall not read or write.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def file_in_memory(content: bytes) -> Iterator[int]:
    """Make a file in memory with *content* that a child is to read.

    Raises:
        OSError: it cannot be made.
    """
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        file.seek(0)
        yield descriptor
