"""Whatever makes names appear or disappear sends a uevent: the mount tells the kernel to forget names by that."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from apfs.errors import KernelError
from apfs.host import Host
from apfs.scenario.reader import loads
from apfs.testing.files import Shell
from tests.hosts import CREATE, M1, M2, MATRIX, MDEV_DRIVER, WORKED

if TYPE_CHECKING:
    from apfs.sysfs.entries import Stat

QUEUE = "05.0047"
STORES = (
    (CREATE, M1),
    (CREATE, M2),
    (f"{MATRIX}/{M1}/remove", "1"),
    (f"{MATRIX}/{M2}/remove", "1"),
    (f"{MATRIX}/{M1}/assign_adapter", "5"),
    (f"{MATRIX}/{M1}/assign_domain", "0x47"),
    (f"{MATRIX}/{M1}/unassign_domain", "0x47"),
    (f"{MDEV_DRIVER}/unbind", M1),
    ("/sys/bus/ap/apmask", "-5"),
    ("/sys/bus/ap/apmask", "+5"),
    ("/sys/bus/ap/aqmask", "-0x47"),
    ("/sys/bus/ap/aqmask", "+0x47"),
    (f"/sys/devices/ap/card05/{QUEUE}/driver_override", "vfio_ap"),
    (f"/sys/devices/ap/card05/{QUEUE}/driver_override", "\n"),
    ("/sys/bus/ap/drivers/vfio_ap/unbind", QUEUE),
    ("/sys/bus/ap/drivers/vfio_ap/bind", QUEUE),
    ("/sys/bus/ap/drivers/cex4queue/unbind", QUEUE),
    ("/sys/bus/ap/drivers/cex4card/unbind", "card05"),
    ("/sys/bus/ap/drivers/cex4card/bind", "card05"),
    ("/sys/bus/ap/drivers_probe", QUEUE),
    ("/sys/devices/ap/card05/config", "0"),
    ("/sys/devices/ap/card05/config", "1"),
    ("/sys/devices/ap/card05/online", "0"),
    ("/sys/bus/ap/scans", "1"),
    ("/sys/class/zcrypt/create", "extra"),
    ("/sys/class/zcrypt/destroy", "extra"),
    (f"/dev/vfio-ap/{M1}/guest", "1"),
    (f"/dev/vfio-ap/{M1}/guest", "0"),
    ("/sys/module/vfio_ap/uevent", "remove"),
    ("/sys/module/vfio/uevent", "remove"),
    ("/sys/bus/mdev/uevent", "remove"),
    ("/ctl/console", "plug 9 CEX7P"),
    ("/ctl/console", "unplug 9"),
    ("/ctl/console", "unplug 5"),
    ("/ctl/console", "add-domain 3"),
    ("/ctl/console", "remove-domain 0x47"),
    ("/ctl/console", "checkstop 5 on"),
    ("/ctl/console", "tapq 5 at=14"),
    ("/ctl/console", "scan"),
    ("/ctl/console", "rmmod vfio_ap"),
    ("/ctl/console", "rmmod mdev"),
    ("/ctl/console", "rmmod vfio"),
    ("/ctl/console", "modprobe vfio_ap"),
)


def names(shell: Shell) -> dict[str, Stat]:
    """Return everything that there is, with what stat tells of it."""
    return dict(shell.find())


@given(st.lists(st.sampled_from(STORES), min_size=1, max_size=12))
def test_no_name_changes_without_a_uevent(stores: list[tuple[str, str]]) -> None:
    host = Host(loads(WORKED))
    shell = Shell(host)
    others = host.tree.nodes.changes  # what is below /guests has its own count
    before, sent, seen = names(shell), host.journal.uevents_sent, others.count
    for path, text in stores:
        with suppress(KernelError):
            shell.echo(text, path)
        after = names(shell)
        if after != before:
            changed = dict(set(after.items()) ^ set(before.items()))
            if any(not name.startswith("/guests") for name in changed):
                assert host.journal.uevents_sent > sent, (path, text, changed)
            assert host.journal.uevents_sent + others.count > sent + seen, (path, text, changed)
        before, sent, seen = after, host.journal.uevents_sent, others.count
