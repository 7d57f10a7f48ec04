"""Open attributes, as kernfs serves them: one text per reading from the start, one store per write."""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.journal.records import Read, Store
from apfs.sysfs.openfile import PAGE_SIZE, READY, record_refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.journal.log import Journal
    from apfs.journal.records import Details
    from apfs.sysfs.entries import Attribute
    from apfs.sysfs.faults import Faults

# sysfs_emit() keeps the last byte of the page for the NUL.
_SHOW_MAX = PAGE_SIZE - 1


class Opening:
    """What the open files of one node, an attribute, have in common."""

    __slots__ = ("_make_path", "_path", "attribute", "faults", "journal", "node", "opened", "subject")

    def __init__(
        self,
        node: int,
        path: Callable[[], str],
        subject: object,
        attribute: Attribute,
        journal: Journal,
        faults: Faults,
        opened: set[AttributeFile],
    ) -> None:
        self.node = node
        self._make_path = path
        self._path: str | None = None
        self.subject = subject
        self.attribute = attribute
        self.journal = journal
        self.faults = faults
        self.opened = opened
        """The open attributes of the whole tree."""

    def path(self) -> str:
        """Return the node's path. It is made when it is first needed: that takes 3 of the 20 µs of a store."""
        if self._path is None:
            self._path = self._make_path()
        return self._path


class AttributeFile:
    """An open attribute (kernfs_open_file)."""

    __slots__ = ("_next", "_opening", "_seen", "_text", "gone")

    seekable = True

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._text: bytes | None = None
        self._next = 0
        """Where the last read ended."""
        self._seen = False
        self.gone = False
        """Whether the node was removed meanwhile: every access fails, even if the node comes back."""
        opening.opened.add(self)

    @property
    def node(self) -> int:
        """The identity of the attribute."""
        return self._opening.node

    @property
    def path(self) -> str:
        """Where it is."""
        return self._opening.path()

    def read(self, offset: int, size: int) -> bytes:
        """Return a part of the text, which is made again unless reading continues where it ended (seq_read_iter)."""
        opening, text = self._opening, self._text
        try:
            if text is None or offset == 0 or offset != self._next:
                if self.gone or opening.faults:
                    self._check()
                show = opening.attribute.show
                if show is None:
                    raise KernelError(errno.EIO, "the attribute has no show function")
                if opening.attribute.effects is not None:
                    show = self._watched
                self._text = text = show(opening.subject).encode("latin-1")[:_SHOW_MAX]
                self._seen = True
            elif self.gone and offset >= len(text):
                # The rest of the text can still be read; after that the node is needed.
                self._check()
        except KernelError as error:
            record_refusal(opening.journal, "read", opening.path(), "", error, self._details)
            raise
        piece = text[offset : offset + size]
        self._next = offset + len(piece)
        return piece

    def write(self, data: bytes) -> int:
        """Pass one complete text to the store function: at most a page, up to the first NUL.

        Returns the number of bytes taken. An empty write takes none and is no store.
        """
        if not data:
            return 0
        opening = self._opening
        text = data[:PAGE_SIZE].decode("latin-1")
        taken = len(text)
        if "\0" in text and not opening.attribute.raw:
            text = text[: text.index("\0")]
        path = opening.path()  # afterwards the node may have no name: the store may remove it
        try:
            if self.gone or opening.faults:
                self._check()
            store = opening.attribute.store
            if store is None:
                raise KernelError(errno.EIO, "the attribute has no store function")
            store(opening.subject, text)
        except KernelError as error:
            record_refusal(opening.journal, "write", path, text, error, self._details)
            raise
        opening.journal.add(Store(path, text))
        return taken

    def _watched(self, subject: object) -> str:
        """Make the text of an attribute whose show function can have an effect, and put that into the journal."""
        opening = self._opening
        attribute, path = opening.attribute, opening.path()
        assert attribute.effects is not None and attribute.show is not None  # noqa: S101, PT018 -- see the caller
        before = attribute.effects(subject)
        text = attribute.show(subject)
        if attribute.effects(subject) != before:
            opening.journal.add(Read(path))
        return text

    @property
    def _details(self) -> Details | None:
        """What distinguishes a request to a file that was removed from one to a file that came later."""
        return {"gone": True} if self.gone else None

    def _check(self) -> None:
        if self.gone:
            raise KernelError(errno.ENODEV, "removed while the file was open")
        self._opening.faults.take(self._opening.path())

    def poll(self) -> int:
        """Report an event until the first read, as kernfs_generic_poll does; no attribute here ever notifies."""
        return READY if self._seen else READY | select.POLLERR | select.POLLPRI

    def close(self) -> None:
        """Forget the file."""
        self._opening.opened.discard(self)
