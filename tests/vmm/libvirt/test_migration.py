"""Live migration by `virsh migrate` between two hosts, each with a libvirtd of its own."""

from __future__ import annotations

import re
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

from apfs.scenario.reader import gallery
from apfs.testing.libvirt import LibvirtPair, Network
from apfs.testing.mounted import MountedHost
from tests.conftest import UUID
from tests.vmm.libvirt.guest import NAME, Console, domain, follows

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from apfs.testing.libvirt import Libvirt
    from tests.vmm.libvirt.conftest import Release

GALLERY = {
    "target-accelerator": ("Bad address", "accelerator mode installed for target queue 05.0004"),
    "target-fewer-queues": ("Input/output error", "(72 bytes) is larger than the target's (40 bytes)"),
    "target-filtering": ("Bad address", "stateless command filtering (SLCF) available for target queue 05.0004"),
    "target-missing-facilities": (
        "Bad address",
        "special command (APSC) facility not installed for target queue 05.0004",
    ),
    "target-more-queues": ("No such device", "source 4, target 6"),
    "target-older-type": ("Bad address", "AP type: source 0e, target 0d"),
    "target-other-mode": ("Bad address", "CCA coprocessor mode"),
    "target-other-queues": (
        "No such device",
        "queue 05.0047 of the source is not in the target guest's AP configuration",
    ),
    "target-stateless": ("Bad address", "source queue 05.0004 does not fit the target queue"),
}
"""What QEMU and the kernel say of each target that does not fit."""
FITTING = {"target-newer-type"}
# libvirt says what it hears first: that the source's job has failed, or that the target's QEMU has ended. The last text
# is for an end that it notices after it has waited for its turn to talk to QEMU (qemuDomainObjEnterMonitorInternal).
REFUSED = re.compile(
    r"job 'migration (out|in)' (unexpectedly )?failed|qemu unexpectedly closed the monitor|domain is no longer running"
)
QUEUE = "/sys/devices/ap/card05/05.0004/status"


class Travellers(NamedTuple):
    """Two hosts, and a guest that is on one of them."""

    pair: LibvirtPair
    console: Console

    def queues(self) -> tuple[str, str]:
        """The state of one of the guest's queues, at the source and at the target."""
        source, target = self.pair.source.host, self.pair.target.host
        return source.cat(QUEUE).strip(), target.cat(QUEUE).strip()

    def states(self) -> tuple[str, str]:
        """The state of the domain, at the source and at the target."""
        listed = [one.virsh("list", "--all", "--name").stdout.split() for one in (self.pair.source, self.pair.target)]
        both = zip((self.pair.source, self.pair.target), listed, strict=True)
        source, target = (libvirt.state(NAME) if NAME in names else "unknown" for libvirt, names in both)
        return source, target


@pytest.fixture(scope="module")
def travellers(release: Release, guest: Path) -> Iterator[Travellers]:
    """The pair of one release; the guest has started."""
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        hosts = [stack.enter_context(MountedHost(f"migration-{end}")) for end in ("source", "target")]
        pair = LibvirtPair(*[stack.enter_context(release.start(host, network=network)) for host in hosts])
        pair.source.define(domain(guest))
        travellers = Travellers(pair, Console())
        pair.source.virsh("start", NAME, check=True)
        travellers.console.wait_for_more(pair.source)
        yield travellers


@pytest.fixture
def started(travellers: Travellers) -> Travellers:
    """The guest is at the source, wherever a test before has left it."""
    source, target = travellers.pair.source, travellers.pair.target
    if travellers.states()[0] != "running":
        target.virsh("destroy", NAME)
        source.virsh("start", NAME, check=True)
        travellers.console.begin(source)
    return travellers


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("options", [(), ("--p2p",)], ids=["client", "p2p"])
def test_there_and_back(started: Travellers, options: tuple[str, ...], *, tcp: bool) -> None:
    source, target = started.pair.source, started.pair.target
    started.console.hear(source)
    begun = len(started.console.counts)
    seen = source.host.guest(UUID).ls("/sys/bus/ap/devices")
    done = source.migrate(NAME, target, *options, tcp=tcp)
    assert (done.returncode, done.stderr) == (0, "")
    assert (started.states(), started.queues()) == (("shut off", "running"), ("assigned", "in use"))
    assert target.host.guest(UUID).ls("/sys/bus/ap/devices") == seen
    started.console.hear(source)
    started.console.wait_for_more(target)
    done = target.migrate(NAME, source, *options, tcp=tcp)
    assert (done.returncode, done.stderr) == (0, "")
    assert (started.states(), started.queues()) == (("running", "unknown"), ("in use", "assigned"))
    started.console.hear(target)
    started.console.wait_for_more(source)
    # Neither way has lost or repeated a number.
    assert follows(started.console.counts[max(begun - 1, 0) :])


@pytest.mark.parametrize(
    ("there", "back"),
    [(("--p2p", "--tunnelled"), ("--parallel",)), (("--auto-converge",), ("--compressed",))],
    ids=["tunnelled, parallel", "auto-converge, compressed"],
)
def test_ways_to_migrate(started: Travellers, there: tuple[str, ...], back: tuple[str, ...]) -> None:
    source, target = started.pair.source, started.pair.target
    done = source.migrate(NAME, target, *there)
    assert (done.returncode, done.stderr, started.queues()) == (0, "", ("assigned", "in use"))
    done = target.migrate(NAME, source, *back)
    assert (done.returncode, done.stderr, started.queues()) == (0, "", ("in use", "assigned"))


def test_postcopy_is_refused(started: Travellers) -> None:
    source, target = started.pair.source, started.pair.target
    started.console.wait_for_more(source)
    refused = source.migrate(NAME, target, "--postcopy")
    assert refused.returncode == 1
    assert "VFIO migration is not supported with postcopy migration" in refused.stderr + source.log(NAME)
    assert (started.states(), started.queues()) == (("running", "unknown"), ("in use", "assigned"))
    started.console.wait_for_more(source)


def test_cancelled(started: Travellers) -> None:
    source, target = started.pair.source, started.pair.target
    source.virsh("migrate-setspeed", NAME, "1", check=True)
    try:
        results: list[subprocess.CompletedProcess[str]] = []
        thread = threading.Thread(target=lambda: results.append(source.migrate(NAME, target)))
        thread.start()
        while "Memory processed" not in source.virsh("domjobinfo", NAME).stdout:
            assert thread.is_alive()
        source.virsh("domjobabort", NAME, check=True)
        thread.join()
    finally:
        source.virsh("migrate-setspeed", NAME, "1024", check=True)
    assert results[0].returncode == 1
    assert "canceled by client" in results[0].stderr
    assert (started.states(), started.queues()) == (("running", "unknown"), ("in use", "assigned"))
    started.console.wait_for_more(source)
    # Nothing of it stays: the next one succeeds.
    assert source.migrate(NAME, target).returncode == 0
    assert started.queues() == ("assigned", "in use")
    assert target.migrate(NAME, source).returncode == 0


def refusal(travellers: Travellers, target: Libvirt, scenario: str, *options: str) -> str:
    """Let a migration be refused, and return what virsh said."""
    source = travellers.pair.source
    travellers.console.wait_for_more(source)
    known = len(travellers.console.counts)
    refused = source.migrate(NAME, target, *options)
    assert refused.returncode == 1
    error, reason = GALLERY[scenario]
    log = target.log(NAME)
    assert re.search(r"error while loading state section id \d+\(/1/vfio\)", log)
    # QEMU 10 tells libvirt what 7.2 says in its log.
    assert f"load of migration failed: {error}" in log + refused.stderr
    assert reason in target.host.cat("ctl/kmsg")
    assert target.host.status()["mdevs"][UUID]["opener"] is None
    # As if nothing had been: the guest goes on.
    assert (source.state(NAME), source.host.cat(QUEUE)) == ("running", "in use\n")
    travellers.console.wait_for_more(source)
    assert follows(travellers.console.counts[known - 2 :])
    return refused.stderr


def test_the_gallery_is_complete() -> None:
    assert {name for name in gallery() if name.startswith("target-")} == GALLERY.keys() | FITTING


@pytest.mark.parametrize("scenario", sorted(GALLERY))
def test_refused(started: Travellers, release: Release, scenario: str) -> None:
    with MountedHost(scenario) as host, release.start(host) as target:
        said = refusal(started, target, scenario)
    assert REFUSED.search(said), said


def test_refused_by_p2p(started: Travellers, release: Release) -> None:
    with MountedHost("target-older-type") as host, release.start(host) as target:
        said = refusal(started, target, "target-older-type", "--p2p")
    assert REFUSED.search(said), said
