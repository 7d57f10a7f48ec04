"""Commands that run in a fork of another process: no new interpreter, no imports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.mounts.server import fork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apfs.mounts.server import Forked


def start(words: Sequence[str], descriptors: Sequence[int]) -> Forked:
    """Start a command in a fork of this process, with some descriptors; see `apfs.mounts.server.fork`."""
    return fork(lambda: run(words), *descriptors)


def run(words: Sequence[str]) -> None:
    """Run a command of apfs in this process, which then ends."""
    from apfs.cli.main import main

    main(list(words), prog_name="apfs")
