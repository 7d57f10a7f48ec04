"""Directories: the contents common to all directories of a kind, with lookup and listing."""

from __future__ import annotations

import errno
import re
import stat
from bisect import insort
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from apfs.errors import KernelError
from apfs.sysfs.entries import (
    LINK_STAT,
    Access,
    Attribute,
    AttributeOf,
    DirEntry,
    Entry,
    Link,
    Node,
    Special,
    Stat,
    dir_entry,
    file_stat,
)
from apfs.sysfs.kind import ENTRY_BITS, KEY_BITS, Kinds, Population
from apfs.sysfs.members import FixedName, Members, Names, Places, Selection, existing, place_in
from apfs.sysfs.populations import FileSet, LinkSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from apfs.sysfs.openfile import SpecialFile

# A listing position is `slot << 33 | n`: before the slot if n is 0, else behind its member with the place n - 1.
# There are 33 bits, because a place, which is a key in most cases, may be all ones.
_SLOT_SHIFT = KEY_BITS + 1
_WITHIN_SLOT = (1 << _SLOT_SHIFT) - 1

_CHILDLESS = Stat(stat.S_IFDIR | 0o755, 0, 2)
"""What stat tells of a directory without subdirectories."""

_P = TypeVar("_P", bound=Population)


class _Slot(NamedTuple):
    """What has a place in a listing: an entry, or a whole population, which is listed at the place of one name.

    An entry is listed like a population with one member, whose key is 0.
    """

    name: str
    type: int
    number: int
    """The entry's number."""
    entry: Entry | None
    stat: Stat | None
    """The stat of an entry that is lasting."""
    population: Population | None


_BY_NAME = attrgetter("name")


class Directory(Population):
    """A kind of directory, with its attributes, links and kinds of children.

    Declared once per host, top down from `Tree.root`, by `fixed`, `dirs`, `links` and `files`.
    """

    type = stat.S_IFDIR

    def __init__(
        self,
        kinds: Kinds,
        parent: Directory | None,
        members: Members,
        entries: Sequence[Entry],
        *,
        lasting: bool = False,
    ) -> None:
        super().__init__(kinds)
        self._kinds = kinds
        self.parent = parent
        self.members = members
        self.place = place_in(members)
        self.lasting = lasting
        self.shown_at: str | None = None
        """Where it is made to be bound to, if it is."""
        self._comes_back: bool = isinstance(members, FixedName) and (parent is None or parent._comes_back)  # noqa: SLF001
        """Whether it is the same node again when it comes back, so that what binds it must find it gone until then."""
        self._permanent = lasting and (parent is None or parent.permanent(0))
        self._varies = not self._permanent
        self._entries = tuple(entries)
        self._numbers = {entry.name: number for number, entry in enumerate(self._entries, 1)}
        self._stats = tuple(map(_first_stat, entries))
        self._lasting = (True, *map(_lasts, entries))
        """Whether an entry exists as long as the directory, by its number; the directory itself does."""
        self._sized = (False, *(isinstance(entry, Special) and entry.size is not None for entry in entries))
        """Whether an entry has a size of its own, which can change."""
        self._fixed: dict[str, Directory] = {}
        self._populations: list[Population] = []
        self._may_come: str | None = None
        """Regular expression of its members' names, if they cannot be found by their names before they exist."""
        self._below: list[Members] = []
        """The members of all subdirectories."""
        slots = (
            _Slot(
                entry.name,
                stat.S_IFMT(found.mode) if found else stat.S_IFCHR,
                number,
                entry,
                found if self._lasting[number] else None,
                None,
            )
            for number, (entry, found) in enumerate(zip(self._entries, self._stats, strict=True), 1)
        )
        self._slots = sorted(slots, key=_BY_NAME)
        """In the order of a listing."""

    def fixed(
        self,
        name: str,
        entries: Sequence[Entry] = (),
        subject: Callable[[int], object | None] | None = None,
        *,
        always: object = None,
        shown_at: str | None = None,
    ) -> Directory:
        """Declare one subdirectory of this name in every directory of this kind.

        Its subject is `always` or, without that, `subject(key)`; where this is None there is no such directory. By
        default it is the subject of the parent. Without a `subject(key)` it is lasting. `shown_at` is the path at which
        the directory is meant to be bound, if it is made for that.
        """
        find = (lambda _key: always) if always is not None else subject or self.members.subject
        child = Directory(self._kinds, self, FixedName(name, find), entries, lasting=subject is None)
        child.shown_at = shown_at
        self._fixed[name] = child
        self._add_below(child)
        self._add_slot(name, child)
        return child

    def dirs(
        self, first: str, members: Members, entries: Sequence[Entry] = (), *, may_come: str | None = None
    ) -> Directory:
        """Declare a population of subdirectories; listings show it where the name `first` would be.

        `may_come` is a regular expression of the names that members may have, for members that are found by their names
        only while they exist.
        """
        child = self._populate(first, Directory(self._kinds, self, members, entries))
        child._may_come = may_come  # noqa: SLF001 -- its own class
        self._add_below(child)
        return child

    def links(
        self, first: str, target: Places, selection: Selection, names: Names | None = None, *, keyed: bool = False
    ) -> LinkSet:
        """Declare a population of links to members of `target`, which have the same names unless `names` has others.

        They are in the directory with key 0 or (`keyed`) each in the directory with the key of its target.
        """
        child = LinkSet(self._kinds, self, target, selection, names or target.members, keyed=keyed)
        return self._populate(first, child)

    def files(self, first: str, members: Members, file: Special | Node) -> FileSet:
        """Declare a population of files or nodes."""
        return self._populate(first, FileSet(self._kinds, self, members, file))

    def trees(self, first: str, members: Members) -> None:
        """Declare a population of directories that show trees: the subject of each is the root of one."""
        self._add_below(self._populate(first, Graft(self._kinds, self, members, ())))

    def _populate(self, first: str, child: _P) -> _P:
        self._populations.append(child)
        self._add_slot(first, child)
        return child

    def _add_below(self, child: Directory) -> None:
        self._below.append(child.members)
        self._varies = self._varies or not child.lasting

    def _add_slot(self, name: str, child: Population) -> None:
        insort(self._slots, _Slot(name, child.type, 0, None, None, child), key=_BY_NAME)

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

    def shown_path(self, key: int, entry: int) -> str:
        parts = [self._entries[entry - 1].name] if entry else []
        directory = self
        while directory.parent is not None and directory.shown_at is None:
            parts.append(directory.members.name(key))
            key = directory.members.parent(key)
            directory = directory.parent
        return "/".join([directory.shown_at or "", *reversed(parts)])

    def stat(self, key: int, entry: int) -> Stat | None:
        subject = self.members.subject(key)
        if subject is None:
            return None
        if not entry:
            return Stat(stat.S_IFDIR | 0o755, 0, self._nlink(key)) if self._below else _CHILDLESS
        found = self._stats[entry - 1]
        if found and self._lasting[entry]:
            return found  # the usual case
        node = self._entries[entry - 1]
        if isinstance(node, Node):
            return node.stat(subject)
        if isinstance(node, Special) and node.size:
            return file_stat(node)._replace(size=node.size(subject))
        return found if node.present(subject) else None

    def remains(self, entry: int) -> Stat | None:
        if self._comes_back:
            return None
        return self._stats[entry - 1] if entry else _CHILDLESS

    def _nlink(self, key: int) -> int:
        return 2 + sum(members.count(key) for members in self._below)

    def link(self, key: int, entry: int) -> str | None:
        node = self._entries[entry - 1] if entry else None
        if not isinstance(node, Link):
            raise KernelError(errno.EINVAL, f"{self.path(key, entry)} is not a link")
        subject = self.members.subject(key)
        return None if subject is None else node.target(subject)

    def open(self, key: int, entry: int, access: Access) -> SpecialFile | AttributeOf | None:
        subject = self.members.subject(key)
        if subject is None:
            return None
        if not entry:
            raise KernelError(errno.EISDIR, "not a regular file")
        node = self._entries[entry - 1]
        if not node.present(subject):
            return None
        if isinstance(node, Link):
            raise KernelError(errno.ELOOP, "not a regular file")
        access.check(node.mode)
        if isinstance(node, Attribute):
            return AttributeOf(subject, node)
        return node.open(subject, access.read, access.write)

    def permanent(self, entry: int) -> bool:
        return self._permanent and self._lasting[entry]

    def varies(self, entry: int) -> bool:
        return self._sized[entry] if entry else self._varies

    def lookup(self, key: int, name: str) -> int | None:
        """Return the node of a name in a directory, None if there is none."""
        subject = self.members.subject(key)
        if subject is None:
            return None
        entry = self._numbers.get(name)
        if entry is not None:
            there = self._lasting[entry] or self._entries[entry - 1].present(subject)
            return self.id(key, entry) if there else None
        fixed = self._fixed.get(name)
        if fixed is not None:
            return fixed.id(key) if fixed.members.subject(key) is not None else None
        for population in self._populations:
            found = population.find(key, name)
            if found is not None:
                return population.id(found)
        return None

    def may_have(self, names: Sequence[str], key: int | None = 0) -> bool:
        """Whether there is, or may come to be, an attribute at a path below a directory, without links in the path.

        `key` is None if the directory has none before it exists.
        """
        name, *below = names
        if not below:
            number = self._numbers.get(name)
            return number is not None and isinstance(self._entries[number - 1], Attribute)
        fixed = self._fixed.get(name)
        if fixed is not None:
            return fixed.may_have(below, key)
        return any(
            population.may_come(key, name) and population.may_have(below, population.members.find(name))
            for population in self._populations
            if isinstance(population, Directory)
        )

    def may_come(self, parent: int | None, name: str) -> bool:
        """Whether there is, or may come to be, a member of that name in directory `parent`."""
        if self._may_come is not None:
            return re.fullmatch(self._may_come, name, re.DOTALL) is not None
        key = self.members.find(name)
        return key is not None and self.members.parent(key) == parent

    def readdir(self, key: int, position: int) -> Iterator[DirEntry] | None:
        """Yield the entries from a position, None if the directory is gone."""
        subject = self.members.subject(key)
        return None if subject is None else self._readdir(key, subject, position)

    def _readdir(self, key: int, subject: object, position: int) -> Iterator[DirEntry]:
        directory, place, after = self.id(key), position >> _SLOT_SHIFT, (position & _WITHIN_SLOT) - 1
        for at, slot in enumerate(self._slots[place:], place):
            name, file_type, number, entry, entry_stat, population = slot
            start = at << _SLOT_SHIFT
            if population:
                first, place_of = population.id(0), population.place
                for member in population.keys(key, after):
                    node = first | member << ENTRY_BITS
                    member_stat = population.stat(member, 0) if population.lasting else None
                    following = start + (place_of(member) if place_of else member) + 1
                    yield dir_entry((population.name(member), node, following, file_type, member_stat))
            elif entry and after < 0 and (entry_stat or entry.present(subject)):
                yield dir_entry((name, directory | number, start + 1, file_type, entry_stat))
            after = -1  # after the slot at which the listing was interrupted, nothing has been listed yet


def _first_stat(entry: Entry) -> Stat | None:
    """Return the stat of an entry without a size of its own, None if it depends on the subject."""
    if isinstance(entry, Link):
        return LINK_STAT
    return None if isinstance(entry, Node) else file_stat(entry)


def _lasts(entry: Entry) -> bool:
    if isinstance(entry, Special):
        return entry.size is None
    return isinstance(entry, Node) or (isinstance(entry, Attribute) and entry.visible is None)


class Graft(Directory):
    """Directories of one tree that show what is in the roots of others."""

    def _root(self, key: int) -> Directory | None:
        root = self.members.subject(key)
        return root if isinstance(root, Directory) else None

    def stat(self, key: int, entry: int) -> Stat | None:
        root = self._root(key)
        return None if root is None else root.stat(0, entry)

    def lookup(self, key: int, name: str) -> int | None:
        root = self._root(key)
        return None if root is None else root.lookup(0, name)

    def readdir(self, key: int, position: int) -> Iterator[DirEntry] | None:
        root = self._root(key)
        return None if root is None else root.readdir(0, position)
