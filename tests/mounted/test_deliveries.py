"""Stores that send events return when those who carry events have delivered them, or are too slow."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from apfs.ctl.views import UeventsFile
from apfs.fuse.deliveries import PATIENCE_SECONDS, Deliveries
from apfs.fuse.loop import TASKS
from apfs.journal.log import Journal
from apfs.journal.records import Uevent
from tests.conftest import TIMEOUT, apfs
from tests.mounted.counted import counted, served
from tests.mounted.test_requests import OTHER_LOOP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CARD = "sys/devices/ap/card05/uevent"
EVENT = Uevent("add", "/devices/ap/card05", "ap", (("DEVTYPE", "ap_card"),))
ROUNDS = 100
PATIENT = f"""
from apfs.fuse import deliveries
deliveries.PATIENCE_SECONDS = {2 * TIMEOUT}
"""
"""Python that makes a delay that patience would hide one that is seen."""


class Carrier:
    """A reader of the events that tells how far it is."""

    def __init__(self, host: Path) -> None:
        self._file = os.open(host / "ctl/uevents", os.O_RDWR)
        self.sequence = 0
        self.read()
        self.tell()

    def read(self) -> None:
        """Read what there is."""
        text = b""
        while piece := os.read(self._file, 1 << 16):
            text += piece
        for line in text.splitlines():
            if line.startswith(b"SEQNUM="):
                self.sequence = int(line.removeprefix(b"SEQNUM="))

    def wait(self) -> None:
        """Wait for events and read them."""
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        assert poll.poll(TIMEOUT * 1000)
        self.read()

    def tell(self) -> None:
        """Tell that all that was read is delivered."""
        os.write(self._file, str(self.sequence).encode())

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def carrier(host: Path) -> Iterator[Carrier]:
    found = Carrier(host)
    try:
        yield found
    finally:
        found.close()


def store(host: Path) -> None:
    (host / CARD).write_text("change")


@contextmanager
def apart(work: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread meanwhile, and wait for its end."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


@pytest.mark.parametrize("prelude", ["", OTHER_LOOP], ids=["fast", "plain"])
def test_a_store_returns_when_its_events_are_delivered(tmp_path: Path, prelude: str) -> None:
    order: list[str] = []

    def stores() -> None:
        store(mounted.root)
        order.append("returned")

    with counted(tmp_path / "host", PATIENT + prelude, how="--foreground") as mounted, carrier(mounted.root) as reader:
        for _ in range(ROUNDS):
            with apart(stores):
                reader.wait()
                (mounted.root / "sys/bus/ap/config_time").read_text()  # others are served meanwhile
                order.append("delivered")
                reader.tell()
    assert order == ["delivered", "returned"] * ROUNDS


def test_only_writes_wait(tmp_path: Path) -> None:
    """Answers that name a file or a node are made in objects that are used again for the next one."""
    with counted(tmp_path / "host", PATIENT, how="--foreground") as mounted:
        with carrier(mounted.root) as reader, apart(lambda: store(mounted.root)):
            reader.wait()
            with apart(lambda: (mounted.root / "dev/vfio/vfio").open("r+b", buffering=0).close()):
                pass  # the journal tells of both
            reader.tell()
        kinds = [json.loads(line)["type"] for line in (mounted.root / "ctl/journal").read_text().splitlines()[-2:]]
        assert kinds == ["open", "close"]


def test_stores_without_events_do_not_wait(mount: Callable[..., Path]) -> None:
    """They would for ever: nobody can tell that what has not been sent was delivered."""
    host = mount("default", "--clock", "manual")
    with carrier(host):
        for _ in range(ROUNDS):
            (host / "sys/bus/ap/config_time").write_text("40")


@pytest.mark.parametrize("prelude", ["", OTHER_LOOP], ids=["fast", "plain"])
def test_more_stores_at_once_than_can_wait(tmp_path: Path, prelude: str) -> None:
    with counted(tmp_path / "host", PATIENT + prelude, how="--foreground") as mounted, carrier(mounted.root) as reader:
        threads = [threading.Thread(target=store, args=(mounted.root,)) for _ in range(2 * TASKS)]
        first = reader.sequence
        for thread in threads:
            thread.start()
        while reader.sequence < first + len(threads):
            reader.wait()
            reader.tell()
        for thread in threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def test_nobody_waits_for_those_who_have_gone_or_say_nothing(mount: Callable[..., Path]) -> None:
    host = mount("default", "--clock", "manual")
    with (host / "ctl/uevents").open("rb"), carrier(host):
        store(host)  # as long as it is patient
        store(host)
    with ExitStack() as stack:
        reader = stack.enter_context(carrier(host))
        with apart(lambda: store(host)):
            reader.wait()
            stack.close()  # it has gone, and the store returns
    store(host)


@pytest.mark.parametrize("prelude", ["", OTHER_LOOP], ids=["fast", "plain"])
def test_an_end_takes_no_answer_away(tmp_path: Path, prelude: str) -> None:
    root = tmp_path / "z"
    with served(root, prelude) as server, carrier(root) as reader:
        with subprocess.Popen(["sh", "-c", f"printf change > {root}/{CARD}"], stderr=subprocess.PIPE) as writer:
            reader.wait()
            server.send_signal(signal.SIGTERM)
            _, said = writer.communicate(timeout=TIMEOUT)
        assert (writer.returncode, said) == (0, b"")
        assert server.wait(TIMEOUT) == 0


@pytest.mark.parametrize("prelude", ["", OTHER_LOOP], ids=["fast", "plain"])
def test_unmounting_ends_all_tasks(tmp_path: Path, prelude: str) -> None:
    """Those that sleep, too: there is one, as a handler has waited."""
    root = tmp_path / "z"
    with served(root, prelude) as server:
        with carrier(root) as reader, apart(lambda: store(root)):
            reader.wait()
            reader.tell()
        assert apfs("umount", str(root)).returncode == 0
        assert server.wait(TIMEOUT) == 0


@pytest.mark.trio
async def test_patience(autojump_clock: trio.testing.MockClock) -> None:
    """One that is too slow is waited for once, and again when it has told something."""
    journal, deliveries = Journal(), Deliveries(1)
    file = UeventsFile(journal, "/ctl/uevents")
    deliveries.opened(1, file)

    async def waited() -> float:
        journal.add(EVENT)
        start = autojump_clock.current_time()
        if deliveries.behind():
            await deliveries.wait()
        return autojump_clock.current_time() - start

    assert await waited() == 0  # it has told nothing
    file.write(b"1\n")
    assert await waited() == PATIENCE_SECONDS
    assert await waited() == 0
    file.write(b"1")
    assert await waited() == PATIENCE_SECONDS


@pytest.mark.trio
async def test_one_more_than_may_wait(mock_clock: trio.testing.MockClock) -> None:
    journal, deliveries = Journal(), Deliveries(1)
    file = UeventsFile(journal, "/ctl/uevents")
    deliveries.opened(1, file)
    file.write(b"0")
    journal.add(EVENT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliveries.wait)
        await trio.testing.wait_all_tasks_blocked()
        await deliveries.wait()
        assert nursery.child_tasks
        mock_clock.jump(PATIENCE_SECONDS)


@pytest.mark.trio
async def test_what_comes_later_is_not_waited_for(mock_clock: trio.testing.MockClock) -> None:
    assert mock_clock.rate == 0
    journal, deliveries = Journal(), Deliveries(2)
    one, other = UeventsFile(journal, "/ctl/uevents"), UeventsFile(Journal(), "/ctl/uevents")
    for handle, file in enumerate((one, other)):
        deliveries.opened(handle, file)
        file.write(b"0")
    journal.add(EVENT)
    yields = 0

    def yielded() -> None:
        nonlocal yields
        yields += 1

    deliveries.yield_soon = yielded
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliveries.wait)
        await trio.testing.wait_all_tasks_blocked()
        journal.add(EVENT)
        other.write(b"0")
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        one.write(b"1")
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
    assert deliveries.behind()
    assert yields == 2
    deliveries.closed(0)
    assert not deliveries.behind()
