"""Enumeration of the parts of mediated devices, for directories and links."""

# ruff: noqa: D102 -- the methods are those of Members and Selection, which describe them

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apfs.mdev.core import Mdev
    from apfs.sysfs.members import Registry

_T = TypeVar("_T")


class Parts(Generic[_T]):
    """Parts of mediated devices, such as their VFIO devices, with the same keys as the mediated devices.

    They are together in one directory, or (`keyed`) each in the directory of its device. Without `name` they are
    named by the UUID.
    """

    def __init__(
        self,
        mdevs: Registry[Mdev],
        part: Callable[[Mdev], _T | None],
        name: Callable[[_T], str] | None = None,
        *,
        keyed: bool = False,
    ) -> None:
        self._mdevs = mdevs
        self._part = part
        self._name = name
        self._keyed = keyed

    def name(self, key: int) -> str:
        if self._name is None:
            return self._mdevs.name(key)
        part = self.subject(key)
        return "(removed)" if part is None else self._name(part)

    def find(self, name: str) -> int | None:
        if self._name is None:
            return self._mdevs.find(name)
        return next((key for key in self._mdevs.keys(0) if self.has(key) and self.name(key) == name), None)

    def subject(self, key: int) -> _T | None:
        mdev = self._mdevs.subject(key)
        return None if mdev is None else self._part(mdev)

    def parent(self, key: int) -> int:
        return key if self._keyed else 0

    def keys(self, parent: int, after: int) -> Iterator[int]:
        if self._keyed:
            return iter((parent,) if parent > after and self.has(parent) else ())
        return (key for key in self._mdevs.keys(0, after) if self.has(key))

    def place(self, key: int) -> int:
        return key if self._keyed else self._mdevs.place(key)

    def count(self, parent: int) -> int:
        return sum(1 for _ in self.keys(parent, -1))

    def has(self, key: int) -> bool:
        return self.subject(key) is not None
