"""Each QEMU that Debian has and the plugin knows, and hosts that the tests of one QEMU share."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from apfs.testing.mounted import MountedHost
from tests.vmm.machines import Qemu, host
from tests.vmm.releases import QEMU, backports, installed, trixie

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# QEMU 7.2 is that of Debian 12, for which the tests are set up. That of its backports needs more of its libraries.
OTHERS = {"backports": backports, "trixie": trixie}


@pytest.fixture(scope="session")
def system_qemu() -> str:
    """The path of the system's QEMU for s390x."""
    found = shutil.which(QEMU)
    assert found is not None, f"no {QEMU}: run tests/run.sh, which installs what is missing"
    return found


@pytest.fixture(scope="session", params=["system", *OTHERS])
def qemu(request: pytest.FixtureRequest, system_qemu: str) -> str:
    """The path of a QEMU for s390x; all tests that name it run with each."""
    name: str = request.param
    if name in OTHERS and installed() == "trixie":
        pytest.skip("Debian 13 has the same QEMU as system, and not the libraries for Debian 12's backports")
    return str(OTHERS[name]() / QEMU) if name in OTHERS else system_qemu


@pytest.fixture(scope="session")
def mounted() -> Iterator[Callable[[str], MountedHost]]:
    """Return a function that mounts a scenario, or returns its mount if another test wanted it before."""
    hosts: dict[str, MountedHost] = {}

    def get(scenario: str) -> MountedHost:
        if scenario not in hosts:
            hosts[scenario] = MountedHost(scenario)
        return hosts[scenario]

    yield get
    for each in hosts.values():
        each.close()


class Running:
    """A VM that runs on a host, and is started again if a test has used it up."""

    def __init__(self, mount: MountedHost, program: str) -> None:
        self.host = mount
        self.program = program
        self._vm: Qemu | None = None

    def get(self) -> Qemu:
        """Return it, running."""
        if self._vm is None or self._vm.process.poll() is not None or not self._vm.is_running():
            self.close()
            self._vm = Qemu(self.host, self.program)
        return self._vm

    def close(self) -> None:
        """End it."""
        if self._vm is not None:
            self._vm.close()
            self._vm = None


@pytest.fixture(scope="session")
def running(qemu: str) -> Iterator[Running]:
    """The VM of this QEMU that the tests share, on a host of its own."""
    with MountedHost(host()) as mount:
        shared = Running(mount, qemu)
        yield shared
        shared.close()


@pytest.fixture
def vm(running: Running) -> Iterator[Qemu]:
    """A running VM with a vfio-ap device; a test may migrate or break it."""
    vm = running.get()
    yield vm
    if vm.process.poll() is None:
        vm.enable("pause-before-switchover", "postcopy-ram", state=False)


@pytest.fixture(scope="session")
def target(mounted: Callable[[str], MountedHost]) -> MountedHost:
    """A host to which the VM can go."""
    return mounted(host(top='description = "target"'))
