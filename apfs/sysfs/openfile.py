"""Open files: sysfs attributes as kernfs serves them, and texts of any length.

An open file holds the buffer and the position of one open(2); the node it was opened from holds nothing.
"""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING, Protocol

from apfs.errors import KernelError
from apfs.journal.records import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.sysfs.entries import Attribute
    from apfs.sysfs.tree import Tree

PAGE_SIZE = 4096
# sysfs_emit() keeps the last byte of the page for the NUL.
_SHOW_MAX = PAGE_SIZE - 1
READY = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM


class OpenFile(Protocol):
    """What can be done with an open file. All raise `KernelError`."""

    seekable: bool
    """Whether lseek and pread are possible; if not, offsets mean nothing."""

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return up to `size` bytes, none at the end."""

    def write(self, data: bytes) -> int:
        """Take bytes and return how many were taken. Offsets of writes never matter here."""

    def poll(self) -> int:
        """Return the poll events that are ready."""

    def close(self) -> None:
        """Let go of the file."""


class Opening:
    """What all open files of one attribute of one node have in common."""

    __slots__ = ("attribute", "node", "path", "subject", "tree")

    def __init__(self, tree: Tree, node: int, subject: object, attribute: Attribute) -> None:
        self.tree = tree
        self.node = node
        self.subject = subject
        self.attribute = attribute
        self.path: str | None = None
        """Its path, once somebody has asked: making it takes 3 µs, of the 20 of a store."""


class AttributeFile:
    """An open sysfs attribute (kernfs_open_file)."""

    __slots__ = ("_next", "_opening", "_seen", "_text", "gone")

    seekable = True

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._text: bytes | None = None
        self._next = 0
        """Where the last read ended."""
        self._seen = False
        self.gone = False
        """Whether the node was removed since: nothing works any more, not even if it comes back."""

    @property
    def node(self) -> int:
        """The node that it was opened from."""
        return self._opening.node

    def read(self, offset: int, size: int) -> bytes:
        """Return a part of the text, made anew unless reading goes on where it ended (seq_read_iter)."""
        if offset == 0 or self._text is None or offset != self._next:
            opening = self._opening
            try:
                if self.gone or opening.tree.faults:
                    self._check()
                show = opening.attribute.show
                if show is None:
                    raise KernelError(errno.EIO, "the attribute has no show function")
                self._text = show(opening.subject).encode("latin-1")[:_SHOW_MAX]
            except KernelError as error:
                opening.tree.refused("read", opening.node, "", error)
                raise
            self._seen = True
        elif self.gone and offset >= len(self._text):
            # What is left of the text can still be had, but asking for more needs the node.
            raise KernelError(errno.ENODEV, "removed while the file was open")
        piece = self._text[offset : offset + size]
        self._next = offset + len(piece)
        return piece

    def write(self, data: bytes) -> int:
        """Hand one complete text to the store function: at most a page, up to the first NUL.

        Returns the bytes taken, of which there are none (and no store) in an empty write.
        """
        if not data:
            return 0
        opening = self._opening
        text = data[:PAGE_SIZE].decode("latin-1")
        taken = len(text)
        if "\0" in text and not opening.attribute.raw:
            text = text[: text.index("\0")]
        if opening.path is None:  # afterwards the node may have no name any more
            opening.path = opening.tree.path(opening.node)
        try:
            if self.gone or opening.tree.faults:
                self._check()
            store = opening.attribute.store
            if store is None:
                raise KernelError(errno.EIO, "the attribute has no store function")
            store(opening.subject, text)
        except KernelError as error:
            opening.tree.refused("write", opening.node, text, error)
            raise
        opening.tree.journal.add(Store(opening.path, text))
        return taken

    def _check(self) -> None:
        if self.gone:
            raise KernelError(errno.ENODEV, "removed while the file was open")
        self._opening.tree.take_fault(self._opening.node)

    def poll(self) -> int:
        """Report an event until the first read, as kernfs_generic_poll does; no attribute here ever notifies."""
        return READY if self._seen else READY | select.POLLERR | select.POLLPRI

    def close(self) -> None:
        """Let go of the file."""
        self._opening.tree.closed(self)


class TextFile:
    """A read-only text without the limits of sysfs, made anew whenever reading starts at offset 0."""

    seekable = True

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self._text = b""

    def read(self, offset: int, size: int) -> bytes:
        """Return a part of the text."""
        if offset == 0:
            self._text = self._make().encode()
        return self._text[offset : offset + size]

    def write(self, _data: bytes) -> int:
        """Refuse with EBADF: the file's mode does not let anybody open it for writing."""
        raise KernelError(errno.EBADF, "read-only")

    def poll(self) -> int:
        """Report readiness, always."""
        return READY

    def close(self) -> None:
        """Let go of the file."""
