"""`apfs scenario`: list, show and validate descriptions of hosts."""

from __future__ import annotations

import click

from apfs.cli import completion, hosts
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
    """List the scenarios that come with apfs, one per line with its purpose."""
    from apfs.scenario.reader import gallery, loads

    texts = gallery()
    width = max(map(len, texts))
    for name, text in texts.items():
        click.echo(f"{name:<{width}}  {loads(text, f'{name}.toml').description}")


@command.command("show")
@click.argument("name", shell_complete=completion.scenarios)
def show(name: str) -> None:
    """Print the TOML text of the scenario NAME, to copy and change."""
    from apfs.scenario.reader import gallery

    texts = gallery()
    if name not in texts:
        fail(f"no scenario {name!r}: there are {', '.join(texts)}", 2)
    click.echo(texts[name], nl=False)


@command.command("kernels")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: all features of each release.")
def kernels(*, as_json: bool) -> None:
    """List the Linux releases that a host can run, each with its differences from the one above.

    The key `kernel` of a scenario selects a release, and single features of others: docs/kernels.md explains them.
    """
    import json

    from apfs.kernel.profile import PROFILES, Profile, differing

    profiles = [Profile.of(version) for version in PROFILES]
    if as_json:
        click.echo(json.dumps({one.version: one.features() for one in profiles}, indent=1))
        return
    width = max(map(len, PROFILES))
    for before, one in zip((profiles[0], *profiles), profiles, strict=False):
        lines = differing(one.differences(before)) or ["the oldest"]
        click.echo(f"{one.version:<{width}}  {lines[0]}")
        for line in lines[1:]:
            click.echo(f"{'':<{width}}  {line}")


@command.command("validate")
@click.argument("file", type=hosts.Place(), shell_complete=completion.scenarios_and_files)
@hosts.changes
def validate(file: str, *, changes: dict[str, str]) -> None:
    """Check the scenario in FILE, a TOML file or a name of the gallery, by booting its host.

    \b
    EXIT STATUS
        0  valid        1  invalid: file, line and reason are on standard error
    """
    from apfs.host import Host
    from apfs.scenario.model import ScenarioError
    from apfs.scenario.reader import load

    try:
        host = Host(load(file, changes))
    except ScenarioError as error:
        fail(str(error))
    bound, total, _ = host.ap_bus.bindings()
    cards, mdevs = len(host.ap_bus.cards), len(host.mdev_bus.mdevs)
    click.echo(f"{file}: valid; cards: {cards}, queues: {total} ({bound} bound), mediated devices: {mdevs}")
