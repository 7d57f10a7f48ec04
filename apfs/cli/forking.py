"""Commands that another command needs, run in forks of it or of an agent: no new interpreter, no imports."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from apfs.mounts.server import fork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apfs.mounts.server import Daemon, Forked

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
    """Start a command in a fork of this process, with some descriptors; see `apfs.mounts.server.fork`."""
    return fork(lambda: run(words), *descriptors)


def run(words: Sequence[str]) -> None:
    """Run a command of apfs in this process, which then ends."""
    from apfs.cli.main import main

    main(list(words), prog_name="apfs")
