"""Seccomp user notification: the filter for system calls that we answer, and its listener (linux/seccomp.h).

No binding has all of this: libseccomp can neither add descriptors to the stopped process nor prevent signals from
interrupting it. So the few numbers and structs are here, and the tests compare them with the header.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import platform
import resource
import struct
import sys
from typing import Literal, NamedTuple

from apfs.sandbox import linux

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_USER_NOTIF_FLAG_CONTINUE = 1
SECCOMP_ADDFD_FLAG_SETFD = 1

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

IOCTL_NUMBERS = {
    0xC000003E: (16, 0x40000000 | 514),  # AUDIT_ARCH_X86_64, with x32
    0x40000003: (54,),  # AUDIT_ARCH_I386
    0xC00000B7: (29,),  # AUDIT_ARCH_AARCH64
    0x40000028: (54,),  # AUDIT_ARCH_ARM
    0x80000016: (54,),  # AUDIT_ARCH_S390X
    0xC00000F3: (29,),  # AUDIT_ARCH_RISCV64
}
"""Number of ioctl(2), by the architecture that a program runs as.

Only those whose numbers of requests are built like x86-64's: those of POWER, MIPS, SPARC and Alpha are not.
"""

PRLIMIT_NUMBERS = {
    0xC000003E: (302, 0x40000000 | 302),
    0x40000003: (340,),
    0xC00000B7: (261,),
    0x40000028: (369,),
    0x80000016: (334,),
    0xC00000F3: (261,),
}
"""Number of prlimit64(2), in the same way. setrlimit(3) of the C libraries makes it too."""


class FileCalls(NamedTuple):
    """Numbers of the calls that open a file or tell what an open file is.

    None where there is no such call, or where its struct stat is not that of 64-bit programs.
    """

    open: int | None
    openat: int
    fstat: int | None
    newfstatat: int | None
    statx: int


FILE_CALLS = {
    0xC000003E: FileCalls(2, 257, 5, 262, 332),
    0x40000003: FileCalls(5, 295, None, None, 383),
    0xC00000B7: FileCalls(None, 56, 80, 79, 291),
    0x40000028: FileCalls(5, 322, None, None, 397),
    0x80000016: FileCalls(5, 288, 108, 293, 379),
    0xC00000F3: FileCalls(None, 56, 80, 79, 291),
}
"""The same for files, by architecture."""

MACHINES = {
    "x86_64": 0xC000003E,
    "aarch64": 0xC00000B7,
    "s390x": 0x80000016,
    "riscv64": 0xC00000F3,
}
"""The architecture that 64-bit programs of a machine run as."""

_SECCOMP_NUMBERS = {
    "x86_64": 317,
    "aarch64": 277,
    "riscv64": 277,
    "s390x": 348,
    "armv7l": 383,
    "i686": 354,
}
"""Number of seccomp(2), by machine."""

Nodes = Literal["devices", "exact", "files"]
"""How device nodes are shown: see `apfs.sandbox.nodes`."""
FIRST_NODE = 512
"""The lowest descriptor of an open device node, where these are recognized by their numbers."""
_AT_EMPTY_PATH = 0x1000
# Flags of open(2) with which nobody opens a device: O_EXCL, O_PATH and __O_TMPFILE, the same on all architectures.
_NO_DEVICE = 0x80 | 0x200000 | 0x400000

_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_GREATER_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x54, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_Code = list[tuple[int, int, int, int]]
_ALLOW, _NOTIFY = (_RETURN, 0, 0, SECCOMP_RET_ALLOW), (_RETURN, 0, 0, SECCOMP_RET_USER_NOTIF)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _argument(place: int) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, _ARGS + 8 * place + _LOW)


def _ioctl(type_byte: int) -> _Code:
    return [_argument(1), (_AND, 0, 0, 0xFF00), (_JUMP_EQUAL, 0, 1, type_byte << 8), _NOTIFY, _ALLOW]


def _new_limit() -> _Code:
    """Notify of calls that set a limit of locked memory and do not ask for the old one. Pointers go by halves."""
    new, old = _ARGS + 16, _ARGS + 24
    return [
        *(_argument(1), (_JUMP_EQUAL, 1, 0, resource.RLIMIT_MEMLOCK), _ALLOW),
        *((_LOAD, 0, 0, old), (_JUMP_EQUAL, 1, 0, 0), _ALLOW),
        *((_LOAD, 0, 0, old + 4), (_JUMP_EQUAL, 1, 0, 0), _ALLOW),
        *((_LOAD, 0, 0, new), (_JUMP_EQUAL, 0, 2, 0), (_LOAD, 0, 0, new + 4), (_JUMP_EQUAL, 1, 0, 0)),
        *(_NOTIFY, _ALLOW),
    ]


def _opening(flags: int, nodes: Nodes) -> _Code:
    """Notify of opens that may mean a device; if not `exact`, only of those for both reading and writing."""
    if nodes == "exact":
        return [_argument(flags), (_JUMP_SET, 1, 0, _NO_DEVICE), _NOTIFY, _ALLOW]
    never = _NO_DEVICE | os.O_TRUNC
    both = [(_AND, 0, 0, os.O_ACCMODE), (_JUMP_EQUAL, 0, 1, os.O_RDWR)]
    return [_argument(flags), (_JUMP_SET, 3, 0, never), *both, _NOTIFY, _ALLOW]


def _asking(flags: int | None, nodes: Nodes) -> _Code:
    """Notify of questions about an open file; if not `exact`, only of those about a number that may be a node's."""
    code = [] if flags is None else [_argument(flags), (_JUMP_SET, 1, 0, _AT_EMPTY_PATH), _ALLOW]
    if nodes != "exact":
        code += [_argument(0), (_JUMP_GREATER_EQUAL, 1, 0, FIRST_NODE), _ALLOW]
    return [*code, _NOTIFY]


def _file_calls(calls: FileCalls, nodes: Nodes) -> list[tuple[int | None, _Code]]:
    if nodes == "files":
        return []
    opening = [(calls.open, _opening(1, nodes)), (calls.openat, _opening(2, nodes))]
    asking = [(calls.fstat, _asking(None, nodes)), (calls.newfstatat, _asking(3, nodes))]
    return [*opening, *asking, (calls.statx, _asking(2, nodes))]


@functools.cache
def program(type_byte: int, nodes: Nodes = "files") -> bytes:
    """Return the filter: notify of ioctls whose request has this type byte, of new limits of locked memory, of nodes.

    Everything else is allowed. A few instructions for any system call, none of which looks at anything but registers.
    """
    code: _Code = [(_LOAD, 0, 0, _ARCH)]
    for arch, numbers in IOCTL_NUMBERS.items():
        block: _Code = [(_LOAD, 0, 0, _NR)]
        ioctls = [(number, _ioctl(type_byte)) for number in numbers]
        limits = [(number, _new_limit()) for number in PRLIMIT_NUMBERS[arch]]
        for number, body in (*ioctls, *limits, *_file_calls(FILE_CALLS[arch], nodes)):
            if number is not None:
                block += [(_JUMP_EQUAL, 0, len(body), number), *body]
        block.append(_ALLOW)
        code += [(_JUMP_EQUAL, 0, len(block), arch), *block]
    code.append(_ALLOW)
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
    """A process, stopped at a system call."""

    id: int
    pid: int
    """Its thread id."""
    number: int
    arch: int
    args: tuple[int, ...]

    def descriptor(self, place: int) -> int:
        """Return an argument as the int that descriptors are: the kernel does not look at the higher bits either."""
        return ctypes.c_int(self.args[place]).value

    def flags(self, place: int) -> int:
        """Return an argument as the unsigned int that requests and flags are."""
        return self.args[place] & 0xFFFFFFFF


def receive(listener: int) -> Notification | None:
    """Return the next notification; None if the process has died in the meantime."""
    buffer = bytearray(NOTIF.size)
    try:
        fcntl.ioctl(listener, NOTIF_RECV, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    identity, pid, _, number, arch, _, *args = NOTIF.unpack(buffer)
    return Notification(identity, pid, ctypes.c_uint(number).value, arch, tuple(args))


def is_valid(listener: int, number: int) -> bool:
    """Whether the process is still stopped there; if not, its pid may be another's by now."""
    try:
        fcntl.ioctl(listener, NOTIF_ID_VALID, _ID.pack(number))
    except OSError:
        return False
    return True


def add_descriptor(listener: int, number: int, fd: int, place: int | None = None, flags: int = os.O_CLOEXEC) -> int:
    """Give the process a duplicate of a descriptor, at `place` or the lowest free one, and return its number there.

    `OSError`: EMFILE if it has too many, EBADF if it may have none at `place`, ENOENT if it is gone.
    """
    how = (0, fd, 0) if place is None else (SECCOMP_ADDFD_FLAG_SETFD, fd, place)
    added: int = fcntl.ioctl(listener, NOTIF_ADDFD_REQUEST, bytearray(NOTIF_ADDFD.pack(number, *how, flags)))
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
