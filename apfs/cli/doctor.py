"""`apfs doctor`: the command line and the output; `apfs.cli.capabilities` runs the checks."""

from __future__ import annotations

import functools
import json
import sys
from typing import TYPE_CHECKING

import click

from apfs.cli.streams import fail

if TYPE_CHECKING:
    from apfs.cli.capabilities import Report


@click.command()
@click.argument("names", nargs=-1, metavar="[CAPABILITY]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(names: tuple[str, ...], *, as_json: bool) -> None:
    """Test what apfs can do here, and report what is missing for what does not work.

    Mounts a host on a temporary directory, runs a command in a sandbox, and cleans up. Without CAPABILITY all are
    tested; qemu only if a QEMU for s390x is installed.

    \b
    CAPABILITY
        python         hosts in Python, without a mount
        mount          apfs mount
        allow-other    apfs mount --allow-other
        exec           apfs exec, with a private network
        uevents        uevents inside apfs exec
        vfio           VFIO ioctls inside apfs exec
        qemu           QEMU's device vfio-ap, which libvirt uses, inside apfs exec

    \b
    EXIT STATUS
        0  every requested capability works        1  one does not        2  wrong usage, or no /proc
    """
    from apfs.cli import capabilities
    from apfs.mounts.table import MountsError

    for name in names:
        if name not in capabilities.CAPABILITIES:
            raise click.UsageError(f"no capability {name!r}: there are {', '.join(capabilities.CAPABILITIES)}")
    try:
        report = capabilities.examine(names)
    except MountsError as error:
        fail(str(error), error.exit_status)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=1))
    else:
        _show(report)
    raise SystemExit(0 if report.ok else 1)


def _show(report: Report) -> None:
    """Print for people. Lines are not folded: commands in them are to be copied."""
    from rich.text import Text

    from apfs.cli import capabilities, terminal

    print_ = functools.partial(terminal.console(sys.stdout).print, soft_wrap=True)
    yes, no = ("✓", "✗") if terminal.has("✓✗", sys.stdout) else ("ok", "no")
    print_(Text(capabilities.situation(report.facts)))
    width = max(map(len, capabilities.CAPABILITIES))
    for one in report.trials:
        mark = Text(f"{yes if one.works else no:<2}", style="green" if one.works else "bold red")
        print_(mark, Text(f"{one.name:<{width}}  {capabilities.CAPABILITIES[one.name]}"))
        lines = [Text(line) for line in (one.said, *map(str, one.problems), one.note) if line]
        for line in lines:
            print_(Text("     "), line, sep="")
    if report.flags:
        print_(Text(f"All together: {report.facts.engine or 'docker'} run {' '.join(report.flags)} ..."))
