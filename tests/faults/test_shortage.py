"""What apfs does when the machine gives it no descriptor, no directory or no connection: a line, a status, no trace."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import sh
from tests.faults.shortages import in_namespace, nothing_stays

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("most", [6, 8, 14])
def test_descriptors(tmp_path: Path, most: int) -> None:
    script = 'export TMPDIR="$2"; ulimit -n "$3"; exec "$1" -P -m apfs exec true'
    said = sh(script, sys.executable, str(tmp_path), str(most), status=125).stderr.splitlines()
    assert said[-1].startswith("apfs: ")
    assert said[-1].endswith(": Too many open files")
    nothing_stays(tmp_path)


def test_no_place_for_a_directory(tmp_path: Path) -> None:
    script = """
        for directory in /tmp /var/tmp /usr/tmp "$T"; do
            if [ -d $directory ]; then
                mount --bind $directory $directory
                mount -o remount,bind,ro $directory
            fi
        done
        cd /proc
        apfs exec true
    """
    result = in_namespace(script, tmp_path)
    assert result.returncode == 125
    assert result.stderr.startswith("apfs: a host could not be started: No usable temporary directory found in ")
    assert result.stderr.count("\n") == 1
    nothing_stays(tmp_path)


def test_no_dev_fuse(tmp_path: Path) -> None:
    result = in_namespace("mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; apfs exec true", tmp_path)
    assert result.returncode == 125
    assert "there is no /dev/fuse" in result.stderr
    assert result.stderr.count("\n") == 1
    nothing_stays(tmp_path)


NULL = "there is no /dev/null: as root, `mknod -m 666 /dev/null c 1 3`"
FUSE = (
    "there is no /dev/fuse: as root, `modprobe fuse`, or where /dev is not the machine's, "
    "`mknod -m 666 /dev/fuse c 10 229`"
)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("mount -t tmpfs none /dev", f"{NULL}; {FUSE}"),
        ("mount -t tmpfs none /dev; mknod -m 666 /dev/fuse c 10 229", NULL),
    ],
)
def test_no_dev_null(tmp_path: Path, before: str, reason: str) -> None:
    """As in a container that was put together by hand. What needs none of it works, also with streams closed."""
    script = f"""
        mkdir "$T/host"
        {before}
        apfs exec true <&- >&-; echo $?
        apfs mount "$T/host"; echo $?
        apfs --version <&- 2>&- | cut -d " " -f 1
        apfs --version >&-; echo $?
        rmdir "$T/host"
    """
    result = in_namespace(script, tmp_path)
    lost = "apfs: standard output: Bad file descriptor\n"
    assert result.stderr == f"apfs: {reason}\n" * 2 + lost, result
    assert result.stdout == "125\n2\napfs,\n1\n"
    nothing_stays(tmp_path)


def test_no_proc(tmp_path: Path) -> None:
    script = """
        mount -t tmpfs none /proc
        for command in "exec true" "mount /mnt" "umount /mnt" "status /mnt" doctor libvirtd; do
            apfs $command; echo $?
        done
    """
    result = in_namespace(script, tmp_path)
    assert result.stderr == "apfs: there is no /proc: as root, `mount -t proc proc /proc`\n" * 6, result
    assert result.stdout == "125\n2\n1\n2\n2\n1\n"
    nothing_stays(tmp_path)


PLAIN = """
    for place in /*; do
        if [ -L $place ]; then cp -P $place "$T/tree"
        elif [ -d $place ]; then mkdir "$T/tree$place"; mount --rbind $place "$T/tree$place"; fi
    done
"""


@pytest.mark.parametrize(("tree", "more"), [(PLAIN, 1), ('mount --rbind / "$T/tree"', 0)], ids=["plain", "mounted"])
def test_a_chroot(tmp_path: Path, tree: str, more: int) -> None:
    """There bwrap either fails itself, or has its root where nobody finds it. A host can be mounted."""
    script = f"""
        mkdir "$T/tree" "$T/host" "$T/tmp"
        {tree}
        export TMPDIR=$T/tmp
        enter() {{ chroot "$T/tree" "$python" -P -m apfs "$@"; }}
        enter mount "$T/host" && enter status "$T/host" | head -n 1 && enter umount "$T/host"
        enter exec true
        ls "$T/tmp"
    """
    result = in_namespace(script, tmp_path)
    assert result.stdout == "host\n", result
    assert result.stderr.count("\n") == 1 + more
    what = "apfs exec does not work in a chroot: enter the file tree by pivot_root(8) or systemd-nspawn(1) instead"
    assert result.stderr.splitlines()[-1].endswith(what)


@pytest.mark.parametrize("user", [0, 65534])
def test_proc_of_another_pid_namespace(tmp_path: Path, user: int) -> None:
    """All that is known there of processes is about others."""
    tmp_path.chmod(0o777)
    script = f"""
        setpriv --reuid={user} --regid={user} --clear-groups unshare --map-root-user --mount --pid --fork \
            "$python" -P -m apfs exec true
    """
    result = in_namespace(script, tmp_path)
    here = "as root, `mount -t proc proc /proc` in this one (unshare has --mount-proc for that)"
    assert (result.returncode, result.stderr) == (125, f"apfs: /proc is that of another PID namespace: {here}\n")
    nothing_stays(tmp_path)


def test_user_namespace_without_root(tmp_path: Path) -> None:
    """There the remedy is not about fusermount3, which is as it should be."""
    script = """
        setpriv --reuid=65534 --regid=65534 --clear-groups unshare --user --mount "$python" -P -m apfs mount /mnt
    """
    result = in_namespace(script, tmp_path)
    what = "this user namespace has no root, whom fusermount3 would have to become"
    remedy = "run apfs outside of it, or as its root (`unshare --map-root-user`, `bwrap --uid 0 --cap-add ALL`)"
    assert (result.returncode, result.stderr) == (2, f"apfs: {what}: {remedy}\n")


ABORT = 'abort() { device=$(mountpoint --fs-devno "$1"); echo 1 > "$FUSE/${device#*:}/abort"; }'
FUSECTL = f"export FUSE=/sys/fs/fuse/connections; mount -t fusectl none $FUSE; {ABORT}; export -f abort"


def test_the_next_mount_follows_an_aborted_connection(tmp_path: Path) -> None:
    script = f"""
        {FUSECTL}
        mkdir "$T/host"
        apfs mount "$T/host"
        abort "$T/host"
        apfs mount "$T/host"
        grep -c " $T/host " /proc/self/mounts
        cat "$T/host/sys/bus/ap/scans"
        apfs umount "$T/host"
        rmdir "$T/host"
    """
    result = in_namespace(script, tmp_path)
    assert (result.returncode, result.stdout) == (0, "1\n1\n"), result
    nothing_stays(tmp_path)


def test_an_aborted_connection_inside_a_sandbox(tmp_path: Path) -> None:
    """The command goes on, with errors instead of answers, and its status is that of `apfs exec`."""
    # The command has a stream of its own for errors: it writes in pieces, and apfs says at the same time what it knows.
    script = f"""
        {FUSECTL}
        apfs exec bash -c 'abort /dev/apfs; cat /sys/bus/ap/bindings 2>&1; exit 5'
    """
    result = in_namespace(script, tmp_path)
    assert result.returncode == 5, result
    assert result.stdout.startswith("cat: /sys/bus/ap/bindings: "), result
    assert "Traceback" not in result.stderr
    nothing_stays(tmp_path)
