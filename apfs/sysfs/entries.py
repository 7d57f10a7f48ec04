"""Entries of directories: attributes, links and files, and their stat data."""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from apfs.errors import KernelError
from apfs.sysfs.openfile import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.sysfs.openfile import SpecialFile


@dataclass(frozen=True, slots=True)
class Attribute:
    """A sysfs attribute: one text, made when it is read, parsed when it is written.

    `show(subject)` returns the text, `store(subject, text)` takes what was written up to its first NUL (or, if `raw`,
    with all its NULs, for stores that count bytes); both may raise `KernelError`. If the mode allows an access for
    which there is no function, the access gives EIO. `visible` decides whether this particular subject has the
    attribute. `kernels(profile)` decides which kernels have it at all (apfs.kernel.profile). `effects(subject)` is for
    a show function that can change something: a value that is another one if it did.
    """

    name: str
    mode: int
    show: Callable[[Any], str] | None = None
    store: Callable[[Any, str], None] | None = None
    visible: Callable[[Any], bool] | None = None
    raw: bool = False
    kernels: Callable[[Any], bool] | None = None
    effects: Callable[[Any], object] | None = None

    def present(self, subject: object) -> bool:
        """Whether this subject has the attribute at present."""
        return self.visible is None or self.visible(subject)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link; `target(subject)` is the absolute path that it leads to, None while there is no such link."""

    name: str
    target: Callable[[Any], str | None]

    def present(self, subject: object) -> bool:
        """Whether this subject has the link at present."""
        return self.target(subject) is not None


@dataclass(frozen=True, slots=True)
class Special:
    """A file with behaviour of its own: `open(subject, readable, writable)` makes its open file.

    `size(subject)` is the size that stat tells, 0 without it. From a file without a size, splice(2) copies nothing.
    """

    name: str
    mode: int
    open: Callable[[Any, bool, bool], SpecialFile]
    size: Callable[[Any], int] | None = None

    def present(self, _subject: object) -> bool:
        """Whether this subject has the file at present: always."""
        return True


@dataclass(frozen=True, slots=True)
class Node:
    """A character device node: `number(subject)` is its device number, major and minor.

    A node has no behaviour: opening it means the device, and whoever shows the node knows where to find that.
    """

    name: str
    mode: int
    number: Callable[[Any], tuple[int, int]]

    def present(self, _subject: object) -> bool:
        """Whether this subject has the node at present: always."""
        return True

    def stat(self, subject: object) -> Stat:
        """Return what stat tells of the node."""
        return Stat(stat.S_IFCHR | self.mode, 0, 1, self.number(subject))

    def open(self, _subject: object, _readable: bool, _writable: bool) -> NoReturn:  # noqa: FBT001 -- as Special's
        """Raise ENXIO."""
        raise KernelError(errno.ENXIO, "a device node: open the file of that name in /dev of the mount instead")


Entry = Attribute | Link | Special | Node


class AttributeOf(NamedTuple):
    """An attribute of one subject."""

    subject: object
    attribute: Attribute


class Stat(NamedTuple):
    """What stat(2) says about a node, except for ownership and times.

    `mode` includes the file type; `device` is the number of a device node.
    """

    mode: int
    size: int
    nlink: int
    device: tuple[int, int] | None = None


class Times(NamedTuple):
    """Times of a node, in nanoseconds since the epoch: atime, mtime and ctime of stat(2)."""

    accessed: int
    modified: int
    changed: int


class Description(NamedTuple):
    """Everything that can be said about a node."""

    stat: Stat
    owner: tuple[int | None, int | None]
    """uid and gid as chown has set them, None if it has not."""
    times: Times | None
    """None as long as nobody has changed anything about the node."""
    permanent: bool
    varies: bool


class DirEntry(NamedTuple):
    """One entry of a listing.

    `type` is its S_IFMT bits, `next` the position behind it, and `lasting` its stat if it is lasting.
    """

    name: str
    node: int
    next: int
    type: int
    lasting: Stat | None


# These take half the time of a constructor. A listing consists of entries, and each lookup makes a description.
dir_entry: Callable[[tuple[str, int, int, int, Stat | None]], DirEntry] = partial(tuple.__new__, DirEntry)
description: Callable[[tuple[Stat, tuple[int | None, int | None], Times | None, bool, bool]], Description] = partial(
    tuple.__new__, Description
)


class Iattr(NamedTuple):
    """What chmod, chown and utimes changed."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    times: Times | None = None


class Access(NamedTuple):
    """How a file is opened; `mode` has its permissions if chmod changed them, else None."""

    read: bool
    write: bool
    mode: int | None

    @property
    def letters(self) -> str:
        """`r`, `w`, `rw` or nothing."""
        return "r" * self.read + "w" * self.write

    def check(self, mode: int) -> None:
        """Raise EACCES, for root as well, if a file of this mode cannot be opened like this."""
        if self.mode is not None:
            mode = self.mode
        if self.read and not mode & 0o444:
            raise KernelError(errno.EACCES, "write-only, for root as well")
        if self.write and not mode & 0o222:
            raise KernelError(errno.EACCES, "read-only, for root as well")


READ, WRITE, BOTH, NEITHER = (
    Access(read, write, None) for read, write in ((True, False), (False, True), (True, True), (False, False))
)


def file_stat(entry: Attribute | Special) -> Stat:
    """Return the stat of a file."""
    return Stat(stat.S_IFREG | entry.mode, PAGE_SIZE if isinstance(entry, Attribute) else 0, 1)


# Links in sysfs have no size, whatever their text is.
LINK_STAT = Stat(stat.S_IFLNK | 0o777, 0, 1)
