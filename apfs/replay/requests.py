"""Repeating requests from their outcomes, as a front end made them the first time."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from apfs.ctl.console import ConsoleFile
from apfs.errors import KernelError
from apfs.journal.records import (
    Close,
    Crash,
    Inside,
    Ioctl,
    Open,
    Read,
    Refusal,
    Setattr,
    Store,
    Time,
    Transfer,
    Verb,
)
from apfs.sysfs.attribute_file import AttributeFile
from apfs.sysfs.entries import NEITHER, READ, WRITE, Access
from apfs.sysfs.openfile import PAGE_SIZE, SpecialFile
from apfs.vfio.handed import HandedFile
from apfs.vfio.request import Foreign, IoctlFile, Request

if TYPE_CHECKING:
    from apfs.host import Host
    from apfs.journal.records import Details, Record
    from apfs.sysfs.tree import OpenFile
    from apfs.system import System
    from apfs.vfio.request import Descriptor

FDS = "/ctl/fds/"
"""Where files are on their way to the processes that asked for them."""


class ImpossibleError(Exception):
    """A request that cannot be made on this host, for want of its file."""


class _EventFd:
    """An eventfd of nobody: that it was signalled is in the journal already."""

    def signal(self) -> None:
        """Do nothing."""

    def drop(self) -> None:
        """Do nothing."""


class Requester:
    """Whoever makes the requests to one host and its guests."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._files: dict[int, SpecialFile] = {}
        """Open files by their number in the journal that is replayed."""
        self._changed: set[str] = set()
        """Files whose permissions were changed."""
        self._guests: dict[tuple[str, ...], System] = {}
        """Guests that were seen, by their UUIDs from the host's on."""
        self._meet(host, ())

    def make(self, outcome: Record) -> str:
        """Make the request with this outcome; return why it cannot be made, nothing if it was.

        What it leads to is in the journal of the host, whether or not it is the same as before.
        """
        try:
            self._make(self._host, (), outcome)
        except KernelError:
            pass  # is in the journal as well
        except ImpossibleError as error:
            return str(error)
        except Exception:  # noqa: BLE001 -- a front end goes on, too
            self._host.journal.add(Crash("replay", traceback.format_exc()))
        self._meet(self._host, ())
        return ""

    def _meet(self, system: System, place: tuple[str, ...]) -> None:
        """Remember who is there: guests may be gone when the last of their files is used."""
        for guest in system.guests:
            self._guests[*place, guest.name] = guest
            self._meet(guest, (*place, guest.name))

    def _make(self, system: System, place: tuple[str, ...], outcome: Record) -> None:
        match outcome:
            case Inside(name, inner):
                self._make(self._guest((*place, name)), (*place, name), inner)
            case Store(path, data):
                self._write(system, path, data.encode("latin-1"))
            case Verb(text):
                ConsoleFile(system).write(text.encode("latin-1"))
            case Read(path):
                self._read(system, path)
            case Time(seconds):
                self._host.pass_time(seconds)
            case Setattr(path, mode, uid, gid, atime, mtime):
                node = _node(system, path)
                system.tree.setattr(node, mode=mode, uid=uid, gid=gid, atime=atime, mtime=mtime)
                self._changed.add(path)
            case Refusal():
                self._refused(system, outcome)
            case Crash():
                self._crashed(system, outcome)
            case _:
                self._with_files(system, outcome)

    def _guest(self, place: tuple[str, ...]) -> System:
        """Return the guest at a place, or the last one that was there."""
        if place not in self._guests:
            raise ImpossibleError(f"no guest runs on mediated device {place[-1]}")
        return self._guests[place]

    # -- open files --------------------------------------------------------------------------------

    def _with_files(self, system: System, outcome: Record) -> None:
        """Make a request with the outcome of one to a file that has a number."""
        match outcome:
            case Open(path, access, number):
                opened = _open(system, path, access)
                if isinstance(opened, SpecialFile):
                    self._files[number] = opened.file if isinstance(opened, HandedFile) else opened
            case Close(path, number):
                name = path.removeprefix(FDS)
                handed = system.handed.get(name) if path.startswith(FDS) else None
                (handed or self._file(number)).close()
            case Transfer(_, number, "read", size, _):
                self._file(number).read(0, size)
            case Transfer(_, number, "write", _, content):
                self._file(number).write(bytes.fromhex(content))
            case Ioctl(input=asked, answer=answer):
                self._ioctl(system, asked, answer)

    def _file(self, number: int) -> SpecialFile:
        if number not in self._files:
            raise ImpossibleError(f"there is no file {number}: it could not be opened")
        return self._files[number]

    def _ioctl(self, system: System, asked: Details | None, answer: Details | None) -> None:
        if asked is None:
            raise ImpossibleError("the journal does not have the arguments of the ioctl")
        file = self._file(asked["file"])
        if not isinstance(file, IoctlFile):
            raise ImpossibleError(f"{file.path} knows no ioctls")
        memory = bytes.fromhex(asked.get("memory", ""))
        request = Request(
            asked["cmd"],
            asked["arg"],
            memory.ljust(asked.get("length", 0), b"\0"),
            self._descriptor(asked.get("descriptor")),
            asked.get("full", False),
            bytes.fromhex(asked.get("pointed", "")),
        )
        reply = file.ioctl(request)
        if reply.file is not None:
            HandedFile(reply.file, system.journal, system.handed)
            if answer and "file" in answer:
                self._files[answer["file"]] = reply.file.file

    def _descriptor(self, described: int | str | None) -> Descriptor | None:
        if isinstance(described, int):
            return self._file(described)
        return _EventFd() if described == "eventfd" else None if described is None else Foreign()

    # -- files without a number --------------------------------------------------------------------

    def _write(self, system: System, path: str, data: bytes) -> None:
        file = self._opened(system, path, WRITE)
        try:
            # An attribute is shown what is before the first NUL, and nothing at all of an empty write.
            file.write(data or b"\0" if isinstance(file, AttributeFile) else data)
        finally:
            file.close()

    def _read(self, system: System, path: str) -> None:
        file = self._opened(system, path, READ)
        try:
            file.read(0, PAGE_SIZE)
        finally:
            file.close()

    def _opened(self, system: System, path: str, access: Access) -> OpenFile:
        """Open a file. After a chmod nobody knows whether it was opened before: then it is not asked again."""
        return system.tree.open(_node(system, path), NEITHER if path in self._changed else access)

    # -- what went wrong ---------------------------------------------------------------------------

    def _refused(self, system: System, refusal: Refusal) -> None:
        """Make a request that was refused."""
        details = refusal.input or {}
        gone = refusal.operation == "open" and refusal.errno == "ENOENT"
        if gone or details.get("gone"):
            # The node was removed, and its name with it. The answer never depends on anything else, nor changes it.
            system.journal.add(refusal)
            return
        if refusal.operation == "ioctl":
            self._ioctl(system, refusal.input, refusal.answer)
            return
        data = bytes.fromhex(details["content"]) if "content" in details else refusal.data.encode("latin-1")
        if "file" in details:
            self._transfer(self._file(details["file"]), refusal.operation, data, details.get("size", PAGE_SIZE))
        elif refusal.operation == "open":
            _open(system, refusal.path, details["access"]).close()
        elif refusal.operation == "console":
            ConsoleFile(system).write(data)
        elif refusal.operation == "read":
            self._read(system, refusal.path)
        else:
            self._write(system, refusal.path, data)

    @staticmethod
    def _transfer(file: SpecialFile, operation: str, data: bytes, size: int) -> None:
        if operation == "read":
            file.read(0, size)
        elif operation == "fsync":
            file.sync()
        else:
            file.write(data)

    def _crashed(self, system: System, crash: Crash) -> None:
        """Make a request that found a defect."""
        details = crash.input or {}
        if "path" not in details or details["path"] == "/ctl/ioctl":
            raise ImpossibleError(f"the journal does not say what the crash of {crash.operation} was about")
        data = bytes.fromhex(details.get("content", ""))
        if "file" in details:
            self._transfer(self._file(details["file"]), crash.operation, data, PAGE_SIZE)
        elif crash.operation == "write":
            self._write(system, details["path"], data)
        elif crash.operation == "read":
            self._read(system, details["path"])
        else:
            _open(system, details["path"], details.get("access", "r")).close()


def _node(system: System, path: str) -> int:
    try:
        return system.tree.resolve(path)
    except KernelError as error:
        raise ImpossibleError(f"{error}") from None


def _open(system: System, path: str, access: str) -> OpenFile:
    return system.tree.open(_node(system, path), Access("r" in access, "w" in access, None))
