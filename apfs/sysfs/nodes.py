"""The state shared by all trees that one file system serves: those of a host, its guests, and nested guests.

A tree's number is part of the number of each of its kinds, and hence of the identity of each of its nodes:

    tree << 8 | kind
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from apfs.sysfs.kind import KIND_SHIFT, Kind
from apfs.sysfs.members import Changes

if TYPE_CHECKING:
    from apfs.sysfs.attribute_file import AttributeFile, Opening
    from apfs.sysfs.entries import Access, Iattr, Stat

_KIND_BITS = 8
_TREES = 1 << 15
"""How many trees can have a number at the same time: identities of nodes have 63 bits."""

_Tree = TypeVar("_Tree")


class _Gone(Kind):
    """The kind of nodes whose tree is gone: there are none."""

    def register(self, _kind: Kind) -> int:
        return 0

    def __init__(self) -> None:
        super().__init__(self)

    def path(self, _key: int, _entry: int) -> str:
        return "/(removed)"

    def stat(self, _key: int, _entry: int) -> Stat | None:
        return None

    def link(self, _key: int, _entry: int) -> str | None:
        return None

    def open(self, _key: int, _entry: int, _access: Access) -> None:
        return None


class _Table(dict[int, Kind]):
    """Kinds by number."""

    def __init__(self) -> None:
        super().__init__()
        self._gone = _Gone()

    def __missing__(self, _number: int) -> Kind:
        return self._gone


class TreeKinds:
    """The kinds of one tree, numbered from 1."""

    def __init__(self, table: dict[int, Kind], tree: int) -> None:
        self._table = table
        self._first = tree << _KIND_BITS
        self._last = self._first

    def register(self, kind: Kind) -> int:
        """Register a kind and return its number."""
        self._last += 1
        self._table[self._last] = kind
        return self._last

    def forget(self) -> None:
        """Remove all kinds."""
        for number in range(self._first + 1, self._last + 1):
            del self._table[number]


class Nodes(Generic[_Tree]):
    """The table of all kinds, and what is known about single nodes.

    A tree's number is given out again after 32,767 others.
    """

    def __init__(self) -> None:
        self.kinds: dict[int, Kind] = _Table()
        self.opened: set[AttributeFile] = set()
        self.openings: dict[tuple[int, Access], Opening] = {}
        """What can be opened, by node and access, as far as it was found out after the last uevent."""
        self.iattrs: dict[int, Iattr] = {}
        """What chmod and chown changed, by node."""
        self.changes = Changes()
        self._trees: dict[int, _Tree] = {}
        self._last = -1

    def admit(self, tree: _Tree) -> int:
        """Return a number for a tree; the first has 0."""
        number = (self._last + 1) % _TREES
        while number in self._trees:
            number = (number + 1) % _TREES
        self._trees[number] = tree
        self._last = number
        return number

    def dismiss(self, number: int) -> None:
        """Remove a tree."""
        del self._trees[number]
        self.stir()

    def tree_of(self, node: int, default: _Tree) -> _Tree:
        """Return the tree that a node is of, or the default if that is gone."""
        return self._trees.get(node >> KIND_SHIFT + _KIND_BITS, default)

    def stir(self) -> None:
        """Take note that names in a tree other than the first may have changed."""
        self.openings.clear()
        self.changes.count += 1
