"""`apfs journal`: show what happened on a host."""

from __future__ import annotations

import functools
import sys

import click

from apfs.cli import completion, hosts
from apfs.cli.streams import end_as_filters_do, fail


def _known(_ctx: click.Context, _param: click.Parameter, types: tuple[str, ...]) -> tuple[str, ...]:
    if types:
        from apfs.journal.records import KINDS

        for name in types:
            if name not in KINDS:
                raise click.BadParameter(f"{name!r} is not a type of records: there are {', '.join(KINDS)}")
    return types


@click.command()
@hosts.argument
@click.option("--follow", "-f", is_flag=True, help="Keep printing new records, until Ctrl-C or the end of the mount.")
@click.option("--json", "as_json", is_flag=True, help="Print the raw records, one JSON object per line.")
@click.option(
    "--lines", "-n", type=click.IntRange(min=0), help="Start with the last N records. Default: all; with --follow 10."
)
@click.option(
    "--type",
    "types",
    metavar="TYPE",
    multiple=True,
    callback=_known,
    help="Print only records of this type. Repeatable.",
    shell_complete=completion.record_types,
)
def command(mountpoint: str | None, *, follow: bool, as_json: bool, lines: int | None, types: tuple[str, ...]) -> None:
    """Show what happened on the host mounted at MOUNT: stores, refusals with their reasons, uevents, the kernel log.

    Each record is a line with its number, its type, and what happened. MOUNT/guests/UUID shows the journal of the
    guest of a mediated device. Inside `apfs exec`, MOUNT can be omitted.

    \b
    TYPES
        store refusal uevent log guest interrupt ioctl reset migration verb open close transfer read setattr time
        inside crash

    \b
    EXAMPLE
        apfs journal --follow --type refusal /tmp/z
        apfs journal --json /tmp/z | jq -c 'select(.errno == "EBUSY")'

    \b
    EXIT STATUS
        0  shown        1  host or guest disappeared meanwhile        2  wrong usage, or no host there
    """
    from apfs.mounts import monitor, table

    end_as_filters_do()
    place = hosts.find(mountpoint)
    if as_json:
        render = "{}\n".format
    else:
        from apfs.cli import tables, terminal  # slow to import

        out = terminal.console(sys.stdout)
        render = functools.partial(tables.record, out=out)
    if follow and lines is None:
        lines = 10
    try:
        monitor.print_journal(place, render, types=types, lines=lines, follow=follow, header=as_json)
    except table.FileError as error:
        fail(f"{error}: `apfs report` and `apfs replay` read journals in files", error.exit_status)
    except table.MountsError as error:
        fail(str(error), error.exit_status)
    except ValueError as error:
        fail(f"{place} is served by another version of apfs: {error}; --json shows it", 2)
