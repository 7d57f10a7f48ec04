"""The request handlers themselves, where a mount cannot show it."""

from __future__ import annotations

import errno
import inspect
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pyfuse3
import pytest
from pyfuse3 import FileHandleT, FUSEError, InodeT

from apfs.fuse import operations as handlers
from apfs.fuse.operations import REFUSED, Operations
from apfs.host import Host
from apfs.journal.records import Crash
from apfs.sysfs.entries import READ

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


APMASK = "/sys/bus/ap/apmask"
CONTEXT = cast("pyfuse3.RequestContext", SimpleNamespace(pid=1))
FIELDS = SimpleNamespace(update_mode=True, update_uid=False, update_gid=False)
HANDLERS = [name for name, member in vars(Operations).items() if inspect.iscoroutinefunction(member)]


class Server:
    """Handlers without a mount."""

    def __init__(self) -> None:
        self.host = Host()
        self.operations = Operations(self.host, lambda: None)

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
