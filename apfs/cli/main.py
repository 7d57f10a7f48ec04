"""The command `apfs`.

The command NAME is the `command` of the module `apfs.cli.NAME`, which is imported when that command is used, even for
its help or for Tab completion. So at the top the module imports only click and other fast modules; it imports what it
needs to run when it runs. To add a command, write such a module and a line of COMMANDS.

Exit status everywhere: 0 success, 1 the answer is no (or the operation failed), 2 wrong usage or environment.
"""

from __future__ import annotations

import os
import signal
from collections import UserDict
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from apfs import __version__
from apfs.cli import streams
from apfs.cli.ctrl_c import at_once
from apfs.mounts.interrupts import STATUS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS = {
    "mount": "Mount an emulated host.",
    "umount": "Unmount an emulated host, even a dead one.",
    "exec": "Run a command on an emulated host.",
    "qemu": "Run QEMU for s390x with vfio-ap.",
    "libvirtd": "Run libvirtd on an emulated host.",
    "status": "Show the state of a host.",
    "journal": "Show what happened on a host, and why.",
    "report": "Show what happened on a host, as an HTML page.",
    "replay": "Repeat what a journal recorded, and compare.",
    "migrate": "Live-migrate a guest, or predict the outcome.",
    "scenario": "List, show and validate descriptions of hosts.",
    "record": "Write a scenario that describes a machine.",
    "agent": "Run a command in which apfs is faster.",
    "doctor": "Test what works here, and report what is missing.",
    "completion": "Print a script for Tab completion in a shell.",
}
"""All commands, in the order in which they are shown, with the line that is shown of them."""

_TAKE_BACK = {"mount", "umount", "exec", "agent", "qemu", "libvirtd"}
"""Commands that see to Ctrl-C themselves, by `apfs.mounts.interrupts` or a handler of their own, or end at once."""


class _Modules(UserDict[str, click.Command]):
    """The commands by name, each imported when it is looked at."""

    def __init__(self) -> None:
        super().__init__({name: click.Command(name, short_help=line) for name, line in COMMANDS.items()})

    def __getitem__(self, name: str) -> click.Command:
        """Return a command; `KeyError` if there is none of that name."""
        line = self.data[name].short_help
        command: click.Command = import_module(f"apfs.cli.{name}").command
        command.name, command.short_help = name, line
        return command


class _Apfs(click.Group):
    """The commands, and the form in which mount.fuse3(8) calls: `apfs SOURCE MOUNTPOINT -o OPTIONS`."""

    def main(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401 -- as click has it
        """Run a command, whose output must not be lost silently."""
        streams.prepare()
        if "_APFS_COMPLETE" in os.environ:
            from apfs.cli import completion  # noqa: F401 -- registers what knows bash's ways
        return super().main(*args, **extra)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command to run and its arguments."""
        if args[2:3] == ["-o"] and args[0] not in self.commands and not ctx.resilient_parsing:
            from apfs.cli import mount_helper

            mount_helper.main(args)
            ctx.exit()
        name, command, rest = super().resolve_command(ctx, args)
        if name not in _TAKE_BACK and signal.getsignal(signal.SIGINT) is at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 -- as click has it
        """Run the command; Ctrl-C is a status and no text, and a lack of memory a line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(STATUS) from None
        except MemoryError:
            streams.fail("not enough memory")

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order in which they are shown."""
        return list(COMMANDS)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer commands and options, without importing any command."""
        from click.shell_completion import CompletionItem

        names = sorted(name for name in COMMANDS if name.startswith(incomplete))
        offered = [CompletionItem(name, help=COMMANDS[name]) for name in names]
        return offered + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=_Apfs, commands=_Modules(), context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="apfs")
def main() -> None:
    """Emulate an IBM Z host with crypto cards as a file system.

    A mount has the files of such a host's /sys and /dev for the AP bus, the vfio_ap driver and its mediated devices.
    Reads and writes behave as in the kernel. Two mounts are two hosts, between which the AP configurations of guests
    can be live-migrated. mount(8) and fstab(5) can mount hosts too, see mount.fuse.apfs(8).

    \b
    EXAMPLE
        mkdir -p /tmp/z
        apfs mount /tmp/z
        cat /tmp/z/sys/bus/ap/bindings
        echo -5 > /tmp/z/sys/bus/ap/apmask
        apfs umount /tmp/z
    """
