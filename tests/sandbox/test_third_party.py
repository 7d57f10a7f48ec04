"""Programs of others that speak VFIO, as Debian has them."""

from __future__ import annotations

import json
import os

from tests.sandbox.conftest import run
from tests.sandbox.programs import dpdk
from tests.sandbox.test_sequences import SETUP
from tests.tools.conftest import inside, need

U = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"


def requests(records: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return the ioctls that succeeded, with the file that each was made on."""
    return [(record["path"], record["request"]) for record in records if record["type"] == "ioctl"]


def test_dpdk_opens_a_device_and_lets_it_go() -> None:
    """DPDK's environment layer, as its drivers use it, is a whole client of containers; nothing stops it."""
    result = run(dpdk.open_and_release)
    told, journal = result.stdout.splitlines()[:5], result.stdout.splitlines()[5:]
    assert told == ["enabled 1", "set up 0 1", "info ['0x21', '0x0', '0x2']", "reset ok", "released 0 0"]
    records = [json.loads(line) for line in journal]
    # Debian 12's maps its heap of 64 MiB at once, Debian 13's page by page.
    mapped = ("/dev/vfio/vfio", "VFIO_IOMMU_MAP_DMA")
    maps = requests(records).count(mapped)
    assert maps in {1, (64 << 20) // os.sysconf("SC_PAGE_SIZE")}
    # It asks for type 1, the extensions of sPAPR and no-IOMMU, and maps its heap.
    assert requests(records) == [
        ("/dev/vfio/vfio", "VFIO_GET_API_VERSION"),
        *[("/dev/vfio/vfio", "VFIO_CHECK_EXTENSION")] * 3,
        ("/dev/vfio/0", "VFIO_GROUP_GET_STATUS"),
        ("/dev/vfio/0", "VFIO_GROUP_SET_CONTAINER"),
        ("/dev/vfio/vfio", "VFIO_SET_IOMMU"),
        *[mapped] * maps,
        ("/dev/vfio/0", "VFIO_GROUP_GET_DEVICE_FD"),
        (U, "VFIO_DEVICE_GET_INFO"),
        (U, "VFIO_DEVICE_RESET"),
    ]
    assert not [record for record in records if record["type"] == "refusal"]


def test_qemu_comes_as_far_as_the_type_of_the_device() -> None:
    """QEMU for x86 has no driver for AP devices: it makes the whole sequence, and then says what it has found."""
    need("qemu-system-x86_64")
    result = inside(
        f"""{SETUP}
        qemu-system-x86_64 -M q35,accel=tcg -m 64 -nodefaults -display none -S \\
            -device vfio-pci,sysfsdev=/sys/bus/mdev/devices/$u
        cat /dev/apfs/ctl/journal
        """,
        scenario="default",
    )
    assert f"vfio {U}: this isn't a PCI device" in result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert requests(records) == [
        ("/dev/vfio/0", "VFIO_GROUP_GET_STATUS"),
        ("/dev/vfio/vfio", "VFIO_GET_API_VERSION"),
        ("/dev/vfio/vfio", "VFIO_CHECK_EXTENSION"),
        ("/dev/vfio/0", "VFIO_GROUP_SET_CONTAINER"),
        ("/dev/vfio/vfio", "VFIO_SET_IOMMU"),
        ("/dev/vfio/vfio", "VFIO_IOMMU_GET_INFO"),
        ("/dev/vfio/vfio", "VFIO_IOMMU_GET_INFO"),
        ("/dev/vfio/vfio", "VFIO_IOMMU_MAP_DMA"),
        ("/dev/vfio/vfio", "VFIO_IOMMU_MAP_DMA"),
        ("/dev/vfio/0", "VFIO_GROUP_GET_DEVICE_FD"),
        (U, "VFIO_DEVICE_GET_INFO"),
    ]
    assert not [record for record in records if record["type"] == "refusal"]
