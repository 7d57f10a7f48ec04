"""Answers that wait until the events of the request are where Linux would have sent them before it answers.

A process that carries events to a sandbox reads them from a file of the mount, and reports its progress there. It may
be stopped or far behind, and a process that waits for a FUSE server cannot be killed; so all waits are short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.ctl.views import UeventsFile

PATIENCE_SECONDS = 1.0
"""How long an answer waits at most. A carrier that needs longer is not waited for until it tells something again."""


class Deliveries:
    """Knows who carries events, and how far they are."""

    def __init__(self, most: int) -> None:
        """At most so many answers may wait at a time; others are given at once."""
        self._left = most
        self._carriers: dict[int, UeventsFile] = {}
        """Files whose readers tell how far they are, by handle."""
        self._waiting = trio.lowlevel.ParkingLot()
        self.yield_soon: Callable[[], None] = lambda: None
        """Called when somebody who waits may go on: answers of the request loop must not come first."""

    def opened(self, handle: int, file: UeventsFile) -> None:
        """Listen to what the reader of a file tells."""

        def told() -> None:
            self._carriers[handle] = file
            self._look_again()

        file.told = told

    def closed(self, handle: int) -> None:
        """Forget a file."""
        if self._carriers.pop(handle, None) is not None:
            self._look_again()

    def behind(self) -> bool:
        """Whether there are events that somebody has not delivered."""
        return bool(self._carriers) and any(file.delivered < file.sent for file in self._carriers.values())

    async def wait(self) -> None:
        """Wait until everything up to now has been delivered by all who are not too slow."""
        if not self._left:
            return
        due = {handle: file.sent for handle, file in self._carriers.items()}
        self._left -= 1
        with trio.move_on_after(PATIENCE_SECONDS) as scope:
            while self._late(due):
                await self._waiting.park()
        self._left += 1
        if scope.cancelled_caught:
            for handle in self._late(due):
                del self._carriers[handle]

    def _late(self, due: dict[int, int]) -> list[int]:
        return [handle for handle, file in self._carriers.items() if file.delivered < due.get(handle, 0)]

    def _look_again(self) -> None:
        if self._waiting:
            self._waiting.unpark_all()
            self.yield_soon()
