"""All nodes of one host, and the requests of a file system."""

from __future__ import annotations

import errno
import stat
from functools import partial
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.journal.records import Setattr
from apfs.sysfs.attribute_file import AttributeFile, Opening
from apfs.sysfs.directory import Directory
from apfs.sysfs.entries import AttributeOf, Description, Iattr, Times, description
from apfs.sysfs.faults import Faults
from apfs.sysfs.kind import ENTRY_BITS, ENTRY_MASK, KEY_MASK, KIND_SHIFT
from apfs.sysfs.members import FixedName
from apfs.sysfs.nodes import Nodes, TreeKinds
from apfs.sysfs.openfile import SpecialFile, record_refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.journal.log import Journal
    from apfs.sysfs.entries import Access, DirEntry, Stat
    from apfs.sysfs.kind import Kind

OpenFile = AttributeFile | SpecialFile

# How many attributes are remembered as ones that may be opened.
_OPENINGS = 1024


class Tree:
    """All nodes of one host or guest, and the requests of a file system.

    It answers requests for nodes of other trees with the same `nodes`, too. Requests raise `KernelError`: ENOENT for
    nodes that do not exist (any more), and what each method names.
    """

    def __init__(self, journal: Journal, nodes: Nodes[Tree] | None = None) -> None:
        self.journal = journal
        self.nodes = nodes or Nodes()
        self._number = self.nodes.admit(self)
        self._own_kinds = TreeKinds(self.nodes.kinds, self._number)
        self._kinds = self.nodes.kinds
        self._opened = self.nodes.opened
        self._openings = self.nodes.openings
        """What can be opened, by node and access, as found out since the last uevent."""
        self._openings_at = 0
        """How many uevents there were then."""
        self._iattrs = self.nodes.iattrs
        self.faults = Faults()
        self.root = Directory(self._own_kinds, None, FixedName("", lambda _key: self), (), lasting=nodes is None)
        self.place: int | None = None
        """The directory of another tree in which the root's entries are shown."""

    def close(self) -> None:
        """End: its nodes no longer exist, and open files no longer work."""
        self._own_kinds.forget()
        self.nodes.dismiss(self._number)
        self.deactivate()

    def _unpack(self, node: int) -> tuple[Kind, int, int]:
        return self._kinds[node >> KIND_SHIFT], node >> ENTRY_BITS & KEY_MASK, node & ENTRY_MASK

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
        if not isinstance(kind, Directory) or kind.parent is None:
            return directory
        parent = kind.parent.id(kind.members.parent(key))
        if kind.parent.parent is None:
            place = self.nodes.tree_of(directory, self).place
            return parent if place is None else place
        return parent

    def lookup(self, directory: int, name: str) -> int:
        """Return the node of an entry; ENOTDIR in what is not a directory."""
        kind, key, entry = self._unpack(directory)
        if not isinstance(kind, Directory) or entry:
            raise self._no_directory(directory)
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

    def describe(self, node: int) -> Description:
        """Return the stat of a node, its owner, and for how long these are true."""
        kind, key, entry = self._unpack(node)
        found = kind.stat(key, entry)
        if found is None:
            raise KernelError(errno.ENOENT, f"{self.path(node)} is gone")
        changed = self._iattrs.get(node) if self._iattrs else None
        if changed:
            # It varies: if the node goes away and comes back, it has its original permissions and times.
            owner = (changed.uid, changed.gid)
            permanent = kind.permanent(entry)
            return Description(self._permitted(node, found), owner, changed.times, permanent, varies=True)
        return description((found, _NOBODY, None, kind.permanent(entry), kind.varies(entry)))

    def remains(self, node: int) -> Description:
        """Return the stat of a node that was removed, for those who still have it, with its first permissions.

        kernfs answers stat(2) for as long as somebody has the inode; a directory has no subdirectories then. ENOENT if
        it is not known what the node was: its tree is gone, or it is no part of sysfs. Nor is anything left of fixed
        directories: a sandbox binds those of modules one by one, and programs there look whether they exist.
        """
        kind, _, entry = self._unpack(node)
        found = kind.remains(entry)
        if found is None:
            raise KernelError(errno.ENOENT, f"{self.path(node)} is gone")
        return Description(found, _NOBODY, None, permanent=False, varies=True)

    def _permitted(self, node: int, found: Stat) -> Stat:
        mode = self._iattrs.get(node, Iattr()).mode
        return found if mode is None else found._replace(mode=stat.S_IFMT(found.mode) | mode)

    def readlink(self, node: int) -> str:
        """Return the relative text of a link; EINVAL if the node is none."""
        kind, key, entry = self._unpack(node)
        target = kind.link(key, entry)
        if target is None:
            raise KernelError(errno.ENOENT, f"{self.path(node)} is gone")
        return link_text(kind.shown_path(key, entry), target)

    def readdir(self, directory: int, position: int = 0) -> Iterator[DirEntry]:
        """Yield the entries from a position (0, or an entry's `next`); ENOTDIR in what is not a directory.

        A position stays right while members come and go: nothing that existed throughout is skipped or repeated.
        """
        kind, key, entry = self._unpack(directory)
        if not isinstance(kind, Directory) or entry:
            raise self._no_directory(directory)
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

        EACCES, even for root, if its mode has no read (write) bit at all: the general permission check would let root
        pass. EISDIR and ELOOP for directories and links.
        """
        if self._openings_at != self.journal.uevents_sent:
            self._forget_openings()
        opening = self._openings.get((node, access))
        if opening is None:
            found = self.nodes.tree_of(node, self).opening(node, access)
            if not isinstance(found, Opening):
                return found
            opening = found
        return AttributeFile(opening)

    def opening(self, node: int, access: Access) -> Opening | SpecialFile:
        """Find out, for any tree with the same nodes, whether a node of this one can be opened, as `open` does."""
        found = self._find(node, access)
        return self._remember(node, access, found) if isinstance(found, AttributeOf) else found

    def _find(self, node: int, access: Access) -> SpecialFile | AttributeOf:
        if node in self._iattrs:
            access = access._replace(mode=self._iattrs[node].mode)
        kind, key, entry = self._unpack(node)
        try:
            found = kind.open(key, entry, access)
            if found is None:
                raise KernelError(errno.ENOENT, f"{self.path(node)} is gone")
        except KernelError as error:
            record_refusal(self.journal, "open", self.path(node), "", error, {"access": access.letters})
            raise
        if isinstance(found, SpecialFile) and found.tracked:
            found.record_open(self.journal, self.path(node), access.letters)
        return found

    def _remember(self, node: int, access: Access, found: AttributeOf) -> Opening:
        """Remember that an attribute can be opened. Finding out takes 1.5 of the 5 µs that open, read and close take.

        Only names and permissions matter for that, so it stays true until the next uevent (see `apfs.sysfs`) or
        `setattr`.
        """
        if len(self._openings) >= _OPENINGS:
            self._openings.clear()
        path = partial(self.path, node)
        opening = Opening(node, path, found.subject, found.attribute, self.journal, self.faults, self._opened)
        self._openings[node, access] = opening
        return opening

    def _forget_openings(self) -> None:
        self._openings.clear()
        self._openings_at = self.journal.uevents_sent

    def deactivate(self) -> None:
        """Disconnect open files from nodes that are gone: all their reads and writes give ENODEV (kernfs_drain).

        To be called when something was removed, before anything of the same name can appear.
        """
        for file in self._opened:
            file.gone = file.gone or not self._exists(file.node)
        for node in [node for node in self._iattrs if not self._exists(node)]:
            del self._iattrs[node]

    def _no_directory(self, node: int) -> KernelError:
        self.stat(node)
        return KernelError(errno.ENOTDIR, f"{self.path(node)} is not a directory")

    def _exists(self, node: int) -> bool:
        kind, key, entry = self._unpack(node)
        return kind.stat(key, entry) is not None

    def check_directory(self, node: int) -> None:
        """Make sure that a directory can be opened: ENOENT if it is gone, ENOTDIR if the node is something else."""
        kind, key, entry = self._unpack(node)
        if not isinstance(kind, Directory) or entry:
            raise self._no_directory(node)
        if kind.members.subject(key) is None:
            raise KernelError(errno.ENOENT, f"{self.path(node)} is gone")

    def setattr(
        self,
        node: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime: int | None = None,
        mtime: int | None = None,
        now: int = 0,
    ) -> None:
        """Change permissions, ownership or times, which sysfs keeps until the node goes away (kernfs_iop_setattr).

        Times are nanoseconds since the epoch. `now` is the time of the request, for who can see it: all times become
        that with the first change of whatever kind (__kernfs_iattrs), ctime with each.
        """
        self.stat(node)
        self._openings.clear()
        old = self._iattrs.get(node, Iattr())
        times = old.times or Times(now, now, now)
        self._iattrs[node] = Iattr(
            old.mode if mode is None else mode & 0o7777,
            old.uid if uid is None else uid,
            old.gid if gid is None else gid,
            Times(times.accessed if atime is None else atime, times.modified if mtime is None else mtime, now),
        )
        self.nodes.tree_of(node, self).journal.add(Setattr(self.path(node), mode, uid, gid, atime, mtime))

    @property
    def owned(self) -> bool:
        """Whether permissions, ownership or times of any node were changed."""
        return bool(self._iattrs)


_NOBODY = (None, None)


def link_text(link: str, target: str) -> str:
    """Text of a link between two absolute paths (kernfs_get_target_path).

    One `../` for each level from the directory of the link up to the nearest one that contains the target as well.
    """
    here, there = link.split("/")[1:-1], target.split("/")[1:]
    common = 0
    while common < min(len(here), len(there) - 1) and here[common] == there[common]:
        common += 1
    return "../" * (len(here) - common) + "/".join(there[common:])
