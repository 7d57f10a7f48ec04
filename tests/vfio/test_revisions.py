"""Ioctls of drivers with other revisions of the migration series than the default, and with none."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from apfs.vfio.device import TransferFile
from apfs.vfio.handed import HandedFile
from apfs.vfio.request import NewFile
from tests.vfio.client import (
    DEVICE_FEATURE,
    DEVICE_RESET,
    GET,
    MATRIX,
    PROBE,
    RESUMING,
    RUNNING,
    SET,
    STOP_COPY,
    Cdev,
    Device,
    U,
)
from tests.vfio.program import Program

if TYPE_CHECKING:
    from pathlib import Path

WAYS = pytest.mark.parametrize("way", [Device, Cdev])
TEXT = """
driver = "{}"
{}
[qci]
domains = [0x47]
[[card]]
adapter = 5
type = "CEX8C"
"""


def program_on(place: Path, driver: str, top: str = "") -> Program:
    """Return a program on a host with a revision, which has a device with the queue 05.0047."""
    file = place / "host.toml"
    file.write_text(TEXT.format(driver, top))
    program = Program(str(file))
    program.guest()
    return program


@WAYS
@pytest.mark.parametrize(("driver", "top"), [("none", ""), ("next", "secure_execution = true")])
@pytest.mark.parametrize("argsz", [8, 16])
def test_without_migration_the_features_are_unknown(
    tmp_path: Path, way: type[Device], driver: str, top: str, argsz: int
) -> None:
    program = program_on(tmp_path, driver, top)
    device = way(program)
    for index in (1, 2, 9):
        for flags in (0, GET, SET, PROBE, PROBE | GET, PROBE | SET, PROBE | GET | SET):
            request = struct.pack("=IIQ", argsz, flags | index, 0)
            assert program.tried(device.fd, DEVICE_FEATURE, request) == ("ENOTTY", request)
        # What comes before: the flags, and room for the header.
        for bad in (struct.pack("=IIQ", argsz, GET | SET | index, 0), struct.pack("=IIQ", 7, GET | index, 0)):
            assert program.outcome(device.fd, DEVICE_FEATURE, bad) == "EINVAL"
    assert program.outcome(device.fd, DEVICE_RESET) == "ok"


@WAYS
@pytest.mark.parametrize(("driver", "header"), [("v4", 16), ("next", 48)])
def test_a_session(tmp_path: Path, way: type[Device], driver: str, header: int) -> None:
    program = program_on(tmp_path, driver)
    device = way(program)
    assert device.data_size() == header + 16
    saving = device.set_state(STOP_COPY)
    data = program.read(saving)
    assert len(data) == header + 16
    resuming = device.set_state(RESUMING)
    program.write(f"{MATRIX}/{U}/unassign_domain", "0x47")
    assert program.send(resuming, data) == len(data)
    assert program.shell.cat(f"{MATRIX}/{U}/guest_matrix") == "05.0047\n"
    assert device.set_state(RUNNING) == -1
    assert program.read(saving) == b""  # alive, and at its end
    device.set_state(STOP_COPY)
    assert device.outcome(DEVICE_RESET) == "ok"
    assert device.state() == RUNNING


@pytest.mark.parametrize(("driver", "removed"), [("v2", "ok"), ("v4", "ok"), ("next", "EBUSY")])
def test_a_file_of_a_closed_device(tmp_path: Path, driver: str, removed: str) -> None:
    program = program_on(tmp_path, driver)
    device = Device(program)
    saving = device.set_state(STOP_COPY)
    device.close()
    assert program.remove() == removed
    program.close(saving)
    assert program.remove() == ("ok" if removed == "EBUSY" else "ENOENT")


def test_a_descriptor_that_nobody_takes_does_not_keep_the_device(tmp_path: Path) -> None:
    program = program_on(tmp_path, "next")
    device, host = Device(program), program.shell.host
    file = program.files.pop(device.set_state(STOP_COPY))
    assert isinstance(file, TransferFile)
    device.close()
    assert program.remove() == "EBUSY"
    HandedFile(NewFile(file, file.inode), host.journal, host.handed).abandon()
    assert program.remove() == "ok"
