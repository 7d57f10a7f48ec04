"""Hosts in tests: without a mount, with one, and as pytest fixtures.

Names are imported on first use, because pytest imports the plugin in every run of every project.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apfs.mounts.migration import NotPossibleError
    from apfs.mounts.table import MountsError
    from apfs.testing.files import Files, Shell, SystemShell
    from apfs.testing.libvirt import Libvirt, LibvirtError, LibvirtPair, Network
    from apfs.testing.mounted import MountedGuest, MountedHost, Pair

_HOMES = {
    "Files": "apfs.testing.files",
    "Libvirt": "apfs.testing.libvirt",
    "LibvirtError": "apfs.testing.libvirt",
    "LibvirtPair": "apfs.testing.libvirt",
    "MountedGuest": "apfs.testing.mounted",
    "MountedHost": "apfs.testing.mounted",
    "MountsError": "apfs.mounts.table",
    "Network": "apfs.testing.libvirt",
    "NotPossibleError": "apfs.mounts.migration",
    "Pair": "apfs.testing.mounted",
    "Shell": "apfs.testing.files",
    "SystemShell": "apfs.testing.files",
}
__all__ = [
    "Files",
    "Libvirt",
    "LibvirtError",
    "LibvirtPair",
    "MountedGuest",
    "MountedHost",
    "MountsError",
    "Network",
    "NotPossibleError",
    "Pair",
    "Shell",
    "SystemShell",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
