"""`apfs report`: show what happened on a host, as an HTML page."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import click

from apfs.cli import completion, hosts
from apfs.cli.streams import fail


@click.command()
@click.argument(
    "places",
    metavar="MOUNT|JOURNAL...",
    nargs=-1,
    required=True,
    type=hosts.Place(allow_dash=True),
    shell_complete=completion.mounted_and_files,
)
@click.option("--output", "-o", type=hosts.Place(dir_okay=False), help="File to write. Default: standard output.")
def command(places: tuple[str, ...], output: str | None) -> None:
    """Show what happened on a host, as one HTML page.

    MOUNT is where the host is mounted; MOUNT/guests/UUID is the guest of a mediated device. JOURNAL is a file with the
    output of `apfs journal --json`; - is standard input.

    The page shows the owner of each queue as a matrix of adapters and domains, with masks, mediated devices and guests.
    A time line of all events, with the reasons for refusals, selects the moment that is shown. The page is a single
    file and needs no network. Several hosts are shown side by side, for example after a migration.

    \b
    EXAMPLE
        apfs report --output report.html /tmp/z

    \b
    EXIT STATUS
        0  written        1  host disappeared meanwhile, or not written        2  wrong usage, or no host there
    """
    from apfs.cli import progress
    from apfs.report.page import page
    from apfs.writing import write_whole

    if output is None and sys.stdout.isatty():
        fail("refusing to print an HTML page on a terminal: use --output FILE", 2)
    stories = []
    for place in places:
        with progress.shown(f"replaying {place}"):
            stories.append(_story(place))
    text = page(stories, ", ".join(story["title"] for story in stories))
    if output is None:
        click.echo(text.encode(), nl=False)  # UTF-8, as it says, in any locale
        return
    try:
        write_whole(Path(output), text)
    except OSError as error:
        fail(f"{output}: {error.strerror}")


def _story(place: str) -> dict[str, Any]:
    """Return the story of a mount or of a journal."""
    from apfs.cli import recordings
    from apfs.mounts import guests, monitor, table
    from apfs.replay.replay import ReplayError
    from apfs.report import sources
    from apfs.scenario.model import ScenarioError

    try:
        if place == "-" or _is_file(place):
            with recordings.opened(place) as journal:
                return sources.recorded(Path(place).stem if Path(place).is_file() else "journal", journal)
        title = Path(table.absolute(place)).name
        if guests.split(place) == (place, ()) and not table.exists(place):
            fail(f"{place} does not exist: give a mount, or a file with the output of `apfs journal --json`", 2)
        return sources.asked(title, monitor.head(place) + monitor.journal(place), monitor.status(place))
    except table.MountsError as error:
        fail(str(error), error.exit_status)
    except ReplayError as error:
        fail(f"{place}: no report is possible: {error}", 2)
    except (KeyError, ValueError, ScenarioError) as error:  # of a mount of another version of apfs
        fail(f"{place}: {str(error)[:300]}", 2)


def _is_file(place: str) -> bool:
    """Whether a place is a file of any kind, such as a pipe of the shell; what does not answer is for the mounts."""
    try:
        return not stat.S_ISDIR(Path(place).stat().st_mode)
    except OSError:
        return False
