"""Recordings of machines that are not as they should be: trees of sysfs, altered at random."""

from __future__ import annotations

import errno
from functools import cache
from typing import TYPE_CHECKING

from apfs.host import Host
from apfs.recording.recorder import RecordingError, record
from apfs.scenario.model import ScenarioError
from apfs.scenario.reader import loads
from tests.fuzz.hosts import HOSTS
from tests.fuzz.inputs import damaged
from tests.recording.machines import Copy

if TYPE_CHECKING:
    from random import Random

ALTERATIONS = 12
_copy_of = cache(Copy.of)
_NAMES = (
    "card",
    "cardzz",
    "card999",
    "05.0004",
    "ff.ffff",
    "5.4",
    "",
    "..",
    "\n",
    "\udcff",
    "vfio_ap",
    "power",
    "669d9b23",
)
_ERRORS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ENODEV, errno.ENOENT, errno.EINVAL, errno.ELOOP, errno.EISDIR)
_TEXTS = ("", "\n", "0\n", "-1\n", "0x" + "f" * 64 + "\n", "9" * 5000, "None\n", "\u00e9\n", "a b c\n", "CEX9Q\n", "\0")


def altered(copy: Copy, random: Random) -> Copy:
    """Return a copy with things missing, unreadable, or not what they were."""
    for _ in range(random.randrange(1, ALTERATIONS)):
        path = random.choice(tuple(copy.files))
        directory = random.choice(tuple(copy.directories))
        match random.randrange(7):
            case 0:
                copy.files.pop(path)
            case 1:
                copy.directories.pop(directory)
            case 2:
                copy.errors[random.choice((path, directory))] = random.choice(_ERRORS)
            case 3:
                copy.files[path] = random.choice(_TEXTS)
            case 4:
                copy.files[path] = damaged(copy.files[path].encode("latin-1", "replace"), random).decode("latin-1")
            case 5:
                copy.directories[directory] = [*copy.directories[directory], random.choice(_NAMES)]
            case _:
                copy.files[path] = copy.files[random.choice(tuple(copy.files))]
    return copy


def some_recording(random: Random) -> int:
    """Record an altered machine: a scenario that can be booted, or why not."""
    original = _copy_of(random.choice(HOSTS))
    copy = altered(Copy(dict(original.files), dict(original.directories)), random)
    try:
        recording = record(copy)
    except (RecordingError, ScenarioError):
        return 1
    Host(loads(recording.text()))
    return 1
