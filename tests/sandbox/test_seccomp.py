"""The filter, run by an interpreter of our own on what the kernel would show it."""

from __future__ import annotations

import os
import resource
import struct
from typing import TYPE_CHECKING

from hypothesis import assume, given
from hypothesis import strategies as st

from apfs.sandbox.seccomp import (
    FILE_CALLS,
    FIRST_NODE,
    IOCTL_NUMBERS,
    PRLIMIT_NUMBERS,
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_USER_NOTIF,
    program,
)
from apfs.vfio import uapi

if TYPE_CHECKING:
    from apfs.sandbox.seccomp import Nodes

MODES: tuple[Nodes, ...] = ("files", "devices", "exact")
PROGRAMS = {nodes: list(struct.iter_unpack("=HBBI", program(uapi.TYPE, nodes))) for nodes in MODES}
WORDS = st.integers(0, 2**32 - 1)
ARCHITECTURES = st.sampled_from(sorted(IOCTL_NUMBERS)) | WORDS
TABLES = (*IOCTL_NUMBERS.values(), *PRLIMIT_NUMBERS.values())
NUMBERS = st.sampled_from(sorted({number for numbers in TABLES for number in numbers})) | WORDS
# ioctl(2) does not look at anything above the low 32 bits either.
REQUESTS = st.builds(
    lambda number, kind, rest: rest << 16 | kind << 8 | number,
    st.integers(0, 255),
    st.just(uapi.TYPE) | st.integers(0, 255),
    st.integers(0, 2**48 - 1),
)


def run(memory: bytes, nodes: Nodes = "files") -> int:
    """Execute the instructions that the filter has: load a word, jumps, and, return."""
    instructions = PROGRAMS[nodes]
    accumulator, place = 0, 0
    while True:
        code, yes, no, operand = instructions[place]
        place += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", memory, operand)
            case 0x15:
                place += yes if accumulator == operand else no
            case 0x45:
                place += yes if accumulator & operand else no
            case 0x35:
                place += yes if accumulator >= operand else no
            case 0x54:
                accumulator &= operand
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


POINTERS = st.just(0) | st.integers(0, 2**32 - 1).map(lambda half: half << 32) | st.integers(0, 2**64 - 1)


@given(arch=ARCHITECTURES, number=NUMBERS, request=REQUESTS, other=st.integers(0, 2**64 - 1))
def test_only_ioctls_of_the_type_byte_stop(arch: int, number: int, request: int, other: int) -> None:
    assume(number not in PRLIMIT_NUMBERS.get(arch, ()))
    memory = struct.pack("=IIQ6Q", number, arch, other, other, request, other, other, other, other)
    stops = number in IOCTL_NUMBERS.get(arch, ()) and request >> 8 & 0xFF == uapi.TYPE
    assert run(memory) == (SECCOMP_RET_USER_NOTIF if stops else SECCOMP_RET_ALLOW)


@given(
    arch=st.sampled_from(sorted(PRLIMIT_NUMBERS)),
    place=st.integers(0, 1),
    limit=st.just(resource.RLIMIT_MEMLOCK) | WORDS,
    new=POINTERS,
    old=POINTERS,
    other=st.integers(0, 2**64 - 1),
)
def test_only_a_new_limit_of_locked_memory_stops(
    arch: int, place: int, limit: int, new: int, old: int, other: int
) -> None:
    numbers = PRLIMIT_NUMBERS[arch]
    memory = struct.pack("=IIQ6Q", numbers[place % len(numbers)], arch, other, other, limit, new, old, other, other)
    stops = limit == resource.RLIMIT_MEMLOCK and new != 0 and old == 0
    assert run(memory) == (SECCOMP_RET_USER_NOTIF if stops else SECCOMP_RET_ALLOW)


def test_the_interpreter_sees_both() -> None:
    arch, (number, *_) = next(iter(IOCTL_NUMBERS.items()))
    seen = {
        run(struct.pack("=IIQ6Q", number, arch, 0, 0, request, 0, 0, 0, 0)) for request in (0x3B64, 0x5401, 0x3B643B)
    }
    assert seen == {SECCOMP_RET_USER_NOTIF, SECCOMP_RET_ALLOW}


FLAGS = st.sampled_from(
    [
        access | extra
        for access in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
        for extra in (0, os.O_CLOEXEC, os.O_CREAT, os.O_TRUNC, os.O_EXCL, os.O_PATH, os.O_TMPFILE, os.O_NONBLOCK)
    ]
)


@given(
    nodes=st.sampled_from(MODES), arch=st.sampled_from(sorted(FILE_CALLS)), flags=FLAGS, other=st.integers(0, 2**64 - 1)
)
def test_which_opens_stop(nodes: Nodes, arch: int, flags: int, other: int) -> None:
    never = os.O_EXCL | os.O_PATH | (os.O_TMPFILE & ~os.O_DIRECTORY)
    never |= os.O_TRUNC if nodes == "devices" else 0
    stops = nodes != "files" and not flags & never
    stops = stops and (nodes == "exact" or flags & os.O_ACCMODE == os.O_RDWR)
    calls = FILE_CALLS[arch]
    expected = SECCOMP_RET_USER_NOTIF if stops else SECCOMP_RET_ALLOW
    memory = struct.pack("=IIQ6Q", calls.openat, arch, other, other, other, flags, other, other, other)
    assert run(memory, nodes) == expected
    if calls.open is not None:
        memory = struct.pack("=IIQ6Q", calls.open, arch, other, other, flags, other, other, other, other)
        assert run(memory, nodes) == expected


@given(
    nodes=st.sampled_from(MODES),
    arch=st.sampled_from(sorted(FILE_CALLS)),
    fd=st.integers(-200, 2 * FIRST_NODE),
    flags=st.sampled_from((0, 0x1000, 0x1100, 0x100)),
    other=st.integers(0, 2**64 - 1),
)
def test_which_questions_about_open_files_stop(nodes: Nodes, arch: int, fd: int, flags: int, other: int) -> None:
    calls = FILE_CALLS[arch]
    fd %= 2**32
    known = nodes == "exact" or (nodes == "devices" and fd >= FIRST_NODE)
    asked = {
        calls.fstat: (known, (fd, other, other, other)),
        calls.newfstatat: (known and bool(flags & 0x1000), (fd, other, other, flags)),
        calls.statx: (known and bool(flags & 0x1000), (fd, other, flags, other)),
    }
    for number, (stops, arguments) in asked.items():
        if number is not None:
            memory = struct.pack("=IIQ6Q", number, arch, other, *arguments, other, other)
            assert run(memory, nodes) == (SECCOMP_RET_USER_NOTIF if stops else SECCOMP_RET_ALLOW)


@given(nodes=st.sampled_from(MODES), arch=ARCHITECTURES, number=WORDS, argument=st.integers(0, 2**64 - 1))
def test_other_calls_never_stop(nodes: Nodes, arch: int, number: int, argument: int) -> None:
    assume(number not in IOCTL_NUMBERS.get(arch, ()))
    assume(number not in PRLIMIT_NUMBERS.get(arch, ()))
    assume(number not in FILE_CALLS.get(arch, ()))
    assert run(struct.pack("=IIQ6Q", number, arch, *[argument] * 7), nodes) == SECCOMP_RET_ALLOW
