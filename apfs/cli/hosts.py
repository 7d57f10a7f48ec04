"""Options and arguments that several commands share: which host to inspect or to run a program on, and bind mounts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apfs.cli import completion
from apfs.cli.streams import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class Place(click.Path):
    """A path that is not empty, as the value of a variable that is not set would be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 -- as click has it
        """Return the path."""
        if not value:
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)


# Of a command that is used inside `apfs exec` too, where there is only one host.
argument = click.argument(
    "mountpoint", metavar="[MOUNT]", type=Place(readable=False), required=False, shell_complete=completion.mounted
)


def find(mountpoint: str | None) -> str:
    """Return the mount point that was given, without links; without one, inside `apfs exec`, that of the host there."""
    from apfs.mounts import table
    from apfs.sandbox.compose import HOST

    if mountpoint is None:
        if not table.is_apfs(HOST):
            raise click.UsageError(f"MOUNT is missing: it can be omitted only inside `apfs exec`, where it is {HOST}")
        return HOST
    try:
        return table.absolute(mountpoint)
    except table.MountsError as error:
        fail(str(error), error.exit_status)


mount = click.option(
    "--mount",
    "-m",
    "mounted",
    type=Place(path_type=Path),
    help="Use the host mounted there.",
    shell_complete=completion.mounted,
)
die_with_parent = click.option(
    "--die-with-parent", is_flag=True, hidden=True, help="End when the calling process does."
)


def scenario(text: str) -> Decorator:
    """Return the option for a host that is started for the program, with this help."""
    return click.option(
        "--scenario", "-s", metavar="NAME|FILE", help=text, shell_complete=completion.scenarios_and_files
    )


def _changes(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or not equals:
            raise click.UsageError("--set takes KEY=VALUE")
        found[name] = text
    return found


changes = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_changes,
    help="Override a key at the top level of the scenario, such as name or serial. Repeatable.",
)
"""The option for hosts of one scenario that differ a little."""


def binds(where: str) -> Decorator:
    """Return the option for what the program sees at other places; its value is pairs of source and destination."""

    def pairs(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
        found = []
        for value in values:
            source, _, below = value.rpartition(":/")  # SRC may have colons
            if not source:
                raise click.UsageError("--bind takes SRC:DEST, and DEST is absolute")
            found.append((source, f"/{below}"))
        return found

    text = f"Show SRC at DEST {where}. Repeatable."
    return click.option("--bind", "binds", multiple=True, metavar="SRC:DEST", help=text, callback=pairs)


def only_one(scenario: str | None, mounted: Path | None) -> None:
    """Refuse a host that is to be started and one that is mounted already, together."""
    if scenario and mounted:
        raise click.UsageError("--scenario and --mount exclude each other")
