"""Commands that another command needs, run in forks of it: no new interpreter, no imports."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

from apfs.mounts.server import begin_session, end_with, open_null

if TYPE_CHECKING:
    from collections.abc import Sequence


class Child:
    """A command of apfs in a fork of this process, which has no threads."""

    def __init__(self, words: Sequence[str], descriptors: Sequence[int]) -> None:
        """Start it, in a session of its own, with no other descriptors but these and standard streams.

        `MountsError` without a /dev/null.
        """
        null = open_null()
        reader, writer = os.pipe()
        self.returncode: int | None = None
        gc.freeze()  # garbage collection would copy pages
        self.pid = os.fork()
        if self.pid == 0:
            end_with(lambda: _run(words, descriptors, (null, null, writer)))
        os.close(null)
        os.close(writer)
        self._errors = reader

    def communicate(self) -> tuple[bytes, ...]:
        """Wait for its end, and return what it has written to standard error."""
        with open(self._errors, "rb") as file:  # noqa: PTH123 -- a descriptor
            said = file.read()
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return (said,)


def _run(words: Sequence[str], descriptors: Sequence[int], streams: Sequence[int]) -> None:
    begin_session(streams, *descriptors)
    run(words)


def run(words: Sequence[str]) -> None:
    """Run a command of apfs in this process, which then ends."""
    from apfs.cli.main import main

    main(list(words), prog_name="apfs")
