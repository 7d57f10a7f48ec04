"""Which directories of a kind exist, and their names."""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import itemgetter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Names(Protocol):
    """The names of the members of a kind."""

    def name(self, key: int) -> str:
        """Return the name that a key has in its directory."""

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


class Places(Protocol):
    """Where the members of a kind are, for links to them."""

    @property
    def members(self) -> Names:
        """Their names."""

    def path(self, key: int, entry: int) -> str:
        """Return the absolute path of a member (`entry` is 0)."""


class Placed(Protocol):
    """Members or selections whose order in listings is another one than that of their keys.

    Their `keys(parent, after)` yields the keys whose places are greater than the place `after`, by ascending places.
    """

    def place(self, key: int) -> int:
        """Return the place of an existing key, a number of as many bits as a key."""


def place_in(listed: Members | Selection | Placed) -> Callable[[int], int] | None:
    """Return what gives the places of members or of a selection if they are `Placed`, else None."""
    place: Callable[[int], int] | None = getattr(listed, "place", None)  # isinstance takes a hundred times as long
    return place


_T = TypeVar("_T")

_FORMER = 1000
"""How many names that were removed keep their places: more than can go and come back during one listing."""

_PIECE = 128
"""How many keys are taken at a time: about a page of a listing. Whoever gets them may remove them."""


class Changes:
    """How often names may have changed without a uevent of the host."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Registry(Generic[_T]):
    """Objects that come and go at run time, by name and by a serial number that is never used twice.

    It is the `Members` of the one directory that contains them, and the `Selection` of links to all of them. Listings
    have them as they were made. An object whose name was used before is at the place of that one, so that no name is
    listed twice if it is removed and made again in the meantime. kernfs sorts by a hash of the name, for the same
    reason.
    """

    def __init__(self, changes: Changes | None = None) -> None:
        """Start empty; `changes` counts how often an object comes or goes."""
        self._changes = changes or Changes()
        self._objects: dict[int, _T] = {}
        self._names: dict[int, str] = {}
        self._keys: dict[str, int] = {}
        self._places: dict[int, int] = {}
        self._order: list[tuple[int, int]] = []
        """Places with their keys, ascending."""
        self._former: dict[str, int] = {}
        """The places of names that were removed."""
        self._serial = 0

    def add(self, name: str, item: _T) -> None:
        """Add an object under a name that is free."""
        self._serial += 1
        self._objects[self._serial] = item
        self._names[self._serial] = name
        self._keys[name] = self._serial
        place = self._former.pop(name, self._serial)
        self._places[self._serial] = place
        insort(self._order, (place, self._serial))
        self._changes.count += 1

    def unique(self, stem: str) -> str:
        """Return a name that was never used: the stem and the serial number that comes next."""
        return f"{stem}.{self._serial + 1}"

    def discard(self, name: str) -> None:
        """Remove an object."""
        key = self._keys.pop(name)
        del self._objects[key], self._names[key]
        place = self._former[name] = self._places.pop(key)
        del self._order[bisect_left(self._order, (place,))]
        if len(self._former) > _FORMER:
            del self._former[next(iter(self._former))]
        self._changes.count += 1

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
        """Return the name of an object, `(removed)` if it is gone."""
        return self._names.get(key, "(removed)")

    def find(self, name: str) -> int | None:
        """Return the key of a name."""
        return self._keys.get(name)

    def subject(self, key: int) -> _T | None:
        """Return an object."""
        return self._objects.get(key)

    def parent(self, _key: int) -> int:
        """Return the key of the only directory that contains them."""
        return 0

    def keys(self, _parent: int, after: int = -1) -> Iterator[int]:
        """Yield the keys whose places are greater than `after`, by ascending places."""
        piece = self._piece(after)
        while piece:
            yield from map(itemgetter(1), piece)
            piece = self._piece(piece[-1][0])

    def _piece(self, after: int) -> list[tuple[int, int]]:
        start = bisect_left(self._order, (after + 1,))
        return self._order[start : start + _PIECE]

    def place(self, key: int) -> int:
        """Return the place of an object, whatever if it is gone."""
        return self._places.get(key, key)

    def count(self, _parent: int) -> int:
        """Return how many objects there are."""
        return len(self._objects)

    def has(self, key: int) -> bool:
        """Whether there is an object with that key."""
        return key in self._objects


class FixedName:
    """The members of a fixed subdirectory, which has one name and the key of its parent."""

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


def existing(members: Members, parent: int, name: str) -> int | None:
    """Return the key of the member of that name in directory `parent`, None if it does not exist."""
    key = members.find(name)
    if key is None or members.subject(key) is None or members.parent(key) != parent:
        return None
    return key
