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
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from apfs.kernel.errors import KernelError
from apfs.kernel.journal import Refusal
from apfs.kernel.openfile import PAGE_SIZE, AttributeFile, Opening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from apfs.kernel.journal import Journal
    from apfs.kernel.openfile import OpenFile

_KEY_BITS = 32
_ENTRY_BITS = 8
_KIND_SHIFT = _KEY_BITS + _ENTRY_BITS
_KEY_MASK = (1 << _KEY_BITS) - 1
_ENTRY_MASK = (1 << _ENTRY_BITS) - 1
# A listing position is slot << 33 | (key + 1), slots from 1: 33 bits, because a key may be all ones.
_SLOT_SHIFT = _KEY_BITS + 1
_AFTER_MASK = (1 << _SLOT_SHIFT) - 1
# Attributes remembered that may be opened.
_OPENINGS = 1024


@dataclass(frozen=True, slots=True)
class Attribute:
    """A sysfs attribute: one text, made when it is read, parsed when it is written.

    `show(subject)` returns the text, `store(subject, text)` takes what was written up to its first NUL (or, if `raw`,
    with all its NULs, for stores that count bytes); both raise `KernelError`. Where the mode allows what there is no
    function for, the attempt gives EIO. `visible` decides whether this particular subject has the attribute.
    """

    name: str
    mode: int
    show: Callable[[Any], str] | None = None
    store: Callable[[Any, str], None] | None = None
    visible: Callable[[Any], bool] | None = None
    raw: bool = False

    def present(self, subject: object) -> bool:
        """Whether this subject has the attribute at present."""
        return self.visible is None or self.visible(subject)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link; `target(subject)` is the absolute path it leads to, or None while there is no such link."""

    name: str
    target: Callable[[Any], str | None]

    def present(self, subject: object) -> bool:
        """Whether this subject has the link at present."""
        return self.target(subject) is not None


@dataclass(frozen=True, slots=True)
class Special:
    """A file with behaviour of its own: `open(subject, readable, writable)` makes its open file."""

    name: str
    mode: int
    open: Callable[[Any, bool, bool], OpenFile]

    def present(self, _subject: object) -> bool:
        """Whether this subject has the file at present: always."""
        return True


Entry = Attribute | Link | Special


class Names(Protocol):
    """How the members of a kind are called."""

    def name(self, key: int) -> str:
        """Return the directory entry name of a key."""

    def find(self, name: str) -> int | None:
        """Return the key that has this name, whether or not it exists at present."""


class Members(Names, Protocol):
    """Which keys of one kind exist."""

    def subject(self, key: int) -> object | None:
        """Return what the attributes of this directory act upon, None if it does not exist."""

    def parent(self, key: int) -> int:
        """Return the key of the directory that contains it."""

    def keys(self, parent: int, after: int) -> Iterator[int]:
        """Yield the keys in directory `parent` that are greater than `after`, ascending."""

    def count(self, parent: int) -> int:
        """Return how many keys `keys(parent, -1)` yields."""


class Selection(Protocol):
    """Which members of another kind a directory shows as links."""

    def keys(self, parent: int, after: int) -> Iterator[int]:
        """Yield the selected keys in directory `parent` that are greater than `after`, ascending."""

    def has(self, key: int) -> bool:
        """Whether a key is selected."""


_T = TypeVar("_T")


class Registry(Generic[_T]):
    """Objects that come and go at run time, by name and by a serial number that is never given out twice.

    It is the `Members` of the one directory they stand in, and the `Selection` of links to all of them.
    """

    def __init__(self) -> None:
        self._objects: dict[int, _T] = {}
        self._names: dict[int, str] = {}
        self._keys: dict[str, int] = {}
        self._serial = 0
        self.changes = 0
        """How often an object came or went."""

    def add(self, name: str, item: _T) -> int:
        """Enter an object under a name that is free, and return its key."""
        self._serial += 1
        self._objects[self._serial] = item
        self._names[self._serial] = name
        self._keys[name] = self._serial
        self.changes += 1
        return self._serial

    def unique(self, stem: str) -> str:
        """Return a name that was never used: the stem and the serial number that comes next."""
        return f"{stem}.{self._serial + 1}"

    def discard(self, name: str) -> None:
        """Take an object out."""
        key = self._keys.pop(name)
        del self._objects[key], self._names[key]
        self.changes += 1

    def get(self, name: str) -> _T | None:
        """Return the object of that name."""
        key = self._keys.get(name)
        return None if key is None else self._objects[key]

    def __iter__(self) -> Iterator[_T]:
        """Yield the objects, oldest first."""
        return iter(list(self._objects.values()))

    def __len__(self) -> int:
        return len(self._objects)

    def name(self, key: int) -> str:
        """Return the name of an object; what is gone has none."""
        return self._names.get(key, "(removed)")

    def find(self, name: str) -> int | None:
        """Return the key of a name."""
        return self._keys.get(name)

    def subject(self, key: int) -> _T | None:
        """Return an object."""
        return self._objects.get(key)

    def parent(self, _key: int) -> int:
        """Return the key of the only directory that they stand in."""
        return 0

    def keys(self, _parent: int, after: int = -1) -> Iterator[int]:
        """Yield the keys greater than `after`; serial numbers ascend by themselves."""
        return (key for key in list(self._objects) if key > after)

    def count(self, _parent: int) -> int:
        """Return how many objects there are."""
        return len(self._objects)

    def has(self, key: int) -> bool:
        """Whether there is an object with that key."""
        return key in self._objects


class Stat(NamedTuple):
    """What stat(2) tells of a node, ownership and times aside; `mode` includes the file type."""

    mode: int
    size: int
    nlink: int


class DirEntry(NamedTuple):
    """One entry of a listing.

    `type` is its S_IFMT bits, `next` the position behind it, and `lasting` what stat tells of it where it exists for as
    long as the directory does.
    """

    name: str
    node: int
    next: int
    type: int
    lasting: Stat | None


# Makes one in half the time: a listing makes nothing else.
_dir_entry: Callable[[tuple[str, int, int, int, Stat | None]], DirEntry] = partial(tuple.__new__, DirEntry)


class Access(NamedTuple):
    """How a file is to be opened; `mode` is what chmod made of its permissions, None if nothing."""

    read: bool
    write: bool
    mode: int | None

    def check(self, mode: int) -> None:
        """Raise EACCES, for root as well, if a file of this mode cannot be opened so."""
        if self.mode is not None:
            mode = self.mode
        if self.read and not mode & 0o444:
            raise KernelError(errno.EACCES, "write-only, for root as well")
        if self.write and not mode & 0o222:
            raise KernelError(errno.EACCES, "read-only, for root as well")


READ, WRITE, BOTH, NEITHER = (
    Access(read, write, None) for read, write in ((True, False), (False, True), (True, True), (False, False))
)


class Kind(ABC):
    """A kind of node: everything that its nodes have in common, and a number that is part of their identities."""

    def __init__(self, tree: Tree, parent: Directory | None) -> None:
        self.tree = tree
        self.parent = parent
        self._base = tree.register(self) << _KIND_SHIFT

    def id(self, key: int, entry: int = 0) -> int:
        """Return the identity of a node."""
        return self._base | key << _ENTRY_BITS | entry

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
        return None if target is None else _LINK_STAT

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
        return _existing(self._members, parent, name)

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
        self._stats = tuple(None if isinstance(entry, Link) else _file_stat(entry) for entry in entries)
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
            child = Directory(self.tree, self, _FixedName(name, lambda _key: always), entries)
        else:
            child = Directory(self.tree, self, _FixedName(name, subject or self.members.subject), entries)
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
        return _existing(self.members, parent, name)

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
            return None if target is None else _LINK_STAT
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
            return Opening(self.tree, self._base | key << _ENTRY_BITS | entry, subject, node)
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
                    yield _dir_entry((name, base | number, following, kind, lasting))
            elif child:
                first, here = child.id(0), following - (1 << _SLOT_SHIFT) + 1
                for member in child.keys(key, after):
                    found = child.stat(member, 0) if child.lasting(0) else None
                    yield _dir_entry((child.name(member), first | member << _ENTRY_BITS, here + member, kind, found))
                after = -1


class _FixedName:
    """Membership of a fixed subdirectory: its key is its parent's, and it has one name."""

    def __init__(self, name: str, subject: Callable[[int], object | None]) -> None:
        self._name = name
        self.subject = subject

    def name(self, _key: int) -> str:
        return self._name

    def find(self, _name: str) -> int | None:
        raise NotImplementedError  # a fixed child is found through its parent

    def parent(self, key: int) -> int:
        return key

    def keys(self, parent: int, after: int) -> Iterator[int]:
        if parent > after and self.subject(parent) is not None:
            yield parent

    def count(self, parent: int) -> int:
        return int(self.subject(parent) is not None)


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
        self.root = Directory(self, None, _FixedName("", lambda _key: self), ())

    def register(self, kind: Kind) -> int:
        """Give a kind its number, from 1."""
        self._kinds.append(kind)
        return len(self._kinds)

    def _unpack(self, node: int) -> tuple[Kind, int, int]:
        return self._kinds[(node >> _KIND_SHIFT) - 1], node >> _ENTRY_BITS & _KEY_MASK, node & _ENTRY_MASK

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
            kind = self._kinds[(node >> _KIND_SHIFT) - 1]
            found = kind.open(node >> _ENTRY_BITS & _KEY_MASK, node & _ENTRY_MASK, access)
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
        kind = self._kinds[(directory >> _KIND_SHIFT) - 1]
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


def _file_stat(entry: Attribute | Special) -> Stat:
    return Stat(stat.S_IFREG | entry.mode, PAGE_SIZE if isinstance(entry, Attribute) else 0, 1)


# In sysfs links have no size, whatever their text is.
_LINK_STAT = Stat(stat.S_IFLNK | 0o777, 0, 1)


def _existing(members: Members, parent: int, name: str) -> int | None:
    key = members.find(name)
    if key is None or members.subject(key) is None or members.parent(key) != parent:
        return None
    return key
