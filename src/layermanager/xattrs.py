"""Extended attributes that the kernel or the host sets, and those that hold access control lists.

A directory's default access control list (acl(5)) becomes part of all files that are made in it,
and overrides the mode that they are made with.
"""

from __future__ import annotations

import errno
import os
from typing import Final

ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"

SELINUX_LABEL: Final = b"security.selinux"
"""The label of a file under SELinux: the host's policy decides it, not an image."""

OVERLAY_PREFIXES: Final = (b"trusted.overlay.", b"user.overlay.")
"""How the names begin of the attributes in which overlayfs keeps its own notes."""

SET_BY_KERNEL: Final = frozenset(
    {SELINUX_LABEL, b"security.SMACK64", b"security.ima", b"security.evm"}
)
"""Attributes that a kernel gives files by itself where its security modules are in force."""

_NOT_THERE: Final = (errno.ENODATA, errno.EOPNOTSUPP)


def remove_acls(directory: int) -> None:
    """Remove the access control lists that a new *directory*, a descriptor, got from its parent.

    Raises:
        OSError: they cannot be removed.
    """
    for attribute in (ACL_DEFAULT, ACL_ACCESS):
        try:
            os.removexattr(directory, attribute)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise


def acls_of(file: int | bytes) -> dict[bytes, bytes]:
    """Return the access control lists that *file*, a descriptor or a path, has on disk.

    The kernel drops a list that says no more than the mode, and changes entries with the mode.
    """
    found = {}
    for attribute in (ACL_ACCESS, ACL_DEFAULT):
        try:
            # With a descriptor there is no symlink to follow.
            value = os.getxattr(file, attribute, follow_symlinks=isinstance(file, int))
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
        else:
            found[attribute] = value
    return found


def xattrs_of_layer(directory: bytes) -> dict[bytes, bytes]:
    """Return the extended attributes of a layer's *directory* that are the layer's own.

    Raises:
        OSError: they cannot be read.
    """
    names = map(os.fsencode, os.listxattr(directory, follow_symlinks=False))
    return {
        name: os.getxattr(directory, name, follow_symlinks=False)
        for name in names
        if name not in SET_BY_KERNEL and not name.startswith(OVERLAY_PREFIXES)
    }
