"""Readers, listers and a writer at once: nobody waits for ever, and nobody sees what a finished store has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.conftest import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STORES = int(os.environ.get("APFS_TEST_STORES", "1000"))
QUEUE = "sys/devices/ap/card05/05.0047"

# Each of them goes on until its standard input ends, and then says how often it came round.
READER = """
import os, select, sys
root, rounds = sys.argv[1], 0
drivers = {"vfio_ap", "cex4queue"}
while not select.select([0], [], [], 0)[0]:
    # Between two stores there is no driver.
    try:
        assert os.path.basename(os.readlink(root + "/driver")) in drivers
    except FileNotFoundError:
        pass
    with open(root + "/config") as file:
        assert file.read() == "1\\n"
    rounds += 1
print(rounds)
"""
LISTER = """
import os, select, sys
root, rounds = sys.argv[1], 0
while not select.select([0], [], [], 0)[0]:
    names = set(os.listdir(root))
    assert {"config", "reset", "subsystem", "uevent"} <= names, names
    rounds += 1
print(rounds)
"""


def test_nothing_stale_and_no_stall(mount: Callable[..., Path]) -> None:
    host = mount("default", "--clock", "manual")
    queue, mask = host / QUEUE, host / "sys/bus/ap/apmask"
    others = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", program, str(queue)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for program in (READER, READER, READER, LISTER)
    ]
    try:
        for _ in range(STORES // 2):
            for change, driver in (("-5", "vfio_ap"), ("+5", "cex4queue")):
                fd = os.open(mask, os.O_WRONLY)
                os.write(fd, change.encode())
                os.close(fd)
                assert (queue / "driver").readlink().name == driver
                assert ("status" in os.listdir(queue)) == (driver == "vfio_ap")  # noqa: PTH208 -- names
    finally:
        rounds = [other.communicate(timeout=TIMEOUT)[0] for other in others]
    assert all(int(text) > 0 for text in rounds), rounds
    assert [other.returncode for other in others] == [0] * len(others)
