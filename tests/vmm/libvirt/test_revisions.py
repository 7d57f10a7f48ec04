"""Live migration by `virsh migrate` where the driver has another revision of the migration series than the default."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from apfs.scenario.reader import gallery
from apfs.testing.libvirt import Network
from apfs.testing.mounted import MountedHost
from tests.conftest import UUID
from tests.vmm.libvirt.guest import NAME, domain

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vmm.libvirt.conftest import Release

MDEV = f"/sys/devices/vfio_ap/matrix/{UUID}"


def with_driver(name: str, driver: str) -> str:
    """Return a scenario of the gallery whose driver has a revision, and whose device nobody has open."""
    return f'driver = "{driver}"\n{gallery()[name]}'.replace("guest = true\n", "")


@pytest.mark.parametrize("release", ["installed"], indirect=True)
@pytest.mark.parametrize("driver", ["v4", "next"])
def test_target_is_given_what_the_source_has(release: Release, guest: Path, driver: str) -> None:
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        texts = (with_driver(f"migration-{end}", driver) for end in ("source", "target"))
        here, there = (stack.enter_context(MountedHost(text)) for text in texts)
        there.write(f"{MDEV}/ap_config", ",,")
        source, target = (stack.enter_context(release.start(host, network=network)) for host in (here, there))
        source.define(domain(guest))
        source.virsh("start", NAME, check=True)
        seen = here.guest(UUID).ls("/sys/bus/ap/devices")
        done = source.migrate(NAME, target)
        assert (done.returncode, done.stderr) == (0, "")
        assert (source.state(NAME), target.state(NAME)) == ("shut off", "running")
        assert there.cat(f"{MDEV}/guest_matrix") == here.cat(f"{MDEV}/matrix")
        there.guest(UUID).console("scan")  # hot plug, which Linux notices when it looks
        assert there.guest(UUID).ls("/sys/bus/ap/devices") == seen
