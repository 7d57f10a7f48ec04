"""Which host a command looks at that is used inside `apfs exec` too, where there is only one."""

from __future__ import annotations

import click

from apfs.cli import completion
from apfs.cli.streams import fail

argument = click.argument(
    "mountpoint", metavar="[MOUNT]", type=click.Path(), required=False, shell_complete=completion.mounted
)


def find(mountpoint: str | None) -> str:
    """Return the mount point that was given, without links; without one, inside `apfs exec`, that of the host there."""
    from apfs.mounts import table
    from apfs.sandbox.compose import HOST

    if mountpoint is None:
        if not table.is_apfs(HOST):
            raise click.UsageError(f"MOUNT is missing: only inside `apfs exec` it may be, where it is {HOST}")
        return HOST
    try:
        return table.absolute(mountpoint)
    except table.MountsError as error:
        fail(str(error), error.status)
