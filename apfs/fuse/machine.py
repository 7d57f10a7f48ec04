"""Information about the machine that a server runs on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_CHAR = "/sys/dev/char"


class ThisMachine:
    """The `RealMachine` of a mounted host."""

    def char_devices(self) -> Iterable[str]:
        """Return the names in /sys/dev/char, such as `1:3`."""
        try:
            return os.listdir(_CHAR)  # noqa: PTH208 -- names wanted
        except OSError:
            return ()

    def char_device(self, name: str) -> str | None:
        """Return the absolute path that one of them leads to, None if it does not exist."""
        try:
            return os.path.normpath(f"{_CHAR}/{os.readlink(f'{_CHAR}/{name}')}")  # noqa: PTH115 -- text wanted
        except OSError:
            return None

    def modules(self) -> str:
        """Return the text of /proc/modules, which kernels without modules do not have."""
        try:
            return Path("/proc/modules").read_text("ascii", "replace")
        except OSError:
            return ""
