"""Writing the entries of one layer below a directory, in the form that overlayfs reads.

The directory is empty at the beginning and nobody else writes below it, so the tree of directories
that the writer remembers is what is on disk. Every path is resolved in that tree, name by name:
``..`` is refused, a symlink on the way is followed inside the layer and never by the kernel. So no
entry can reach beyond the directory, whatever links the archive made before.

Removals in a layer come as marker files (OCI image specification, layer.md, "Whiteouts"); on disk
they become what overlayfs understands (kernel documentation, overlayfs.rst): a character device
0:0 in place of what is removed, and an ``opaque`` attribute on a directory that hides all below
it. A marker speaks of the layers below only: what the same layer holds under that name stays,
whichever comes first.

The index tells what is on disk: where the file system cannot hold a time, or changes an access
control list, what it made of it is read back.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import stat
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from layermanager.errors import ArchiveError, LimitExceededError
from layermanager.removal import remove_tree
from layermanager.unpack.fields import OPAQUE_MARKER, WHITEOUT_PREFIX, shown
from layermanager.unpack.index import (
    IMPLIED,
    Attributes,
    device_keywords,
    file_keywords,
    link_keywords,
)
from layermanager.unpack.streams import CHUNK_BYTES
from layermanager.unpack.tar import EntryKind
from layermanager.unpack.times import exact_times
from layermanager.xattrs import ACL_ACCESS, ACL_DEFAULT, acls_of, remove_acls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from hashlib import _Hash as Hash

    from layermanager.model import Limits
    from layermanager.unpack.index import IndexWriter
    from layermanager.unpack.rights import Rights
    from layermanager.unpack.tar import Entry, TarReader

_AUFS_PREFIX: Final = b".wh..wh."
_AUFS_FILE_LINKS: Final = b".wh..wh.plnk"
_NO_SUCH_OWNER_HERE: Final = (errno.EPERM, errno.EINVAL)  # the latter: not mapped
_WHITEOUT_DEVICE: Final = os.makedev(0, 0)
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES: Final = 128
_MAX_SYMLINKS: Final = 40  # as in the kernel's path resolution
_NAMES_PER_DEPTH: Final = 16  # to follow on the way to an entry, those in symlinks included
_SPECIAL_BITS: Final = 0o7000
_ZEROS: Final = memoryview(bytes(CHUNK_BYTES))
_NO_XATTRS: Final[dict[bytes, bytes]] = {}
_ACLS: Final = (ACL_ACCESS, ACL_DEFAULT)
_BOOKKEEPING: Final = "AUFS bookkeeping left out"
_OTHER_OWNERS: Final = "owners that this process may not set: files belong to its own user"
_IMPLICIT_MODE: Final = 0o755


class _Directory:
    """A directory of the layer as it is on disk, and what is still to be done to it."""

    __slots__ = (
        "acls",
        "children",
        "file_descriptor",
        "hidden",
        "is_listed",
        "is_opaque",
        "is_real",
        "made_mode",
        "mode",
        "mtime_ns",
        "name",
        "owner",
        "parent",
        "path",
        "whiteouts",
        "xattr_bytes",
        "xattrs",
    )

    def __init__(self, parent: _Directory | None, name: bytes, made_mode: int | None) -> None:
        self.parent = parent
        self.name = name
        self.path: bytes = name if parent is None or not parent.path else parent.path + b"/" + name
        self.made_mode = made_mode
        self.children: dict[bytes, _Directory] = {}
        self.hidden: set[bytes] = set()  # by markers, also where this layer has a file of the name
        self.whiteouts: set[bytes] = set()  # the devices that stand for some of these
        self.is_opaque = False
        self.is_listed = False
        self.is_real = False  # the layer lists it, or holds something in it other than markers
        # A directory that the archive does not list gets the same attributes each time.
        self.mode = _IMPLICIT_MODE
        self.owner: tuple[int, int] | None = None
        self.mtime_ns = 0
        self.xattrs: dict[bytes, bytes] = {}
        self.xattr_bytes = 0
        self.acls: dict[bytes, bytes] = {}  # set at the end, or files made here would inherit them
        self.file_descriptor = -1

    def path_of(self, name: bytes) -> bytes:
        """The path of *name* in this directory, relative to the layer's root."""
        return self.path + b"/" + name if self.path else name

    def add_xattrs(self, xattrs: Mapping[bytes, bytes]) -> int:
        """Add or replace extended attributes; return the bytes of all."""
        for name, value in xattrs.items():
            kept = self.acls if name in _ACLS else self.xattrs
            old = kept.get(name)
            self.xattr_bytes += len(value) + (len(name) if old is None else -len(old))
            kept[name] = value
        return self.xattr_bytes

    def hides_all_below(self) -> bool:
        """Whether nothing of the layers below is seen here: it, or one that it is in, is opaque.

        The root does not count: overlayfs does not look at its mark.
        """
        directory = self
        while directory.parent is not None and not directory.is_opaque:
            directory = directory.parent
        return directory.parent is not None

    def is_implied(self) -> bool:
        """Whether it only shows that the layers below have such a directory, or shall get one.

        One whose own name is hidden is a new directory, whatever the layers below have.
        """
        is_new = self.parent is not None and self.name in self.parent.hidden
        return not (self.is_listed or is_new)

    def subtree(self) -> Iterator[_Directory]:
        """The directory and all below it, parents first."""
        stack = [self]
        while stack:
            directory = stack.pop()
            yield directory
            stack.extend(directory.children.values())

    def merged_subtree(self) -> Iterator[_Directory]:
        """The directory and all below it but for what is opaque, parents first."""
        stack = [self]
        while stack:
            directory = stack.pop()
            if not directory.is_opaque:
                yield directory
                stack.extend(directory.children.values())


class TreeWriter:
    """Writes one layer below the directory *root*.

    Args:
        root: file descriptor of an empty directory.
        rights: what may be done to files.
        limits: bounds on the paths and the content.
        block_bytes: the file system's block size.
        spend: is told the bytes on disk and the inodes that each step is about to take, and raises
            if there are none left.
        index: is told what every path is.
    """

    def __init__(
        self,
        root: int,
        *,
        rights: Rights,
        limits: Limits,
        block_bytes: int,
        spend: Callable[[int, int], None],
        index: IndexWriter,
    ) -> None:
        self._root_descriptor = root
        self._rights = rights
        self._limits = limits
        self._block_bytes = block_bytes
        self._spend = spend
        self._index = index
        self._root = _Directory(None, b"", None)
        self._open: OrderedDict[_Directory, None] = OrderedDict()
        self._last: tuple[bytes, _Directory, int] | None = None
        self._content_bytes = 0
        self._directories = 0
        self.notes: dict[str, int] = {}
        """What was left out or not honoured, and how often."""
        # What the root got from its parent would go on to all that is made in it: the group of
        # this process and the modes of the archive are wanted, not those of the store's directory.
        remove_acls(root)
        os.fchown(root, *rights.owner)
        os.fchmod(root, stat.S_IRWXU)
        self._exact_times = exact_times(root)

    def write(self, entry: Entry, tar: TarReader) -> None:
        """Write one entry, taking its content from *tar*.

        Raises:
            ArchiveError: the entry makes no sense, or tries to leave the layer.
            LimitExceededError: its path or the content so far exceeds the limits.
            OSError: the file system refuses.
        """
        if _AUFS_PREFIX in entry.path and self._write_bookkeeping(entry, tar):
            return
        raw_parent, _, name = entry.path.rstrip(b"/").rpartition(b"/")
        if name in (b"", b".", b".."):
            *parents, name = self._names(entry.path) or [b""]
            raw_parent = b"/".join(parents)
            if not name:
                self._write_root(entry)
                return
        parent, descriptor = self._parent(raw_parent)
        if name.startswith(WHITEOUT_PREFIX):
            self._write_marker(parent, descriptor, name)
            return
        if entry.kind is EntryKind.DIRECTORY:
            self._write_directory(parent, name, entry)
            return
        parent.is_real = True
        if entry.kind is EntryKind.FILE:
            self._write_file(parent, descriptor, name, entry, tar)
        elif entry.kind is EntryKind.SYMLINK:
            self._write_symlink(parent, descriptor, name, entry)
        elif entry.kind is EntryKind.HARD_LINK:
            self._write_hard_link(parent, name, entry)
        else:
            self._write_special(parent, descriptor, name, entry)

    def finish(self) -> None:
        """Give the directories the attributes that writing below them would have changed."""
        if _AUFS_FILE_LINKS in self._root.children:
            self._clear(self._root, _AUFS_FILE_LINKS)
        for directory in reversed(list(self._root.subtree())):
            parent = directory.parent
            if parent is not None and directory.is_real:
                parent.is_real = True
            elif parent is not None and directory.name in parent.hidden:
                self._replace_by_whiteout(parent, directory.name)
                continue
            self._complete(directory)
        for directory in self._root.subtree():
            self._add_to_index(directory)

    def _complete(self, directory: _Directory) -> None:
        """Set what is left to the end, in the order in which one thing undoes another."""
        path = directory.path or b"."
        if directory.owner not in (None, self._rights.owner):
            chown = functools.partial(
                os.chown, path, dir_fd=self._root_descriptor, follow_symlinks=False
            )
            directory.owner = self._changed_owner(directory.owner, chown)
        if directory.acls:
            self._set_xattrs(self._descriptor(directory), path, directory.acls)
        if directory.mode != directory.made_mode or directory.acls:
            os.chmod(path, directory.mode, dir_fd=self._root_descriptor)
        if directory.acls:
            directory.xattrs |= acls_of(self._descriptor(directory))
        times = (directory.mtime_ns, directory.mtime_ns)
        os.utime(path, ns=times, dir_fd=self._root_descriptor, follow_symlinks=False)
        if directory.mtime_ns not in self._exact_times:
            directory.mtime_ns = self._mtime_ns(path, self._root_descriptor)

    def _add_to_index(self, directory: _Directory) -> None:
        """Note a directory and its whiteouts; both may change until the end of the layer."""
        if directory.is_opaque:
            directory.xattrs[self._rights.opaque_xattr] = b"y"
        owner = directory.owner or self._rights.owner
        attributes = Attributes(directory.mode, owner, directory.mtime_ns, directory.xattrs)
        keywords = IMPLIED if directory.is_implied() else b""
        self._index.add(directory.path or b".", b"dir", attributes, keywords)
        for name in sorted(directory.whiteouts):
            whiteout = Attributes(0, self._rights.owner, 0, {})
            self._index.add(directory.path_of(name), b"char", whiteout, device_keywords((0, 0)))

    def close(self) -> None:
        """Close the directories that are kept open."""
        for directory in self._open:
            os.close(directory.file_descriptor)
        self._open.clear()
        self._last = None

    # Finding the place of an entry

    def _names(self, path: bytes) -> list[bytes]:
        """The names on the way to *path*; absolute paths count from the layer's root."""
        if len(path) > self._limits.path_bytes:
            raise LimitExceededError(
                f"path longer than {self._limits.path_bytes} bytes: {shown(path)}"
            )
        names = [name for name in path.split(b"/") if name not in (b"", b".")]
        if len(names) > self._limits.path_depth:
            raise LimitExceededError(f"path deeper than {self._limits.path_depth}: {shown(path)}")
        if b".." in names or b"\0" in path:
            raise ArchiveError(f"path leads out of the layer: {shown(path)}")
        return names

    def _parent(self, raw: bytes) -> tuple[_Directory, int]:
        """The directory *raw* and its file descriptor; most entries are where the last one was."""
        if self._last is not None and self._last[0] == raw:
            return self._last[1], self._last[2]
        directory = self._walk(self._names(raw), raw)
        descriptor = self._descriptor(directory)
        self._last = (raw, directory, descriptor)
        return directory, descriptor

    def _walk(self, names: list[bytes], shown_path: bytes) -> _Directory:
        """Follow *names* from the root; missing directories are made."""
        pending = names[::-1]
        directory = self._root
        symlinks = followed = 0
        while pending:
            name = pending.pop()
            followed += 1
            if followed > _NAMES_PER_DEPTH * self._limits.path_depth:
                raise ArchiveError(f"too many names on the way to {shown(shown_path)}")
            if name == b"..":  # in the target of a symlink; the root's parent is the root
                directory = directory.parent or directory
                continue
            child = directory.children.get(name)
            if child is not None:
                directory = child
                continue
            target = self._symlink_target(directory, name, shown_path)
            if target is None:
                directory = self._make_directory(directory, name, _IMPLICIT_MODE)
                continue
            symlinks += 1
            if symlinks > _MAX_SYMLINKS:
                raise ArchiveError(f"too many symlinks on the way to {shown(shown_path)}")
            if target.startswith(b"/"):
                directory = self._root
            pending.extend(part for part in target.split(b"/")[::-1] if part not in (b"", b"."))
        return directory

    def _symlink_target(
        self, directory: _Directory, name: bytes, shown_path: bytes
    ) -> bytes | None:
        """Where *name* leads if it is a symlink; None if it is still free for a directory."""
        descriptor = self._descriptor(directory)
        try:
            return os.readlink(name, dir_fd=descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        if name in directory.whiteouts:
            return None
        raise ArchiveError(
            f"a file is in the place of a directory on the way to {shown(shown_path)}"
        )

    def _descriptor(self, directory: _Directory) -> int:
        """A file descriptor of *directory*, valid until the next call."""
        if directory is self._root:
            return self._root_descriptor
        if directory.file_descriptor >= 0:
            self._open.move_to_end(directory)
            return directory.file_descriptor
        # No name of this path is a symlink, see above, so the kernel may resolve it.
        directory.file_descriptor = os.open(
            directory.path, _OPEN_DIRECTORY, dir_fd=self._root_descriptor
        )
        self._open[directory] = None
        if len(self._open) > _OPEN_DIRECTORIES:
            oldest = next(iter(self._open))
            self._close(oldest)
        return directory.file_descriptor

    def _close(self, directory: _Directory) -> None:
        del self._open[directory]
        os.close(directory.file_descriptor)
        directory.file_descriptor = -1
        if self._last is not None and self._last[1] is directory:
            self._last = None

    # Writing entries

    def _write_root(self, entry: Entry) -> None:
        if entry.kind is not EntryKind.DIRECTORY:
            raise ArchiveError(f"the layer's root is a {entry.kind.value}")
        self._set_directory_attributes(self._root, entry)

    def _write_bookkeeping(self, entry: Entry, tar: TarReader) -> bool:
        """Leave out what is in a directory of AUFS's own; return whether *entry* is.

        A file in ``.wh..wh.plnk`` is the one to which hard links elsewhere lead. It is there until
        the end of the layer.
        """
        *directories, name = self._names(entry.path)
        if not any(_is_bookkeeping(directory) for directory in directories):
            return False
        self._note(_BOOKKEEPING)
        if directories == [_AUFS_FILE_LINKS] and entry.kind is EntryKind.FILE:
            parent = self._root.children.get(_AUFS_FILE_LINKS) or self._make_plain_directory(
                self._root, _AUFS_FILE_LINKS, stat.S_IRWXU
            )
            self._write_file(parent, self._descriptor(parent), name, entry, tar)
        return True

    def _write_directory(self, parent: _Directory, name: bytes, entry: Entry) -> None:
        directory = parent.children.get(name)
        if directory is None:
            directory = self._make_directory(parent, name, entry.mode)
        self._set_directory_attributes(directory, entry)

    def _write_file(
        self, parent: _Directory, descriptor: int, name: bytes, entry: Entry, tar: TarReader
    ) -> None:
        self._content_bytes += entry.file_size
        if self._content_bytes > self._limits.unpacked_bytes:
            raise LimitExceededError(
                f"the files of the layer exceed unpackedBytes: {self._limits.unpacked_bytes}"
            )
        self._spend(0, 1)
        try:
            file = os.open(name, _CREATE, entry.mode & 0o777, dir_fd=descriptor)
        except FileExistsError:
            self._clear(parent, name)
            file = os.open(name, _CREATE, entry.mode & 0o777, dir_fd=descriptor)
        try:
            if entry.segments is not None:
                content = self._write_segments(file, entry, tar)
            elif entry.size > CHUNK_BYTES:
                content = self._write_pieces(file, tar.content(entry))
            else:
                data = tar.whole_content(entry)
                self._spend(self._on_disk(len(data)), 0)
                _write_all(file, data)
                content = hashlib.sha256(data)
            # chown(2) clears setuid and file capabilities, so it comes before both.
            owner = self._owner(entry)
            if owner != self._rights.owner:
                owner = self._changed_owner(owner, functools.partial(os.fchown, file))
            xattrs = self._kept_xattrs(entry) if entry.xattrs else _NO_XATTRS
            if xattrs:
                self._set_xattrs(file, entry.path, xattrs)
            if entry.mode & _SPECIAL_BITS or ACL_ACCESS in xattrs:
                os.fchmod(file, entry.mode)
            if ACL_ACCESS in xattrs:
                xattrs = _with_acls_on_disk(xattrs, file)
            mtime_ns = entry.mtime_ns
            os.utime(file, ns=(mtime_ns, mtime_ns))
            if mtime_ns not in self._exact_times:
                mtime_ns = os.fstat(file).st_mtime_ns
        finally:
            os.close(file)
        self._index.add(
            parent.path_of(name),
            b"file",
            Attributes(entry.mode, owner, mtime_ns, xattrs),
            file_keywords(entry.file_size, content.hexdigest()),
        )

    def _write_pieces(self, file: int, pieces: Iterator[memoryview]) -> Hash:
        content = hashlib.sha256()
        written = spent = 0
        for piece in pieces:
            written += len(piece)
            self._spend(self._on_disk(written) - spent, 0)
            spent = self._on_disk(written)
            _write_all(file, piece)
            content.update(piece)
        return content

    def _write_segments(self, file: int, entry: Entry, tar: TarReader) -> Hash:
        content = hashlib.sha256()
        pieces = tar.content(entry)
        piece = memoryview(b"")
        position = spent_up_to = 0
        for segment in entry.segments or ():
            if segment.size:  # it may be smaller than a block, and share one with the last
                start = max(spent_up_to, segment.offset - segment.offset % self._block_bytes)
                spent_up_to = self._on_disk(segment.offset + segment.size)
                self._spend(spent_up_to - start, 0)
            _hash_zeros(content, segment.offset - position)
            os.lseek(file, segment.offset, os.SEEK_SET)
            missing = segment.size
            while missing:
                piece = piece or next(pieces)
                part, piece = piece[:missing], piece[missing:]
                _write_all(file, part)
                content.update(part)
                missing -= len(part)
            position = segment.offset + segment.size
        _hash_zeros(content, entry.file_size - position)
        os.ftruncate(file, entry.file_size)
        return content

    def _write_symlink(
        self, parent: _Directory, descriptor: int, name: bytes, entry: Entry
    ) -> None:
        if not entry.link or b"\0" in entry.link:
            raise ArchiveError(f"{shown(entry.path)}: a symlink without a target")
        self._spend(self._block_bytes, 1)
        try:
            os.symlink(entry.link, name, dir_fd=descriptor)
        except FileExistsError:
            self._clear(parent, name)
            os.symlink(entry.link, name, dir_fd=descriptor)
        attributes = self._set_attributes(descriptor, name, entry)
        self._index.add(parent.path_of(name), b"link", attributes, link_keywords(entry.link))

    def _write_hard_link(self, parent: _Directory, name: bytes, entry: Entry) -> None:
        *source_parents, source_name = self._names(entry.link) or [b""]
        source = self._walk(source_parents, entry.link)
        if source_name in source.children or not source_name:
            raise ArchiveError(f"{shown(entry.path)}: a hard link to a directory")
        if (source, source_name) == (parent, name):
            raise ArchiveError(f"{shown(entry.path)}: a hard link to itself")
        if source_name in source.whiteouts:
            raise _dangling_hard_link(entry)
        source_path = source.path_of(source_name)
        try:
            self._link(source_path, parent, name)
        except FileNotFoundError:
            raise _dangling_hard_link(entry) from None
        self._index.add_hard_link(parent.path_of(name), source_path)

    def _link(self, source_path: bytes, parent: _Directory, name: bytes) -> None:
        link = functools.partial(
            os.link,
            source_path,
            name,
            src_dir_fd=self._root_descriptor,
            dst_dir_fd=self._descriptor(parent),
            follow_symlinks=False,
        )
        try:
            link()
        except FileExistsError:
            self._clear(parent, name)
            link()

    def _write_special(
        self, parent: _Directory, descriptor: int, name: bytes, entry: Entry
    ) -> None:
        device = os.makedev(*entry.device)
        is_fifo = entry.kind is EntryKind.FIFO
        if not (is_fifo or self._rights.is_privileged):
            self._note("devices left out")
            return
        if entry.kind is EntryKind.CHARACTER_DEVICE and device == _WHITEOUT_DEVICE:
            # It would hide what the layers below hold; only markers may say so.
            self._note("whiteout devices in the archive not honoured")
            return
        mode = entry.mode | _FILE_TYPES[entry.kind]
        self._spend(self._block_bytes, 1)
        try:
            os.mknod(name, mode, device, dir_fd=descriptor)
        except FileExistsError:
            self._clear(parent, name)
            os.mknod(name, mode, device, dir_fd=descriptor)
        attributes = self._set_attributes(descriptor, name, entry)
        keywords = b"" if is_fifo else device_keywords(entry.device)
        self._index.add(parent.path_of(name), _INDEX_KINDS[entry.kind], attributes, keywords)

    # Markers of removals

    def _write_marker(self, parent: _Directory, descriptor: int, name: bytes) -> None:
        if name == OPAQUE_MARKER:
            self._make_opaque(parent)
            return
        if _is_bookkeeping(name):
            self._note(_BOOKKEEPING)
            return
        hidden = name.removeprefix(WHITEOUT_PREFIX)
        if hidden in (b"", b".", b".."):
            raise ArchiveError(f"a whiteout marker without a name: {shown(parent.path_of(name))}")
        parent.hidden.add(hidden)
        if parent.hides_all_below():
            return
        if hidden in parent.children:
            self._make_opaque(parent.children[hidden])
            return
        self._spend(0, 1)
        try:
            os.mknod(hidden, stat.S_IFCHR, _WHITEOUT_DEVICE, dir_fd=descriptor)
        except FileExistsError:
            return  # a file of this layer, which hides what it replaces
        parent.whiteouts.add(hidden)

    def _make_opaque(self, directory: _Directory) -> None:
        if directory.is_opaque:
            return  # an archive may repeat the marker as often as it likes
        os.setxattr(self._descriptor(directory), self._rights.opaque_xattr, b"y")
        # Overlayfs does not look at the mark of the root, but at the whiteouts in it.
        if directory is not self._root and not directory.hides_all_below():
            self._remove_whiteouts(directory)
        directory.is_opaque = True

    def _remove_whiteouts(self, directory: _Directory) -> None:
        """Remove all whiteouts of *directory* and below it.

        Where nothing is merged, overlayfs would list them like files that cannot be opened. Below
        an opaque directory there are none, and none are made any more; so each directory is looked
        at once, however many markers there are.
        """
        for below in directory.merged_subtree():
            for name in below.whiteouts:
                os.unlink(name, dir_fd=self._descriptor(below))
            below.whiteouts.clear()

    def _replace_by_whiteout(self, parent: _Directory, name: bytes) -> None:
        """Remove a directory of which the layer only says that it is gone, and what was in it.

        Old versions of umoci remove a directory by ``.wh.NAME`` and ``NAME/.wh.NAME``.
        """
        self._clear(parent, name)
        if not parent.hides_all_below():
            self._spend(0, 1)
            os.mknod(name, stat.S_IFCHR, _WHITEOUT_DEVICE, dir_fd=self._descriptor(parent))
            parent.whiteouts.add(name)

    # What several kinds of entries need

    def _make_directory(self, parent: _Directory, name: bytes, mode: int) -> _Directory:
        """Make a directory that this process can write in whatever its final mode is."""
        path = parent.path_of(name)
        self._names(path)  # symlinks on the way may have made it longer than the entry's own path
        if name.startswith(WHITEOUT_PREFIX):
            raise ArchiveError(f"a whiteout marker as a directory: {shown(path)}")
        self._directories += 1
        if self._directories > self._limits.entries + self._limits.path_depth:
            raise LimitExceededError(
                f"more directories than entries may be: {self._limits.entries}: {shown(path)}"
            )
        return self._make_plain_directory(parent, name, mode)

    def _make_plain_directory(self, parent: _Directory, name: bytes, mode: int) -> _Directory:
        self._spend(self._block_bytes, 1)
        descriptor = self._descriptor(parent)
        made_mode = mode & 0o777 | 0o700
        try:
            os.mkdir(name, made_mode, dir_fd=descriptor)
        except FileExistsError:
            self._clear(parent, name)
            os.mkdir(name, made_mode, dir_fd=descriptor)
        directory = parent.children[name] = _Directory(parent, name, made_mode)
        if name in parent.hidden:
            self._make_opaque(directory)
        return directory

    def _set_directory_attributes(self, directory: _Directory, entry: Entry) -> None:
        """Set what changes nothing of what is written below the directory; ``finish`` the rest."""
        directory.is_real = directory.is_listed = True
        directory.mode = entry.mode
        directory.mtime_ns = entry.mtime_ns
        directory.owner = self._owner(entry)
        kept = self._kept_xattrs(entry)
        if not kept:
            return
        # An archive may list a directory often, with other attributes each time.
        if directory.add_xattrs(kept) > self._limits.xattr_bytes:
            raise LimitExceededError(
                f"{shown(entry.path)}: extended attributes exceed xattrBytes: "
                f"{self._limits.xattr_bytes}"
            )
        plain = {name: value for name, value in kept.items() if name not in _ACLS}
        self._set_xattrs(self._descriptor(directory), entry.path, plain)

    def _set_attributes(self, descriptor: int, name: bytes, entry: Entry) -> Attributes:
        """Set the attributes of what cannot be opened: symlinks, devices and fifos."""
        owner = self._owner(entry)
        if owner != self._rights.owner:
            chown = functools.partial(os.chown, name, dir_fd=descriptor, follow_symlinks=False)
            owner = self._changed_owner(owner, chown)
        xattrs: Mapping[bytes, bytes] = self._kept_xattrs(entry)
        if xattrs:
            os.fchdir(descriptor)  # there is no setxattr relative to a directory
            self._set_xattrs(name, entry.path, xattrs)
        mode = 0o777  # what all symlinks have
        if entry.kind is not EntryKind.SYMLINK:
            mode = entry.mode
            if mode & _SPECIAL_BITS or ACL_ACCESS in xattrs:
                os.chmod(name, mode, dir_fd=descriptor)
        if ACL_ACCESS in xattrs:
            xattrs = _with_acls_on_disk(xattrs, name)
        mtime_ns = entry.mtime_ns
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=descriptor, follow_symlinks=False)
        if mtime_ns not in self._exact_times:
            mtime_ns = self._mtime_ns(name, descriptor)
        return Attributes(mode, owner, mtime_ns, xattrs)

    def _set_xattrs(self, file: int | bytes, path: bytes, xattrs: Mapping[bytes, bytes]) -> None:
        """Set *xattrs* of *file*, a descriptor or a name; *path* is what errors call it."""
        for attribute, value in xattrs.items():
            try:
                os.setxattr(file, attribute, value, follow_symlinks=isinstance(file, int))
            except OSError as error:
                # ext4 says "no space" of one that is too large for it.
                raise ArchiveError(
                    f"{shown(path)}: the extended attribute {shown(attribute)} cannot be set "
                    f"here: {error.strerror}"
                ) from error

    def _mtime_ns(self, name: bytes, directory: int) -> int:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns

    def _owner(self, entry: Entry) -> tuple[int, int]:
        owner = entry.uid, entry.gid
        if self._rights.keeps_owners:
            return owner
        if self._rights.is_root and owner != self._rights.owner:
            self._note(_OTHER_OWNERS)
        return self._rights.owner

    def _changed_owner(
        self, owner: tuple[int, int], chown: Callable[[int, int], None]
    ) -> tuple[int, int]:
        """Change the owner by *chown*; return who it is then."""
        try:
            chown(*owner)
        except OSError as error:
            if error.errno not in _NO_SUCH_OWNER_HERE:
                raise
            self._note(_OTHER_OWNERS)
            return self._rights.owner
        return owner

    def _kept_xattrs(self, entry: Entry) -> dict[bytes, bytes]:
        kept = {}
        for attribute, value in entry.xattrs.items():
            reason = self._rights.reason_to_drop(attribute, entry.kind)
            if reason:
                self._note(reason)
            else:
                kept[attribute] = value
        return kept

    def _clear(self, parent: _Directory, name: bytes) -> None:
        """Remove what an earlier entry wrote at *name*."""
        self._last = None
        self._index.remove(parent.path_of(name))
        parent.whiteouts.discard(name)
        directory = parent.children.pop(name, None)
        if directory is not None:
            for below in directory.subtree():
                if below.file_descriptor >= 0:
                    self._close(below)
        remove_tree(name, dir_fd=self._descriptor(parent), is_private=True)

    def _on_disk(self, size: int) -> int:
        return -(-size // self._block_bytes) * self._block_bytes

    def _note(self, what: str) -> None:
        self.notes[what] = self.notes.get(what, 0) + 1


_FILE_TYPES: Final[Mapping[EntryKind, int]] = {
    EntryKind.CHARACTER_DEVICE: stat.S_IFCHR,
    EntryKind.BLOCK_DEVICE: stat.S_IFBLK,
    EntryKind.FIFO: stat.S_IFIFO,
}


_INDEX_KINDS: Final[Mapping[EntryKind, bytes]] = {
    EntryKind.CHARACTER_DEVICE: b"char",
    EntryKind.BLOCK_DEVICE: b"block",
    EntryKind.FIFO: b"fifo",
}


def _hash_zeros(content: Hash, size: int) -> None:
    """Hash a hole: what is read from it are zeros."""
    while size > 0:
        content.update(_ZEROS[:size])
        size -= len(_ZEROS)


def _is_bookkeeping(name: bytes) -> bool:
    return name.startswith(_AUFS_PREFIX) and name != OPAQUE_MARKER


def _with_acls_on_disk(xattrs: Mapping[bytes, bytes], file: int | bytes) -> dict[bytes, bytes]:
    others = {name: value for name, value in xattrs.items() if name not in _ACLS}
    return others | acls_of(file)


def _write_all(file: int, content: bytes | memoryview) -> None:
    written = os.write(file, content)
    while written < len(content):
        written += os.write(file, memoryview(content)[written:])


def _dangling_hard_link(entry: Entry) -> ArchiveError:
    return ArchiveError(
        f"{shown(entry.path)}: a hard link to {shown(entry.link)}, which is not in the layer"
    )
