"""Commands that another command needs, run in forks of it or of an agent: no new interpreter, no imports."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

from apfs.mounts.server import Forked, begin_session, end_with, open_null

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apfs.mounts.server import Daemon

AGENT = "APFS_AGENT"
"""The environment variable that tells of an agent."""


def by_agent() -> Callable[[Sequence[str], Sequence[int]], Daemon] | None:
    """Return what starts a command in a fork of this session's agent, as `start` does; None without an agent."""
    told = os.environ.get(AGENT)
    if told is None:
        return None
    from apfs.mounts import agent

    return agent.find(told)


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
