"""Twenty hosts of one scenario: each is itself, a guest migrates around them, and they take little memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT, apfs, server_of
from tests.mounted.test_migration import client
from tests.mounted.test_remote import between, guest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "mount-examples/fleet/host.toml"
HOSTS = 20
MOST_PRIVATE_KIB = 25 * 1024


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Twenty mounted hosts."""
    places = [tmp_path_factory.mktemp(f"host-{number}-") for number in range(HOSTS)]
    starting = []
    for number, place in enumerate(places):
        own = ["--set", f"name=host-{number}", "--set", f"serial={number:04}"]
        command = [sys.executable, "-m", "apfs", "mount", "--scenario", str(TEMPLATE), *own, str(place)]
        starting.append(subprocess.Popen(command))
    assert [process.wait(TIMEOUT) for process in starting] == [0] * HOSTS
    yield places
    for place in places:
        apfs("umount", "--lazy", str(place))


def test_each_host_has_a_name_and_serial_numbers_of_its_own(fleet: list[Path]) -> None:
    names = [json.loads((host / "ctl/status").read_text())["scenario"] for host in fleet]
    assert names == [f"host-{number}" for number in range(HOSTS)]
    serials = [(host / "sys/devices/ap/card05/serialnr").read_text() for host in fleet]
    assert serials == [f"{number:04}0005\n" for number in range(HOSTS)]
    (fleet[3] / "ctl/console").write_text("plug 7 CEX8P")
    (fleet[3] / "ctl/console").write_text("scan")
    assert (fleet[3] / "sys/devices/ap/card07/serialnr").read_text() == "0003000700000000\n"


def test_a_guest_migrates_around_the_ring(fleet: list[Path]) -> None:
    (client(fleet[0]) / "guest").write_text("1")
    for number in range(HOSTS):
        source, target = fleet[number], fleet[(number + 1) % HOSTS]
        sent, received, *_ = between(source, target)
        assert (sent.ok, received.ok) == (True, True), (sent, received)
    assert [guest(host) for host in fleet] == ["RUNNING", *[None] * (HOSTS - 1)]


def test_a_host_takes_little_memory(fleet: list[Path]) -> None:
    """Pages that no other process has, of a host that has been used. Shared ones are there once."""
    for host in fleet:
        text = Path(f"/proc/{server_of(host)}/smaps_rollup").read_text()
        private = sum(int(kib) for kib in re.findall(r"^Private_\w+: +(\d+) kB$", text, re.MULTILINE))
        assert private < MOST_PRIVATE_KIB, text
