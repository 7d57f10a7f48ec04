"""The request handlers themselves, where a mount cannot show it."""

from __future__ import annotations

import errno
import gc
import inspect
import json
import os
import select
import stat
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pyfuse3
import pytest
from pyfuse3 import FileHandleT, FUSEError, InodeT

from apfs.ctl.channel import Channel
from apfs.fuse import operations as handlers
from apfs.fuse.cache import FOREVER
from apfs.fuse.operations import REFUSED, Operations
from apfs.host import Host
from apfs.journal.records import Crash
from apfs.scenario.reader import load
from apfs.sysfs.entries import READ

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


APMASK = "/sys/bus/ap/apmask"
CONTEXT = cast("pyfuse3.RequestContext", SimpleNamespace(pid=1))
FIELDS = SimpleNamespace(update_mode=True, update_uid=False, update_gid=False, update_atime=False, update_mtime=False)
HANDLERS = [name for name, member in vars(Operations).items() if inspect.iscoroutinefunction(member)]


class Server:
    """Handlers without a mount."""

    def __init__(self, scenario: str = "default", stored: Callable[[], None] = lambda: None) -> None:
        self.host = Host(load(scenario))
        self.operations = Operations(self.host, stored)

    def inode(self, path: str) -> InodeT:
        return InodeT(self.host.tree.resolve(path))

    def answer(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 -- whatever the handler returns
        """Run a handler, which must be done when it is first run: it never yields to the event loop."""
        handler: Callable[..., Coroutine[object, None, object]] = getattr(self.operations, name)
        with pytest.raises(StopIteration) as done:
            handler(*arguments).send(None)
        return done.value.value

    def refused(self, name: str, *arguments: object) -> int:
        """Run a handler that refuses; return the error."""
        handler: Callable[..., Coroutine[object, None, object]] = getattr(self.operations, name)
        with pytest.raises(FUSEError) as error:
            handler(*arguments).send(None)
        number: int = error.value.errno
        return number

    def open(self, path: str, flags: int = os.O_RDONLY, pid: int = 1) -> FileHandleT:
        handle: FileHandleT = self.answer("open", self.inode(path), flags, SimpleNamespace(pid=pid)).fh
        return handle


@pytest.fixture
def server() -> Server:
    return Server()


def test_a_defect_costs_one_request_and_is_recorded(server: Server) -> None:
    """Reading a handle that was never given out is a defect: EIO and a record, not the end of the server."""
    assert server.refused("read", FileHandleT(999), 0, 10) == errno.EIO
    ((_, record),) = list(server.host.journal)
    assert isinstance(record, Crash)
    assert record.operation == "read"
    assert "KeyError: 999" in record.traceback


def test_what_is_recorded_of_a_request_that_found_a_defect(server: Server) -> None:
    """Enough to make it again. Here there is no defect."""
    asked = server.operations.asked
    mask, group = server.open(APMASK, os.O_RDWR), server.open("/dev/vfio/vfio", os.O_RDWR)
    assert asked("open", (server.inode(APMASK), os.O_RDONLY, CONTEXT)) == {"path": APMASK, "access": "r"}
    assert asked("read", (mask, 0, 4096)) == {"path": APMASK}
    assert asked("write", (mask, 0, b"-5")) == {"path": APMASK, "content": "2d35"}
    assert asked("write", (group, 0, b"x")) == {"path": "/dev/vfio/vfio", "file": 1, "content": "78"}
    assert asked("write", (FileHandleT(999), 0, b"x")) is None
    assert asked("getattr", (server.inode(APMASK), CONTEXT)) is None


def test_what_is_recorded_of_a_defect_does_not_blame_the_host_for_a_guest() -> None:
    server = Server("migration-source")
    inode = server.inode(f"/guests/669d9b23-fe1b-4ecb-be08-a2fabca99b71{APMASK}")
    mask = server.answer("open", inode, os.O_RDWR, SimpleNamespace(pid=1)).fh
    assert server.operations.asked("open", (inode, os.O_RDONLY, CONTEXT)) is None
    assert server.operations.asked("write", (mask, 0, b"-5")) is None


def arguments(server: Server, name: str) -> tuple[object, ...]:
    """Return what a handler can be called with."""
    node, attribute, link = server.inode("/sys/bus/ap"), server.inode(APMASK), server.inode("/sys/class/misc/iommu")
    handle = server.open("/ctl/journal") if name in ("release", "_release") else server.open(APMASK, os.O_RDWR)
    mode = SimpleNamespace(st_mode=0o600, st_uid=0, st_gid=0)
    return {
        "lookup": (node, b"apmask", CONTEXT),
        "forget": ([(node, 1)],),
        "getattr": (node, CONTEXT),
        "setattr": (attribute, mode, FIELDS, None, CONTEXT),
        "readlink": (link, CONTEXT),
        "opendir": (node, CONTEXT),
        "readdir": (FileHandleT(node), 0, object()),
        "releasedir": (FileHandleT(node),),
        "statfs": (CONTEXT,),
        "listxattr": (node, CONTEXT),
        "open": (attribute, os.O_RDWR, CONTEXT),
        "read": (handle, 0, 100),
        "write": (handle, 0, b"+5"),
        "poll": (attribute, handle, None, CONTEXT),
        "release": (handle,),
        "_release": (handle, server.host.tree.open(server.inode("/ctl/journal"), READ)),
        "fsync": (handle, False),
    }[name]


@pytest.mark.parametrize("name", [name for name in HANDLERS if name not in REFUSED])
def test_handlers_never_wait(server: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(handlers, "readdir_reply", lambda *_: True)  # it takes no token but pyfuse3's own
    server.answer(name, *arguments(server, name))


@pytest.mark.parametrize(("name", "expected"), REFUSED.items())
def test_what_cannot_be_done_in_sysfs_is_refused_without_waiting(server: Server, name: str, expected: int) -> None:
    assert name in HANDLERS
    assert server.refused(name, InodeT(1), b"name", 0o644, CONTEXT) == expected
    assert not server.host.journal.last


GET_API_VERSION = json.dumps({"cmd": 0x3B64, "arg": 0, "memory": "", "descriptor": None}).encode()


def test_a_file_that_watches_is_told_what_its_process_polls(server: Server) -> None:
    channel = server.open("/ctl/ioctl", os.O_RDWR, pid=7)
    container = server.open("/dev/vfio/vfio", os.O_RDWR, pid=7)  # which does not watch in its place

    def reply(*polls: tuple[FileHandleT, int]) -> Any:  # noqa: ANN401 -- JSON
        server.answer("write", channel, 0, GET_API_VERSION)
        for handle, pid in polls:
            server.answer("poll", InodeT(2), handle, None, SimpleNamespace(pid=pid))
        return json.loads(bytes(server.answer("read", channel, 0, 4096)))

    done = {"value": 0, "writes": [], "file": None}
    assert reply((container, 7)) == done
    assert reply((container, 8)) is None
    assert reply((channel, 7), (container, 7)) == done  # itself is no other file
    other = server.open("/ctl/ioctl", os.O_RDWR, pid=8)
    assert reply((container, 8)) is None
    assert reply((container, 7)) == done
    server.answer("release", other)
    assert reply((container, 7)) == done


def test_a_closed_file_watches_no_more(server: Server) -> None:
    before = sum(isinstance(thing, Channel) for thing in gc.get_objects())
    server.answer("release", server.open("/ctl/ioctl", os.O_RDWR, pid=7))
    assert sum(isinstance(thing, Channel) for thing in gc.get_objects()) == before


class Poller:
    """A program that waits."""

    def __init__(self) -> None:
        self.woken = 0

    def notify(self) -> None:
        self.woken += 1


def test_pollers_are_woken_once_when_there_is_something(server: Server) -> None:
    events, log = server.open("/ctl/uevents"), server.open("/ctl/journal")
    waiting, closed, late = Poller(), Poller(), Poller()
    for handle, poller in ((events, waiting), (log, closed)):
        assert server.answer("read", handle, 0, 4096) == b""
        assert server.answer("poll", InodeT(2), handle, poller, CONTEXT) == 0
    server.answer("release", log)
    mask = server.open(APMASK, os.O_WRONLY)
    for text in (b"-5", b"+5"):
        server.answer("write", mask, 0, text)
        assert (waiting.woken, closed.woken) == (1, 0)
    assert server.answer("poll", InodeT(2), events, late, CONTEXT) == select.POLLIN | select.POLLRDNORM
    server.answer("write", mask, 0, b"-5")
    assert (waiting.woken, late.woken) == (1, 0)


def test_a_store_that_succeeds_may_have_changed_timers() -> None:
    told: list[bool] = []
    server = Server(stored=lambda: told.append(True))
    mask = server.open(APMASK, os.O_WRONLY)
    server.answer("write", mask, 0, b"-5")
    assert told
    told.clear()
    assert server.refused("write", mask, 0, b"zz") == errno.EINVAL
    assert not told


@pytest.mark.parametrize(
    ("path", "flags", "direct", "stream"),
    [
        (APMASK, os.O_RDWR | os.O_TRUNC | os.O_APPEND, True, False),
        ("/dev/vfio/vfio", os.O_RDWR, True, True),
        ("/dev/vfio/vfio", 3, True, True),  # for ioctls only
    ],
)
def test_how_files_are_opened(server: Server, path: str, flags: int, *, direct: bool, stream: bool) -> None:
    info = server.answer("open", server.inode(path), flags, CONTEXT)
    assert (info.direct_io, info.keep_cache, info.nonseekable) == (direct, False, stream)


def test_what_stat_reports(server: Server) -> None:
    found = server.answer("getattr", InodeT(pyfuse3.ROOT_INODE), CONTEXT)
    below = len(list(server.host.tree.readdir(server.host.tree.root.id(0))))  # nothing but directories
    assert (found.st_ino, found.st_mode, found.st_nlink, found.st_size) == (1, stat.S_IFDIR | 0o755, 2 + below, 0)
    assert (found.st_uid, found.st_gid, found.st_blksize) == (os.getuid(), os.getgid(), 4096)
    assert found.st_mtime_ns == found.st_ctime_ns == found.st_atime_ns > 0
    found = server.answer("lookup", server.inode("/sys/bus/ap"), b"apmask", CONTEXT)
    assert (found.st_ino, found.st_mode, found.st_nlink) == (server.inode(APMASK), stat.S_IFREG | 0o644, 1)
    assert found.attr_timeout == FOREVER
    assert found.entry_timeout == FOREVER  # it always exists
    assert server.answer("lookup", server.inode("/sys/devices/ap"), b"card05", CONTEXT).entry_timeout == 0
    assert server.refused("lookup", server.inode("/sys/bus/ap"), b"\xff", CONTEXT) == errno.ENOENT


def test_setattr_changes_what_it_is_told_and_truncate_nothing(server: Server) -> None:
    mask = server.inode(APMASK)
    asked = SimpleNamespace(st_mode=stat.S_IFREG | 0o600, st_uid=7, st_gid=8)
    for changed, expected in (
        ((), (0o644, os.getuid(), os.getgid())),
        (("uid",), (0o644, 7, os.getgid())),
        (("gid",), (0o644, 7, 8)),
        (("mode",), (0o600, 7, 8)),
    ):
        names = ("mode", "uid", "gid", "atime", "mtime")
        fields = SimpleNamespace(**{f"update_{name}": name in changed for name in names})
        found = server.answer("setattr", mask, asked, fields, None, CONTEXT)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == expected
