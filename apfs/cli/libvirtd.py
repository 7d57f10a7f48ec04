"""`apfs libvirtd`."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click

from apfs.cli import completion, hosts
from apfs.cli.streams import fail

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@hosts.scenario("Start a host of this scenario for it.  [default: migration-source]")
@hosts.mount
@click.option(
    "--libvirtd",
    default="libvirtd",
    metavar="PROGRAM",
    help="The libvirtd to run.",
    show_default=True,
    shell_complete=completion.commands,
)
@click.option("--tcp", type=click.IntRange(1, 65535), metavar="PORT", help="Listen on this port of 127.0.0.1, too.")
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

    When it answers, its URI is printed, which `virsh --connect URI` takes. Configuration and state are its own and end
    with it; the machine's libvirt is not touched. A domain of type qemu and architecture s390x can have devices
    <hostdev mode='subsystem' type='mdev' model='vfio-ap'>, which can be hot-plugged and migrate. A mediated device that
    the scenario has a guest for is taken from it.

    All of it runs inside `apfs exec`, as root and without passwords. Only you can reach its socket; but with --tcp
    every user of this machine can reach its port, and through it all your files. With --tcp there are no uevents.

    \b
    ENVIRONMENT
        APFS_QEMU     the qemu-system-s390x to run, by default the first in PATH
        TMPDIR        where its directory is, with log/qemu/DOMAIN.log; /tmp by default, and if TMPDIR is long

    \b
    EXAMPLE
        apfs libvirtd --mount /tmp/z
        virsh --connect 'qemu+unix:///system?socket=/tmp/apfs-libvirt-abc/run/libvirt-sock' list --all

    \b
    EXIT STATUS
        0  it was told to end        1  it failed        2  wrong usage        130  Ctrl-C came before anything was done
    """
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
    except (libvirt.LibvirtError, emulator.EmulatorError, build.PluginError) as error:
        fail(str(error))
