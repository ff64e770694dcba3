"""Random archives: honest ones, for comparisons, and ones that try every door."""

from __future__ import annotations

import os
import stat
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from hypothesis import strategies as st

from hostile.cases import OUTSIDE
from layermanager.testing.layers import LayerBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from layermanager.testing.layers import Metadata

Format = Literal[0, 1, 2]

_FORMATS: Final[st.SearchStrategy[Format]] = st.sampled_from((0, 1, 2))
_LARGEST_USTAR_ID: Final = 0o7777777
_LONGEST_USTAR_NAME: Final = 99
_LONGEST_NAME: Final = 1000
_LINKABLE: Final = ("file", "symlink", "fifo", "character device", "block device")
_XATTRS: Final = st.dictionaries(st.sampled_from(("user.a", "user.b")), st.binary(max_size=9))
_PLAIN_NAMES: Final = st.sampled_from(
    (b"a", b"b", b"c", b"d", b"with blank", b"\xff\xfe", "\u00e4".encode(), b"new\nline", b"n" * 80)
)
_CONTENTS: Final = st.one_of(
    st.binary(max_size=40),
    st.sampled_from((511, 512, 513, 5000, 300_000)).map(lambda size: b"content." * (size // 8)),
)


@dataclass
class Model:
    """What an archive has made so far, so that the next member can be an honest one.

    Attributes:
        kinds: every path that there is, with what it is.
        listed: the directories that had a member of their own.
    """

    kinds: dict[bytes, str] = field(default_factory=dict)
    listed: set[bytes] = field(default_factory=set)

    def paths(self, *kinds: str) -> list[bytes]:
        """The paths of these kinds, sorted."""
        return sorted(path for path, kind in self.kinds.items() if kind in kinds)

    def has_members(self, path: bytes) -> bool:
        """Whether there is anything below *path*."""
        return any(other.startswith(path + b"/") for other in self.kinds)

    def put(self, path: bytes, kind: str) -> None:
        """Let *path* be of *kind*, whatever it was before."""
        if kind == "directory" and self.kinds.get(path) == "directory":
            self.listed.add(path)
            return
        self.listed.discard(path)
        self.kinds[path] = kind
        if kind == "directory":
            self.listed.add(path)
        parent = path.rpartition(b"/")[0]
        while parent and parent not in self.kinds:
            self.kinds[parent] = "directory"
            parent = parent.rpartition(b"/")[0]


@dataclass(frozen=True)
class Archive:
    """A tar and what has to come of it; *story* is for those who have to read a failing example."""

    tar: bytes = field(repr=False)
    tar_format: Format
    story: tuple[str, ...]
    model: Model = field(repr=False)


# An ordinary user can compare only what its owner may read and enter.
_LEAST_MODE: Final = 0 if os.geteuid() == 0 else stat.S_IRWXU


@st.composite
def _metadata(draw: st.DrawFn, tar_format: Format) -> Metadata:
    seconds = draw(st.integers(0, 2**31 - 1))
    metadata: Metadata = {
        "mode": draw(st.integers(0, 0o7777)) | _LEAST_MODE,
        "uid": draw(st.sampled_from((0, 1, 1000, _LARGEST_USTAR_ID))),
        "gid": draw(st.sampled_from((0, 5, 1000, _LARGEST_USTAR_ID))),
        "mtime_ns": seconds * 10**9,
    }
    if tar_format == tarfile.PAX_FORMAT:
        metadata["mtime_ns"] += draw(st.integers(0, 10**9 - 1))
    return metadata


@st.composite
def _paths(draw: st.DrawFn, model: Model) -> bytes:
    """A path at which an honest member can be: not below a file."""
    parents = [path for path in (b"", *model.paths("directory")) if path.count(b"/") < 3]
    parent = draw(st.sampled_from(parents))
    first, *rest = draw(st.lists(_PLAIN_NAMES, min_size=1, max_size=2))
    if model.kinds.get(_join(parent, first)) not in (None, "directory"):
        rest = []
    return _join(parent, b"/".join((first, *rest)))


def _add(
    builder: LayerBuilder, kind: str, path: bytes, what: Mapping[str, bytes], metadata: Metadata
) -> None:
    """Add a member; *what* is the content or target for those kinds that have one."""
    match kind:
        case "file":
            builder.file(path, what["content"], **metadata)
        case "directory":
            builder.directory(path, **metadata)
        case "symlink":
            builder.symlink(path, what["target"], **metadata)
        case "hard link":
            builder.hardlink(path, what["linked"], **metadata)
        case "fifo":
            builder.fifo(path, **metadata)
        case "character device":
            builder.character_device(path, 1, 3, **metadata)
        case _:
            builder.block_device(path, 7, 200, **metadata)


@st.composite
def honest_archives(draw: st.DrawFn, *, with_devices: bool) -> Archive:
    """Archives of all kinds of members, in all formats, that replace and link each other.

    No member goes through a symlink, none is a marker, and no directory that has members becomes
    something else: there readers differ, and rightly so.
    """
    tar_format = draw(_FORMATS)
    longest = _LONGEST_USTAR_NAME if tar_format == tarfile.USTAR_FORMAT else _LONGEST_NAME
    builder = LayerBuilder(tar_format)
    model = Model()
    story = []
    kinds = ["file", "directory", "symlink", "hard link", "fifo"]
    kinds += ["character device", "block device"] if with_devices else []
    for _ in range(draw(st.integers(1, 12))):
        path, kind = draw(_paths(model)), draw(st.sampled_from(kinds))
        others = [other for other in model.paths(*_LINKABLE) if other != path]
        if (
            len(path) > longest
            or (kind != "directory" and model.has_members(path))
            or (kind == "hard link" and not others)
        ):
            continue
        what = {
            "content": draw(_CONTENTS),
            "target": draw(_TARGETS),
            "linked": draw(st.sampled_from(others or [b""])),
        }
        metadata = draw(_metadata(tar_format))
        if kind == "file" and tar_format == tarfile.PAX_FORMAT:
            metadata["xattrs"] = draw(_XATTRS)
        _add(builder, kind, path, what, metadata)
        model.put(path, model.kinds[what["linked"]] if kind == "hard link" else kind)
        story.append(f"{path!r} becomes a {kind} {what['linked']!r}")
    return Archive(builder.tar(), tar_format, tuple(story), model)


_TARGETS: Final = st.sampled_from((b"a", b"b", b"nowhere", b"../a", b"/absolute", b"a/b", b"\xff"))

_BAD_NAMES: Final = st.sampled_from(
    (b"a", b"a", b"b", b"b", b"c", b".", b"..", b"", b".wh.a", b".wh.b", b".wh.", b".wh..wh..opq")
)
_BAD_PATHS: Final = st.one_of(
    st.lists(_BAD_NAMES, min_size=1, max_size=4).map(b"/".join),
    st.lists(st.sampled_from((b"a", b"b", b"c", b"a", b".wh.a")), min_size=1, max_size=4).map(
        b"/".join
    ),
    st.sampled_from((OUTSIDE.encode(), OUTSIDE.encode() + b"/secret", b"../../secret")),
)
_ADDERS: Final[tuple[Callable[[LayerBuilder, bytes, bytes], LayerBuilder], ...]] = (
    lambda builder, path, _: builder.file(path, b"content"),
    lambda builder, path, _: builder.file(path, b"large " * 50_000),
    lambda builder, path, _: builder.directory(path),
    lambda builder, path, target: builder.symlink(path, target),
    lambda builder, path, target: builder.symlink(path, target),
    lambda builder, path, target: builder.hardlink(path, target),
    lambda builder, path, _: builder.fifo(path),
    lambda builder, path, _: builder.character_device(path, 1, 3),
    lambda builder, path, _: builder.whiteout(path),
    lambda builder, path, _: builder.opaque(path),
)


@st.composite
def hostile_archives(draw: st.DrawFn) -> bytes:
    """Archives of few names in many roles, so that members meet, replace and lead each other."""
    builder = LayerBuilder()
    members = st.tuples(st.sampled_from(_ADDERS), _BAD_PATHS, _BAD_PATHS)
    for add, path, target in draw(st.lists(members, min_size=1, max_size=12)):
        add(builder, path, target)
    return builder.tar()


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name
