"""Recordings of machines whose sysfs is damaged: a scenario, or why there is none, and never a wait."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from apfs.recording.recorder import record
from apfs.recording.tree import MOST, Directory
from tests.examples import times
from tests.fuzz.hosts import IN_USE
from tests.fuzz.machines import some_recording
from tests.recording.machines import Copy

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random


@times(0.5)
@given(st.randoms(use_true_random=True))
def test_recordings(random: Random) -> None:
    some_recording(random)


def test_what_is_no_file(tmp_path: Path) -> None:
    """Pipes, loops, endless and unreadable things in a copy of a machine: what they should say is not known."""
    copy = Copy.of(IN_USE)
    for path in copy.directories:
        (tmp_path / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for path, text in copy.files.items():
        (tmp_path / path.lstrip("/")).write_bytes(text.encode("latin-1"))
    card = tmp_path / "sys/devices/ap/card05"
    for name in ("type", "hwtype", "05.0004/status", "serialnr", "config"):
        (card / name).unlink()
    os.mkfifo(card / "type")
    (card / "hwtype").symlink_to("hwtype")
    (card / "05.0004/status").symlink_to("/dev/zero")
    (card / "serialnr").mkdir()
    (card / "config").symlink_to("../../../..")
    assert Directory(tmp_path).read("/sys/devices/ap/card05/type") == b""
    assert len(Directory(tmp_path).read("/sys/devices/ap/card05/05.0004/status")) == MOST
    assert 0x06 in record(Directory(tmp_path)).scenario.cards
