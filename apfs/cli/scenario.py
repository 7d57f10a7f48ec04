"""`apfs scenario`: descriptions of hosts."""

from __future__ import annotations

import click

from apfs.cli import completion
from apfs.cli.streams import fail


@click.group()
def command() -> None:
    """List, show and validate descriptions of hosts.

    \b
    EXAMPLE
        apfs scenario show default > my.toml
        apfs scenario validate my.toml
        apfs mount --scenario my.toml /tmp/z
    """


@command.command("list")
def list_() -> None:
    """List the scenarios that come with apfs, one per line with what it is for."""
    from apfs.scenario.reader import gallery, loads

    texts = gallery()
    width = max(map(len, texts))
    for name, text in texts.items():
        click.echo(f"{name:<{width}}  {loads(text, f'{name}.toml').description}")


@command.command("show")
@click.argument("name", shell_complete=completion.scenarios)
def show(name: str) -> None:
    """Print the TOML text of the scenario NAME, to be copied and changed."""
    from apfs.scenario.reader import gallery

    texts = gallery()
    if name not in texts:
        fail(f"no scenario {name!r}: there are {', '.join(texts)}", 2)
    click.echo(texts[name], nl=False)


@command.command("validate")
@click.argument("file", type=click.Path(), shell_complete=completion.scenarios_and_files)
def validate(file: str) -> None:
    """Check the scenario in FILE, a TOML file or a name of the gallery, by booting its host.

    \b
    EXIT STATUS
        0  valid        1  not: file, line and reason are on standard error
    """
    from apfs.host import Host
    from apfs.scenario.model import ScenarioError
    from apfs.scenario.reader import load

    try:
        host = Host(load(file))
    except ScenarioError as error:
        fail(str(error))
    bound, total, _ = host.ap_bus.bindings()
    cards, mdevs = len(host.ap_bus.cards), len(host.mdev_bus.mdevs)
    click.echo(f"{file}: valid; cards: {cards}, queues: {total} ({bound} bound), mediated devices: {mdevs}")
