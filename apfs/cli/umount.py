"""`apfs umount`: unmount a host, even a dead one."""

from __future__ import annotations

import click

from apfs.cli import completion
from apfs.cli.streams import fail


@click.command()
@click.argument("mountpoint", type=click.Path(readable=False), shell_complete=completion.mounted)
@click.option(
    "--lazy", "-z", is_flag=True, help="Detach now even if the mount is in use; its server ends with the last user."
)
def command(mountpoint: str, *, lazy: bool) -> None:
    """Unmount the emulated host at MOUNTPOINT.

    Also removes a dead mount, one whose server was killed. umount(8) and fusermount3(1) work as well.

    \b
    EXAMPLE
        apfs umount --lazy /tmp/a

    \b
    EXIT STATUS
        0  unmounted        1  not an apfs mount, or busy
    """
    from apfs.mounts import table

    try:
        table.unmount(mountpoint, lazy=lazy)
    except table.MountsError as error:
        fail(str(error))
