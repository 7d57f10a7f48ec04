"""`apfs report`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from apfs.cli import completion
from apfs.cli.streams import fail


@click.command()
@click.argument(
    "places", metavar="MOUNT...", nargs=-1, required=True, type=click.Path(), shell_complete=completion.mounted
)
@click.option("--output", "-o", type=click.Path(dir_okay=False), help="File to write. Default: standard output.")
def command(places: tuple[str, ...], output: str | None) -> None:
    """Draw what happened on the host mounted at MOUNT, as one HTML page.

    The page shows who has each queue, as a matrix of adapters and domains, with masks, mediated devices and guests, and
    a time line of all that happened, with the reasons of refusals, which moves them to any moment. It needs nothing
    else, no network either. Several hosts are shown side by side, as for a migration.

    \b
    EXAMPLE
        apfs report --output report.html /tmp/z

    \b
    EXIT STATUS
        0  written        1  host went away meanwhile, or not written        2  wrong usage, or none there
    """
    from apfs.cli import progress
    from apfs.mounts import monitor, table
    from apfs.report import sources
    from apfs.report.page import page

    if output is None and sys.stdout.isatty():
        fail("a page is nothing for a terminal: name a file by --output", 2)
    stories = []
    for place in places:
        try:
            with progress.shown(f"{place}: doing all of it again"):
                journal, status = monitor.journal(place), monitor.status(place)
                stories.append(sources.mounted(Path(place).name, status, journal))
        except table.MountsError as error:
            fail(str(error), error.exit_status)
        except (KeyError, ValueError) as error:
            fail(f"{place} is served by another version of apfs: {error}", 2)
    text = page(stories, ", ".join(story["title"] for story in stories))
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, "utf-8")
    except OSError as error:
        fail(f"{output}: {error.strerror}")
