"""`apfs migrate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apfs.cli import completion
from apfs.cli.streams import fail

if TYPE_CHECKING:
    from apfs.mounts.migration import Check, Outcome


@click.command()
@click.argument("source", type=click.Path(), shell_complete=completion.mounted)
@click.argument("target", type=click.Path(), shell_complete=completion.mounted)
@click.argument("uuid", shell_complete=completion.mdevs("source"))
@click.option("--check", is_flag=True, help="Change nothing; say whether a migration would succeed, and if not, why.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(source: str, target: str, uuid: str, *, check: bool, as_json: bool) -> None:
    """Live-migrate the guest of the mediated device UUID from the mount SOURCE to the mount TARGET.

    Does with both hosts what a VMM does: opens the device on the target, stops the guest on the source, takes its
    configuration as a stream from one to the other, and resumes it there. If the target refuses, the guest goes on
    on the source and the target's kernel log is shown.

    With --check nothing is changed. What the target's driver would refuse is printed per queue and characteristic;
    all queues are looked at, while the driver stops at the first.

    \b
    EXAMPLE
        apfs mount --scenario migration-source /tmp/a
        apfs mount --scenario migration-target /tmp/b
        apfs migrate --check /tmp/a /tmp/b 669d9b23-fe1b-4ecb-be08-a2fabca99b71
        apfs migrate /tmp/a /tmp/b 669d9b23-fe1b-4ecb-be08-a2fabca99b71

    \b
    EXIT STATUS
        0  migrated, or compatible        1  refused, or not compatible        2  wrong usage or environment
    """
    from apfs.mounts import migration

    try:
        answer = migration.check if check else migration.migrate
        report = answer(Path(source), Path(target), uuid.lower())
    except migration.NotPossibleError as error:
        fail(str(error), 2)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=1))
    else:
        click.echo(text(report), color=True)
    raise SystemExit(0 if report.ok else 1)


def text(report: Check | Outcome) -> str:
    """Return an answer, or what happened, for people."""
    from apfs.mounts.migration import Check

    return _answer(report) if isinstance(report, Check) else _story(report)


def _answer(check: Check) -> str:
    if check.ok:
        return f"{check.uuid}: compatible"
    from rich.table import Table

    from apfs.cli import terminal

    table = Table(box=None)
    for title in ("queue", "characteristic", "source", "target"):
        table.add_column(title, overflow="fold")
    for reason in check.reasons:
        table.add_row(reason.queue or "all", reason.characteristic, reason.source, reason.target)
    console = terminal.console(sys.stdout)
    with console.capture() as captured:
        console.print(table)
    # Every line of a table is padded with blanks.
    rows = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    return f"{rows}{check.uuid}: not compatible, the target would answer {check.errno}"


def _story(outcome: Outcome) -> str:
    if outcome.ok:
        return f"{outcome.uuid}: migrated, {outcome.stream} bytes"
    headline = f"{outcome.uuid}: not migrated: {outcome.error}"
    return "\n".join([headline, *(f"  {line}" for line in outcome.log)])
