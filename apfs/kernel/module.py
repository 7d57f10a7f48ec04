"""Kernel modules as `/sys/module` shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.kernel.device import SYS, UEVENT_WRITE_ONLY, Kobject
from apfs.sysfs.entries import Attribute

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.journal.log import Journal
    from apfs.kernel.device import MiscDevice


class Module(Kobject):
    """A loadable module. `users()` returns how many things besides other modules keep it loaded."""

    def __init__(
        self,
        journal: Journal,
        name: str,
        size: int,
        users: Callable[[], int] = lambda: 0,
        *,
        version: str | None = None,
        import_ns: str | None = None,
    ) -> None:
        super().__init__(journal, f"{SYS}/module/{name}", "module")
        self.name = name
        self.size = size
        self.version = version
        self.import_ns = import_ns
        """The first name space of symbols that it imports, of which sysfs shows no more."""
        self.loaded = False
        self.parts: list[Kobject | MiscDevice] = []
        """What it registers when it is loaded, in this order, and unregisters in reverse."""
        self.holders: list[Module] = []
        self.needs: tuple[Module, ...] = ()
        """What has to be loaded before it."""
        self.followers: tuple[Module, ...] = ()
        """What modprobe loads after it because it asks for that (MODULE_SOFTDEP). They need nothing else."""
        self.init: Callable[[], None] = lambda: None
        """What loading it does besides."""
        self._users = users

    @property
    def refcount(self) -> int:
        """How many things keep it loaded: modules that use it, and its users."""
        return sum(holder.loaded for holder in self.holders) + self._users()

    def load(self) -> None:
        """Show it and its parts in sysfs, and announce it when its init function has returned (do_init_module)."""
        if not self.loaded:
            self.loaded = True
            for part in self.parts:
                part.announce()
            self.init()
            self.announce()

    def unload(self) -> None:
        """Take it and its parts out of sysfs."""
        self.loaded = False
        for part in reversed(self.parts):
            part.retire()
        self.retire()


MODULE_ATTRIBUTES = (
    UEVENT_WRITE_ONLY,
    Attribute("coresize", 0o444, lambda module: f"{module.size}\n"),
    Attribute(
        "import_ns",
        0o444,
        lambda module: f"{module.import_ns}\n",
        None,
        lambda module: module.import_ns is not None,
    ),
    Attribute("initsize", 0o444, lambda _module: "0\n"),
    Attribute("initstate", 0o444, lambda _module: "live\n"),
    Attribute("refcnt", 0o444, lambda module: f"{module.refcount}\n"),
    Attribute("taint", 0o444, lambda _module: "\n"),
    Attribute("version", 0o444, lambda module: f"{module.version}\n", None, lambda module: module.version is not None),
)
