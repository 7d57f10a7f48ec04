"""Every number and every layout that apfs uses is that of the installed kernel headers.

The compiler is asked, so that CPATH can name a directory with other headers.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

import pytest

from apfs.sandbox import linux, nodes, seccomp
from apfs.vfio import uapi
from apfs.vfio.device import IRQ_CONFIG_CHANGED, IRQ_REQUEST
from apfs.vfio.fsm import State

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("version.h", "vfio.h", "iommufd.h", "seccomp.h", "audit.h", "filter.h", "openat2.h", "prctl.h", "sched.h")
INCLUDES = "".join(f"#if __has_include(<linux/{name}>)\n#include <linux/{name}>\n#endif\n" for name in NAMES)
# What a layout of apfs calls differently, or takes apart.
PARTS = {
    ("vfio_iommu_type1_info_cap_migration", "id"): "header.id",
    ("vfio_iommu_type1_info_cap_migration", "version"): "header.version",
    ("vfio_iommu_type1_info_cap_migration", "next"): "header.next",
    ("vfio_iommu_type1_info_cap_migration", "pad"): None,
    ("vfio_iommu_type1_info_dma_avail", "id"): "header.id",
    ("vfio_iommu_type1_info_dma_avail", "version"): "header.version",
    ("vfio_iommu_type1_info_dma_avail", "next"): "header.next",
    **{("vfio_iommu_type1_info_cap_iova_range", name): f"header.{name}" for name in ("id", "version", "next")},
    ("vfio_iommu_type1_info", "pad"): None,
    **{("iommu_hw_info", f"reserved{number}"): f"__reserved[{number}]" for number in range(3)},
    ("vfio_iommu_type1_dirty_bitmap_get", "bitmap_size"): "bitmap.size",
    ("vfio_iommu_type1_dirty_bitmap_get", "pgsize"): "bitmap.pgsize",
    ("vfio_iommu_type1_dirty_bitmap_get", "data"): "bitmap.data",
    ("iommu_ioas_iova_ranges", "reserved"): "__reserved",
    ("iommu_ioas_map", "reserved"): "__reserved",
}
# Structs that have grown, or will: what apfs uses is the part that there has always been.
GROWING = {
    "vfio_device_info",
    "vfio_device_bind_iommufd",
    "vfio_device_attach_iommufd_pt",
    "vfio_device_detach_iommufd_pt",
    "iommu_hwpt_alloc",
}


@cache
def headers() -> str:
    """Return the text of the headers, preprocessed but with its macros."""
    command = ["gcc", "-E", "-P", "-dD", "-x", "c", "-"]
    return subprocess.run(command, check=True, input=INCLUDES, capture_output=True, text=True).stdout


def has(name: str) -> bool:
    """Whether the headers know a name."""
    return re.search(rf"\b{name}\b", headers()) is not None


@cache
def installed() -> uapi.Release:
    """Return the release that the headers are of."""
    found = re.search(r"#define LINUX_VERSION_CODE (\d+)", headers())
    assert found is not None
    return uapi.Release(int(found[1]) >> 16, int(found[1]) >> 8 & 0xFF)


def evaluate(tmp_path: Path, expressions: dict[str, str]) -> dict[str, int]:
    """Let the compiler say what expressions are worth."""
    source = (
        "#define _GNU_SOURCE\n"
        + INCLUDES
        + "#include <stddef.h>\n#include <stdio.h>\n#include <sys/stat.h>\n#include <sys/syscall.h>\nint main(void) {\n"
    )
    source += "".join(
        f'printf("{name} %llu\\n", (unsigned long long)({text}));\n' for name, text in expressions.items()
    )
    (tmp_path / "values.c").write_text(source + "return 0; }\n")
    subprocess.run(["gcc", "-o", tmp_path / "values", tmp_path / "values.c"], check=True)
    output = subprocess.run([tmp_path / "values"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def test_numbers(tmp_path: Path) -> None:
    wanted = {name: value for name, value in uapi.CONSTANTS.items() if uapi.since(name) <= installed()}
    assert {"VFIO_GET_API_VERSION", "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE"} <= set(wanted)
    assert evaluate(tmp_path, {name: name for name in wanted}) == wanted


def test_what_the_headers_lack_is_what_is_said_to_be_newer() -> None:
    newer = {name for name in uapi.CONSTANTS if uapi.since(name) > installed()}
    assert {name for name in newer if has(name)} == set()


def test_states_and_interrupts(tmp_path: Path) -> None:
    names = {f"VFIO_DEVICE_STATE_{state.name}": int(state) for state in State}
    names |= {"VFIO_AP_REQ_IRQ_INDEX": IRQ_REQUEST, "VFIO_AP_CFG_CHG_IRQ_INDEX": IRQ_CONFIG_CHANGED}
    # The states of peer-to-peer came with the interface, those of pre-copy and the interrupts later.
    known = {name: number for name, number in names.items() if has(name)}
    assert len(known) >= State.RUNNING_P2P + 1
    assert evaluate(tmp_path, {name: name for name in known}) == known


def test_type_byte(tmp_path: Path) -> None:
    assert evaluate(tmp_path, {"type": "VFIO_TYPE", "first": "VFIO_TYPE << 8 | VFIO_BASE"}) == {
        "type": uapi.TYPE,
        "first": min(uapi.Cmd),
    }


def test_layouts(tmp_path: Path) -> None:
    expressions, expected = {}, {}
    for name, layout in uapi.STRUCTS.items():
        if uapi.since(name) > installed():
            continue
        ends = [*list(layout.offsets.values())[1:], layout.size]
        for (field, offset), end in zip(layout.offsets.items(), ends, strict=True):
            member = PARTS.get((name, field), field)
            if member is not None:
                expressions[f"{name}.{field}"] = f"offsetof(struct {name}, {member})"
                expected[f"{name}.{field}"] = offset
                expressions[f"{name}.{field}:size"] = f"sizeof(((struct {name} *)0)->{member})"
                expected[f"{name}.{field}:size"] = end - offset
        relation = ">=" if name in GROWING else "=="
        expressions[f"{name}:size"] = f"sizeof(struct {name}) {relation} {layout.size}"
        expected[f"{name}:size"] = 1
    assert evaluate(tmp_path, expressions) == expected


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("seccomp_notif", seccomp.NOTIF),
        ("seccomp_notif_resp", seccomp.NOTIF_RESP),
        ("seccomp_notif_addfd", seccomp.NOTIF_ADDFD),
    ],
)
def test_layouts_of_seccomp(tmp_path: Path, name: str, layout: object) -> None:
    assert evaluate(tmp_path, {"size": f"sizeof(struct {name})"})["size"] == layout.size  # type: ignore[attr-defined]


def test_what_is_where_in_a_notification(tmp_path: Path) -> None:
    data = ("nr", "arch", "instruction_pointer", *(f"args[{number}]" for number in range(6)))
    fields = ("id", "pid", "flags", *(f"data.{field}" for field in data))
    offsets = evaluate(tmp_path, {field: f"offsetof(struct seccomp_notif, {field})" for field in fields})
    sizes = evaluate(tmp_path, {field: f"sizeof(((struct seccomp_notif *)0)->{field})" for field in fields})
    memory = bytearray(seccomp.NOTIF.size)
    for value, field in enumerate(fields):
        memory[offsets[field] : offsets[field] + sizes[field]] = value.to_bytes(sizes[field], sys.byteorder)
    assert seccomp.NOTIF.unpack(memory) == tuple(range(len(fields)))


def test_numbers_of_seccomp(tmp_path: Path) -> None:
    names = {
        "SECCOMP_SET_MODE_FILTER": seccomp.SECCOMP_SET_MODE_FILTER,
        "SECCOMP_FILTER_FLAG_NEW_LISTENER": seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER,
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": seccomp.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
        "SECCOMP_RET_ALLOW": seccomp.SECCOMP_RET_ALLOW,
        "SECCOMP_RET_USER_NOTIF": seccomp.SECCOMP_RET_USER_NOTIF,
        "SECCOMP_USER_NOTIF_FLAG_CONTINUE": seccomp.SECCOMP_USER_NOTIF_FLAG_CONTINUE,
        "SECCOMP_IOCTL_NOTIF_RECV": seccomp.NOTIF_RECV,
        "SECCOMP_IOCTL_NOTIF_SEND": seccomp.NOTIF_SEND,
        "SECCOMP_IOCTL_NOTIF_ID_VALID": seccomp.NOTIF_ID_VALID,
        "SECCOMP_IOCTL_NOTIF_ADDFD": seccomp.NOTIF_ADDFD_REQUEST,
        "SYS_seccomp": seccomp.seccomp_number(),
    }
    assert evaluate(tmp_path, {name: name for name in names}) == names


def test_numbers_of_system_calls(tmp_path: Path) -> None:
    names = {
        "CLONE_NEWUSER": linux.CLONE_NEWUSER,
        "CLONE_NEWNET": linux.CLONE_NEWNET,
        "PR_SET_PDEATHSIG": linux.PR_SET_PDEATHSIG,
        "PR_SET_NO_NEW_PRIVS": linux.PR_SET_NO_NEW_PRIVS,
        "PR_CAP_AMBIENT": linux.PR_CAP_AMBIENT,
        "PR_CAP_AMBIENT_CLEAR_ALL": linux.PR_CAP_AMBIENT_CLEAR_ALL,
        "SECCOMP_ADDFD_FLAG_SETFD": seccomp.SECCOMP_ADDFD_FLAG_SETFD,
        "SYS_pidfd_getfd": linux.PIDFD_GETFD,
        "SYS_openat2": linux.OPENAT2,
        "RESOLVE_NO_MAGICLINKS": linux.RESOLVE_NO_MAGICLINKS,
        "RESOLVE_BENEATH": linux.RESOLVE_BENEATH,
        "RESOLVE_IN_ROOT": linux.RESOLVE_IN_ROOT,
    }
    assert evaluate(tmp_path, {name: name for name in names}) == names


def test_calls_for_files(tmp_path: Path) -> None:
    """Numbers and layouts of the machine that the tests run on; those of others are from their tables in Linux."""
    calls = seccomp.FILE_CALLS[seccomp.MACHINES[platform.machine()]]
    names = {"fstat": calls.fstat, "newfstatat": calls.newfstatat, "openat": calls.openat, "statx": calls.statx}
    numbers = {f"SYS_{name}": number for name, number in names.items()}
    assert evaluate(tmp_path, {name: name for name in numbers}) == numbers
    if calls.open is not None:
        assert evaluate(tmp_path, {"open": "SYS_open"})["open"] == calls.open
    layouts = {"stat": nodes.STATS[platform.machine()], "statx": nodes.STATX}
    for (name, layout), prefix in zip(layouts.items(), ("st", "stx"), strict=True):
        expressions = {"size": f"sizeof(struct {name})", "ids": f"offsetof(struct {name}, {prefix}_uid)"}
        expressions["gid"] = f"offsetof(struct {name}, {prefix}_gid)"
        assert evaluate(tmp_path, expressions) == {"size": layout.size, "ids": layout.ids, "gid": layout.ids + 4}


def test_architectures(tmp_path: Path) -> None:
    names = (
        *("AUDIT_ARCH_X86_64", "AUDIT_ARCH_I386", "AUDIT_ARCH_AARCH64", "AUDIT_ARCH_ARM"),
        *("AUDIT_ARCH_S390X", "AUDIT_ARCH_PPC64LE", "AUDIT_ARCH_RISCV64"),
    )
    values = evaluate(tmp_path, {name: name for name in names})
    assert set(values.values()) == set(seccomp.IOCTL_NUMBERS) == set(seccomp.PRLIMIT_NUMBERS)
