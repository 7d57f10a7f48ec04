"""Hosts with a guest, shared by the tests of guests, those on mounts too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.hosts import M1, M2, Bench

if TYPE_CHECKING:
    from apfs.testing.files import SystemShell

HOST = """
name = "host"
[qci]
domains = [0x04, 0x47, 0xab, 0xff]
control_domains = [0x04, 0x05]
facilities = ["APSC", "APXA", "QACT", "RC8A", "APSB"]
[[card]]
adapters = [5, 6, 7]
type = "CEX8P"
[[card]]
adapter = 8
type = "CEX8A"
[[card]]
adapter = 9
type = "CEX8C"
[masks]
apmask = "-5-6-8-9"
"""

FROM_THE_START = f"""
[qci]
domains = [0x04, 0xab]
[[card]]
adapters = [5, 6]
type = "CEX8P"
[masks]
apmask = "-5-6"
[[mdev]]
uuid = "{M1}"
adapters = [5]
domains = [0x04, 0xab]
guest = true
[[mdev]]
uuid = "{M2}"
"""
"""M1 has a guest with 05.0004 and 05.00ab, M2 has nothing."""


def started(text: str = HOST, adapters: tuple[int, ...] = (5, 6), *, secure: bool = False) -> Bench:
    """Return a host whose M1, with some adapters and domains 4 and 0xab, has a running guest."""
    bench = Bench(text)
    bench.create(M1)
    bench.assign(M1, adapters, (4, 0xAB), (4,))
    if secure:
        bench.console(f"se-guest {M1} on")
    bench.run_guest(M1)
    bench.mark()
    return bench


def on(host: SystemShell, uuid: str = M1) -> SystemShell:
    """Return a shell on the guest of a mediated device."""
    return host.guest(uuid)


def queues(guest: SystemShell) -> list[str]:
    """Return the queues that the guest's bus has."""
    return [name for name in guest.ls("/sys/bus/ap/devices") if not name.startswith("card")]


def rescan(*shells: SystemShell) -> None:
    """Scan, on one system after the other."""
    for shell in shells:
        shell.echo(1, "/sys/bus/ap/scans")
