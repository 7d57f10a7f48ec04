"""`apfs status`."""

from __future__ import annotations

import json
import sys

import click

from apfs.cli import hosts
from apfs.cli.streams import end_as_filters_do, fail


@click.command()
@hosts.argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, the content of ctl/status.")
def command(mountpoint: str | None, *, as_json: bool) -> None:
    """Show the state of the host mounted at MOUNT: cards, queues, mediated devices and guests, as tables.

    Cards and queues that are alike share a line, with their numbers as ranges. On a terminal there are colours, unless
    NO_COLOR is set, and long lines are folded; in a pipe or file lines are never cut. MOUNT/guests/UUID shows the guest
    of a mediated device. Inside `apfs exec` MOUNT may be left out.

    \b
    EXIT STATUS
        0  shown        1  host or guest went away meanwhile        2  wrong usage, or none there
    """
    from apfs.mounts import monitor, table

    end_as_filters_do()
    place = hosts.find(mountpoint)
    try:
        text = monitor.status(place)
    except table.MountsError as error:
        fail(str(error), error.exit_status)
    if not as_json:
        from apfs.cli import tables, terminal  # slow to import

        try:
            text = tables.status(json.loads(text), terminal.console(sys.stdout))
        except KeyError as error:
            fail(f"{place} is served by another version of apfs, its status lacks {error}: --json shows it", 2)
    click.echo(text, nl=False, color=True)
