"""What others than the user who mounted, and commands in a sandbox, can and cannot do: the sentences of SECURITY.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT, let_in, sh
from tests.sandbox.conftest import exec_as_nobody

if TYPE_CHECKING:
    from collections.abc import Callable

    Mounter = Callable[..., Path]

NOBODY = 65534
AS_NOBODY = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps=-all"
PRIVATE = {"ctl/ioctl", "ctl/console"}
"""What other users cannot even read."""
PROGRAM = """
import os, stat, sys
for place, directories, names in os.walk(sys.argv[1], onerror=lambda error: print("list", error.filename, error.errno)):
    for name in names:
        path = os.path.join(place, name)
        if stat.S_ISLNK(os.lstat(path).st_mode):
            continue
        for word, flags in (("write", os.O_WRONLY), ("both", os.O_RDWR), ("read", os.O_RDONLY)):
            try:
                os.close(os.open(path, flags))
            except OSError:
                continue
            print(word, os.path.relpath(path, sys.argv[1]))
        for call in (lambda: os.chmod(path, 0o666), lambda: os.chown(path, os.getuid(), -1), lambda: os.unlink(path)):
            try:
                call()
            except OSError:
                continue
            print("change", os.path.relpath(path, sys.argv[1]))
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def tried(host: Path) -> list[tuple[str, str]]:
    """Return what another user could do with the files of a mount: word and path."""
    lines = sh(f'{AS_NOBODY} /usr/bin/python3 -c "$1" "$2"', PROGRAM, str(host)).stdout.splitlines()
    return [(word, path) for word, _, path in (line.partition(" ") for line in lines)]


def test_others_read_and_do_not_write_where_they_are_let_in(mount: Mounter, tmp_path: Path) -> None:
    host = mount("migration-source")
    let_in(tmp_path)
    found = tried(host)
    readable = {path for word, path in found if word == "read"}
    assert {"sys/bus/ap/apmask", "ctl/status", "ctl/journal"} <= readable
    assert not readable & PRIVATE
    assert not any(path.startswith("ctl/fds/") for path in readable)
    assert {path for word, path in found if word in ("write", "both")} == {"dev/vfio/vfio"}
    assert [path for word, path in found if word == "change"] == []
    refused = sh(f'echo x | {AS_NOBODY} tee "$1"', str(host / "dev/vfio/vfio"), status=1)
    assert "Invalid argument" in refused.stderr


def test_modes_decide_where_others_are_let_in(mount: Mounter, tmp_path: Path) -> None:
    host = mount()
    let_in(tmp_path)
    mask = host / "sys/bus/ap/apmask"
    sh(f'{AS_NOBODY} sh -c \'echo -5 > "$1"\' sh "$1"', str(mask), status=2)
    mask.chmod(0o646)
    sh(f'{AS_NOBODY} sh -c \'echo -5 > "$1"\' sh "$1"', str(mask))
    mask.chmod(0o600)
    sh(f'{AS_NOBODY} cat "$1"', str(mask), status=1)


def test_only_the_owner_sets_times_and_who_may_write_makes_them_the_present_one(mount: Mounter, tmp_path: Path) -> None:
    host = mount()
    let_in(tmp_path)
    mask = host / "sys/bus/ap/apmask"
    os.utime(mask, (5, 5))
    touch = f'LC_ALL=C {AS_NOBODY} touch -c {{}} "$1"'
    assert "Permission denied" in sh(touch.format(""), str(mask), status=1).stderr
    assert "Operation not permitted" in sh(touch.format("-d @6"), str(mask), status=1).stderr
    mask.chmod(0o646)
    assert "Operation not permitted" in sh(touch.format("-d @6"), str(mask), status=1).stderr
    assert mask.stat().st_mtime == 5
    sh(touch.format(""), str(mask))
    assert mask.stat().st_mtime > 5


def test_others_see_nothing_where_they_are_not_let_in(mount: Mounter, tmp_path: Path) -> None:
    host = mount("default", "--no-allow-other")
    let_in(tmp_path)
    for command in ("ls", "stat"):
        assert "Permission denied" in sh(f'LC_ALL=C {AS_NOBODY} {command} "$1"', str(host / "sys"), status=None).stderr


def test_the_mount_of_an_ordinary_user(tmp_path: Path) -> None:
    """Not even root sees what is in it, and its server has no more privileges than the user."""
    host = tmp_path / "host"
    host.mkdir()
    os.chown(host, NOBODY, NOBODY)
    let_in(tmp_path)
    script = f"""
        set -e
        mknod -m 0666 "$3/fuse" c 10 229
        mount --bind "$3/fuse" /dev/fuse
        {AS_NOBODY} "$1" -m apfs mount "$2"
        ls "$2/sys" 2>&1 || true
        server=$(pgrep --full "apfs mount $2")
        grep -E "^(Uid|Gid|Groups|Cap(Prm|Eff|Amb))" /proc/$server/status
        {AS_NOBODY} "$1" -m apfs umount "$2"
    """
    command = ["unshare", "--mount", "bash", "-c", script, "bash", sys.executable, str(host), str(tmp_path)]
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    denied, *credentials = done.stdout.splitlines()
    assert "Permission denied" in denied
    assert [line.split() for line in credentials] == [
        *(["Uid:", *["65534"] * 4], ["Gid:", *["65534"] * 4], ["Groups:"]),
        *([f"Cap{which}:", "0" * 16] for which in ("Prm", "Eff", "Amb")),
    ]


def test_a_mount_has_neither_devices_nor_set_user_id_programs(mount: Mounter) -> None:
    host = mount()
    (line,) = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {host} " in line]
    assert {"nosuid", "nodev", "default_permissions"} <= set(line.split()[3].split(","))


def test_an_ordinary_users_command_cannot_write_the_real_sysfs(tmp_path: Path) -> None:
    """What is left of the real /sys beside the emulated host is not for ordinary users to write, as everywhere."""
    # Other file systems are mounted there, which may not even be listed.
    look = "find /sys -type d ! -readable -prune -o -fstype sysfs -type f -writable -print 2>&1; echo looked"
    found = exec_as_nobody(tmp_path, "sh", "-c", look)
    assert found == "looked\n"


LOOK = 'stat -c "%a %u %F" "$TMPDIR"/apfs-*; ls "$TMPDIR"'
IN_TESTS = f"import subprocess, apfs\nwith apfs.MountedHost(): subprocess.run({LOOK!r}, shell=True)"


@pytest.mark.parametrize("program", [("-m", "apfs", "exec", "--", "bash", "-c", LOOK), ("-c", IN_TESTS)])
def test_temporary_directories_are_made_by_their_owner_for_nobody_else(
    tmp_path: Path, program: tuple[str, ...]
) -> None:
    """A name that nobody can guess, made new or not at all, in which nobody else writes: nothing can wait there."""
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(0o1777)
    command = [sys.executable, *program]
    environment = {**os.environ, "TMPDIR": str(place)}
    said = [subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout for _ in "ab"]
    seen = [text.splitlines() for text in said]
    assert [lines[0] for lines in seen] == [f"700 {os.geteuid()} directory"] * 2
    assert seen[0][1] != seen[1][1]
    assert list(place.iterdir()) == []
