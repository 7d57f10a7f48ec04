"""A host that one process needs, on a directory of its own: it ends with that process, however that ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from apfs.mounts import places, server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class PrivateHost:
    """A host that is started at once, and waited for when it is used. Ends with its `with` block."""

    def __init__(self, scenario: str, start: Callable[[Sequence[str], Sequence[int]], server.Server]) -> None:
        """Start it by a function that starts a command of apfs, with some descriptors. `OSError` if it cannot be."""
        self._place, self._lock = places.make("apfs-exec-")
        # When this process ends, the pipe is closed, and the server unmounts and ends too.
        try:
            reader, self._lifeline = os.pipe()
            try:
                self._starting = server.begin_by(start, str(self._place), ["--scenario", scenario], reader)
            finally:
                os.close(reader)
        except BaseException:
            places.remove(self._place)
            raise

    def wait(self) -> str:
        """Wait until it is mounted, and return where; once. `MountsError` if it could not be."""
        self._starting.wait_until_it_answers()
        return str(self._place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it and wait for that."""
        os.close(self._lifeline)
        self._starting.end()
        places.remove(self._place)
        os.close(self._lock)
