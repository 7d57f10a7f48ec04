"""Kernel modules as `/sys/module` shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.kernel.device import SYS, UEVENT_WRITE_ONLY, emit
from apfs.sysfs.entries import Attribute

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.journal.log import Journal
    from apfs.journal.records import Keys


class Module:
    """A loadable module. `users()` says how often something besides other modules keeps it loaded."""

    subsystem = "module"

    def __init__(
        self, journal: Journal, name: str, size: int, users: Callable[[], int] = lambda: 0, version: str | None = None
    ) -> None:
        self.journal = journal
        self.name = name
        self.size = size
        self.version = version
        self.path = f"{SYS}/module/{name}"
        self.loaded = False
        self.holders: list[Module] = []
        self._users = users

    def uevent_keys(self) -> Keys:
        """Return nothing: modules have no keys of their own."""
        return ()

    @property
    def refcount(self) -> int:
        """How many things keep it loaded: modules that use it, and its users."""
        return sum(holder.loaded for holder in self.holders) + self._users()

    def load(self) -> None:
        """Show it in sysfs."""
        if not self.loaded:
            self.loaded = True
            emit(self, "add")

    def unload(self) -> None:
        """Take it out of sysfs."""
        self.loaded = False
        emit(self, "remove")


MODULE_ATTRIBUTES = (
    UEVENT_WRITE_ONLY,
    Attribute("coresize", 0o444, lambda module: f"{module.size}\n"),
    Attribute("initsize", 0o444, lambda _module: "0\n"),
    Attribute("initstate", 0o444, lambda _module: "live\n"),
    Attribute("refcnt", 0o444, lambda module: f"{module.refcount}\n"),
    Attribute("taint", 0o444, lambda _module: "\n"),
    Attribute("version", 0o444, lambda module: f"{module.version}\n", None, lambda module: module.version is not None),
)
