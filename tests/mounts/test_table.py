"""What is mounted, read from a mountinfo that says so."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from apfs.mounts import table
from apfs.mounts.table import Mount
from tests.conftest import TIMEOUT

if TYPE_CHECKING:
    from pathlib import Path

HIDE = "mount -t tmpfs none /proc/irq"


def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let mountinfo have these lines."""
    file = tmp_path / "mountinfo"
    file.write_text("".join(f"{line}\n" for line in lines), newline="\n")
    monkeypatch.setattr(table, "MOUNTINFO", file)


def test_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(
        tmp_path,
        monkeypatch,
        r"36 35 0:45 / /mnt/a\040b\134c rw,nosuid - fuse.apfs default rw,user_id=0",
        "37 35 259:1048575 /sub /x rw shared:1 master:2 - ext4 /dev/a\\040- rw",
    )
    assert table.mounted() == [
        Mount(os.makedev(0, 45), "/mnt/a b\\c", "fuse.apfs"),
        Mount(os.makedev(259, 1048575), "/x", "ext4"),
    ]
    assert table.is_mounted(os.makedev(0, 45))
    assert table.is_mounted(os.makedev(259, 1048575))
    assert not table.is_mounted(os.makedev(45, 0))


def test_spaces_of_unicode_are_parts_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "/a\u00a0b", "/a\u2028b", "/a\x0bb\x0cb\x1cb\x85b\rb"
    told(tmp_path, monkeypatch, *(f"36 35 0:45 / {name} rw - fuse.apfs default rw" for name in names))
    assert [mount.mountpoint for mount in table.mounted()] == list(names)


@pytest.mark.parametrize(("types", "expected"), [(("tmpfs", "fuse.apfs"), True), (("fuse.apfs", "tmpfs"), False)])
def test_the_topmost_mount_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, types: tuple[str, ...], *, expected: bool
) -> None:
    told(
        tmp_path, monkeypatch, *(f"{36 + n} 35 0:4{n} / {tmp_path} rw - {kind} none rw" for n, kind in enumerate(types))
    )
    assert table.is_apfs(str(tmp_path)) is expected
    assert not table.is_apfs(f"{tmp_path}/below")


@pytest.mark.parametrize(("before", "expected"), [("true", "False"), (HIDE, "True")])
def test_hidden_parts_of_proc_are_noticed(before: str, expected: str) -> None:
    if os.geteuid():
        pytest.skip("only root can hide parts of /proc")
    program = "from apfs.mounts import environment; print(environment.look().masked)"
    # A /proc of its own: in a container parts of the other one may be hidden.
    command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", f'{before} && exec "$@"', "sh"]
    result = subprocess.run(
        [*command, sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert result.stdout == f"{expected}\n"
