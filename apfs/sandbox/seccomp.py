"""Seccomp user notification: the filter of system calls that we answer, and its listener (linux/seccomp.h).

There is no binding that has all of it: libseccomp can neither add descriptors to the stopped process nor keep signals
from interrupting it, so the few numbers and structs stand here, and the tests compare them with the header.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import resource
import struct
import sys
from typing import NamedTuple

from apfs.sandbox import linux

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_USER_NOTIF_FLAG_CONTINUE = 1

NOTIF = struct.Struct("=QIIiIQ6Q")
"""struct seccomp_notif: id, pid, flags, and struct seccomp_data: nr, arch, instruction_pointer, args."""
NOTIF_RESP = struct.Struct("=QqiI")
"""struct seccomp_notif_resp: id, val, error, flags."""
NOTIF_ADDFD = struct.Struct("=QIIII")
"""struct seccomp_notif_addfd: id, flags, srcfd, newfd, newfd_flags."""
_ID = struct.Struct("=Q")

_WRITE, _READ = 1, 2


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("!") << 8 | number


NOTIF_RECV = _request(_WRITE | _READ, 0, NOTIF.size)
NOTIF_SEND = _request(_WRITE | _READ, 1, NOTIF_RESP.size)
NOTIF_ID_VALID = _request(_WRITE, 2, _ID.size)
NOTIF_ADDFD_REQUEST = _request(_WRITE, 3, NOTIF_ADDFD.size)

# Offsets in struct seccomp_data. Registers have 64 bits and are compared by halves; of a request only the low half
# matters, and of that the low 16 bits.
_NR, _ARCH, _ARGS = 0, 4, 16
_LOW = 4 if sys.byteorder == "big" else 0
_REQUEST = _ARGS + 8 + _LOW
_RESOURCE, _NEW, _OLD = _ARGS + 8 + _LOW, _ARGS + 16, _ARGS + 24

IOCTL_NUMBERS = {
    0xC000003E: (16, 0x40000000 | 514),  # AUDIT_ARCH_X86_64, with x32
    0x40000003: (54,),  # AUDIT_ARCH_I386
    0xC00000B7: (29,),  # AUDIT_ARCH_AARCH64
    0x40000028: (54,),  # AUDIT_ARCH_ARM
    0x80000016: (54,),  # AUDIT_ARCH_S390X
    0xC0000015: (54,),  # AUDIT_ARCH_PPC64LE
    0xC00000F3: (29,),  # AUDIT_ARCH_RISCV64
}
"""Number of ioctl(2), by the architecture that a program runs as."""

PRLIMIT_NUMBERS = {
    0xC000003E: (302, 0x40000000 | 302),
    0x40000003: (340,),
    0xC00000B7: (261,),
    0x40000028: (369,),
    0x80000016: (334,),
    0xC0000015: (325,),
    0xC00000F3: (261,),
}
"""Number of prlimit64(2), in the same way. setrlimit(3) of the C libraries makes it too."""

_SECCOMP_NUMBERS = {
    "x86_64": 317,
    "aarch64": 277,
    "riscv64": 277,
    "s390x": 348,
    "ppc64le": 358,
    "armv7l": 383,
    "i686": 354,
}
"""Number of seccomp(2), by machine."""

_LOAD, _JUMP_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_INSTRUCTION = struct.Struct("=HBBI")


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def program(type_byte: int) -> bytes:
    """Return the filter: notify of ioctls whose request has this type byte, and of new limits of locked memory.

    Everything else is allowed. A few instructions for any system call, none of which looks at anything but registers.
    """
    allow = (_RETURN, 0, 0, SECCOMP_RET_ALLOW)
    notify = (_RETURN, 0, 0, SECCOMP_RET_USER_NOTIF)
    ioctl = [(_LOAD, 0, 0, _REQUEST), (_AND, 0, 0, 0xFF00), (_JUMP_EQUAL, 1, 0, type_byte << 8), allow, notify]
    # A call that sets the limit, and does not ask for the old one.
    prlimit = [(_LOAD, 0, 0, _RESOURCE), (_JUMP_EQUAL, 1, 0, resource.RLIMIT_MEMLOCK), allow]
    prlimit += [(_LOAD, 0, 0, _OLD), (_JUMP_EQUAL, 1, 0, 0), allow]
    prlimit += [(_LOAD, 0, 0, _OLD + 4), (_JUMP_EQUAL, 1, 0, 0), allow]
    prlimit += [(_LOAD, 0, 0, _NEW), (_JUMP_EQUAL, 0, 2, 0), (_LOAD, 0, 0, _NEW + 4), (_JUMP_EQUAL, 1, 0, 0)]
    prlimit += [notify, allow]
    code: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, _ARCH)]
    for arch, ioctls in IOCTL_NUMBERS.items():
        limits = PRLIMIT_NUMBERS[arch]
        block = [(_LOAD, 0, 0, _NR)]
        # Over the rest of the comparisons and what follows them.
        block += [(_JUMP_EQUAL, len(ioctls) + len(limits) - place, 0, number) for place, number in enumerate(ioctls)]
        block += [(_JUMP_EQUAL, len(limits) - place + len(ioctl), 0, number) for place, number in enumerate(limits)]
        block += [allow, *ioctl, *prlimit]
        code += [(_JUMP_EQUAL, 0, len(block), arch), *block]
    code.append(allow)
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def seccomp_number() -> int:
    """Return the number of seccomp(2) on this machine; `OSError` (ENOSYS) if it is not known here."""
    number = _SECCOMP_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of seccomp(2) on {platform.machine()} is not known")
    return number


def install(filter_program: bytes) -> int:
    """Install a filter for this thread and all that it starts, and return the listener.

    `OSError`: EBUSY if a filter with a listener is in force already, ENOSYS or EINVAL where the kernel cannot.
    """
    number = seccomp_number()
    linux.forbid_new_privileges()
    fprog = _Program(len(filter_program) // _INSTRUCTION.size, filter_program)
    # With the second flag (Linux 5.19) only deadly signals interrupt a process whose ioctl is being served. Without,
    # an ioctl may be made twice when a signal arrives.
    flags = SECCOMP_FILTER_FLAG_NEW_LISTENER
    try:
        return _seccomp(number, flags | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, fprog)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return _seccomp(number, flags, fprog)


def _seccomp(number: int, flags: int, fprog: _Program) -> int:
    operation = ctypes.c_ulong(SECCOMP_SET_MODE_FILTER)
    return linux.system_call("seccomp", number, operation, ctypes.c_ulong(flags), ctypes.byref(fprog))


class Notification(NamedTuple):
    """A process, stopped at an ioctl."""

    id: int
    pid: int
    """Its thread id."""
    fd: int
    request: int
    arg: int


class Limit(NamedTuple):
    """A process, stopped at a new limit of locked memory."""

    id: int
    pid: int
    """Its thread id."""
    new: int
    """Address of a struct rlimit64."""


def receive(listener: int) -> Notification | Limit | None:
    """Return the next notification; None if the process has died in the meantime."""
    buffer = bytearray(NOTIF.size)
    try:
        fcntl.ioctl(listener, NOTIF_RECV, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    number, pid, _, call, arch, _, fd, request, arg, *_ = NOTIF.unpack(buffer)
    if call in PRLIMIT_NUMBERS[arch]:
        return Limit(number, pid, arg)
    # Descriptor and request are int and unsigned int; what is above is not looked at by the kernel either.
    return Notification(number, pid, ctypes.c_int(fd).value, request & 0xFFFFFFFF, arg)


def is_valid(listener: int, number: int) -> bool:
    """Whether the process is still stopped there; if not, its pid may be another's by now."""
    try:
        fcntl.ioctl(listener, NOTIF_ID_VALID, _ID.pack(number))
    except OSError:
        return False
    return True


def add_descriptor(listener: int, number: int, fd: int) -> int:
    """Give the process a duplicate of a descriptor, close-on-exec, and return its number there.

    `OSError`: EMFILE if it has too many, ENOENT if it is gone.
    """
    buffer = bytearray(NOTIF_ADDFD.pack(number, 0, fd, 0, os.O_CLOEXEC))
    added: int = fcntl.ioctl(listener, NOTIF_ADDFD_REQUEST, buffer)
    return added


def respond(listener: int, number: int, value: int) -> None:
    """Let the process go on with a return value or (negative) an errno. One that has died is no error."""
    error, result = (value, 0) if value < 0 else (0, value)
    _send(listener, NOTIF_RESP.pack(number, result, error, 0))


def proceed(listener: int, number: int) -> None:
    """Let the kernel carry out the call."""
    _send(listener, NOTIF_RESP.pack(number, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE))


def _send(listener: int, response: bytes) -> None:
    try:
        fcntl.ioctl(listener, NOTIF_SEND, response)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
