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

    With --check nothing is changed: the target's own driver says what it would do with the stream. What it would refuse
    is printed per queue and characteristic, of all queues, also where the driver stops at the first. Where the driver
    gives the source's configuration to the target, it is printed what the target would have.

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
        return f"{check.uuid}: compatible" + _becomes(check)
    if check.errno is None:
        return (
            f"{check.uuid}: not compatible, the target ({check.drivers['target']}) would take the stream "
            f"({check.drivers['source']}) and do nothing with it"
        )
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
    rows = terminal.without_padding(captured.get())
    return f"{rows}{check.uuid}: not compatible, the target would answer {check.errno}"


def _becomes(check: Check) -> str:
    """Return what the target would be given, on lines of their own; nothing if the stream gives nothing."""
    if check.matrix is None or check.guest_matrix is None:
        return ""
    text = f"\n  the device would have {_matrix(check.matrix)}"
    if check.guest_matrix == check.matrix:
        return text
    return f"{text}\n  its guest would have {_matrix(check.guest_matrix)}"


def _matrix(masks: dict[str, list[int]]) -> str:
    from apfs.ap.mask import Mask

    digits = {"adapters": 2, "domains": 4, "control_domains": 4}
    numbers = ((axis, Mask.from_numbers(mask).ranges(digits[axis]) or "none") for axis, mask in masks.items())
    return ", ".join(f"{axis.replace('_', ' ')}: {text}" for axis, text in numbers)


def _story(outcome: Outcome) -> str:
    if outcome.ok:
        return f"{outcome.uuid}: migrated, {outcome.stream} bytes"
    headline = f"{outcome.uuid}: not migrated: {outcome.error}"
    return "\n".join([headline, *(f"  {line}" for line in outcome.log)])
