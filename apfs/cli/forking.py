"""Commands that another command needs, run in forks of it or of an agent: no new interpreter, no imports."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from apfs.mounts import agent
from apfs.mounts.server import fork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apfs.mounts.forker import Forker
    from apfs.mounts.server import Daemon, Forked


def by_agent() -> Callable[[Sequence[str], Sequence[int]], Daemon] | None:
    """Return what starts a command in a fork of this session's agent, as `start` does; None without an agent.

    And None in a process that has imported all that a host needs: its own forks are as fast.
    """
    told = os.environ.get(agent.VARIABLE)
    if told is None or "apfs.fuse.session" in sys.modules:
        return None
    forker = agent.find(told, whole=False)
    return partial(_start, forker) if forker else None


def _start(forker: Forker, words: Sequence[str], descriptors: Sequence[int]) -> Daemon:
    from apfs.mounts.forks import Command

    with forker:
        return Command(words, talks=False, outlives=True, pass_fds=descriptors, forker=forker)


def start(words: Sequence[str], descriptors: Sequence[int]) -> Forked:
    """Start a command in a fork of this process, with some descriptors; see `apfs.mounts.server.fork`."""
    return fork(lambda: run(words), *descriptors)


def run(words: Sequence[str]) -> None:
    """Run a command of apfs in this process, which then ends."""
    from apfs.cli.main import main

    main(list(words), prog_name="apfs")
