"""Reading attributes, which may be missing or unreadable."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from apfs.ap.mask import Mask, ap_hex2bitmap
from apfs.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apfs.ap.hardware import CardHardware
    from apfs.ap.names import Apqn
    from apfs.recording.tree import Tree

BUS = "/sys/bus/ap"
DEVICES = "/sys/devices/ap"
MATRIX = "/sys/devices/vfio_ap/matrix"
PAGE = 4096
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO)
"""The errors of an attribute that the kernel does not have, or whose device was removed."""
_NAMED = 4
_T = TypeVar("_T")


def some(names: Sequence[object]) -> str:
    """Name a few of many."""
    rest = len(names) - _NAMED
    text = ", ".join(map(str, names[:_NAMED]))
    return f"{text} and {rest} more" if rest > 0 else text


class Reader:
    """A tree whose missing and unreadable parts read as None or nothing; unreadable ones are remembered."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._unread: dict[int, list[str]] = defaultdict(list)

    def text(self, path: str, *, refusal: int | None = None) -> str | None:
        """Return the content of a file without its last newline. With `refusal`, that errno is as good as no file."""
        content = self._try(self._tree.read, path, refusal)
        return None if content is None else content.decode("utf-8", "replace").removesuffix("\n")

    def number(self, path: str, base: int = 10) -> int | None:
        """Return the number in a file; None also if there is something else in it."""
        try:
            return int(self.text(path) or "", base)
        except ValueError:
            return None

    def mask(self, path: str) -> Mask | None:
        """Return the mask in a file; None also if there is something else in it."""
        try:
            return ap_hex2bitmap(self.text(path) or "-")
        except KernelError:
            return None

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, in order."""
        return sorted(self._try(self._tree.ls, path) or ())

    def unread(self) -> tuple[str, ...]:
        """Return a line for each reason why files could not be read."""
        return tuple(
            f"Not read: {some(paths)}: {os.strerror(number)}." for number, paths in sorted(self._unread.items())
        )

    def _try(self, call: Callable[[str], _T], path: str, refusal: int | None = None) -> _T | None:
        try:
            return call(path)
        except (OSError, KernelError) as error:
            number = error.errno or errno.EIO
            if number not in _GONE and number != refusal and path not in self._unread[number]:
                self._unread[number].append(path)
            return None


@dataclass(slots=True)
class Found:
    """What was read about the machine besides its hardware."""

    cards: dict[int, CardHardware] = field(default_factory=dict)
    offline_cards: set[int] = field(default_factory=set)
    offline_queues: set[Apqn] = field(default_factory=set)
    overrides: dict[Apqn, str] = field(default_factory=dict)
    se_guest: bool = False
