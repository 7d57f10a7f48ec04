"""`apfs migrate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from apfs.cli import completion
from apfs.cli.streams import fail


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
        click.echo(report.text())
    raise SystemExit(0 if report.ok else 1)
