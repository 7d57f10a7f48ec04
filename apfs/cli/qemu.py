"""`apfs qemu`: run QEMU with vfio-ap."""

from __future__ import annotations

import click

from apfs.cli import completion
from apfs.cli.streams import fail


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--qemu",
    metavar="PROGRAM",
    envvar="APFS_QEMU",
    show_envvar=True,
    help="The QEMU to run.  [default: the first qemu-system-s390x in PATH]",
    shell_complete=completion.programs,
)
@click.option(
    "--build",
    "only_build",
    is_flag=True,
    help="Only compile the plugin, unless that was done already, and print its path.",
)
@click.argument(
    "arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENT...]", shell_complete=completion.files
)
def command(qemu: str | None, arguments: tuple[str, ...], *, only_build: bool) -> None:
    """Run QEMU for s390x with vfio-ap, without KVM and on any machine.

    QEMU creates an AP bus only with KVM on s390x. With the plugin of apfs, an unmodified QEMU creates it on any
    machine, and its vfio-ap devices can be hot-plugged and live-migrated. All arguments are passed to QEMU, which
    replaces this process. Other machine types, and queries such as -version or -machine none, run without the plugin.

    Use this command inside `apfs exec`, where QEMU finds the emulated host's devices.

    QEMU 7.2 and 10.0 are supported; other versions are refused. The plugin is compiled with cc when it is first needed,
    into /var/cache/apfs or, for users other than root, into ~/.cache/apfs.

    \b
    ENVIRONMENT
        APFS_QEMU_PLUGIN   path of a compiled plugin, as printed by --build
        XDG_CACHE_HOME     used instead of ~/.cache
        CC                 used instead of cc

    \b
    EXAMPLE
        apfs exec -- bash
        apfs qemu -- -M s390-ccw-virtio -m 256 -nographic -kernel vmlinuz -initrd initrd \\
            -device vfio-ap,sysfsdev=/sys/bus/mdev/devices/669d9b23-fe1b-4ecb-be08-a2fabca99b71

    \b
    EXIT STATUS
        that of QEMU, 1 if its version is not supported, or
        2  wrong usage, no QEMU, no plugin        130  interrupted by Ctrl-C before QEMU was run
    """
    from apfs.mounts.interrupts import interrupts
    from apfs.vmm import build, emulator

    interrupts.note()
    if only_build and arguments:
        raise click.UsageError("--build takes no arguments")
    try:
        if only_build:
            click.echo(build.plugin())
        else:
            emulator.become(qemu or emulator.find(), list(arguments))
    except (emulator.EmulatorError, build.PluginError) as error:
        fail(str(error), 2)
