"""`apfs libvirtd`."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from apfs.cli import completion
from apfs.cli.streams import fail

_PR_SET_PDEATHSIG = 1


@click.command()
@click.option(
    "--scenario",
    "-s",
    metavar="NAME|FILE",
    help="Start a host of this scenario for it.  [default: migration-source]",
    shell_complete=completion.scenarios_and_files,
)
@click.option(
    "--mount",
    "-m",
    "mounted",
    type=click.Path(path_type=Path),
    help="Use the host mounted there.",
    shell_complete=completion.mounted,
)
@click.option(
    "--libvirtd",
    default="libvirtd",
    metavar="PROGRAM",
    help="The libvirtd to run.",
    show_default=True,
    shell_complete=completion.commands,
)
@click.option("--tcp", type=click.IntRange(1, 65535), metavar="PORT", help="Listen on this port of 127.0.0.1, too.")
@click.option("--bind", "binds", multiple=True, metavar="SRC:DEST", help="Show SRC at DEST to it. Repeatable.")
@click.option("--die-with-parent", is_flag=True, hidden=True, help="End when the calling process does.")
def command(
    scenario: str | None,
    mounted: Path | None,
    libvirtd: str,
    *,
    tcp: int | None,
    binds: tuple[str, ...],
    die_with_parent: bool,
) -> None:
    """Run libvirtd on an emulated host; Ctrl-C ends it with all its guests.

    When it answers, its URI is printed, which `virsh --connect URI` takes. Configuration and state are its own and end
    with it; the machine's libvirt is not touched. A domain of type qemu and architecture s390x can have devices
    <hostdev mode='subsystem' type='mdev' model='vfio-ap'>, which can be hot-plugged and migrate. A mediated device that
    the scenario has a guest for is taken from it.

    All of it runs inside `apfs exec`, as root and without passwords. Only you can reach its socket; but with --tcp
    every user of this machine can reach its port, and by it all your files. With --tcp there are no uevents.

    \b
    ENVIRONMENT
        APFS_QEMU     the qemu-system-s390x to run, by default the first in PATH
        TMPDIR        where its directory is, with log/qemu/DOMAIN.log; by default, and if it is long, /tmp

    \b
    EXAMPLE
        apfs libvirtd --mount /tmp/z
        virsh --connect 'qemu+unix:///system?socket=/tmp/apfs-libvirt-abc/run/libvirt-sock' list --all

    \b
    EXIT STATUS
        0  it was told to end        1  it failed        2  wrong usage
    """
    from apfs.vmm import build, emulator, libvirt

    if scenario and mounted:
        raise click.UsageError("--scenario and --mount exclude each other")
    if not all(bind.partition(":")[0] and bind.partition(":")[2].startswith("/") for bind in binds):
        raise click.UsageError("--bind takes SRC:DEST, and DEST is absolute")
    if die_with_parent:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    options = ["--mount", str(mounted)] if mounted else ["--scenario", scenario or "migration-source"]
    for bind in binds:
        options += ["--bind", bind]

    def ready(directory: Path) -> None:
        click.echo(libvirt.uri(directory))

    try:
        libvirt.serve(options, libvirt.Wishes(libvirtd, tcp), ready)
    except (libvirt.LibvirtError, emulator.EmulatorError, build.PluginError) as error:
        fail(str(error))
