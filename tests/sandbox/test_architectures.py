"""What `apfs exec` knows of architectures other than this machine's is what their headers say."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest

from apfs.sandbox import linux, nodes, seccomp
from apfs.vfio import uapi
from tests.headers import evaluate, foreign

if TYPE_CHECKING:
    from pathlib import Path

AUDIT = {
    "x86_64": "AUDIT_ARCH_X86_64",
    "i386": "AUDIT_ARCH_I386",
    "aarch64": "AUDIT_ARCH_AARCH64",
    "arm": "AUDIT_ARCH_ARM",
    "s390x": "AUDIT_ARCH_S390X",
    "riscv64": "AUDIT_ARCH_RISCV64",
}
# What platform.machine() says of 32-bit systems.
NAMES = {"i386": "i686", "arm": "armv7l"}


def test_all_architectures_are_compared(tmp_path: Path) -> None:
    values = set(evaluate(tmp_path, {name: name for name in AUDIT.values()}).values())
    for table in (seccomp.IOCTL_NUMBERS, seccomp.PRLIMIT_NUMBERS, seccomp.FILE_CALLS):
        assert table.keys() == values
    assert set(nodes.STATS) == set(seccomp.MACHINES) == AUDIT.keys() - NAMES.keys()


@pytest.mark.parametrize("architecture", AUDIT)
def test_numbers_of_system_calls(tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = evaluate(tmp_path, {"arch": AUDIT[architecture]})["arch"]
    monkeypatch.setattr(platform, "machine", lambda: NAMES.get(architecture, architecture))
    calls = seccomp.FILE_CALLS[arch]
    known = {
        "ioctl": seccomp.IOCTL_NUMBERS[arch][0],
        "prlimit64": seccomp.PRLIMIT_NUMBERS[arch][0],
        "seccomp": seccomp.seccomp_number(),
        "openat2": linux.OPENAT2,
        "pidfd_getfd": linux.PIDFD_GETFD,
        **{name: number for name, number in calls._asdict().items() if number is not None},
    }
    flags = "O_EXCL | O_PATH | __O_TMPFILE"  # with which nobody opens a device
    numbers = foreign(tmp_path, architecture, [*(f"__NR_{name}" for name in {*known, *calls._fields}), flags])
    wanted = {**{f"__NR_{name}": number for name, number in known.items()}, flags: 0x600080}
    if architecture in NAMES:  # its struct stat is not answered, though it has these calls
        wanted |= {name: numbers[name] for name in ("__NR_fstat", "__NR_newfstatat") if name in numbers}
    assert numbers == wanted


def test_programs_of_x32(tmp_path: Path) -> None:
    """They count as programs of x86-64."""
    arch = evaluate(tmp_path, {"arch": "AUDIT_ARCH_X86_64"})["arch"]
    numbers = foreign(tmp_path, "x32", ["__NR_ioctl", "__NR_prlimit64"])
    assert numbers == {
        "__NR_ioctl": seccomp.IOCTL_NUMBERS[arch][1],
        "__NR_prlimit64": seccomp.PRLIMIT_NUMBERS[arch][1],
    }


@pytest.mark.parametrize("architecture", sorted(AUDIT.keys() - NAMES.keys()))
def test_layouts_requests_and_flags(tmp_path: Path, architecture: str) -> None:
    """Those of programs of 64 bits; requests and flags are everywhere the same."""
    stat = nodes.STATS[architecture]
    wanted = {
        "sizeof(struct stat)": stat.size,
        "__builtin_offsetof(struct stat, st_uid)": stat.ids,
        "__builtin_offsetof(struct stat, st_gid)": stat.ids + 4,
        "sizeof(struct seccomp_notif)": seccomp.NOTIF.size,
        "SECCOMP_IOCTL_NOTIF_RECV": seccomp.NOTIF_RECV,
        "SECCOMP_IOCTL_NOTIF_SEND": seccomp.NOTIF_SEND,
        "SECCOMP_IOCTL_NOTIF_ID_VALID": seccomp.NOTIF_ID_VALID,
        "SECCOMP_IOCTL_NOTIF_ADDFD": seccomp.NOTIF_ADDFD_REQUEST,
        "VFIO_GET_API_VERSION": uapi.CONSTANTS["VFIO_GET_API_VERSION"],
        "VFIO_DEVICE_FEATURE": uapi.CONSTANTS["VFIO_DEVICE_FEATURE"],
    }
    assert foreign(tmp_path, architecture, list(wanted)) == wanted
