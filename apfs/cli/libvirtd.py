"""`apfs libvirtd`: run libvirtd on an emulated host."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click

from apfs.cli import completion, hosts
from apfs.cli.streams import fail

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@hosts.scenario("Start a host of this scenario for libvirtd.  [default: migration-source]")
@hosts.mount
@click.option(
    "--libvirtd",
    default="libvirtd",
    metavar="PROGRAM",
    help="The libvirtd to run.",
    show_default=True,
    shell_complete=completion.programs,
)
@click.option("--tcp", type=click.IntRange(1, 65535), metavar="PORT", help="Also listen on this port of 127.0.0.1.")
@hosts.binds("to it")
@hosts.die_with_parent
def command(
    scenario: str | None,
    mounted: Path | None,
    libvirtd: str,
    *,
    tcp: int | None,
    binds: list[tuple[str, str]],
    die_with_parent: bool,
) -> None:
    """Run libvirtd on an emulated host; Ctrl-C ends it with all its guests.

    As soon as libvirtd answers, its URI is printed; pass it to `virsh --connect`, quoted. This libvirtd has its own
    configuration and state, which are removed when it ends; the machine's libvirt is not touched. A domain of type qemu
    and architecture s390x can have devices <hostdev mode='subsystem' type='mdev' model='vfio-ap'>, which can be
    hot-plugged and migrated. If the scenario opens a mediated device with a guest, that guest is closed.

    Everything runs inside `apfs exec`, as root and without passwords. Only you can connect to the socket. With --tcp,
    every user of this machine can connect to the port, and through it access all your files; and there are no uevents.

    \b
    ENVIRONMENT
        APFS_QEMU     the qemu-system-s390x to run, by default the first in PATH
        TMPDIR        parent of its directory, which has log/qemu/DOMAIN.log; /tmp by default, or if TMPDIR is long

    \b
    EXAMPLE
        apfs libvirtd --mount /tmp/z
        virsh --connect 'qemu+unix:///system?socket=/tmp/apfs-libvirt-abc/run/libvirt-sock' list --all

    \b
    EXIT STATUS
        0  ended on request        1  failed        2  wrong usage        130  interrupted by Ctrl-C at start
    """
    from apfs.mounts.table import MountsError
    from apfs.sandbox import linux
    from apfs.vmm import build, emulator, libvirt

    hosts.only_one(scenario, mounted)
    if die_with_parent:
        # Not killed: it has to end libvirtd with its guests, and to remove its directory.
        linux.die_with_parent(signal.SIGTERM)
    options = ["--mount", str(mounted)] if mounted else ["--scenario", scenario or "migration-source"]
    for source, destination in binds:
        options += ["--bind", f"{source}:{destination}"]

    def ready(directory: Path) -> None:
        click.echo(libvirt.uri(directory))

    try:
        libvirt.serve(options, libvirt.Wishes(libvirtd, tcp), ready)
    except (libvirt.LibvirtError, emulator.EmulatorError, build.PluginError, MountsError) as error:
        fail(str(error))
