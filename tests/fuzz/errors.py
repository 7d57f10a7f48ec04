"""Which errors the kernel's functions behind the files can give: the model that answers under fuzz are held against.

By the last components of a path, the longest that fits. Files of the emulator's own have what docs/console.md and
docs/migration.md say.
"""

from __future__ import annotations

_NUMBER = {"EINVAL", "ERANGE"}
_ASSIGN = {*_NUMBER, "ENODEV", "EADDRNOTAVAIL", "EADDRINUSE", "EAGAIN"}
_BIND = {"ENODEV", "EBUSY"}
_DEVICE_NODE = {"EINVAL", "EBUSY", "EPERM", "ENODEV"}
_MIGRATION = {"ENOTTY", "EPERM", "ENODEV", "EINVAL"}

ERRORS: dict[str, set[str]] = {
    "uevent": {"EINVAL"},
    "drivers_autoprobe": set(),
    "drivers_probe": {"ENODEV"},
    "bind": _BIND,
    "unbind": {"ENODEV"},
    "vfio_ap_mdev/unbind": {"ENODEV", "EBUSY"},
    "vfio_mdev/unbind": {"ENODEV", "EBUSY"},
    # AP bus
    "ap_domain": {"EINVAL"},
    "config_time": {"EINVAL"},
    "poll_thread": {"EINVAL"},
    "poll_timeout": _NUMBER,
    "scans": set(),
    "apmask": {"EINVAL", "EBUSY"},
    "aqmask": {"EINVAL", "EBUSY"},
    "config": {"EINVAL", "EOPNOTSUPP", "EIO"},
    "online": {"EINVAL", "ENODEV"},
    "request_count": set(),
    "ap/*/*/reset": set(),
    "driver_override": {"EINVAL"},
    "se_bind": {"EINVAL", "EIO", "EBUSY"},
    "se_associate": {*_NUMBER, "EIO", "EBUSY"},
    # zcrypt's nodes
    "zcrypt/create": {"EINVAL", "EEXIST", "ENOSPC"},
    "zcrypt/destroy": {"ENOENT"},
    "zcrypt/*/apmask": {"EINVAL"},
    "zcrypt/*/aqmask": {"EINVAL"},
    "admask": {"EINVAL"},
    "ioctlmask": {"EINVAL"},
    # mediated devices
    "vfio_ap-passthrough/create": {"EINVAL", "EEXIST", "EUSERS"},
    "remove": {"EINVAL", "EBUSY"},
    "assign_adapter": _ASSIGN,
    "assign_domain": _ASSIGN,
    "ap_config": _ASSIGN,
    "assign_control_domain": {*_NUMBER, "ENODEV"},
    **{f"unassign_{what}": {*_NUMBER, "ENODEV"} for what in ("adapter", "domain", "control_domain")},
    # other modules
    "level": {"EINVAL", "EPERM"},
    "pages": {"EINVAL"},
    "flush": {"EINVAL"},
    "type": {"EINVAL"},
    "dma_entry_limit": _NUMBER,
    "allow_unsafe_interrupts": {"EINVAL"},
    "disable_hugepages": {"EINVAL"},
    # nodes of VFIO, which have no write
    "vfio/vfio": _DEVICE_NODE,
    "dev/iommu": _DEVICE_NODE,
    "vfio/*": _DEVICE_NODE,
    "devices/*": _DEVICE_NODE,
    # the emulator's own
    "guest": {*_NUMBER, "EBUSY", "EPERM"},
    "migration_state": {*_MIGRATION, "ERANGE"},
    "data_stream": {*_MIGRATION, "EIO", "EFAULT", "E2BIG", "EADDRNOTAVAIL", "EADDRINUSE", "ECANCELED"},
    "vfio-ap/*/reset": {"ENODEV", "EIO", "EBUSY"},
    "check": {"ENOTTY", "EINVAL"},
    "ctl/uevents": {"EINVAL"},
    "ctl/ioctl": {"EINVAL"},
    "ctl/console": {"EINVAL", "ERANGE", "EEXIST", "ENODEV", "ENOENT", "EAGAIN", "EBUSY", "EOPNOTSUPP"},
}


def errors_of(kind: str) -> set[str]:
    """Return what the file of a kind can be refused with."""
    parts = kind.split("/")
    for start in range(1, len(parts)):
        found = ERRORS.get("/".join(parts[start:]))
        if found is not None:
            return found
    raise KeyError(kind)
