"""Kinds of nodes, and node numbers.

A node is (kind, key, entry), packed into one integer; `apfs.sysfs` explains what they are.

    kind << 40 | key << 8 | entry
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apfs.sysfs.entries import Access, AttributeOf, Stat
    from apfs.sysfs.openfile import SpecialFile

KEY_BITS = 32
ENTRY_BITS = 8
KIND_SHIFT = KEY_BITS + ENTRY_BITS
KEY_MASK = (1 << KEY_BITS) - 1
ENTRY_MASK = (1 << ENTRY_BITS) - 1


class Kinds(Protocol):
    """Where the kinds of a tree are found by their numbers."""

    def register(self, kind: Kind) -> int:
        """Register a kind and return its number."""


class Kind(ABC):
    """A kind of node: what all its nodes have in common, and a number that is part of their identities."""

    def __init__(self, kinds: Kinds) -> None:
        """Register it with the kinds of a tree."""
        self._base = kinds.register(self) << KIND_SHIFT

    def id(self, key: int, entry: int = 0) -> int:
        """Return the identity of a node."""
        return self._base | key << ENTRY_BITS | entry

    @abstractmethod
    def path(self, key: int, entry: int) -> str:
        """Return the absolute path of a node, whether or not it exists at present."""

    def shown_path(self, key: int, entry: int) -> str:
        """Return the path that the texts of links are made for: where users see the node."""
        return self.path(key, entry)

    @abstractmethod
    def stat(self, key: int, entry: int) -> Stat | None:
        """Return type, mode, size and link count, None if there is no such node."""

    def remains(self, entry: int) -> Stat | None:
        """Return what stat tells of a node that was removed, to those who still have it; None if that is not known."""
        del entry
        return None

    @abstractmethod
    def link(self, key: int, entry: int) -> str | None:
        """Return the absolute path that a link leads to, None if it is gone; EINVAL if it is not a link."""

    @abstractmethod
    def open(self, key: int, entry: int, access: Access) -> SpecialFile | AttributeOf | None:
        """Open a regular file or, if it is an attribute, return which one, and its subject.

        None if there is no such node; EISDIR and ELOOP if it is no regular file, EACCES by its mode.
        """

    def permanent(self, entry: int) -> bool:
        """Whether a node is permanent."""
        del entry
        return False

    def varies(self, entry: int) -> bool:
        """Whether a node varies."""
        del entry
        return False


class Population(Kind):
    """A kind whose members appear one by one in the listings of directories of another kind."""

    type: int
    """File type of the members, as in S_IFMT."""

    lasting = False
    """Whether its members are lasting."""

    place: Callable[[int], int] | None = None
    """Gives the place of a member in listings, if that is not its key (apfs.sysfs.members.Placed)."""

    @abstractmethod
    def find(self, parent: int, name: str) -> int | None:
        """Return the key of the existing member of that name in directory `parent`."""

    @abstractmethod
    def keys(self, parent: int, after: int) -> Iterator[int]:
        """Yield the keys of the members in directory `parent` whose places are greater than `after`, ascending."""

    @abstractmethod
    def name(self, key: int) -> str:
        """Return the name of a member."""
