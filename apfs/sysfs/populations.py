"""Large sets of links and files, such as `/sys/bus/ap/devices/*` and `/dev/vfio/<group>`."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.sysfs.entries import LINK_STAT, Access, Node, Special, Stat, file_stat
from apfs.sysfs.kind import Kind, Kinds, Population
from apfs.sysfs.members import Members, Names, Places, Selection, existing, place_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.sysfs.openfile import SpecialFile


class LinkSet(Population):
    """Links to members of another kind, such as `/sys/bus/ap/devices/*`.

    They are in a directory with key 0, or (`keyed`) in the directory that has the target's own key.
    """

    type = stat.S_IFLNK

    def __init__(
        self, kinds: Kinds, parent: Kind, target: Places, selection: Selection, names: Names, *, keyed: bool
    ) -> None:
        super().__init__(kinds)
        self._parent = parent
        self._target = target
        self._selection = selection
        self._names = names
        self._keyed = keyed
        self.place = None if keyed else place_in(selection)

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
        return f"{self._parent.path(key if self._keyed else 0, entry)}/{self.name(key)}"

    def shown_path(self, key: int, entry: int) -> str:
        return f"{self._parent.shown_path(key if self._keyed else 0, entry)}/{self.name(key)}"

    def stat(self, key: int, entry: int) -> Stat | None:
        target = self.link(key, entry)
        return None if target is None else LINK_STAT

    def remains(self, entry: int) -> Stat:
        del entry
        return LINK_STAT

    def link(self, key: int, entry: int) -> str | None:
        return self._target.path(key, entry) if self._selection.has(key) else None

    def open(self, key: int, entry: int, access: Access) -> None:
        del entry, access
        if self._selection.has(key):
            raise KernelError(errno.ELOOP, "not a regular file")


class FileSet(Population):
    """Files or nodes of which each member of a kind has one, such as `/dev/vfio/<group>`."""

    def __init__(self, kinds: Kinds, parent: Kind, members: Members, file: Special | Node) -> None:
        super().__init__(kinds)
        self.type = stat.S_IFCHR if isinstance(file, Node) else stat.S_IFREG
        self._parent = parent
        self._members = members
        self._file = file
        self.place = place_in(members)

    def find(self, parent: int, name: str) -> int | None:
        return existing(self._members, parent, name)

    def keys(self, parent: int, after: int) -> Iterator[int]:
        return self._members.keys(parent, after)

    def name(self, key: int) -> str:
        return self._members.name(key)

    def path(self, key: int, entry: int) -> str:
        return f"{self._parent.path(self._members.parent(key), entry)}/{self.name(key)}"

    def stat(self, key: int, entry: int) -> Stat | None:
        del entry
        subject = self._members.subject(key)
        if subject is None:
            return None
        return self._file.stat(subject) if isinstance(self._file, Node) else file_stat(self._file)

    def link(self, key: int, entry: int) -> str | None:
        raise KernelError(errno.EINVAL, f"{self.path(key, entry)} is not a link")

    def open(self, key: int, entry: int, access: Access) -> SpecialFile | None:
        del entry
        subject = self._members.subject(key)
        if subject is None:
            return None
        access.check(self._file.mode)
        return self._file.open(subject, access.read, access.write)
