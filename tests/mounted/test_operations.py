"""The request handlers themselves, where a mount cannot show it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

import pytest
from pyfuse3 import FileHandleT, FUSEError

from apfs.fuse.operations import Operations
from apfs.host import Host
from apfs.journal.records import Crash

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def test_a_defect_costs_one_request_and_is_recorded() -> None:
    """Reading a handle that was never given out is a defect: EIO and a record, not the end of the server."""
    host = Host()
    operations = Operations(host, lambda: None)
    with pytest.raises(FUSEError) as answer:
        operations.read(FileHandleT(999), 0, 10).send(None)
    assert answer.value.errno == errno.EIO
    ((_, record),) = list(host.journal)
    assert isinstance(record, Crash)
    assert "KeyError: 999" in record.traceback


@pytest.mark.parametrize("name", ["lookup", "getattr", "readlink", "opendir", "open"])
def test_handlers_never_wait(name: str) -> None:
    """Each handler is done when it is first run: it never yields to the event loop."""
    operations = Operations(Host(), lambda: None)
    arguments = {"lookup": (1, b"sys", None), "open": (1, 0, None)}.get(name, (1, None))
    handler = cast("Callable[..., Coroutine[object, None, object]]", getattr(operations, name))
    with pytest.raises((StopIteration, FUSEError)):
        handler(*arguments).send(None)
