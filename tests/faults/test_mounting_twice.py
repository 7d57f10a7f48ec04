"""Two mounts of one directory at the same instant: one of them wins, and the other is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TIMEOUT, apfs, let_in, sh

NOBODY = 65534
MOUNT = [sys.executable, "-m", "apfs", "mount"]


def mounts_at(mountpoint: Path) -> int:
    return Path("/proc/self/mounts").read_text().count(f" {mountpoint} fuse.apfs ")


def test_one_mounts_while_another_is_about_to(tmp_path: Path) -> None:
    """The first is held where the mount helper begins, which is after all of its checks.

    From libfuse 3.17 on, root has mounted by then: the helper only stays to unmount.
    """
    if os.geteuid():
        pytest.skip("only root can put a program in the mount helper's place")
    helper, mountpoint = tmp_path / "helper", tmp_path / "host"
    mountpoint.mkdir()
    os.mkfifo(tmp_path / "asked")
    os.mkfifo(tmp_path / "go")
    helper.write_text(f'#!/bin/sh\necho > {tmp_path}/asked\nread line < {tmp_path}/go\nexec {tmp_path}/real "$@"\n')
    helper.chmod(0o755)
    script = """
        place=$(readlink -f "$(command -v fusermount3)")
        cp "$place" "$3/real"
        mount --bind "$3/helper" "$place"
        "$1" -m apfs mount "$2" & first=$!
        read line < "$3/asked"
        grep -c " $2 fuse.apfs " /proc/self/mounts
        "$1" -m apfs mount "$2"; echo "second: $?"
        echo > "$3/go"
        wait $first; echo "first: $?"
        grep -c " $2 fuse.apfs " /proc/self/mounts
        cat "$2/sys/bus/ap/scans"
        umount "$2"
    """
    command = ["unshare", "--mount", "bash", "-c", script, "bash", sys.executable, str(mountpoint), str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    mounted, _, others = result.stdout.partition("\n")
    assert others == "second: 2\nfirst: 0\n1\n1\n", result
    expected = {
        "0": f"{mountpoint} is being mounted by another apfs right now (its directory is locked)",
        "1": f"{mountpoint} already has an apfs mounted: `apfs umount {mountpoint}` first",
    }
    assert result.stderr == f"apfs: {expected[mounted]}\n"


def test_of_many_one_wins(tmp_path: Path) -> None:
    """Whatever they meet, a lock or a mount, exactly one of them mounts, and the others say in one line why not."""
    many = [subprocess.Popen([*MOUNT, str(tmp_path)], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = sorted(process.communicate(timeout=TIMEOUT)[1] for process in many)
    mounted = mounts_at(tmp_path)
    while mounts_at(tmp_path):
        apfs("umount", str(tmp_path))
    assert mounted == 1
    assert sorted(process.returncode for process in many) == [0, 2, 2, 2]
    assert said[0] == ""
    for words in said[1:]:
        assert words.startswith(f"apfs: {tmp_path} ")
        assert words.count("\n") == 1
        assert "another apfs" in words or "already has an apfs mounted" in words


def test_who_may_not_list_the_directory_can_mount_on_it(tmp_path: Path) -> None:
    """As root, in a mount namespace of the test's own, which lets the ordinary user open /dev/fuse."""
    mountpoint = tmp_path / "host"
    mountpoint.mkdir()
    user, inside, preparation = "", [], ""
    if not os.geteuid():
        let_in(tmp_path)
        os.chown(mountpoint, NOBODY, NOBODY)
        user = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps=-all"
        inside = ["unshare", "--mount"]
        preparation = 'mknod -m 0666 "$3/fuse" c 10 229; mount --bind "$3/fuse" /dev/fuse'
    mountpoint.chmod(0o300)
    script = f"""
        set -e
        {preparation}
        if {user} ls "$2" 2> /dev/null; then exit 1; fi
        {user} "$1" -m apfs mount "$2"
        {user} cat "$2/sys/bus/ap/scans"
        {user} "$1" -m apfs umount "$2"
    """
    command = [*inside, "bash", "-c", script, "bash", sys.executable, str(mountpoint), str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    mountpoint.chmod(0o700)
    assert (result.returncode, result.stdout) == (0, "1\n"), result


def test_a_lock_that_somebody_holds_is_told(tmp_path: Path) -> None:
    said = sh('flock "$2" "$1" -m apfs mount "$2"', sys.executable, str(tmp_path), status=2).stderr
    assert "is locked" in said
    assert mounts_at(tmp_path) == 0
