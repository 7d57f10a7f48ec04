"""The file /proc/self/mountinfo, without imports that take long: it is read at the Tab key, too."""

from __future__ import annotations

import os

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Iterator

FSTYPE = "fuse.apfs"
FILE = "/proc/self/mountinfo"


def _unescape(field: str) -> str:
    """Return a field without octal escapes, as which Linux shows every backslash (seq_path_root)."""
    first, *others = field.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in others)


def read(file: str) -> Iterator[tuple[int, str, str]]:
    """Yield `st_dev`, mount point and type of each mount, in the order in which they were made (proc_pid_mountinfo(5)).

    `OSError` without /proc.
    """
    # Of what Unicode considers spaces and ends of lines, Linux escapes space, tab and newline.
    with open(file, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:  # noqa: PTH123 -- without Path
        for line in lines:
            head, _, tail = line.partition(" - ")
            _, _, device, _, mountpoint, *_ = head.split(" ")
            major, _, minor = device.partition(":")
            yield os.makedev(int(major), int(minor)), _unescape(mountpoint), tail.partition(" ")[0]
