"""The mount table: what is mounted where, whether it is alive, and how to unmount it.

Never call these from a server on its own mount: it would wait for itself.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from apfs.mounts import mountinfo

FSTYPE = mountinfo.FSTYPE
MOUNTINFO = Path(mountinfo.FILE)
_LINKS = 40
"""How many links Linux follows in a row."""


class MountsError(Exception):
    """Something about a mount that the user must know; the message says what to do."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class FileError(MountsError):
    """There is a file where a mount should be."""


class Mount(NamedTuple):
    """The fields of a line of /proc/self/mountinfo that matter (proc_pid_mountinfo(5))."""

    device: int
    """The `st_dev` of its files."""
    mountpoint: str
    fstype: str


def no_proc() -> MountsError:
    """Return the error to raise where there is no /proc: nothing can be known of mounts and processes."""
    return MountsError("there is no /proc: as root, `mount -t proc proc /proc`", 2)


def check_proc() -> None:
    """Make sure that there is a /proc, and that it is that of this PID namespace. `MountsError` if not."""
    try:
        pid = os.readlink("/proc/self")  # noqa: PTH115 -- text wanted
    except OSError:
        pid = ""
    if pid == str(os.getpid()):
        return
    if not MOUNTINFO.exists():
        raise no_proc()
    here = "as root, `mount -t proc proc /proc` in this one (unshare has --mount-proc for that)"
    raise MountsError(f"/proc is that of another PID namespace: {here}", 2)


def mounted() -> list[Mount]:
    """Return all mounts that this process sees, in the order in which they were made. `MountsError` without /proc."""
    try:
        return [Mount(*fields) for fields in mountinfo.read(str(MOUNTINFO))]
    except FileNotFoundError:
        raise no_proc() from None


def is_apfs(mountpoint: str) -> bool:
    """Whether the topmost mount at exactly this path is an apfs, dead or alive."""
    path = absolute(mountpoint)
    at_path = [mount for mount in mounted() if mount.mountpoint == path]
    return bool(at_path) and at_path[-1].fstype == FSTYPE


def exists(path: str) -> bool:
    """Whether there is something at a path. `MountsError` with exit status 2 if this user is not to know that."""
    try:
        os.lstat(path)
    except PermissionError:
        raise MountsError(f"{path}: no permission to search the directories above it", 2) from None
    except OSError:
        return False
    return True


def absolute(path: str) -> str:
    """Return the path as mountinfo has it: absolute and without links, but not asking the mount itself anything.

    `MountsError` with exit status 2 if it leads in circles, and for a relative one if the current directory is gone.
    """
    if not path.startswith("/"):
        try:
            path = f"{Path.cwd()}/{path}"
        except FileNotFoundError:
            raise MountsError("the current directory does not exist any more: `cd` to one that does", 2) from None
    for _ in range(_LINKS):
        parent, name = os.path.split(os.path.normpath(path))
        try:
            place = Path(parent).resolve() / name
        except (OSError, RuntimeError):
            break
        try:
            path = str(place.parent / place.readlink())  # the kernel knows by itself that a mount point is not a link
        except OSError:
            return str(place)
    raise MountsError(f"{path}: too many levels of symbolic links", 2)


def is_dead(mountpoint: str) -> bool:
    """Whether the server of a mount is gone."""
    try:
        os.statvfs(mountpoint)  # stat(2) may be answered by the kernel from memory
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def is_mounted(device: int) -> bool:
    """Whether a file system, by the `st_dev` of its files, is mounted anywhere."""
    return any(mount.device == device for mount in mounted())


def check_answers(mountpoint: str) -> None:
    """Make sure that an apfs answers at a path. `MountsError` with exit status 2 if not."""
    place = absolute(mountpoint)
    if not is_apfs(place):
        raise _not_mounted(mountpoint, Path(place))
    if is_dead(place):
        raise MountsError(f"the server of {mountpoint} is gone: `apfs umount {quote(mountpoint)}` and mount again", 2)
    try:
        Path(place, "ctl").stat()
    except PermissionError:
        advice = "be that user, or have it mounted with --allow-other"
        raise MountsError(f"{mountpoint} gives access only to the user who mounted it: {advice}", 2) from None
    except OSError as error:
        raise gone(mountpoint, error) from None


def _not_mounted(mountpoint: str, place: Path) -> MountsError:
    """Return the error to raise where no apfs is mounted, which says what to do instead."""
    there = exists(mountpoint)
    outer = next((str(parent) for parent in place.parents if is_apfs(str(parent))), None) if there else None
    if outer:
        return MountsError(f"{mountpoint} is not an apfs mount, but in one: use {quote(outer)}", 2)
    if os.path.isfile(place):  # noqa: PTH113 -- it may not be for this user to know
        return FileError(f"{mountpoint} is not an apfs mount, but a file", 2)
    make = "" if there else f"mkdir -p {quote(mountpoint)} && "
    what = "is not an apfs mount" if there else "does not exist"
    return MountsError(f"{mountpoint} {what}: `{make}apfs mount {quote(mountpoint)}` first", 2)


def gone(mountpoint: str, error: OSError) -> MountsError:
    """Return the error to raise when a mount stops answering while it is in use, or refuses to."""
    if error.errno == errno.EACCES:
        files = f"{quote(mountpoint)}/ctl/*"
        return MountsError(
            f"{mountpoint}: no permission to read a file of its ctl: `chmod a+r {files}` gives it back", 2
        )
    return MountsError(f"{mountpoint} was unmounted, or its server has ended ({error.strerror})")


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount an apfs; a dead one also if it is in use. `MountsError` if there is none or it is busy."""
    if not is_apfs(mountpoint):
        raise MountsError(f"{mountpoint} is not an apfs mount")
    lazy = lazy or is_dead(mountpoint)
    path = absolute(mountpoint)
    helper = shutil.which("fusermount3")
    if helper and os.geteuid():
        command = [helper, "-u", *(["-z"] if lazy else []), "--", path]
    else:
        command = ["umount", *(["-l"] if lazy else []), "--", path]
    try:
        result = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        raise MountsError(
            f"{command[0]} is missing: install the package {'fuse3' if os.geteuid() else 'mount'}"
        ) from None
    # With a dead one, auto_unmount may have been faster.
    if result.returncode and is_apfs(mountpoint):
        if "busy" in result.stderr:
            users = f"`fuser -m {quote(mountpoint)}` tells"
            raise MountsError(f"{mountpoint} is busy: end what uses it ({users}), or use --lazy")
        raise MountsError(result.stderr.strip() or f"{command[0]} failed with status {result.returncode}")
