"""libvirt and QEMU of each release of Debian, and the guest that they run."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from apfs.testing.libvirt import Libvirt
from tests.tools.conftest import need
from tests.vmm.releases import QEMU, ROOT, installed, trixie

if TYPE_CHECKING:
    from pathlib import Path

    from apfs.testing.libvirt import Network
    from apfs.testing.mounted import MountedHost


class Release(NamedTuple):
    """The programs of one release of Debian; `directory` is None for those that are installed."""

    name: str
    directory: Path | None = None

    def start(self, host: MountedHost, *, network: Network | None = None) -> Libvirt:
        """Start this libvirt on a host."""
        if self.directory is None:
            return Libvirt(host, network=network)
        libraries = self.directory / "root/usr/lib/x86_64-linux-gnu"
        options = ["--libvirtd", str(self.directory / "libvirtd")]
        # A QEMU does not start with modules of another version.
        options += ["--bind", f"{libraries / 'qemu'}:/usr/lib/x86_64-linux-gnu/qemu"]
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("LIBVIRT_DRIVER_DIR", str(libraries / "libvirt/connection-driver"))
            environment.setenv("APFS_QEMU", str(self.directory / QEMU))
            return Libvirt(host, options=options, network=network)


@pytest.fixture(scope="session")
def for_root() -> None:
    """Skip where libvirtd does not start: test_users_are_told_that_it_is_for_root has what users see of it."""
    if os.geteuid():
        pytest.skip("libvirt starts QEMU only for root")


@pytest.fixture(scope="session")
def guest() -> Path:
    """The directory with kernel and initrd of a guest; an archive that cannot be reached is an error."""
    directory = ROOT / ".cache/guest"
    subprocess.run([ROOT / "mount-examples/libvirt/make-guest.sh", directory], check=True, timeout=600)
    return directory


@pytest.fixture(scope="session", params=["installed", "trixie"])
def release(for_root: None, request: pytest.FixtureRequest) -> Release:
    """What is installed, and Debian 13 unpacked if that is not the same; all tests that name it run with both."""
    del for_root
    need("libvirtd", "virsh", QEMU)
    if request.param == "installed":
        return Release(installed())
    if installed() == "trixie":
        pytest.skip("Debian 13 is installed")
    return Release("trixie", trixie())
