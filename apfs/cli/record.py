"""`apfs record`: write a scenario from a machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apfs.cli import hosts
from apfs.cli.streams import fail

if TYPE_CHECKING:
    from apfs.recording.recorder import Recording


@click.command()
@click.option(
    "--root",
    "-r",
    type=hosts.Place(path_type=Path, file_okay=False),
    default="/",
    show_default=True,
    metavar="DIR",
    help="The directory that contains sys.",
)
@click.option(
    "--output",
    "-o",
    type=hosts.Place(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to FILE, which must not exist.",
)
@click.option("--force", "-f", is_flag=True, help="Overwrite FILE.")
@click.option("--name", "-n", default="recorded", show_default=True, help="Name of the scenario.")
def command(root: Path, output: Path | None, name: str, *, force: bool) -> None:
    """Write a scenario that describes this machine, or the one whose sysfs is below DIR.

    DIR is the root of a machine, an apfs mount, or any directory with a copy of sys in it. Only standard Linux
    attributes are read, nothing is changed, and no privileges are needed.

    Comments at the top of the scenario list what a scenario cannot express and what could not be read. Unreadable
    files are also reported on standard error.

    \b
    EXAMPLE
        apfs record --output lpar7.toml
        apfs mount --scenario ./lpar7.toml /tmp/z

    \b
    EXIT STATUS
        0  recorded        1  not possible, or FILE exists        2  wrong usage, or no AP bus
    """
    from apfs.writing import write_new, write_whole

    if force and output is None:
        raise click.UsageError("--force needs --output")
    if not name.isprintable():
        raise click.UsageError("--name takes printable characters, in the locale's encoding")
    exists = f"{output} exists: --force overwrites it"
    if output and os.path.lexists(output) and not force:
        fail(exists)
    recording = _record(root, name)
    for line in recording.unread:
        click.echo(f"apfs: warning: {line}", err=True)
    if output is None:
        click.echo(recording.text(), nl=False)
        return
    try:
        (write_whole if force else write_new)(output, recording.text())
    except FileExistsError:  # somebody else has made it meanwhile
        fail(exists)
    except OSError as error:
        fail(f"{output}: {error.strerror}")


def _record(root: Path, name: str) -> Recording:
    """Read a machine, as a whole."""
    from apfs.recording import recorder
    from apfs.recording.tree import Directory
    from apfs.scenario.model import ScenarioError

    is_mount = _check(root)
    try:
        recording = recorder.record(Directory(root), name)
    except recorder.RecordingError as error:
        hint = f"; did you mean --root {root.parent}?" if (root / "bus/ap").is_dir() else ""
        fail(f"{root}: {error}{hint}", 2)
    except ScenarioError as error:
        fail(f"{root}: no scenario can describe this machine: {error.reason}")
    if is_mount and not _check(root):
        fail(f"{root} was unmounted, or its server has ended, before all of the machine was read", 2)
    return recording


def _check(root: Path) -> bool:
    """Make sure that there is a directory at a place, and that it answers if it is a mount. Return whether it is."""
    from apfs.mounts import table

    mounted = False
    with contextlib.suppress(table.MountsError):  # without /proc, as in some chroots, nothing can be known of mounts
        mounted = table.is_apfs(str(root))
    try:
        if mounted:
            table.check_answers(str(root))
        if not root.exists():
            raise click.UsageError(f"--root: {root} does not exist")
    except table.MountsError as error:
        fail(str(error), error.exit_status)
    except OSError as error:
        fail(f"{root}: {error.strerror}", 2)
    return mounted
