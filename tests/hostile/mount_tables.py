"""Tables of mounts, as other users can make them."""

from __future__ import annotations

from typing import Final

_LAYER: Final = b"0a" * 32
_PLAIN: Final = b"22 27 0:21 / /proc rw,nosuid shared:5 master:1 - proc proc rw\n"
_OVERLAY: Final = b"41 27 0:41 / /m\\040p rw - overlay layermanager:1 ro,lowerdir=%b\n"

TABLES: Final = (
    _PLAIN,
    _PLAIN + _OVERLAY % (b"/l/sha256/" + _LAYER + rb":/b\\134:c"),
    _OVERLAY % b"/a,lowerdir+=/b,datadir+=/c,upperdir=/u,workdir=/w",
    _OVERLAY % b"/a/../b/./c//d:relative:/proc/self/fd/5:",
    b"42 27 98:0 /l/sha256/%b//deleted /x\ry\v\f\x1c\x85 rw - ext4 /dev/root rw\n" % _LAYER,
    b"43 27 0:4 mnt:[4026531841] /run/ns rw - nsfs nsfs rw\n",
    b"44 27 0:44 / /link rw - tmpfs /link/link rw\n" + _OVERLAY % b"/link/x",
    b"? - overlay " + _LAYER + b"\n\n" + _PLAIN[:-1],
)
