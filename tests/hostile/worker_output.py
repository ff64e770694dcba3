"""What a worker that was taken over may leave and say: indexes, and messages one a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

INDEX_HEADER: Final = b"#mtree v2.0, layermanager index 1\n"
_ATTRIBUTES: Final = b"mode=0644 uid=0 gid=0 time=1700000000.000000001"
_CONTENT: Final = b"size=1 sha256digest=" + b"ab" * 32

INDEXES: Final = tuple(
    INDEX_HEADER + b"".join(line + b"\n" for line in lines)
    for lines in (
        (),
        (b"./. type=dir mode=0755 uid=0 gid=0 time=0.000000000",),
        (b"./etc/f type=file %b %b" % (_ATTRIBUTES, _CONTENT),),
        (b"./etc/f type=file %b %b xattr.user.a=YQ== xattr.b=" % (_ATTRIBUTES, _CONTENT),),
        (
            b"./f type=file %b %b" % (_ATTRIBUTES, _CONTENT),
            b"./g type=file hardlink=./f",
            b"./caf\\303\\251 type=link mode=0777 uid=1 gid=2 time=-1.500000000 link=/etc/f",
            b"./null type=char mode=4666 uid=4294967295 gid=0 time=0.000000000 device=native,1,3",
            b"./pipe type=fifo " + _ATTRIBUTES,
        ),
        (b"./../f type=file %b %b" % (_ATTRIBUTES, _CONTENT),),
        (b"./a\\057\\056\\056\\057b type=dir " + _ATTRIBUTES,),
        (b"./f type=file %b %b" % (_ATTRIBUTES.replace(b"uid=0", b"uid=1_0"), _CONTENT),),
    )
)

_STARTED: Final = {"type": "started"}
_JAIL: Final = {"type": "jail", "measures": {"Landlock": "", "network namespace": "refused"}}
_NEEDS: Final = {"type": "needs", "written": 0, "bytes": 4096}
_DONE: Final = {
    "type": "done",
    "blob_digest": "",
    "size": 4096,
    "entries": 1,
    "os_version": "6.1",
    "notes": {"devices left out": 2},
}
_ENDED: Final = {"type": "ended", "status": 0}


def _lines(*messages: Mapping[str, object]) -> bytes:
    return b"\n".join(json.dumps(message).encode() for message in messages)


CONVERSATIONS: Final = (
    _lines(_STARTED, _JAIL, _NEEDS, _DONE, _ENDED),
    _lines(_STARTED, _JAIL, {"type": "failed", "error": "ArchiveError", "message": "x"}, _ENDED),
    _lines(
        _STARTED,
        _JAIL,
        {"type": "failed", "error": "IntegrityError", "subject": "a", "expected": "b", "found": ""},
    ),
    _lines(_STARTED, _JAIL, {"type": "os_error", "errno": 28, "message": "full"}, _ENDED),
    _lines({"type": "not started", "errno": 11}),
    _lines(_STARTED, _JAIL, {"type": "ended", "status": -9}),
    _lines(_STARTED, _JAIL, {**_DONE, "size": 2**70}),
    _lines(_STARTED, _JAIL, *[_NEEDS] * 5),
)
