"""The binary interface of VFIO and iommufd: numbers, flags and struct layouts (linux/vfio.h, linux/iommufd.h).

Values only, and the only struct packing of the VFIO layer. `CONSTANTS` and `STRUCTS` hold everything under the names
of the headers, with the kernel release that introduced it, for the tests that compare them with the headers.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

TYPE = 0x3B
"""Type byte of all VFIO and iommufd ioctls, `_IO(';', nr)`."""

PAGE = 4096
_BASE = TYPE << 8


class Cmd(IntEnum):
    """Requests of a container, a group, a device and a migration file."""

    VFIO_GET_API_VERSION = _BASE | 0x64
    VFIO_CHECK_EXTENSION = _BASE | 0x65
    VFIO_SET_IOMMU = _BASE | 0x66
    VFIO_GROUP_GET_STATUS = _BASE | 0x67
    VFIO_GROUP_SET_CONTAINER = _BASE | 0x68
    VFIO_GROUP_UNSET_CONTAINER = _BASE | 0x69
    VFIO_GROUP_GET_DEVICE_FD = _BASE | 0x6A
    VFIO_DEVICE_GET_INFO = _BASE | 0x6B
    VFIO_DEVICE_GET_REGION_INFO = _BASE | 0x6C
    VFIO_DEVICE_GET_IRQ_INFO = _BASE | 0x6D
    VFIO_DEVICE_SET_IRQS = _BASE | 0x6E
    VFIO_DEVICE_RESET = _BASE | 0x6F
    VFIO_IOMMU_GET_INFO = _BASE | 0x70
    VFIO_IOMMU_MAP_DMA = _BASE | 0x71
    VFIO_IOMMU_UNMAP_DMA = _BASE | 0x72
    # The same number as VFIO_DEVICE_FEATURE: what it means depends on the kind of file.
    VFIO_IOMMU_DIRTY_PAGES = _BASE | 0x75
    VFIO_DEVICE_BIND_IOMMUFD = _BASE | 0x76
    VFIO_DEVICE_ATTACH_IOMMUFD_PT = _BASE | 0x77
    VFIO_DEVICE_DETACH_IOMMUFD_PT = _BASE | 0x78
    IOMMU_DESTROY = _BASE | 0x80
    IOMMU_IOAS_ALLOC = _BASE | 0x81
    IOMMU_IOAS_ALLOW_IOVAS = _BASE | 0x82
    IOMMU_IOAS_COPY = _BASE | 0x83
    IOMMU_IOAS_IOVA_RANGES = _BASE | 0x84
    IOMMU_IOAS_MAP = _BASE | 0x85
    IOMMU_IOAS_UNMAP = _BASE | 0x86
    IOMMU_OPTION = _BASE | 0x87
    IOMMU_VFIO_IOAS = _BASE | 0x88
    IOMMU_HWPT_ALLOC = _BASE | 0x89
    IOMMU_GET_HW_INFO = _BASE | 0x8A
    IOMMU_HWPT_SET_DIRTY_TRACKING = _BASE | 0x8B
    IOMMU_HWPT_GET_DIRTY_BITMAP = _BASE | 0x8C
    IOMMU_HWPT_INVALIDATE = _BASE | 0x8D
    IOMMU_FAULT_QUEUE_ALLOC = _BASE | 0x8E
    IOMMU_IOAS_MAP_FILE = _BASE | 0x8F
    IOMMU_VIOMMU_ALLOC = _BASE | 0x90
    IOMMU_VDEVICE_ALLOC = _BASE | 0x91
    IOMMU_IOAS_CHANGE_PROCESS = _BASE | 0x92
    IOMMU_VEVENTQ_ALLOC = _BASE | 0x93
    IOMMU_HW_QUEUE_ALLOC = _BASE | 0x94


VFIO_DEVICE_FEATURE: Final = _BASE | 0x75
VFIO_API_VERSION: Final = 0

VFIO_TYPE1_IOMMU: Final = 1
VFIO_TYPE1v2_IOMMU: Final = 3
VFIO_DMA_CC_IOMMU: Final = 4
VFIO_UNMAP_ALL: Final = 9
VFIO_UPDATE_VADDR: Final = 10

VFIO_GROUP_FLAGS_VIABLE: Final = 1
VFIO_GROUP_FLAGS_CONTAINER_SET: Final = 2

VFIO_DEVICE_FLAGS_RESET: Final = 1
VFIO_DEVICE_FLAGS_AP: Final = 1 << 5

VFIO_IRQ_INFO_EVENTFD: Final = 1
VFIO_IRQ_SET_DATA_NONE: Final = 1
VFIO_IRQ_SET_DATA_BOOL: Final = 2
VFIO_IRQ_SET_DATA_EVENTFD: Final = 4
VFIO_IRQ_SET_ACTION_MASK: Final = 8
VFIO_IRQ_SET_ACTION_UNMASK: Final = 16
VFIO_IRQ_SET_ACTION_TRIGGER: Final = 32
VFIO_IRQ_SET_DATA_TYPE_MASK: Final = 7
VFIO_IRQ_SET_ACTION_TYPE_MASK: Final = 56

VFIO_IOMMU_INFO_PGSIZES: Final = 1
VFIO_IOMMU_INFO_CAPS: Final = 2
VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: Final = 1
VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION: Final = 2
VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: Final = 3
VFIO_DMA_MAP_FLAG_READ: Final = 1
VFIO_DMA_MAP_FLAG_WRITE: Final = 2
VFIO_DMA_MAP_FLAG_VADDR: Final = 4
VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP: Final = 1
VFIO_DMA_UNMAP_FLAG_ALL: Final = 2
VFIO_DMA_UNMAP_FLAG_VADDR: Final = 4
VFIO_IOMMU_DIRTY_PAGES_FLAG_START: Final = 1
VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP: Final = 2
VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP: Final = 4

VFIO_DEVICE_FEATURE_MASK: Final = 0xFFFF
VFIO_DEVICE_FEATURE_GET: Final = 1 << 16
VFIO_DEVICE_FEATURE_SET: Final = 1 << 17
VFIO_DEVICE_FEATURE_PROBE: Final = 1 << 18
VFIO_DEVICE_FEATURE_MIGRATION: Final = 1
VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: Final = 2
VFIO_DEVICE_FEATURE_DMA_LOGGING_START: Final = 6
VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: Final = 7
VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: Final = 8
VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: Final = 9
VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: Final = 12
VFIO_MIGRATION_STOP_COPY: Final = 1

VFIO_DEVICE_ATTACH_PASID: Final = 1
VFIO_DEVICE_DETACH_PASID: Final = 1

IOMMU_IOAS_MAP_FIXED_IOVA: Final = 1
IOMMU_IOAS_MAP_WRITEABLE: Final = 2
IOMMU_IOAS_MAP_READABLE: Final = 4
IOMMU_OPTION_RLIMIT_MODE: Final = 0
IOMMU_OPTION_HUGE_PAGES: Final = 1
IOMMU_OPTION_OP_SET: Final = 0
IOMMU_OPTION_OP_GET: Final = 1
IOMMU_VFIO_IOAS_GET: Final = 0
IOMMU_VFIO_IOAS_SET: Final = 1
IOMMU_VFIO_IOAS_CLEAR: Final = 2
IOMMU_HW_INFO_FLAG_INPUT_TYPE: Final = 1
IOMMU_HWPT_DIRTY_TRACKING_ENABLE: Final = 1
IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR: Final = 1


class Release(NamedTuple):
    """A release of Linux."""

    version: int
    patchlevel: int


# The oldest kernel whose headers have what is not listed here; 5.18 brought the present migration interface.
_EARLIEST = Release(5, 18)
_SINCE = {
    "VFIO_DEVICE_FEATURE_DMA_LOGGING": Release(6, 1),
    "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE": Release(6, 2),
    "VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2": Release(7, 2),
    "IOMMU_": Release(6, 2),
    "VFIO_DEVICE_BIND": Release(6, 6),
    "VFIO_DEVICE_ATTACH_IOMMUFD": Release(6, 6),
    "VFIO_DEVICE_DETACH_IOMMUFD": Release(6, 6),
    "IOMMU_HWPT_ALLOC": Release(6, 6),
    "iommu_hwpt_alloc": Release(6, 8),
    "IOMMU_GET_HW_INFO": Release(6, 6),
    "iommu_hw_info": Release(6, 15),
    "IOMMU_HWPT_SET_DIRTY": Release(6, 7),
    "IOMMU_HWPT_DIRTY": Release(6, 7),
    "IOMMU_HWPT_GET_DIRTY": Release(6, 7),
    "IOMMU_HWPT_INVALIDATE": Release(6, 8),
    "IOMMU_FAULT_": Release(6, 11),
    "IOMMU_IOAS_MAP_FILE": Release(6, 13),
    "IOMMU_VIOMMU_": Release(6, 13),
    "IOMMU_VDEVICE_": Release(6, 13),
    "IOMMU_IOAS_CHANGE_PROCESS": Release(6, 14),
    "IOMMU_VEVENTQ_": Release(6, 15),
    "IOMMU_HW_INFO_FLAG_INPUT_TYPE": Release(6, 17),
    "IOMMU_HW_QUEUE_": Release(6, 17),
    "VFIO_DEVICE_ATTACH_PASID": Release(6, 15),
    "VFIO_DEVICE_DETACH_PASID": Release(6, 15),
}


def since(name: str) -> Release:
    """Return the first release whose headers have a name of `CONSTANTS`, or a struct of `STRUCTS` as it is here."""
    prefixes = [prefix for prefix in _SINCE if name.startswith(prefix) or name.upper().startswith(prefix)]
    return _SINCE[max(prefixes, key=lambda prefix: (len(prefix), prefix))] if prefixes else _EARLIEST


CONSTANTS: dict[str, int] = {
    name: value for name, value in globals().items() if name.startswith(("VFIO_", "IOMMU_")) and isinstance(value, int)
} | {command.name: command.value for command in Cmd}


class CStruct:
    """The fixed part of a struct: fields in order, without hidden padding, in the caller's byte order.

    All of them are laid out so that 32-bit and 64-bit callers agree.
    """

    def __init__(self, name: str, fields: str) -> None:
        """Describe a struct by words `field:format`, the formats being those of the module struct."""
        self.name = name
        pairs = [word.split(":") for word in fields.split()]
        self._format = struct.Struct("=" + "".join(code for _, code in pairs))
        self.size = self._format.size
        self.offsets: dict[str, int] = {}
        """Offset of each field in bytes."""
        offset = 0
        for field, code in pairs:
            self.offsets[field] = offset
            offset += struct.calcsize("=" + code)

    def unpack(self, memory: bytes) -> tuple[int, ...]:
        """Return the fields' values; `memory` has at least `size` bytes."""
        return self._format.unpack_from(memory)

    def pack(self, *values: int) -> bytes:
        """Return the bytes of a struct."""
        return self._format.pack(*values)


GROUP_STATUS = CStruct("vfio_group_status", "argsz:I flags:I")
DEVICE_INFO = CStruct("vfio_device_info", "argsz:I flags:I num_regions:I num_irqs:I")
IRQ_INFO = CStruct("vfio_irq_info", "argsz:I flags:I index:I count:I")
IRQ_SET = CStruct("vfio_irq_set", "argsz:I flags:I index:I start:I count:I")
FEATURE = CStruct("vfio_device_feature", "argsz:I flags:I")
FEATURE_MIGRATION = CStruct("vfio_device_feature_migration", "flags:Q")
FEATURE_MIG_STATE = CStruct("vfio_device_feature_mig_state", "device_state:I data_fd:i")
FEATURE_MIG_DATA_SIZE = CStruct("vfio_device_feature_mig_data_size", "stop_copy_length:Q")
BIND_IOMMUFD = CStruct("vfio_device_bind_iommufd", "argsz:I flags:I iommufd:i out_devid:I")
ATTACH_PT = CStruct("vfio_device_attach_iommufd_pt", "argsz:I flags:I pt_id:I")
DETACH_PT = CStruct("vfio_device_detach_iommufd_pt", "argsz:I flags:I")
TYPE1_INFO = CStruct("vfio_iommu_type1_info", "argsz:I flags:I iova_pgsizes:Q cap_offset:I pad:I")
CAP_HEADER = CStruct("vfio_info_cap_header", "id:H version:H next:I")
CAP_MIGRATION = CStruct(
    "vfio_iommu_type1_info_cap_migration",
    "id:H version:H next:I flags:I pad:I pgsize_bitmap:Q max_dirty_bitmap_size:Q",
)
CAP_DMA_AVAIL = CStruct("vfio_iommu_type1_info_dma_avail", "id:H version:H next:I avail:I")
CAP_IOVA_RANGE = CStruct("vfio_iommu_type1_info_cap_iova_range", "id:H version:H next:I nr_iovas:I reserved:I")
DMA_MAP = CStruct("vfio_iommu_type1_dma_map", "argsz:I flags:I vaddr:Q iova:Q size:Q")
DMA_UNMAP = CStruct("vfio_iommu_type1_dma_unmap", "argsz:I flags:I iova:Q size:Q")
BITMAP = CStruct("vfio_bitmap", "pgsize:Q size:Q data:Q")
DIRTY_BITMAP = CStruct("vfio_iommu_type1_dirty_bitmap", "argsz:I flags:I")
DIRTY_BITMAP_GET = CStruct("vfio_iommu_type1_dirty_bitmap_get", "iova:Q size:Q pgsize:Q bitmap_size:Q data:Q")
IOAS_ALLOC = CStruct("iommu_ioas_alloc", "size:I flags:I out_ioas_id:I")
IOAS_IOVA_RANGES = CStruct(
    "iommu_ioas_iova_ranges",
    "size:I ioas_id:I num_iovas:I reserved:I allowed_iovas:Q out_iova_alignment:Q",
)
IOVA_RANGE = CStruct("iommu_iova_range", "start:Q last:Q")
IOAS_MAP = CStruct("iommu_ioas_map", "size:I flags:I ioas_id:I reserved:I user_va:Q length:Q iova:Q")
IOAS_MAP_FILE = CStruct("iommu_ioas_map_file", "size:I flags:I ioas_id:I fd:i start:Q length:Q iova:Q")
IOAS_UNMAP = CStruct("iommu_ioas_unmap", "size:I ioas_id:I iova:Q length:Q")
IOAS_ALLOW_IOVAS = CStruct("iommu_ioas_allow_iovas", "size:I ioas_id:I num_iovas:I __reserved:I allowed_iovas:Q")
IOAS_COPY = CStruct("iommu_ioas_copy", "size:I flags:I dst_ioas_id:I src_ioas_id:I length:Q dst_iova:Q src_iova:Q")
IOAS_CHANGE_PROCESS = CStruct("iommu_ioas_change_process", "size:I __reserved:I")
OPTION = CStruct("iommu_option", "size:I option_id:I op:H __reserved:H object_id:I val64:Q")
VFIO_IOAS = CStruct("iommu_vfio_ioas", "size:I ioas_id:I op:H __reserved:H")
HWPT_ALLOC = CStruct(
    "iommu_hwpt_alloc",
    "size:I flags:I dev_id:I pt_id:I out_hwpt_id:I __reserved:I data_type:I data_len:I data_uptr:Q",
)
HW_INFO = CStruct(
    "iommu_hw_info",
    "size:I flags:I dev_id:I data_len:I data_uptr:Q out_data_type:I out_max_pasid_log2:B"
    " reserved0:B reserved1:B reserved2:B out_capabilities:Q",
)
HWPT_SET_DIRTY_TRACKING = CStruct("iommu_hwpt_set_dirty_tracking", "size:I flags:I hwpt_id:I __reserved:I")
HWPT_GET_DIRTY_BITMAP = CStruct(
    "iommu_hwpt_get_dirty_bitmap", "size:I hwpt_id:I flags:I __reserved:I iova:Q length:Q page_size:Q data:Q"
)
HWPT_INVALIDATE = CStruct(
    "iommu_hwpt_invalidate", "size:I hwpt_id:I data_uptr:Q data_type:I entry_len:I entry_num:I __reserved:I"
)
FAULT_ALLOC = CStruct("iommu_fault_alloc", "size:I flags:I out_fault_id:I out_fault_fd:I")
VIOMMU_ALLOC = CStruct(
    "iommu_viommu_alloc",
    "size:I flags:I type:I dev_id:I hwpt_id:I out_viommu_id:I data_len:I __reserved:I data_uptr:Q",
)
VDEVICE_ALLOC = CStruct("iommu_vdevice_alloc", "size:I viommu_id:I dev_id:I out_vdevice_id:I virt_id:Q")
VEVENTQ_ALLOC = CStruct(
    "iommu_veventq_alloc",
    "size:I flags:I viommu_id:I type:I veventq_depth:I out_veventq_id:I out_veventq_fd:I __reserved:I",
)
HW_QUEUE_ALLOC = CStruct(
    "iommu_hw_queue_alloc",
    "size:I flags:I viommu_id:I type:I index:I out_hw_queue_id:I nesting_parent_iova:Q length:Q",
)
DESTROY = CStruct("iommu_destroy", "size:I id:I")
S32 = CStruct("__s32", "value:i")
U32 = CStruct("__u32", "value:I")
U64 = CStruct("__u64", "value:Q")

STRUCTS = {
    value.name: value
    for value in list(globals().values())
    if isinstance(value, CStruct) and not value.name.startswith("__")
}

MEMORY = 64
"""Bytes behind the argument that a request may look at, unless `WINDOWS` has it."""

WINDOWS: dict[int, int] = {
    # One byte more than a name may have; and all that may follow a struct of iommufd, if it is zero.
    Cmd.VFIO_GROUP_GET_DEVICE_FD: PAGE + 1,
    **{command: PAGE for command in Cmd if command >= Cmd.IOMMU_DESTROY},
}
"""Requests that look at more bytes behind the argument, with how many."""

POINTED: dict[int, tuple[int, int, int]] = {
    Cmd.IOMMU_IOAS_ALLOW_IOVAS: (
        IOAS_ALLOW_IOVAS.offsets["allowed_iovas"],
        IOAS_ALLOW_IOVAS.offsets["num_iovas"],
        IOVA_RANGE.size,
    ),
}
"""Requests that read an array elsewhere: where in the argument its address (8 bytes) and its length (4) are, and the
size of an element."""
POINTED_MOST = 1 << 20
"""The most bytes of such an array that are looked at: far more than anybody needs."""

NEEDS_ROOM = frozenset((Cmd.VFIO_GROUP_GET_DEVICE_FD,))
"""Requests that look for a free descriptor of the caller before they do anything."""

KEEPS_EVENTFD = frozenset((Cmd.VFIO_DEVICE_SET_IRQS,))
"""Requests to which it matters whether a descriptor is an eventfd, and which keep it."""

DESCRIPTOR_AT: dict[int, int] = {
    Cmd.VFIO_GROUP_SET_CONTAINER: 0,
    Cmd.VFIO_DEVICE_SET_IRQS: IRQ_SET.size,
    Cmd.VFIO_DEVICE_BIND_IOMMUFD: BIND_IOMMUFD.offsets["iommufd"],
    Cmd.IOMMU_IOAS_MAP_FILE: IOAS_MAP_FILE.offsets["fd"],
}
"""Requests that take a file descriptor of the caller, and where in the argument it is."""


_NAMES = {command.value: command.name for command in Cmd}


def name_of(cmd: int, *, device: bool) -> str:
    """Return the name of a request, which for one number depends on whether it is made on a device."""
    if cmd == VFIO_DEVICE_FEATURE and device:
        return "VFIO_DEVICE_FEATURE"
    return _NAMES.get(cmd, f"{cmd:#x}")
