"""All nodes of one host, and the requests that a file system gets for them."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, NamedTuple

from apfs.errors import KernelError
from apfs.journal.records import Refusal
from apfs.sysfs.directory import ENTRY_BITS, ENTRY_MASK, KEY_MASK, KIND_SHIFT, Directory, Kind
from apfs.sysfs.members import FixedName
from apfs.sysfs.openfile import AttributeFile, Opening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.journal.log import Journal
    from apfs.sysfs.entries import Access, DirEntry, Stat
    from apfs.sysfs.openfile import OpenFile

# Attributes remembered that may be opened.
_OPENINGS = 1024


class Tree:
    """All nodes of one host, and the requests that a file system gets for them.

    Requests raise `KernelError`: ENOENT for what does not exist (any more), and what each method names.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._kinds: list[Kind] = []
        self._open: set[AttributeFile] = set()
        self.closed = self._open.discard
        """Forget an open file."""
        self._openings: dict[tuple[int, Access], Opening] = {}
        """Attributes that may be opened for reading and writing so, by node; of what has been since the last uevent."""
        self._openings_at = 0
        self._iattrs: dict[int, _Iattr] = {}
        self.faults: dict[str, tuple[int, int]] = {}
        """What `inject` did: errno and accesses left, by path."""
        self.root = Directory(self, None, FixedName("", lambda _key: self), ())

    def register(self, kind: Kind) -> int:
        """Give a kind its number, from 1."""
        self._kinds.append(kind)
        return len(self._kinds)

    def _unpack(self, node: int) -> tuple[Kind, int, int]:
        return self._kinds[(node >> KIND_SHIFT) - 1], node >> ENTRY_BITS & KEY_MASK, node & ENTRY_MASK

    def path(self, node: int) -> str:
        """Return the absolute path of a node, whether or not it exists at present."""
        kind, key, entry = self._unpack(node)
        return kind.path(key, entry)

    def resolve(self, path: str) -> int:
        """Return the node at an absolute path, without following links; ENOTDIR if the way is blocked."""
        node = self.root.id(0)
        for name in filter(None, path.split("/")):
            node = self.lookup(node, name)
        return node

    def parent(self, directory: int) -> int:
        """Return the directory that contains a directory; the root contains itself."""
        kind, key, _ = self._unpack(directory)
        if isinstance(kind, Directory) and kind.parent is not None:
            return kind.parent.id(kind.members.parent(key))
        return directory

    def lookup(self, directory: int, name: str) -> int:
        """Return the node of an entry; ENOTDIR in what is not a directory."""
        kind, key, entry = self._unpack(directory)
        if not isinstance(kind, Directory) or entry:
            raise KernelError(errno.ENOTDIR, f"{self.path(directory)} is not a directory")
        node = kind.lookup(key, name)
        if node is None:
            raise KernelError(errno.ENOENT, f"no {name!r} in {self.path(directory)}")
        return node

    def stat(self, node: int) -> Stat:
        """Return type, mode, size and link count."""
        kind, key, entry = self._unpack(node)
        found = kind.stat(key, entry)
        if found is None:
            raise KernelError(errno.ENOENT, f"{self.path(node)} is gone")
        return self._permitted(node, found) if self._iattrs else found

    def _permitted(self, node: int, found: Stat) -> Stat:
        mode = self._iattrs.get(node, _Iattr()).mode
        return found if mode is None else found._replace(mode=stat.S_IFMT(found.mode) | mode)

    def readlink(self, node: int) -> str:
        """Return the relative text of a link; EINVAL if the node is none."""
        kind, key, entry = self._unpack(node)
        target = kind.link(key, entry)
        if target is None:
            raise KernelError(errno.ENOENT, f"{self.path(node)} is gone")
        return link_text(kind.path(key, entry), target)

    def readdir(self, directory: int, position: int = 0) -> Iterator[DirEntry]:
        """Yield the entries from a position (0 to 2, or an entry's `next`); ENOTDIR in what is not a directory.

        A position stays right while members come and go: nothing that existed throughout is skipped or repeated. All of
        0, 1 and 2 are before the first entry: the latter two are for those who list `.` and `..` as well.
        """
        kind, key, entry = self._unpack(directory)
        if not isinstance(kind, Directory) or entry:
            raise KernelError(errno.ENOTDIR, f"{self.path(directory)} is not a directory")
        entries = kind.readdir(key, position)
        if entries is None:
            raise KernelError(errno.ENOENT, f"{self.path(directory)} is gone")
        if self._iattrs:
            return (
                entry._replace(lasting=self._permitted(entry.node, entry.lasting)) if entry.lasting else entry
                for entry in entries
            )
        return entries

    def open(self, node: int, access: Access) -> OpenFile:
        """Open a regular file (kernfs_fop_open): `READ`, `WRITE`, `BOTH`, or `NEITHER`, which allows ioctls.

        EACCES, root included, if its mode has no read (write) bit at all: the general permission check would let root
        pass. EISDIR and ELOOP for directories and links.
        """
        # No name changes without a uevent, and permissions only by `setattr`: until then, what could be opened can be
        # opened again. Looking at everything anew takes 1.5 µs, of the 5 that opening, reading and closing take.
        if self._openings_at != self.journal.uevents_sent:
            self._openings.clear()
            self._openings_at = self.journal.uevents_sent
        opening = self._openings.get((node, access))
        if opening is None:
            found = self._open_first(node, access)
            if not isinstance(found, Opening):
                return found
            opening = found
            if len(self._openings) >= _OPENINGS:
                self._openings.clear()
            self._openings[node, access] = opening
        file = AttributeFile(opening)
        self._open.add(file)
        return file

    def _open_first(self, node: int, access: Access) -> OpenFile | Opening:
        if node in self._iattrs:
            access = access._replace(mode=self._iattrs[node].mode)
        try:
            kind = self._kinds[(node >> KIND_SHIFT) - 1]
            found = kind.open(node >> ENTRY_BITS & KEY_MASK, node & ENTRY_MASK, access)
        except KernelError as error:
            self.refused("open", node, "", error)
            raise
        if found is None:
            raise KernelError(errno.ENOENT, f"{self.path(node)} is gone")
        return found

    def deactivate(self) -> None:
        """Cut open files off from nodes that are gone: each read and write gives ENODEV for ever (kernfs_drain).

        To be called when something has been removed, before anything of the same name can come back.
        """
        for file in self._open:
            file.gone = file.gone or not self._exists(file.node)
        for node in [node for node in self._iattrs if not self._exists(node)]:
            del self._iattrs[node]

    def _exists(self, node: int) -> bool:
        kind, key, entry = self._unpack(node)
        return kind.stat(key, entry) is not None

    def check_directory(self, node: int) -> None:
        """Make sure that a directory can be opened: ENOENT if it is gone, ENOTDIR if it is none."""
        kind, key, entry = self._unpack(node)
        if not isinstance(kind, Directory) or entry:
            raise KernelError(errno.ENOTDIR, f"{self.path(node)} is not a directory")
        if kind.members.subject(key) is None:
            raise KernelError(errno.ENOENT, f"{self.path(node)} is gone")

    def permanent(self, node: int) -> bool:
        """Whether a node is always there."""
        kind, _, entry = self._unpack(node)
        return isinstance(kind, Directory) and kind.permanent() and (not entry or kind.lasting(entry))

    def varies(self, directory: int) -> bool:
        """Whether what stat tells of a directory can change: its link count, or that there is one."""
        kind = self._kinds[(directory >> KIND_SHIFT) - 1]
        return isinstance(kind, Directory) and (kind.varies or not kind.permanent())

    def setattr(self, node: int, *, mode: int | None = None, uid: int | None = None, gid: int | None = None) -> None:
        """Change permissions or ownership, which sysfs keeps until the node goes away (kernfs_iop_setattr)."""
        self.stat(node)
        self._openings.clear()
        old = self._iattrs.get(node, _Iattr())
        self._iattrs[node] = _Iattr(
            old.mode if mode is None else mode & 0o7777,
            old.uid if uid is None else uid,
            old.gid if gid is None else gid,
        )

    def changed(self, node: int) -> bool:
        """Whether somebody has changed permissions or ownership of a node, which ends with the node."""
        return node in self._iattrs

    @property
    def owned(self) -> bool:
        """Whether there may be a node whose permissions or ownership were changed."""
        return bool(self._iattrs)

    def owner(self, node: int) -> tuple[int | None, int | None]:
        """Return uid and gid as chown set them, None where nobody did."""
        if not self._iattrs:
            return _NOBODY
        changed = self._iattrs.get(node, _Iattr())
        return (changed.uid, changed.gid)

    def refused(self, operation: str, node: int, data: str, error: KernelError) -> None:
        """Put a refusal into the journal."""
        self.journal.add(Refusal(operation, self.path(node), data, error.name, error.why))

    def inject(self, path: str, number: int, accesses: int) -> None:
        """Make the next reads and writes of the attribute at `path`, which need not exist yet, fail with an errno."""
        self.faults[path] = (number, accesses)

    def clear_faults(self) -> None:
        """Take back what `inject` did."""
        self.faults.clear()

    def take_fault(self, node: int) -> None:
        """Raise the fault injected into this node's path, if one is left."""
        path = self.path(node)
        if path in self.faults:
            number, left = self.faults.pop(path)
            if left > 1:
                self.faults[path] = (number, left - 1)
            raise KernelError(number, "injected by the console verb fault")


class _Iattr(NamedTuple):
    """What chmod and chown changed."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


_NOBODY = (None, None)


def link_text(link: str, target: str) -> str:
    """Text of a link between two absolute paths (kernfs_get_target_path).

    One `../` per level up from the directory that holds the link to the nearest one that also holds the target.
    """
    here, there = link.split("/")[1:-1], target.split("/")[1:]
    common = 0
    while common < min(len(here), len(there) - 1) and here[common] == there[common]:
        common += 1
    return "../" * (len(here) - common) + "/".join(there[common:])
