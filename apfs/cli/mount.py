"""`apfs mount`: mount a host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from apfs.cli import completion, hosts
from apfs.cli.streams import fail

if TYPE_CHECKING:
    from collections.abc import Callable


@click.command()
@click.argument("mountpoint", type=click.Path(readable=False), shell_complete=completion.directories)
@click.option(
    "--scenario",
    "-s",
    default="default",
    metavar="NAME|FILE",
    help="The host to emulate.",
    show_default=True,
    shell_complete=completion.scenarios_and_files,
)
@hosts.changes
@click.option("--foreground", "-f", is_flag=True, help="Stay in the foreground; Ctrl-C unmounts.")
@click.option(
    "--allow-other/--no-allow-other", default=None, help="Give other users access. Default: only if mounted by root."
)
@click.option(
    "--clock",
    type=click.Choice(["real", "manual"]),
    default="real",
    show_default=True,
    help="real: the AP bus scans every config_time seconds; manual: it scans only on request.",
)
@click.option("--debug", is_flag=True, help="Print every FUSE request on standard error. Implies --foreground.")
@click.option("--ready-fd", type=int, hidden=True, help="File descriptor to report to when the mount can be used.")
@click.option("--fast-loop/--no-fast-loop", default=True, hidden=True, help="For comparing the request loops.")
@click.option("--lifeline-fd", type=int, hidden=True, help="Pipe whose other end, when closed, ends the mount.")
@click.option(
    "--fuse-option", "fuse_options", multiple=True, default=["fsname=apfs"], hidden=True, help="fsname=, ro ..."
)
def command(
    mountpoint: str,
    scenario: str,
    *,
    changes: dict[str, str],
    foreground: bool,
    allow_other: bool | None,
    clock: str,
    debug: bool,
    ready_fd: int | None,
    lifeline_fd: int | None,
    fast_loop: bool,
    fuse_options: tuple[str, ...],
) -> None:
    """Mount an emulated host on the directory MOUNTPOINT.

    Returns when the mount is ready. The server keeps running in its own session until the mount is unmounted (by
    `apfs umount`, umount(8) or fusermount3(1)) or the server gets SIGTERM, SIGINT or SIGHUP. For mount(8) and fstab(5),
    see mount.fuse.apfs(8).

    The scenario is a name of the gallery (`apfs scenario list`) or, if it contains a / or a ., the name of a TOML
    file. Use --set to create many hosts from one scenario: `--set name=host-7 --set serial=0007` changes the host's
    name and the serial numbers of its cards.

    \b
    IN THE MOUNT
        sys/             /sys/bus/ap, /sys/devices/ap, /sys/devices/vfio_ap and related directories
        dev/vfio/        the VFIO device nodes
        dev/vfio-ap/U/   a VMM's operations on the mediated device U: guest, migration_state, data_stream ...
        ctl/             console (write `help`, read kmsg), kmsg, uevents, journal, status
        guests/U/        the guest that uses the mediated device U, with its own sys, dev and ctl

    Files belong to the user who mounts. As in sysfs, file modes apply to root, too.

    \b
    EXAMPLE
        apfs mount --scenario migration-source --clock manual /tmp/a

    \b
    EXIT STATUS
        0  mounted        1  could not be mounted        2  wrong usage, scenario or environment
        130  interrupted by Ctrl-C
    """
    from apfs.cli.booting import booting
    from apfs.mounts import environment, server, table
    from apfs.mounts.interrupts import interrupts
    from apfs.scenario.model import ScenarioError

    try:
        environment.check_packages()
        boot = booting(scenario, changes)
        environment.check_fuse()
        server.check_mountpoint(mountpoint)
    except (ScenarioError, table.MountsError) as error:
        fail(str(error), 2)
    for descriptor in (ready_fd, lifeline_fd):
        if descriptor is not None:
            # The mount helper lives as long as the mount and must not hold them open.
            os.set_inheritable(descriptor, False)  # noqa: FBT003 -- takes no keywords

    def serve(ready_fd: int | None, lifeline_fd: int | None = None) -> None:
        try:
            from apfs.fuse import session  # only the process that serves needs these
        except ImportError as error:
            from apfs.mounts import environment

            fail(str(environment.import_problem(error)), 2)
        try:
            session.serve(
                boot(),
                table.absolute(mountpoint),
                allow_other=os.geteuid() == 0 if allow_other is None else allow_other,
                clock=clock == "real",
                ready=_report(ready_fd, silent=not debug),
                lifeline=lifeline_fd,
                fast_loop=fast_loop,
                fuse_options=[*fuse_options, *(["debug"] if debug else [])],
            )
        except session.MountError as error:
            fail(str(error))
        except (ScenarioError, table.MountsError) as error:
            fail(str(error), 2)

    if foreground or debug:
        serve(ready_fd, lifeline_fd)
        return
    interrupts.note()
    try:
        server.fork_server(mountpoint, serve)
        interrupts.ignore()
    except table.MountsError as error:
        fail(str(error), error.exit_status)


def _report(ready_fd: int | None, *, silent: bool) -> Callable[[], None]:
    from apfs.mounts.server import READY

    def report() -> None:
        if ready_fd is None:
            return
        if silent:
            # From now on nobody reads what the server prints, and it must not keep a file system busy.
            os.chdir("/")
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)
            os.close(null)
        os.write(ready_fd, READY)
        os.close(ready_fd)

    return report
