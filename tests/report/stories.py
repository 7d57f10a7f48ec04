"""What happens to hosts in the tests of reports, and its story."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from apfs import Host, KernelError, Shell, load
from apfs.report.sources import recorded

if TYPE_CHECKING:
    from collections.abc import Callable

MDEVS = "/sys/devices/vfio_ap/matrix"
FIRST, SECOND, THIRD = (f"7f3c1a52-9d0e-4b6a-8c21-0e5f6a7b8c0{number}" for number in (1, 2, 3))
"""The mediated devices of the host kernel-doc."""
MARKUP = "</script><script>alert(1)</script><!-- &amp; <b>"


def told(scenario: str, happens: Callable[[Shell], object]) -> dict[str, Any]:
    """Return the story of a host of the gallery to which something happens."""
    shell = Shell(Host(load(scenario)))
    happens(shell)
    found = recorded(scenario, shell.recording())
    assert found["note"] == ""
    return found


def a_day(shell: Shell) -> None:
    """Let something of everything happen to the host kernel-doc: 11 steps."""
    shell.console("checkstop 6 on", "scan")
    shell.echo(1, f"/dev/vfio-ap/{FIRST}/guest")
    refused(shell, 6, f"{MDEVS}/{SECOND}/assign_adapter")
    shell.echo("-5", "/sys/bus/ap/apmask")
    shell.echo("0xff", f"{MDEVS}/{SECOND}/assign_domain")
    shell.echo("06.00ff", "/sys/bus/ap/drivers/vfio_ap/unbind")
    refused(shell, MARKUP, "/sys/bus/ap/ap_domain")
    shell.echo(0, f"/dev/vfio-ap/{FIRST}/guest")
    shell.console("plug 7 CEX7C", "scan")


def refused(shell: Shell, text: object, path: str) -> None:
    with contextlib.suppress(KernelError):
        shell.echo(text, path)
        raise AssertionError(path)
