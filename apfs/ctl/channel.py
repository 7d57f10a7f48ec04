"""The channel to the supervisor, which stops processes at their ioctls and accesses their memory.

A FUSE server does not get VFIO ioctls: their numbers contain no size, so the kernel cannot pass on the struct. A server
cannot install a new descriptor in the caller either. The supervisor does both. It has `/ctl/ioctl` open once, and for
each ioctl it

1. writes a request, one JSON object: `cmd`, `arg`, `memory` (hex, the readable bytes at the argument's address),
   `descriptor`: what the descriptor in the argument refers to, null (not open), "file", "foreign" or the number that
   the supervisor has assigned to an eventfd; `full`, whether the caller has no free descriptor, for requests
   in `uapi.NEEDS_ROOM`; and `pointed` (hex), what the argument points to, for requests in `uapi.POINTED`;
2. identifies the open file of the ioctl by calling poll(2) on a duplicate of the caller's descriptor, and then, for
   "file", on a duplicate of the other one. Poll is the only FUSE request that names an open file and the calling
   process and needs neither read nor write permission;
3. reads the reply, one JSON object: `value` (negative: an errno), `writes` ([address, hex] pairs), and `file`, null or
   the name in `/ctl/fds` of a file to open and pass to the caller, with `access` ("r", "w", "rw") and `at`, the address
   for the descriptor's number, or null if the ioctl returns it. The reply is null if the file is not a VFIO file.

Without a request, reading returns the pending actions on eventfds, `{"signal": [...], "drop": [...]}`; poll(2) reports
when there are some. Replies are lines, which may take several reads. A line without actions is followed by an end of
file, so that programs that read everything below a mount do not hang.
"""

from __future__ import annotations

import errno
import json
import select
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.sysfs.openfile import Relay, SpecialFile
from apfs.vfio.handed import HandedFile
from apfs.vfio.request import Foreign, IoctlFile, Request

if TYPE_CHECKING:
    from apfs.journal.log import Journal
    from apfs.sysfs.members import Registry
    from apfs.vfio.request import Descriptor, Reply


class ChannelEventFd:
    """An eventfd that the supervisor keeps under a number."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number

    def signal(self) -> None:
        """Have the supervisor signal it, if that is still there."""
        if not self._channel.closed:
            self._channel.to_signal.append(self._number)

    def drop(self) -> None:
        """Have the supervisor close it, if that is still there."""
        if not self._channel.closed:
            self._channel.to_drop.append(self._number)


class Channel(SpecialFile):
    """One supervisor's open file."""

    seekable = False
    watches = True

    def __init__(self, journal: Journal, handed: Registry[HandedFile]) -> None:
        super().__init__(journal, "/ctl/ioctl")
        self._handed = handed
        self._waiting: list[HandedFile] = []
        self._request: dict[str, object] | None = None
        self._polled: list[object] = []
        self._line = memoryview(b"")
        """What is left of the reply: a view, of which a piece can be taken without copying the rest."""
        self._said_nothing = False
        """Whether what was read last is that there is nothing to do."""
        self.to_signal: list[int] = []
        self.to_drop: list[int] = []
        self.closed = False

    def on_write(self, data: bytes) -> int:
        """Take a request, instead of the one before; EINVAL if it is not a JSON object."""
        try:
            request = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise KernelError(errno.EINVAL, f"not JSON: {error}") from None
        if not isinstance(request, dict):
            raise KernelError(errno.EINVAL, "not a JSON object")
        self._request, self._polled, self._line, self._said_nothing = request, [], memoryview(b""), False
        for handed in self._waiting:
            handed.abandon()
        self._waiting = []
        return len(data)

    def watch(self, file: object) -> None:
        """Take note of the open file that the request is for, then of the one that its descriptor refers to."""
        self._polled.append(file.file if isinstance(file, Relay) else file)

    def on_read(self, _offset: int, size: int) -> bytes | memoryview:
        """Return the (rest of the) reply or, without a request, what is to be done with eventfds."""
        if self._request is not None:
            self._line = _line(self._answer(self._request))
            self._request = None
        elif not self._line:
            self._said_nothing = not (self.to_signal or self.to_drop or self._said_nothing)
            if not (self.to_signal or self.to_drop or self._said_nothing):
                return b""
            self._line = _line({"signal": self.to_signal, "drop": self.to_drop})
            self.to_signal, self.to_drop = [], []
        piece, self._line = self._line[:size], self._line[size:]
        return piece

    def _answer(self, request: dict[str, object]) -> object:
        if not self._polled or not isinstance(self._polled[0], IoctlFile):
            return None
        cmd, arg = request.get("cmd"), request.get("arg")
        if not (isinstance(cmd, int) and isinstance(arg, int) and isinstance(request.get("memory"), str)):
            raise KernelError(errno.EINVAL, "a request has cmd, arg and memory")
        try:
            memory, pointed = (bytes.fromhex(str(request.get(key, ""))) for key in ("memory", "pointed"))
        except ValueError as error:
            raise KernelError(errno.EINVAL, f"not bytes in hex: {error}") from None
        descriptor = self._descriptor(request.get("descriptor"))
        made = Request(cmd, arg, memory, descriptor, request.get("full") is True, pointed)
        return self._report(self._polled[0].ioctl(made))

    def _descriptor(self, described: object) -> Descriptor | None:
        if isinstance(described, int):
            return ChannelEventFd(self, described)
        if described == "file" and len(self._polled) > 1:
            return self._polled[1]
        return None if described is None else Foreign()

    def _report(self, reply: Reply) -> object:
        file = None
        if reply.file is not None:
            handed = HandedFile(reply.file, self._journal, self._handed)
            self._waiting.append(handed)
            file = {"name": handed.name, "access": handed.access, "at": handed.at}
        writes = [[write.address, write.data.hex()] for write in reply.writes]
        return {"value": reply.value, "writes": writes, "file": file}

    def poll(self) -> int:
        """Report whether something is to be done with eventfds."""
        return select.POLLIN | select.POLLRDNORM if self.to_signal or self.to_drop else 0

    def on_close(self) -> None:
        """Close the files of the last reply that were never opened."""
        self.closed = True
        for handed in self._waiting:
            handed.abandon()


def _line(value: object) -> memoryview:
    return memoryview(json.dumps(value).encode() + b"\n")
