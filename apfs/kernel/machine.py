"""The real machine that runs the emulation, as far as a sandbox shows it next to the emulated one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable


class RealMachine(Protocol):
    """What a sandbox shows of the machine that runs the emulation."""

    def char_devices(self) -> Iterable[str]:
        """Return the names in /sys/dev/char, such as `1:3`."""

    def char_device(self, name: str) -> str | None:
        """Return the absolute path that one of them leads to, None if it does not exist."""

    def modules(self) -> str:
        """Return the text of /proc/modules."""


class NoMachine:
    """A real machine of which nothing is shown."""

    def char_devices(self) -> Iterable[str]:
        """Return nothing."""
        return ()

    def char_device(self, _name: str) -> str | None:
        """Return None."""
        return None

    def modules(self) -> str:
        """Return nothing."""
        return ""
