"""A host for a single process, on its own directory: it ends with that process in any case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from apfs.mounts import places, server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class PrivateHost:
    """A host that is started at once, and waited for when it is used. Ends with its `with` block."""

    def __init__(self, scenario: str, start: Callable[[Sequence[str], Sequence[int]], server.Server]) -> None:
        """Start it by a function that starts a command of apfs, with some descriptors.

        `OSError` if there is no room for it, and what that function raises.
        """
        self._place = places.Place("apfs-exec-")
        with self._place.serving() as lifeline:
            self._starting = server.begin_by(start, str(self._place.mountpoint), ["--scenario", scenario], lifeline)

    def wait(self) -> str:
        """Wait until it is mounted, and return where; once. `MountsError` if it could not be."""
        self._starting.wait_until_it_answers()
        return str(self._place.mountpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it and wait for that."""
        self._place.release()
        self._starting.end()
        self._place.remove()
