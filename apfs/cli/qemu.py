"""`apfs qemu`."""

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
    shell_complete=completion.commands,
)
@click.option(
    "--build",
    "only_build",
    is_flag=True,
    help="Only compile the plugin, if that has not been done, and print its path.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENT...]")
def command(qemu: str | None, arguments: tuple[str, ...], *, only_build: bool) -> None:
    """Run QEMU for s390x with vfio-ap, without KVM and on any machine.

    QEMU makes an AP bus for its machine only with KVM on s390x. With the plugin of apfs, an unmodified QEMU does so
    everywhere, and its vfio-ap devices can be hot-plugged and live-migrated. All arguments go to QEMU, and this process
    becomes it. Machines of other types get no plugin, and neither do queries such as -version or -machine none.

    Use it inside `apfs exec`, where QEMU finds the emulated host's devices.

    QEMU 7.2 and 10.0 are known; others are refused. The plugin is compiled when it is first needed, with cc, into
    /var/cache/apfs or, by users, into ~/.cache/apfs.

    \b
    ENVIRONMENT
        APFS_QEMU_PLUGIN   file of a compiled plugin, such as --build prints
        XDG_CACHE_HOME     in place of ~/.cache
        CC                 in place of cc

    \b
    EXAMPLE
        apfs exec -- bash
        apfs qemu -- -M s390-ccw-virtio -m 256 -nographic -kernel vmlinuz -initrd initrd \\
            -device vfio-ap,sysfsdev=/sys/bus/mdev/devices/669d9b23-fe1b-4ecb-be08-a2fabca99b71

    \b
    EXIT STATUS
        that of QEMU, 1 if it is not one that is known, or
        2  wrong usage, no QEMU, no plugin        130  Ctrl-C came before QEMU was run
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
