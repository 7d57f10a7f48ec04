"""The tree as it is seen: directories, attributes and links, computed when they are looked at.

There is no object per node. A `Directory` describes *all* directories of one kind (all queues, say); one of them is
named by a key, and every node of the tree by an integer packed from (kind, key, entry). Nothing is allocated because
somebody looked, no table of identities is needed, and 65,536 queues cost what four cost.

    node id:  kind << 40 | key << 8 | entry          entry 0 is the directory itself

Keys of adapters and domains are `apid << 16 | apqi`; keys of what is created at run time are serial numbers that are
never reused.
"""

from __future__ import annotations

import errno
import stat
from abc import ABC, abstractmethod
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

from apfs.errors import KernelError
from apfs.sysfs.entries import LINK_STAT, Access, Attribute, DirEntry, Entry, Link, Special, Stat, dir_entry, file_stat
from apfs.sysfs.members import FixedName, Members, Names, Selection, existing
from apfs.sysfs.openfile import Opening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from apfs.sysfs.openfile import OpenFile
    from apfs.sysfs.tree import Tree

KEY_BITS = 32
ENTRY_BITS = 8
KIND_SHIFT = KEY_BITS + ENTRY_BITS
KEY_MASK = (1 << KEY_BITS) - 1
ENTRY_MASK = (1 << ENTRY_BITS) - 1
# A listing position is slot << 33 | (key + 1), slots from 1: 33 bits, because a key may be all ones.
_SLOT_SHIFT = KEY_BITS + 1
_AFTER_MASK = (1 << _SLOT_SHIFT) - 1


class Kind(ABC):
    """A kind of node: everything that its nodes have in common, and a number that is part of their identities."""

    def __init__(self, tree: Tree, parent: Directory | None) -> None:
        self.tree = tree
        self.parent = parent
        self._base = tree.register(self) << KIND_SHIFT

    def id(self, key: int, entry: int = 0) -> int:
        """Return the identity of a node."""
        return self._base | key << ENTRY_BITS | entry

    @abstractmethod
    def path(self, key: int, entry: int) -> str:
        """Return the absolute path of a node, whether or not it exists at present."""

    @abstractmethod
    def stat(self, key: int, entry: int) -> Stat | None:
        """Return type, mode, size and link count, None if there is no such node."""

    @abstractmethod
    def link(self, key: int, entry: int) -> str | None:
        """Return the absolute path that a link leads to, None if it is gone; EINVAL if it is not a link."""

    @abstractmethod
    def open(self, key: int, entry: int, access: Access) -> OpenFile | Opening | None:
        """Open a regular file or, of an attribute, return what its open files have in common.

        None if there is no such node; EISDIR and ELOOP if it is no regular file, EACCES by its mode.
        """

    def lasting(self, entry: int) -> bool:
        """Whether such a node exists as long as the directory that it is in, with the same attributes."""
        del entry
        return False


class Population(Kind):
    """A kind whose members are listed one by one in directories of its parent kind."""

    @abstractmethod
    def find(self, parent: int, name: str) -> int | None:
        """Return the key of the existing member of that name in directory `parent`."""

    @abstractmethod
    def keys(self, parent: int, after: int) -> Iterator[int]:
        """Yield the keys of the members in directory `parent` that are greater than `after`, ascending."""

    @abstractmethod
    def name(self, key: int) -> str:
        """Return the name of a member."""

    type: ClassVar[int]
    """File type of the members, as in S_IFMT."""


_P = TypeVar("_P", bound=Population)


class LinkSet(Population):
    """Links to members of another kind, such as `/sys/bus/ap/devices/*`, named as their targets are unless `names`.

    They stand in a directory with key 0, or (`keyed`) in the directory that has the target's own key.
    """

    type = stat.S_IFLNK

    def __init__(
        self, parent: Directory, target: Directory, selection: Selection, names: Names | None, *, keyed: bool
    ) -> None:
        super().__init__(parent.tree, parent)
        self._home = parent
        self._target = target
        self._selection = selection
        self._names = names or target.members
        self._keyed = keyed

    def find(self, parent: int, name: str) -> int | None:
        key = self._names.find(name)
        if key is None or (self._keyed and key != parent) or not self._selection.has(key):
            return None
        return key

    def keys(self, parent: int, after: int) -> Iterator[int]:
        if not self._keyed:
            return self._selection.keys(parent, after)
        return iter((parent,) if parent > after and self._selection.has(parent) else ())

    def name(self, key: int) -> str:
        return self._names.name(key)

    def path(self, key: int, entry: int) -> str:
        return f"{self._home.path(key if self._keyed else 0, entry)}/{self.name(key)}"

    def stat(self, key: int, entry: int) -> Stat | None:
        target = self.link(key, entry)
        return None if target is None else LINK_STAT

    def link(self, key: int, entry: int) -> str | None:
        return self._target.path(key, entry) if self._selection.has(key) else None

    def open(self, key: int, entry: int, access: Access) -> OpenFile | Opening | None:
        del entry, access
        if not self._selection.has(key):
            return None
        raise KernelError(errno.ELOOP, "not a regular file")


class FileSet(Population):
    """Files that are members of a kind, such as `/dev/vfio/<group>`, all alike but for their subject."""

    type = stat.S_IFREG

    def __init__(self, parent: Directory, members: Members, file: Special) -> None:
        super().__init__(parent.tree, parent)
        self._home = parent
        self._members = members
        self._file = file

    def find(self, parent: int, name: str) -> int | None:
        return existing(self._members, parent, name)

    def keys(self, parent: int, after: int) -> Iterator[int]:
        return self._members.keys(parent, after)

    def name(self, key: int) -> str:
        return self._members.name(key)

    def path(self, key: int, entry: int) -> str:
        return f"{self._home.path(self._members.parent(key), entry)}/{self.name(key)}"

    def stat(self, key: int, entry: int) -> Stat | None:
        del entry
        return None if self._members.subject(key) is None else Stat(stat.S_IFREG | self._file.mode, 0, 1)

    def link(self, key: int, entry: int) -> str | None:
        raise KernelError(errno.EINVAL, f"{self.path(key, entry)} is not a link")

    def open(self, key: int, entry: int, access: Access) -> OpenFile | Opening | None:
        del entry
        subject = self._members.subject(key)
        if subject is None:
            return None
        access.check(self._file.mode)
        return self._file.open(subject, access.read, access.write)


class _Slot(NamedTuple):
    """What a listing comes across, by name: an entry, or a kind of children where their names would stand."""

    name: str
    number: int
    following: int
    """The position behind it."""
    entry: Entry | None
    child: Population | None
    type: int
    lasting: Stat | None
    """What stat tells of an entry that exists for as long as its directory."""


class Directory(Population):
    """A kind of directory, with its attributes, links and kinds of children.

    Declared once per host, top down from `Tree.root`, by `fixed`, `dirs`, `links` and `files`.
    """

    type = stat.S_IFDIR

    def __init__(self, tree: Tree, parent: Directory | None, members: Members, entries: Sequence[Entry]) -> None:
        super().__init__(tree, parent)
        self.members = members
        self._entries = tuple(entries)
        self._stats = tuple(None if isinstance(entry, Link) else file_stat(entry) for entry in entries)
        self._lasting = False
        self.varies = False
        """Whether its link count can change: subdirectories come and go."""
        self._by_name = {entry.name: number for number, entry in enumerate(self._entries, 1)}
        self._fixed: dict[str, Directory] = {}
        self._populations: list[Population] = []
        self._below: list[Members] = []  # subdirectories
        self._slots: list[_Slot] = []
        self._arrange(
            _Slot(
                entry.name,
                number,
                0,
                entry,
                None,
                stat.S_IFMT(found.mode) if found else stat.S_IFLNK,
                found if self.lasting(number) else None,
            )
            for number, (entry, found) in enumerate(zip(self._entries, self._stats, strict=True), 1)
        )

    def fixed(
        self,
        name: str,
        entries: Sequence[Entry] = (),
        subject: Callable[[int], object | None] | None = None,
        *,
        always: object = None,
    ) -> Directory:
        """Declare one subdirectory of this name in every directory of this kind.

        Its subject is `always`, or `subject(key)`, and where that is None there is no such directory; by default it is
        the parent's.
        """
        if always is not None:
            child = Directory(self.tree, self, FixedName(name, lambda _key: always), entries)
        else:
            child = Directory(self.tree, self, FixedName(name, subject or self.members.subject), entries)
        child._lasting = subject is None
        self.varies = self.varies or not child._lasting
        self._fixed[name] = child
        self._below.append(child.members)
        self._add_slot(name, child)
        return child

    def dirs(self, first: str, members: Members, entries: Sequence[Entry] = ()) -> Directory:
        """Declare a population of subdirectories; listings show it where the name `first` would stand."""
        self.varies = True
        self._below.append(members)
        return self._populate(first, Directory(self.tree, self, members, entries))

    def links(
        self, first: str, target: Directory, selection: Selection, names: Names | None = None, *, keyed: bool = False
    ) -> LinkSet:
        """Declare a population of links to members of `target`."""
        return self._populate(first, LinkSet(self, target, selection, names, keyed=keyed))

    def files(self, first: str, members: Members, file: Special) -> FileSet:
        """Declare a population of files."""
        return self._populate(first, FileSet(self, members, file))

    def _populate(self, first: str, child: _P) -> _P:
        self._populations.append(child)
        self._add_slot(first, child)
        return child

    def _add_slot(self, name: str, child: Population) -> None:
        self._arrange([_Slot(name, 0, 0, None, child, child.type, None)])

    def _arrange(self, more: Iterable[_Slot]) -> None:
        slots = sorted([*self._slots, *more], key=attrgetter("name"))
        self._slots = [slot._replace(following=place << _SLOT_SHIFT) for place, slot in enumerate(slots, 2)]

    def find(self, parent: int, name: str) -> int | None:
        return existing(self.members, parent, name)

    def keys(self, parent: int, after: int) -> Iterator[int]:
        return self.members.keys(parent, after)

    def name(self, key: int) -> str:
        return self.members.name(key)

    def path(self, key: int, entry: int) -> str:
        parts = [self._entries[entry - 1].name] if entry else []
        directory = self
        while directory.parent is not None:
            parts.append(directory.members.name(key))
            key = directory.members.parent(key)
            directory = directory.parent
        return "/" + "/".join(reversed(parts))

    def stat(self, key: int, entry: int) -> Stat | None:
        subject = self.members.subject(key)
        if subject is None:
            return None
        if not entry:
            return Stat(stat.S_IFDIR | 0o755, 0, self._nlink(key))
        node = self._entries[entry - 1]
        if isinstance(node, Link):
            target = node.target(subject)
            return None if target is None else LINK_STAT
        return self._stats[entry - 1] if node.present(subject) else None

    def _nlink(self, key: int) -> int:
        return 2 + sum(members.count(key) for members in self._below) if self._below else 2

    def link(self, key: int, entry: int) -> str | None:
        node = self._entries[entry - 1] if entry else None
        if not isinstance(node, Link):
            raise KernelError(errno.EINVAL, f"{self.path(key, entry)} is not a link")
        subject = self.members.subject(key)
        return None if subject is None else node.target(subject)

    def open(self, key: int, entry: int, access: Access) -> OpenFile | Opening | None:
        subject = self.members.subject(key)
        if subject is None:
            return None
        if not entry:
            raise KernelError(errno.EISDIR, "not a regular file")
        node = self._entries[entry - 1]
        if isinstance(node, Attribute):
            if node.visible is not None and not node.visible(subject):
                return None
            access.check(node.mode)
            return Opening(self.tree, self._base | key << ENTRY_BITS | entry, subject, node)
        if not node.present(subject):
            return None
        if isinstance(node, Link):
            raise KernelError(errno.ELOOP, "not a regular file")
        access.check(node.mode)
        return node.open(subject, access.read, access.write)

    def lasting(self, entry: int) -> bool:
        """Whether it is a fixed directory or an unconditional file."""
        if not entry:
            return self._lasting
        node = self._entries[entry - 1]
        return isinstance(node, Special) or (isinstance(node, Attribute) and node.visible is None)

    def permanent(self) -> bool:
        """Whether it and all directories above it are always there."""
        return self.parent is None or (self._lasting and self.parent.permanent())

    def lookup(self, key: int, name: str) -> int | None:
        """Return the identity of an entry, None if there is none."""
        subject = self.members.subject(key)
        if subject is None:
            return None
        entry = self._by_name.get(name)
        if entry is not None:
            return self.id(key, entry) if self._entries[entry - 1].present(subject) else None
        fixed = self._fixed.get(name)
        if fixed is not None:
            return fixed.id(key) if fixed.members.subject(key) is not None else None
        for population in self._populations:
            found = population.find(key, name)
            if found is not None:
                return population.id(found)
        return None

    def readdir(self, key: int, position: int) -> Iterator[DirEntry] | None:
        """Yield the entries from a position, None if the directory is gone."""
        subject = self.members.subject(key)
        return None if subject is None else self._readdir(key, subject, position)

    def _readdir(self, key: int, subject: object, position: int) -> Iterator[DirEntry]:
        place = position >> _SLOT_SHIFT
        slots, after = (self._slots[place - 1 :], (position & _AFTER_MASK) - 1) if place else (self._slots, -1)
        base = self.id(key)
        for name, number, following, entry, child, kind, lasting in slots:
            if entry:
                if lasting or entry.present(subject):
                    yield dir_entry((name, base | number, following, kind, lasting))
            elif child:
                first, here = child.id(0), following - (1 << _SLOT_SHIFT) + 1
                for member in child.keys(key, after):
                    found = child.stat(member, 0) if child.lasting(0) else None
                    yield dir_entry((child.name(member), first | member << ENTRY_BITS, here + member, kind, found))
                after = -1
