"""System calls without Python functions, through the C library.

Each raises `OSError` if the kernel refuses; the message has the name of the call.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
"""Kinds of namespaces, for `enter` (linux/sched.h)."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 36, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

OPENAT2, PIDFD_GETFD = 437, 438  # the same on all architectures
RESOLVE_NO_MAGICLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x02, 0x08, 0x10
"""Ways to resolve a path, for `open_path` (linux/openat2.h)."""
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MNT_DETACH = 1, 2, 4, 0x20, 0x1000, 0x4000, 2
_OPEN_HOW = struct.Struct("=3Q")
"""struct open_how: flags, mode, resolve."""
_LIBC = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """Call a function of the C library and return its result. `OSError` if that is -1, with the errno it left.

    Numbers are passed as `int`: give a `ctypes.c_ulong` where the function takes a long.
    """
    result: int = getattr(_LIBC, function)(*arguments)
    return _checked(function, result)


def system_call(name: str, number: int, *arguments: object) -> int:
    """Make a system call that the C library has no function for. `OSError` as with `call`."""
    result: int = _LIBC.syscall(ctypes.c_long(number), *arguments)
    return _checked(name, result)


def _checked(name: str, result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _prctl(option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    call("prctl", option, *map(ctypes.c_ulong, padded))


def die_with_parent(number: signal.Signals = signal.SIGKILL, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent has ended (prctl(2), PR_SET_PDEATHSIG).

    The parent is the thread that forked it. If that has ended before, there is no signal; with the parent's number, the
    signal is sent all the same.
    """
    _prctl(PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def outlive_parent() -> None:
    """Take back `die_with_parent`."""
    _prctl(PR_SET_PDEATHSIG, 0)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def forbid_new_privileges() -> None:
    """Let no program that is executed from now on gain privileges; cannot be taken back (PR_SET_NO_NEW_PRIVS)."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_ambient_capabilities() -> None:
    """Give up capabilities that programs of a user other than root would inherit: bwrap refuses to run with them.

    podman gives them to such a user if it was told to add capabilities (PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL).
    """
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def enter(namespace: int, kind: int) -> None:
    """Move this process into a namespace, given by a descriptor of /proc/PID/ns/... and its kind (setns(2)).

    `OSError`: EPERM without CAP_SYS_ADMIN in it, EINVAL if it is of another kind.
    """
    call("setns", namespace, kind)


def get_descriptor(pidfd: int, fd: int) -> int:
    """Return a duplicate of a descriptor of the process that a pidfd names (pidfd_getfd(2)).

    `OSError`: EBADF if it is not open there, EPERM without the rights of ptrace(2), ESRCH if the process is gone.
    """
    return system_call("pidfd_getfd", PIDFD_GETFD, pidfd, fd, 0)


def open_path(directory: int, path: bytes, flags: int, resolve: int) -> int:
    """Open a path as seen from a directory, close-on-exec, with RESOLVE flags (openat2(2)).

    `OSError`: what open(2) gives, and ELOOP or EXDEV where the way is not as `resolve` says.
    """
    how = ctypes.create_string_buffer(_OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, resolve), _OPEN_HOW.size)
    return system_call("openat2", OPENAT2, directory, path, how, ctypes.c_size_t(_OPEN_HOW.size))


def bind(source: str, destination: str) -> None:
    """Show a file or directory, and what is mounted below it, at another place as well (mount(2), MS_BIND, MS_REC)."""
    call("mount", os.fsencode(source), os.fsencode(destination), None, ctypes.c_ulong(MS_BIND | MS_REC), None)


def protect(place: str) -> None:
    """Make a bind mount read-only, and its set-user-ID bits and device nodes mean nothing (mount(2), MS_REMOUNT)."""
    # In a user namespace, a flag that is set already may not be taken away.
    kept = os.statvfs(place).f_flag & os.ST_NOEXEC
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | kept
    call("mount", None, os.fsencode(place), None, ctypes.c_ulong(flags), None)


def mount_tmpfs(place: str) -> None:
    """Cover a directory with an empty file system in memory."""
    call("mount", b"tmpfs", os.fsencode(place), b"tmpfs", ctypes.c_ulong(MS_NOSUID | MS_NODEV), b"mode=0755")


def detach(place: str) -> None:
    """Take away what is mounted at a place, even if it is in use (umount2(2), MNT_DETACH)."""
    call("umount2", os.fsencode(place), MNT_DETACH)
