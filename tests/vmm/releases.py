"""Programs of other releases of Debian than the one that the tests are set up for.

They are fetched when they are first asked for; an archive that cannot be reached is an error.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
QEMU = "qemu-system-s390x"
_LIBVIRT = ("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-daemon-driver-nodedev")


def installed() -> str:
    """Return the code name of the release that this machine has, such as `bookworm`; of any distribution."""
    return platform.freedesktop_os_release().get("VERSION_CODENAME", "")


def backports() -> Path:
    """Return the directory that has QEMU of Debian 12's backports."""
    return _unpacked("backports", "bookworm-backports bookworm", (QEMU,), QEMU)


def trixie() -> Path:
    """Return the directory that has QEMU and libvirtd of Debian 13."""
    return _unpacked("trixie", "trixie", (*_LIBVIRT, QEMU, "qemu-system-modules-opengl"), "libvirtd", QEMU)


def _unpacked(name: str, suites: str, packages: tuple[str, ...], *programs: str) -> Path:
    directory = ROOT / ".cache" / name
    command = [str(ROOT / "tests/vmm/debian-root.sh"), str(directory), suites, " ".join(packages), *programs]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
    return directory
