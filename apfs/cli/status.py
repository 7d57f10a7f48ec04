"""`apfs status`: show the state of a host."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from apfs.cli import hosts
from apfs.cli.streams import end_as_filters_do, fail

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console, Group, RenderableType

_SECONDS = 1


@click.command()
@hosts.argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, the content of ctl/status.")
@click.option(
    "--watch", "-w", is_flag=True, help="Show the tables on a terminal and keep them up to date, until Ctrl-C."
)
def command(mountpoint: str | None, *, as_json: bool, watch: bool) -> None:
    """Show the state of the host mounted at MOUNT: cards, queues, mediated devices and guests, as tables.

    Identical cards and queues share a line, with their numbers as ranges. On a terminal, the output has colours,
    unless NO_COLOR is set, and long lines are folded; in a pipe or file, lines are never cut. MOUNT/guests/UUID shows
    the guest of a mediated device. Inside `apfs exec`, MOUNT can be omitted.

    \b
    EXIT STATUS
        0  shown        1  host or guest disappeared meanwhile        2  wrong usage, or no host there
    """
    from apfs.mounts import monitor, table

    if watch and as_json:
        raise click.UsageError("--watch and --json exclude each other: `apfs journal --follow --json` is for programs")
    place = hosts.find(mountpoint)
    try:
        if watch:
            _watch(place)
        end_as_filters_do()
        text = monitor.status(place)
        if not as_json:
            from apfs.cli import tables, terminal  # slow to import

            text = tables.status(json.loads(text), terminal.console(sys.stdout))
    except table.MountsError as error:
        fail(str(error), error.exit_status)
    except KeyError as error:
        fail(f"{place} is served by another version of apfs, its status lacks {error}: --json shows it", 2)
    click.echo(text, nl=False, color=True)


class _EndedError(BaseException):
    """A signal asks to end; the terminal is to be left as it was."""


def _watch(place: str) -> NoReturn:
    """Show the state of a host until a signal ends that, or the host."""
    from rich.live import Live

    from apfs.cli import tables, terminal
    from apfs.mounts import monitor
    from apfs.mounts.interrupts import handle

    out = terminal.console(sys.stdout)
    if not out.is_terminal or out.is_dumb_terminal:
        raise click.UsageError("--watch needs a terminal: `apfs journal --follow` is for pipes and files")

    def end(number: int, _frame: FrameType | None) -> None:
        raise _EndedError(number)

    handle((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), end)
    try:
        with Live(console=out, screen=True, auto_refresh=False) as live:
            for text in monitor.statuses(place, _SECONDS):
                out.width = terminal.width()  # somebody may have resized it
                live.update(_fitting(tables.view(json.loads(text)), out), refresh=True)
    except _EndedError as ended:
        signal.signal(ended.args[0], signal.SIG_DFL)
        signal.raise_signal(ended.args[0])
    raise AssertionError(place)  # statuses end by a signal or an error only


def _fitting(view: Group, out: Console) -> RenderableType:
    """Return tables as far as a terminal has lines for them, and say how much that leaves out."""
    from rich.console import Group
    from rich.segment import Segment, Segments
    from rich.text import Text

    lines = out.render_lines(view, pad=False)[:-1]  # without the empty line behind the last table
    first = lines[: out.height - 1]
    if len(lines) <= len(first) + 1:
        return view
    more = f"... {len(lines) - len(first)} more lines: make the terminal larger, or use `apfs status`"
    return Group(Segments([segment for line in first for segment in (*line, Segment.line())]), Text(more, "reverse"))
