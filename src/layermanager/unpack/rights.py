"""What the worker may do to files, and which extended attributes of an archive are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.unpack.tar import EntryKind
from layermanager.xattrs import ACL_DEFAULT, OVERLAY_PREFIXES, SELINUX_LABEL

if TYPE_CHECKING:
    from collections.abc import Callable

_PROBE: Final = b"trusted.layermanager"
_XATTR_NAMESPACES: Final = (b"user.", b"trusted.", b"security.", b"system.")  # xattr(7)
_FILES_AND_DIRECTORIES: Final = (EntryKind.FILE, EntryKind.DIRECTORY)
# The first one gives files away. The others are needed to go on working on such files, and to
# remove them.
_OWNER_CAPABILITIES: Final = (
    linux.CAP_CHOWN,
    linux.CAP_DAC_OVERRIDE,
    linux.CAP_FOWNER,
    linux.CAP_FSETID,
)


@dataclass(frozen=True, slots=True)
class Rights:
    """What this process may do to files, and with it the form in which a layer is written.

    Attributes:
        owner: the user and group that new files get by themselves.
        is_privileged: devices and all extended attributes can be set as they are archived.
            Otherwise devices are left out, of the extended attributes only ``user.*`` are kept,
            and the overlay has to be mounted with ``userxattr``.
        keeps_owners: owners can be set as they are archived, as far as the user namespace maps
            them. Otherwise all files belong to the user.
    """

    owner: tuple[int, int]
    is_privileged: bool
    keeps_owners: bool

    @classmethod
    def below(
        cls, root: int, capabilities: Callable[[], int] = linux.effective_capabilities
    ) -> Rights:
        """Return the rights of the calling process below the empty directory *root*.

        Being root is not enough: in a container, or in a user namespace, much may be missing. A
        process that may set ``trusted.*`` attributes has ``CAP_SYS_ADMIN`` where it counts.
        """
        owner = (os.geteuid(), os.getegid())
        if owner[0] != 0:
            return cls(owner, is_privileged=False, keeps_owners=False)
        held = capabilities()
        return cls(
            owner,
            is_privileged=_may_set_trusted_xattrs(root),
            keeps_owners=all(held >> capability & 1 for capability in _OWNER_CAPABILITIES),
        )

    @property
    def is_root(self) -> bool:
        """Whether the user of this process is root, of whom one expects that owners are kept."""
        return self.owner[0] == 0

    @property
    def opaque_xattr(self) -> bytes:
        """The attribute by which overlayfs knows an opaque directory."""
        return b"trusted.overlay.opaque" if self.is_privileged else b"user.overlay.opaque"

    def reason_to_drop(self, attribute: bytes, kind: EntryKind) -> str:
        """Return why an extended attribute is left out, as a note; an empty text if it is kept."""
        if attribute.startswith(OVERLAY_PREFIXES):
            # They would let an archive hide or redirect what the layers below hold.
            return "overlayfs attributes in the archive not honoured"
        if not attribute.startswith(_XATTR_NAMESPACES):
            return "extended attributes of other systems left out"
        if attribute == SELINUX_LABEL:
            return "SELinux labels left out: the host's policy or the mount gives them"
        if not (self.is_privileged or attribute.startswith(b"user.")):
            return "privileged extended attributes left out"
        return _reason_of_kind(attribute, kind)


def _reason_of_kind(attribute: bytes, kind: EntryKind) -> str:
    """Return why Linux refuses an extended attribute to files of that *kind*: xattr(7), acl(5)."""
    if attribute.startswith(b"user.") and kind not in _FILES_AND_DIRECTORIES:
        return "user.* attributes of symlinks, devices and fifos left out"
    if attribute.startswith(b"system.") and kind is EntryKind.SYMLINK:
        return "access control lists of symlinks left out"
    if attribute == ACL_DEFAULT and kind is not EntryKind.DIRECTORY:
        return "default access control lists of other than directories left out"
    return ""


def _may_set_trusted_xattrs(root: int) -> bool:
    try:
        os.setxattr(root, _PROBE, b"")
        os.removexattr(root, _PROBE)
    except PermissionError:
        return False
    return True
