"""Every number and every layout that apfs uses is that of the installed kernel headers."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from apfs.vfio import uapi
from apfs.vfio.device import IRQ_CONFIG_CHANGED, IRQ_REQUEST
from apfs.vfio.fsm import State
from tests.headers import evaluate, headers

if TYPE_CHECKING:
    from pathlib import Path

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


def has(name: str) -> bool:
    """Whether the headers know a name."""
    return re.search(rf"\b{name}\b", headers()) is not None


@cache
def installed() -> uapi.Release:
    """Return the release that the headers are of."""
    found = re.search(r"#define LINUX_VERSION_CODE (\d+)", headers())
    assert found is not None
    return uapi.Release(int(found[1]) >> 16, int(found[1]) >> 8 & 0xFF)


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
