"""What can be asked of a mount by system calls, in shapes that no program uses."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import select
from functools import partial
from typing import TYPE_CHECKING

from apfs.errors import errno_name
from tests.fuzz.inputs import text_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

ANSWERS = {
    *("EACCES", "EPERM", "EINVAL", "ENODEV", "ENOENT", "ENOTDIR", "EISDIR", "EBADF", "EOPNOTSUPP", "ENODATA", "ENXIO"),
    *("ENAMETOOLONG", "ELOOP", "EEXIST", "ESPIPE", "EBUSY", "EFAULT", "ENOTTY", "EXDEV", "ENOTEMPTY", "ERANGE"),
    *("EAGAIN", "EADDRINUSE", "EADDRNOTAVAIL", "E2BIG", "EFBIG", "ENOSYS", "EOVERFLOW", "ENOSPC", "EUSERS"),
}
"""Errors that there may be; EIO is the answer to a defect."""
MAY_EIO = ("/dev/vfio-ap/", "/ctl/console", "/ctl/ioctl", "/sys/class/zcrypt/create", "/sys/class/zcrypt/destroy")
"""Files where EIO has a meaning of its own, or whose mode lets read what can only be written."""
NAMES = (
    *(b"a" * 255, b"a" * 256, b"a" * 4000, b"\xff\xfe", b"\xc3\xa9", b"card05\n", b" ", b"*", b"-1", b".x", b"..."),
    *(b"card05\x01", b"CARD05", b"card005", b"card05/", b"05.0047 ", b"%s", b"\x80" * 255, b"apmask/x", b"../../../x"),
)
_OFFSETS = (0, 1, 4095, 4096, 2**31, 2**32, 2**62, 2**63 - 1)
_SIZES = (0, 1, 4096, 4097, 65536, 1 << 20, (1 << 20) + 1)
_FLAGS = (
    *(os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3),
    *(os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_DIRECT, os.O_RDWR | os.O_CREAT),
    *(os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDONLY | os.O_DIRECTORY, os.O_RDWR | os.O_NONBLOCK | os.O_SYNC),
    *(os.O_RDONLY | os.O_NOATIME, os.O_PATH, os.O_RDONLY | os.O_NOFOLLOW, os.O_RDWR | os.O_TMPFILE),
)
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def _copy(fd: int, random: Random) -> None:
    """Copy within the file, or from it, in the kernel."""
    target = os.open("/dev/null", os.O_WRONLY) if random.random() < 0.5 else os.dup(fd)
    try:
        if random.random() < 0.5:
            os.copy_file_range(fd, target, random.choice(_SIZES))
        else:
            os.sendfile(target, fd, random.choice((None, 0, 5)), random.choice(_SIZES))
    finally:
        os.close(target)


def _map(fd: int, random: Random) -> None:
    """Map a page. It is not looked at: SIGBUS is how Linux tells that reading was refused."""
    mmap.mmap(fd, 4096, random.choice((mmap.MAP_PRIVATE, mmap.MAP_SHARED)), mmap.PROT_READ).close()


def _poll(fd: int, _random: Random) -> None:
    poll = select.poll()
    poll.register(fd)
    poll.poll(0)


# What is read from a pipe of a guest ends.
WITH_FILE: tuple[Callable[[int, Random], object], ...] = (
    lambda fd, random: os.pread(fd, random.choice(_SIZES), random.choice(_OFFSETS)),
    lambda fd, random: os.pwrite(fd, random.randbytes(random.choice(_SIZES[:5])), random.choice(_OFFSETS)),
    lambda fd, random: os.writev(fd, [b"1", random.randbytes(9), b""]),
    lambda fd, random: os.preadv(fd, [bytearray(7), bytearray(9)], random.choice(_OFFSETS)),
    lambda fd, random: os.lseek(fd, random.choice(_OFFSETS), random.choice((0, 1, 2, os.SEEK_DATA, os.SEEK_HOLE))),
    lambda fd, random: os.ftruncate(fd, random.choice(_OFFSETS)),
    lambda fd, _: os.fsync(fd),
    lambda fd, random: os.posix_fallocate(fd, random.choice((0, 5)), 4096),
    lambda fd, random: _checked(
        _libc.fallocate(fd, random.choice((0, 1, 3, 8, 16)), ctypes.c_long(0), ctypes.c_long(9))
    ),
    lambda fd, _: os.fchmod(fd, os.fstat(fd).st_mode & 0o7777),
    lambda fd, _: os.utime(fd),
    lambda fd, _: os.fstatvfs(fd),
    lambda fd, _: os.listxattr(fd),
    lambda fd, random: _checked(_libc.ioctl(fd, random.getrandbits(32), ctypes.c_long(random.choice((0, 1, -1))))),
    _copy,
    _map,
    _poll,
)
WITH_PATH: tuple[Callable[[bytes, Random], object], ...] = (
    lambda path, _: os.mkdir(path),
    lambda path, _: os.rmdir(path),
    lambda path, _: os.unlink(path),
    lambda path, _: os.symlink(b"x", path),
    lambda path, random: os.mknod(path, random.choice((0o100644, 0o20644, 0o10644, 0o140644))),
    lambda path, _: os.link(path, path + b"2"),
    lambda path, _: os.rename(path, path + b"2"),
    lambda path, _: os.readlink(path),
    lambda path, _: os.truncate(path, 3),
    lambda path, _: os.stat(path),
    lambda path, _: os.listdir(path),
    lambda path, _: os.getxattr(path, b"user.x"),
    lambda path, _: os.setxattr(path, b"security.selinux", b"x" * 9),
    lambda path, _: os.removexattr(path, b"user.x"),
    lambda path, random: os.access(path, random.randrange(8)),
)


def some_request(host: Path, files: list[str], random: Random) -> None:
    """Make a few unusual system calls about one file, or about a name that is none."""
    path = random.choice(files)
    if random.random() < 0.4:
        whole = os.fsencode(host / path.lstrip("/"))
        name = random.choice((whole, os.path.dirname(whole) + b"/" + random.choice(NAMES)))
        _answered(path, lambda: random.choice(WITH_PATH)(name, random))
        return
    opened: list[int] = []
    _answered(path, lambda: opened.append(os.open(host / path.lstrip("/"), random.choice(_FLAGS), 0o644)))
    for fd in opened:
        try:
            for _ in range(random.randrange(1, 5)):
                call = random.choice(WITH_FILE)
                _answered(path, partial(call, fd, random))
            if random.random() < 0.3:
                _answered(path, partial(os.write, fd, text_for(path, random)))
        finally:
            os.close(fd)


def _answered(path: str, call: Callable[[], object]) -> None:
    """Make a call; an errno must be one that there may be."""
    try:
        call()
    except OSError as error:
        name = errno_name(error.errno or 0)
    except ValueError:  # Python's own: a mapping of an empty file
        return
    else:
        return
    assert name in ANSWERS or (name == "EIO" and re.sub("^/guests/[^/]+", "", path).startswith(MAY_EIO)), (
        f"{path}: {name}"
    )
