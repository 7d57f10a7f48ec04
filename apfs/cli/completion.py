"""Tab completion: what click asks for values, and the command `apfs completion`.

Nothing slow is imported here, not even pathlib: this runs at every Tab for which a script has to ask click.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ZshComplete, add_completion_class

from apfs.cli import values

if TYPE_CHECKING:
    from apfs.cli.values import Rule

SHELLS = ("bash", "zsh", "fish")


class _Lines:
    """What a script asks and what it gets are lines as in `apfs.cli.values`: versions of click differ."""

    name: str

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words of the command line, and the one to complete."""
        return values.read(os.environ)

    def format_completion(self, item: CompletionItem) -> str:
        """Return one line for the script."""
        return values.formatted(self.name, (item.type, item.value, item.help))


class _Bash(_Lines, BashComplete):
    pass


class _Zsh(_Lines, ZshComplete):
    pass


class _Fish(_Lines, FishComplete):
    pass


for _kind in (_Bash, _Zsh, _Fish):
    add_completion_class(_kind)


class Values:
    """A completer that asks a rule of `apfs.cli.values`, which the scripts ask without click."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def __call__(self, ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return what the rule offers after what click has read of the command line."""
        options: dict[str, object] = {}
        arguments: list[str] = []
        for param in ctx.command.params:
            given = ctx.params.get(param.name or "")
            if isinstance(param, click.Option):
                options[param.opts[0]] = given
            elif given is not None:
                arguments += [given] if isinstance(given, str) else given
        return [CompletionItem(value, kind, text) for kind, value, text in self.rule(options, arguments, incomplete)]


files = Values(values.files)
directories = Values(values.directories)
scenarios = Values(values.scenarios)
scenarios_and_files = Values(values.scenarios_and_files)
mounted = Values(values.mounted)
mounted_and_files = Values(values.mounted_and_files)
guests = Values(values.guests)
programs = Values(values.programs)
commands = Values(values.commands)
operands = Values(values.operands)


def record_types(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the types of records that a journal can have."""
    from apfs.journal.records import KINDS

    return [CompletionItem(kind) for kind in KINDS if kind.startswith(incomplete)]


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options, scenarios, mounts and mediated devices.

    \b
    EXAMPLE
        eval "$(apfs completion bash)"            in ~/.bashrc
        eval "$(apfs completion zsh)"             in ~/.zshrc, after compinit
        apfs completion fish | source             in ~/.config/fish/config.fish
    """
    from apfs.cli.tab import script

    click.echo(script(ctx.find_root().command, shell), nl=False)
