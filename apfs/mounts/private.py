"""A host that one process needs, on a directory of its own: it ends with that process, however that ends."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from apfs.mounts import server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class PrivateHost:
    """A host that is started at once, and waited for when it is used. Ends with its `with` block."""

    def __init__(self, scenario: str, start: Callable[[Sequence[str], Sequence[int]], server.Server]) -> None:
        """Start it by a function that starts a command of apfs, with some descriptors."""
        self._place = tempfile.mkdtemp(prefix="apfs-exec-")
        # When this process ends, the pipe is closed, and the server unmounts and ends too.
        reader, self._lifeline = os.pipe()
        try:
            self._starting = server.begin_by(start, self._place, ["--scenario", scenario], reader)
        finally:
            os.close(reader)

    def wait(self) -> str:
        """Wait until it is mounted, and return where; once. `MountsError` if it could not be."""
        self._starting.wait_until_it_answers()
        return self._place

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it and wait for that."""
        os.close(self._lifeline)
        self._starting.end()
        with contextlib.suppress(FileNotFoundError):  # the server does it, if it got that far
            Path(self._place).rmdir()
