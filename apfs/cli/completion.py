"""Tab completion of arguments: scenarios, mounts, mediated devices; and the command `apfs completion`.

This runs at every Tab, so nothing slow is imported here, not even pathlib, and errors silently result in fewer
completions.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

SHELLS = ("bash", "zsh", "fish")


class _Bash(BashComplete):
    """Bash inserts what it gets as it is: spaces and the like must be escaped for it. zsh and fish do that."""

    def format_completion(self, item: CompletionItem) -> str:
        """Return one line for the script."""
        value = re.sub(r"([^\w@%+=:,./-])", r"\\\\\1", item.value)  # the script's `read` takes one backslash away
        return f"{item.type},{value}"


add_completion_class(_Bash)


def _matching(items: Iterable[tuple[str, str | None]], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(value, help=text) for value, text in items if value.startswith(incomplete)]


def scenarios(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the scenarios of the gallery with what they are for."""
    import tomllib

    from apfs.scenario.reader import gallery

    texts = gallery().items()
    return _matching(((name, str(tomllib.loads(text)["description"])) for name, text in texts), incomplete)


def scenarios_and_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer scenarios, and files for what cannot be a scenario."""
    return scenarios(ctx, param, incomplete) or [CompletionItem(incomplete, type="file")]


def directories(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer directories."""
    return [CompletionItem(incomplete, type="dir")]


def mounted(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the places where an apfs is mounted, and directories for any other text."""
    from apfs.mounts import table

    places = dict.fromkeys(mount.mountpoint for mount in table.mounted() if mount.fstype == table.FSTYPE)
    return _matching(((place, None) for place in places), incomplete) or directories(ctx, param, incomplete)


def mounted_and_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the places where an apfs is mounted, and files for any other text."""
    found = mounted(ctx, param, incomplete)
    return [item for item in found if item.type != "dir"] or [CompletionItem(incomplete, type="file")]


def guests(parameter: str) -> Completer:
    """Return a completer that offers the running guests of the mount that another parameter names."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _listed(f"{ctx.params.get(parameter) or '.'}/guests", incomplete)

    return complete


def mdevs(mount: str, incomplete: str) -> list[CompletionItem]:
    """Offer the mediated devices of a mount."""
    return _listed(f"{mount}/dev/vfio-ap", incomplete)


def _listed(directory: str, incomplete: str) -> list[CompletionItem]:
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(directory)  # noqa: PTH208 -- names are wanted
    return _matching(((name, None) for name in names), incomplete.lower())


def record_types(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the types of records that a journal can have."""
    from apfs.journal.records import KINDS

    return _matching(((kind, None) for kind in KINDS), incomplete)


def commands(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the commands in PATH for the first word, and files for all others."""
    return command_line(ctx.params.get(param.name or "") or (), incomplete)


def command_line(words: tuple[str, ...], incomplete: str) -> list[CompletionItem]:
    """Offer what can follow these words of a command."""
    if words or "/" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    found: set[str] = set()
    for directory in os.get_exec_path():
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            found |= {entry.name for entry in entries if entry.name.startswith(incomplete) and entry.is_file()}
    return [CompletionItem(name) for name in sorted(found)]


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
