"""Every number and every layout that apfs uses is that of the installed kernel headers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from apfs.ioctl import process, seccomp
from apfs.vfio import uapi

INCLUDE = Path("/usr/include/linux")
HEADERS = [f"linux/{name}" for name in ("vfio.h", "iommufd.h", "seccomp.h", "audit.h") if (INCLUDE / name).exists()]
# What a layout of apfs calls differently, or takes apart.
PARTS = {
    ("vfio_iommu_type1_info_cap_migration", "id"): "header.id",
    ("vfio_iommu_type1_info_cap_migration", "version"): "header.version",
    ("vfio_iommu_type1_info_cap_migration", "next"): "header.next",
    ("vfio_iommu_type1_info_cap_migration", "pad"): None,
    ("vfio_iommu_type1_info_dma_avail", "id"): "header.id",
    ("vfio_iommu_type1_info_dma_avail", "version"): "header.version",
    ("vfio_iommu_type1_info_dma_avail", "next"): "header.next",
    ("vfio_iommu_type1_info", "pad"): None,
    ("vfio_iommu_type1_dirty_bitmap_get", "bitmap_size"): "bitmap.size",
    ("vfio_iommu_type1_dirty_bitmap_get", "pgsize"): "bitmap.pgsize",
    ("vfio_iommu_type1_dirty_bitmap_get", "data"): "bitmap.data",
    ("iommu_ioas_iova_ranges", "reserved"): "__reserved",
    ("iommu_ioas_map", "reserved"): "__reserved",
}


def installed() -> uapi.Release:
    """Return the release that the installed headers are of."""
    text = (INCLUDE / "version.h").read_text()
    version, patchlevel = (
        int(re.search(rf"LINUX_VERSION_{part} (\d+)", text)[1])  # type: ignore[index]
        for part in ("MAJOR", "PATCHLEVEL")
    )
    return uapi.Release(version, patchlevel)


def evaluate(tmp_path: Path, expressions: dict[str, str]) -> dict[str, int]:
    """Let the compiler say what expressions are worth."""
    source = "".join(f"#include <{header}>\n" for header in HEADERS)
    source += "#include <stddef.h>\n#include <stdio.h>\n#include <sys/syscall.h>\nint main(void) {\n"
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
    text = "".join((INCLUDE.parent / header).read_text() for header in HEADERS)
    newer = {name for name in uapi.CONSTANTS if uapi.since(name) > installed()}
    assert {name for name in newer if re.search(rf"\b{name}\b", text)} == set()


def test_layouts(tmp_path: Path) -> None:
    expressions, expected = {}, {}
    for name, layout in uapi.STRUCTS.items():
        if uapi.since(name) > installed():
            continue
        for field, offset in layout.offsets.items():
            member = PARTS.get((name, field), field)
            if member is not None:
                expressions[f"{name}.{field}"] = f"offsetof(struct {name}, {member})"
                expected[f"{name}.{field}"] = offset
        # A struct may have more behind what is always there: flexible arrays and later additions.
        expressions[f"{name}:fits"] = f"sizeof(struct {name}) >= {layout.size}"
        expected[f"{name}:fits"] = 1
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
        "SYS_pidfd_getfd": process.PIDFD_GETFD,
    }
    assert evaluate(tmp_path, {name: name for name in names}) == names


def test_architectures(tmp_path: Path) -> None:
    names = (
        *("AUDIT_ARCH_X86_64", "AUDIT_ARCH_I386", "AUDIT_ARCH_AARCH64", "AUDIT_ARCH_ARM"),
        *("AUDIT_ARCH_S390X", "AUDIT_ARCH_PPC64LE", "AUDIT_ARCH_RISCV64"),
    )
    values = evaluate(tmp_path, {name: name for name in names})
    assert set(values.values()) == set(seccomp.IOCTL_NUMBERS)
