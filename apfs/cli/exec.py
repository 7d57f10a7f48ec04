"""`apfs exec`: the command line; `apfs.sandbox` does the work."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apfs.cli import completion, hosts
from apfs.cli.streams import fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.mounts.private import PrivateHost
    from apfs.sandbox.seccomp import Nodes


class _Exec(click.Command):
    """A command that runs another; the exit status tells its own failures from those of the other."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:  # noqa: ANN401 -- as click has it
        """Read the command line."""
        with self._failing():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 -- as click has it
        """Run the command."""
        with self._failing():
            return super().invoke(ctx)

    @staticmethod
    @contextlib.contextmanager
    def _failing() -> Iterator[None]:
        try:
            yield
        except click.UsageError as error:
            from apfs.sandbox.run import FAILED

            error.show()
            raise SystemExit(FAILED) from None
        except MemoryError:
            from apfs.sandbox.run import FAILED

            fail("not enough memory", FAILED)


@click.command(cls=_Exec, context_settings={"allow_interspersed_args": False})
@hosts.scenario("Start a host of this scenario for the command.")
@hosts.mount
@click.option(
    "--guest",
    "-g",
    "uuids",
    multiple=True,
    metavar="UUID",
    help="Run COMMAND on the guest of this mediated device, not on the host. Repeat it for nested guests.",
    shell_complete=completion.guests,
)
@click.option(
    "--net",
    type=click.Choice(["private", "host"]),
    default="private",
    show_default=True,
    help="private: a new network namespace, with uevents; host: the machine's network, without uevents.",
)
@click.option("--keep-id", is_flag=True, help="Keep your user ID. By default, an ordinary user is root inside.")
@hosts.binds("inside")
@click.option("--tmpfs", multiple=True, metavar="DEST", help="Show an empty directory at DEST inside. Repeatable.")
@click.option(
    "--nodes",
    type=click.Choice(["devices", "exact", "files"]),
    default="devices",
    show_default=True,
    help="devices: character devices; exact: open in any mode, but slow down all programs; files: regular files.",
)
@hosts.die_with_parent
@click.argument(
    "words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED, shell_complete=completion.commands
)
def command(
    scenario: str | None,
    mounted: Path | None,
    uuids: tuple[str, ...],
    net: str,
    *,
    keep_id: bool,
    binds: list[tuple[str, str]],
    tmpfs: tuple[str, ...],
    nodes: Nodes,
    die_with_parent: bool,
    words: tuple[str, ...],
) -> None:
    """Run COMMAND on an emulated host: it sees the host's devices at /sys and /dev, and otherwise the real machine.

    The command needs no changes and no special flags. With --mount, several commands can share one host; otherwise
    a host is started for the command and ends with it. With --guest, the command sees what Linux sees in a VM: an AP
    bus with the guest matrix of the mediated device. The guest must be running. Inside `apfs exec`, --guest uses the
    host there, unless --mount or --scenario selects another.

    \b
    INSIDE
        /sys          real entries, plus the AP bus, vfio_ap, mediated devices and VFIO of the emulated host
        /dev/vfio     its VFIO nodes; /dev/vfio-ap its client files
        /dev/apfs     the whole mount: /dev/apfs/ctl/console, kmsg, journal ...
        /run          the real one, with private lock and udev
        modprobe, rmmod, insmod   load and unload modules of the emulated host, never of the real kernel
        network       with --net private only loopback; uevents of the host arrive as from the kernel

    Writes below other directories, such as /etc/mdevctl.d, change the real machine: use --bind and --tmpfs to give
    the command private directories. bwrap(1) creates the namespaces.

    \b
    EXAMPLE
        apfs exec -- mdevctl types
        apfs exec --mount /tmp/z -- bash
        apfs exec --mount /tmp/z --guest UUID -- lszcrypt -V

    \b
    EXIT STATUS
        that of COMMAND, or
        125  apfs itself failed        126  COMMAND cannot be run        127  COMMAND was not found
        130  interrupted by Ctrl-C before COMMAND was run
    """
    from apfs.mounts import table
    from apfs.mounts.interrupts import interrupts

    interrupts.note()
    hosts.only_one(scenario, mounted)
    if not all(destination.startswith("/") for destination in tmpfs):
        raise click.UsageError("--tmpfs takes an absolute DEST")
    if die_with_parent:
        from apfs.sandbox import linux

        # All that belongs to the sandbox ends with this process, however that ends.
        linux.die_with_parent()
    with contextlib.ExitStack() as stack:
        try:
            table.check_proc()
            host = mounted
            if uuids and not scenario and not mounted:
                from apfs.sandbox.compose import HOST

                if not table.is_apfs(HOST):
                    raise click.UsageError("--guest needs the host on which the guest runs: --mount DIR")
                host = Path(HOST)
            started = host or stack.enter_context(_private(scenario))
        except (OSError, table.MountsError) as error:
            from apfs.sandbox import run

            fail(_reason(error, "a host could not be started: "), run.FAILED)
        # While the host starts.
        from apfs.sandbox import compose, run

        try:
            sandbox = compose.Sandbox(net == "private", keep_id, binds, list(tmpfs), nodes)
            status = run.run(list(words), sandbox, started, uuids)
        except (run.SandboxError, table.MountsError, OSError) as error:
            fail(_reason(error, "the sandbox could not be created: "), run.FAILED)
    raise SystemExit(status)


def _reason(error: Exception, what: str) -> str:
    """Return what an error says; those of Linux do not say themselves what could not be done."""
    if not isinstance(error, OSError):
        return str(error)
    return what + (f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))


def _private(scenario: str | None) -> PrivateHost:
    from apfs.cli import forking
    from apfs.mounts.private import PrivateHost

    return PrivateHost(scenario or "default", forking.start)
