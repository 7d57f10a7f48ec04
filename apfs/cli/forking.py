"""Commands that another command needs, run in forks of it: no new interpreter, no imports."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

from apfs.mounts.server import Forked, begin_session, end_with, open_null

if TYPE_CHECKING:
    from collections.abc import Sequence


def start(words: Sequence[str], descriptors: Sequence[int]) -> Forked:
    """Start a command in a fork of this process, which has no threads.

    It is in a session of its own, and has no other descriptors but these and standard streams. `MountsError` without a
    /dev/null.
    """
    null = open_null()
    reader, writer = os.pipe()
    gc.freeze()  # garbage collection would copy pages
    pid = os.fork()
    if pid == 0:
        end_with(lambda: _run(words, descriptors, (null, null, writer)))
    os.close(null)
    os.close(writer)
    return Forked(pid, reader)


def _run(words: Sequence[str], descriptors: Sequence[int], streams: Sequence[int]) -> None:
    begin_session(streams, *descriptors)
    run(words)


def run(words: Sequence[str]) -> None:
    """Run a command of apfs in this process, which then ends."""
    from apfs.cli.main import main

    main(list(words), prog_name="apfs")
