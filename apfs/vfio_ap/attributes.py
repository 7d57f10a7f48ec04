"""The attributes of mediated matrix devices and of queues bound to vfio_ap: text in, rule, text out."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from apfs.ap.mask import ap_hex2bitmap
from apfs.errors import KernelError
from apfs.kernel.kstrtox import kstrtoul
from apfs.sysfs.entries import Attribute
from apfs.sysfs.openfile import PAGE_SIZE
from apfs.vfio_ap.matrix import Matrix
from apfs.vfio_ap.ops import MatrixMdev

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.kernel.profile import Profile
    from apfs.mdev.core import Mdev

_AP_CONFIG_LENGTH = 201
_MASKS = 3


def matrix_mdev(mdev: Mdev) -> MatrixMdev | None:
    """Return the driver's data of a mediated device, None while it is unbound."""
    return mdev.driver_data if isinstance(mdev.driver_data, MatrixMdev) else None


def bound(mdev: Mdev) -> bool:
    """Whether the driver has the device, and hence whether it has the driver's attributes."""
    return mdev.driver_data is not None


def _data(mdev: Mdev) -> MatrixMdev:
    data = mdev.driver_data
    assert isinstance(data, MatrixMdev)  # noqa: S101 -- the attributes are there only while it is bound
    return data


def _changeable(mdev: Mdev) -> MatrixMdev:
    """Return the driver's part of a device whose matrix is to be changed, before what was written is looked at.

    EBUSY while a guest runs, where there is no hot plug.
    """
    data = _data(mdev)
    if data.vm is not None and not data.driver.kernel.hotplug:
        raise KernelError(errno.EBUSY, "a guest has the device, and this kernel has no hot plug")
    return data


def assign_adapter_store(mdev: Mdev, text: str) -> None:
    """Assign the adapter whose number is written."""
    _changeable(mdev).assign("adapters", kstrtoul(text))


def unassign_adapter_store(mdev: Mdev, text: str) -> None:
    """Unassign the adapter."""
    _changeable(mdev).unassign("adapters", kstrtoul(text))


def assign_domain_store(mdev: Mdev, text: str) -> None:
    """Assign the usage domain whose number is written."""
    _changeable(mdev).assign("domains", kstrtoul(text))


def unassign_domain_store(mdev: Mdev, text: str) -> None:
    """Unassign the usage domain."""
    _changeable(mdev).unassign("domains", kstrtoul(text))


def assign_control_domain_store(mdev: Mdev, text: str) -> None:
    """Assign the control domain whose number is written."""
    _changeable(mdev).assign("control_domains", kstrtoul(text))


def unassign_control_domain_store(mdev: Mdev, text: str) -> None:
    """Unassign the control domain."""
    _changeable(mdev).unassign("control_domains", kstrtoul(text))


def _apqns(matrix: Matrix) -> str:
    """Return one line per APQN, or per adapter (domain) if there is no domain (adapter); as much as fits a page."""
    if matrix.adapters and matrix.domains:
        lines = []
        for apqn in matrix.apqns():
            lines.append(f"{apqn}\n")
            if len(lines) * len(lines[0]) >= PAGE_SIZE:
                break
        return "".join(lines)
    return "".join(f"{apid:02x}.\n" for apid in matrix.adapters) + "".join(f".{apqi:04x}\n" for apqi in matrix.domains)


def matrix_show(mdev: Mdev) -> str:
    """APQNs that are assigned."""
    return _apqns(_data(mdev).matrix)


def guest_matrix_show(mdev: Mdev) -> str:
    """APQNs that a guest has or would have."""
    return _apqns(_data(mdev).shadow)


def control_domains_show(mdev: Mdev) -> str:
    """Control domains that are assigned."""
    return "".join(f"{domain:04x}\n" for domain in _data(mdev).matrix.control_domains)


def ap_config_show(mdev: Mdev) -> str:
    """Return the three assigned masks."""
    return ",".join(mask.hex256() for mask in _data(mdev).matrix) + "\n"


def ap_config_store(mdev: Mdev, text: str) -> None:
    """Replace the three assigned masks, separated by commas or newlines; what follows them is ignored."""
    data = _changeable(mdev)
    pieces = re.split(r"[,\n]", text[:_AP_CONFIG_LENGTH])[:_MASKS]
    if len(pieces) < _MASKS:
        raise KernelError(errno.EINVAL, f"{len(pieces)} masks instead of {_MASKS}: adapters,domains,control domains")
    data.replace(Matrix(*map(ap_hex2bitmap, pieces)))


_KERNELS: dict[str, Callable[[Profile], bool]] = {
    "ap_config": lambda kernel: kernel.ap_config,
    "guest_matrix": lambda kernel: kernel.guest_matrix,
}
MDEV_ATTRIBUTES = tuple(
    Attribute(name, mode, show, store, bound, kernels=_KERNELS.get(name))
    for name, mode, show, store in (
        ("assign_adapter", 0o200, None, assign_adapter_store),
        ("unassign_adapter", 0o200, None, unassign_adapter_store),
        ("assign_domain", 0o200, None, assign_domain_store),
        ("unassign_domain", 0o200, None, unassign_domain_store),
        ("assign_control_domain", 0o200, None, assign_control_domain_store),
        ("unassign_control_domain", 0o200, None, unassign_control_domain_store),
        ("ap_config", 0o644, ap_config_show, ap_config_store),
        ("control_domains", 0o444, control_domains_show, None),
        ("matrix", 0o444, matrix_show, None),
        ("guest_matrix", 0o444, guest_matrix_show, None),
    )
)
