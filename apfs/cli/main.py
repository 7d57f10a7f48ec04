"""The command `apfs`.

Exit status everywhere: 0 success, 1 the answer is no (or the operation failed), 2 wrong usage or environment.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from apfs import __version__
from apfs.cli import completion, streams
from apfs.mounts.server import READY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PR_SET_PDEATHSIG = 1


def _fail(message: str, status: int = 1) -> NoReturn:
    """End with one clear line."""
    click.echo(f"apfs: {message}", err=True)
    raise SystemExit(status)


class _Commands(click.Group):
    """The commands, and the form in which mount.fuse3(8) calls: `apfs SOURCE MOUNTPOINT -o OPTIONS`."""

    def main(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401 -- as click has it
        """Run a command, whose output may not be lost without a word."""
        streams.prepare()
        return super().main(*args, **extra)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command to run and its arguments."""
        if args[2:3] == ["-o"] and args[0] not in self.commands and not ctx.resilient_parsing:
            from apfs.cli import mount_helper  # noqa: PLC0415 -- keeps `apfs --help` fast

            mount_helper.main(args)
            ctx.exit()
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="apfs")
def main() -> None:
    """Emulate an IBM Z host with crypto cards as a file system.

    A mount shows what /sys and /dev of such a host show of the AP bus, the vfio_ap driver and its mediated devices,
    and behaves as the kernel does when something is written to it. Two mounts are two hosts, between which guests'
    AP configurations can be live-migrated. With mount.fuse.apfs(8), mount(8) and fstab(5) mount as well.

    \b
    EXAMPLE
        mkdir -p /tmp/z
        apfs mount /tmp/z
        cat /tmp/z/sys/bus/ap/bindings
        echo -5 > /tmp/z/sys/bus/ap/apmask
        apfs umount /tmp/z
    """


@main.command()
@click.argument("mountpoint", type=click.Path(), shell_complete=completion.directories)
@click.option(
    "--scenario",
    "-s",
    default="default",
    metavar="NAME|FILE",
    help="The host to emulate.",
    show_default=True,
    shell_complete=completion.scenarios_and_files,
)
@click.option("--foreground", "-f", is_flag=True, help="Stay in the foreground; Ctrl-C unmounts.")
@click.option("--allow-other/--no-allow-other", default=None, help="Let other users in. Default: if mounted by root.")
@click.option(
    "--clock",
    type=click.Choice(["real", "manual"]),
    default="real",
    show_default=True,
    help="Whether the AP bus scans by itself every config_time seconds, or only when told to.",
)
@click.option("--debug", is_flag=True, help="Print every FUSE request on standard error. Implies --foreground.")
@click.option("--ready-fd", type=int, hidden=True, help="File descriptor to report to when the mount can be used.")
@click.option("--fast-loop/--no-fast-loop", default=True, hidden=True, help="For comparing the request loops.")
@click.option("--lifeline-fd", type=int, hidden=True, help="Pipe whose other end, when closed, ends the mount.")
@click.option(
    "--fuse-option", "fuse_options", multiple=True, default=["fsname=apfs"], hidden=True, help="fsname=, ro ..."
)
def mount(
    mountpoint: str,
    scenario: str,
    *,
    foreground: bool,
    allow_other: bool | None,
    clock: str,
    debug: bool,
    ready_fd: int | None,
    lifeline_fd: int | None,
    fast_loop: bool,
    fuse_options: tuple[str, ...],
) -> None:
    """Mount an emulated host on the directory MOUNTPOINT.

    Returns when the tree answers. The server then runs in a session of its own until the mount is unmounted (by
    `apfs umount`, umount(8) or fusermount3(1)) or it gets SIGTERM, SIGINT or SIGHUP. For mount(8) and fstab(5) there
    is mount.fuse.apfs(8).

    SCENARIO is the name of a scenario of the gallery (`apfs scenario list`) or, if it has a / or a . in it, the name
    of a TOML file.

    \b
    IN THE MOUNT
        sys/             /sys/bus/ap, /sys/devices/ap, /sys/devices/vfio_ap and what belongs to them
        dev/vfio/        the VFIO device nodes
        dev/vfio-ap/U/   what a VMM does with the mediated device U: guest, migration_state, data_stream ...
        ctl/             console (write `help`, read kmsg), kmsg, uevents, journal, status

    Files belong to the user who mounts; every file that sysfs would refuse to root is refused to root as well.

    \b
    EXAMPLE
        apfs mount --scenario migration-source --clock manual /tmp/a

    \b
    EXIT STATUS
        0  mounted        1  could not be mounted        2  wrong usage, scenario or environment
    """
    from apfs.mounts import server, table  # noqa: PLC0415 -- keeps `apfs --help` fast
    from apfs.scenario.model import ScenarioError  # noqa: PLC0415
    from apfs.scenario.reader import load  # noqa: PLC0415

    try:
        server.check_packages()
        description = load(scenario)
        server.check_fuse()
        server.check_mountpoint(mountpoint)
    except (ScenarioError, table.MountsError) as error:
        _fail(str(error), 2)
    for descriptor in (ready_fd, lifeline_fd):
        if descriptor is not None:
            # The mount helper lives as long as the mount and must not hold them open.
            os.set_inheritable(descriptor, False)  # noqa: FBT003 -- takes no keywords

    def serve(ready_fd: int | None, lifeline_fd: int | None = None) -> None:
        from apfs.fuse import session  # noqa: PLC0415 -- only the process that serves needs it
        from apfs.host import Host  # noqa: PLC0415

        try:
            session.serve(
                Host(description),
                table.absolute(mountpoint),
                allow_other=os.geteuid() == 0 if allow_other is None else allow_other,
                clock=clock == "real",
                ready=_report(ready_fd, silent=not debug),
                lifeline=lifeline_fd,
                fast_loop=fast_loop,
                fuse_options=[*fuse_options, *(["debug"] if debug else [])],
            )
        except (ScenarioError, session.MountError) as error:
            _fail(str(error), 2 if isinstance(error, ScenarioError) else 1)

    if foreground or debug:
        serve(ready_fd, lifeline_fd)
        return
    try:
        server.fork_server(mountpoint, serve)
    except table.MountsError as error:
        _fail(str(error), error.status)


def _report(ready_fd: int | None, *, silent: bool) -> Callable[[], None]:
    def report() -> None:
        if ready_fd is None:
            return
        if silent:
            # From now on nobody listens to what the server prints, and it must not keep a file system busy.
            os.chdir("/")
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)
            os.close(null)
        os.write(ready_fd, READY)
        os.close(ready_fd)

    return report


@main.command()
@click.argument("mountpoint", type=click.Path(), shell_complete=completion.mounted)
@click.option("--lazy", "-z", is_flag=True, help="Detach now even if the mount is in use; it ends with its last user.")
def umount(mountpoint: str, *, lazy: bool) -> None:
    """Unmount the emulated host at MOUNTPOINT.

    Clears away a dead mount too, whose server was killed. umount(8) and fusermount3(1) unmount as well.

    \b
    EXAMPLE
        apfs umount --lazy /tmp/a

    \b
    EXIT STATUS
        0  unmounted        1  not an apfs mount, or busy
    """
    from apfs.mounts import table  # noqa: PLC0415

    try:
        table.unmount(mountpoint, lazy=lazy)
    except table.MountsError as error:
        _fail(str(error))


@main.group()
def scenario() -> None:
    """List, show and validate descriptions of hosts.

    \b
    EXAMPLE
        apfs scenario show default > my.toml
        apfs scenario validate my.toml
        apfs mount --scenario my.toml /tmp/z
    """


@scenario.command("list")
def scenario_list() -> None:
    """List the scenarios that come with apfs, one per line with what it is for."""
    from apfs.scenario.reader import gallery, loads  # noqa: PLC0415

    texts = gallery()
    width = max(map(len, texts))
    for name, text in texts.items():
        click.echo(f"{name:<{width}}  {loads(text, f'{name}.toml').description}")


@scenario.command("show")
@click.argument("name", shell_complete=completion.scenarios)
def scenario_show(name: str) -> None:
    """Print the TOML text of the scenario NAME, to be copied and changed."""
    from apfs.scenario.reader import gallery  # noqa: PLC0415

    texts = gallery()
    if name not in texts:
        _fail(f"no scenario {name!r}: there are {', '.join(texts)}", 2)
    click.echo(texts[name], nl=False)


@scenario.command("validate")
@click.argument("file", type=click.Path(), shell_complete=completion.scenarios_and_files)
def scenario_validate(file: str) -> None:
    """Check the scenario in FILE, a TOML file or a name of the gallery, by booting its host.

    \b
    EXIT STATUS
        0  valid        1  not: file, line and reason are on standard error
    """
    from apfs.host import Host  # noqa: PLC0415
    from apfs.scenario.model import ScenarioError  # noqa: PLC0415
    from apfs.scenario.reader import load  # noqa: PLC0415

    try:
        host = Host(load(file))
    except ScenarioError as error:
        _fail(str(error))
    bound, total, _ = host.ap_bus.bindings()
    cards, mdevs = len(host.ap_bus.cards), len(host.mdev_bus.mdevs)
    click.echo(f"{file}: valid; cards: {cards}, queues: {total} ({bound} bound), mediated devices: {mdevs}")


@main.command()
@click.option(
    "--root",
    "-r",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default="/",
    show_default=True,
    metavar="DIR",
    help="The directory that has sys in it.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to FILE, which must not exist.",
)
@click.option("--force", "-f", is_flag=True, help="Overwrite FILE.")
@click.option("--name", "-n", default="recorded", show_default=True, help="The name that the scenario gives itself.")
def record(root: Path, output: Path | None, name: str, *, force: bool) -> None:
    """Write a scenario that describes this machine, or the one whose sysfs is below DIR.

    DIR is the root of a machine, a mount of apfs, or any directory with a copy of sys in it. Only attributes that
    Linux has are read, nothing is changed, and no privilege is needed.

    What a scenario cannot say, and what could not be read, is said in comments at the head; files that could not be
    read are named on standard error too.

    \b
    EXAMPLE
        apfs record --output lpar7.toml
        apfs mount --scenario ./lpar7.toml /tmp/z

    \b
    EXIT STATUS
        0  recorded        1  not possible, or FILE exists        2  wrong usage, or no AP bus
    """
    from apfs.recording.recorder import RecordError  # noqa: PLC0415 -- keeps `apfs --help` fast
    from apfs.recording.recorder import record as record_tree  # noqa: PLC0415
    from apfs.recording.tree import Directory  # noqa: PLC0415 -- keeps `apfs --help` fast
    from apfs.scenario.model import ScenarioError  # noqa: PLC0415

    if force and output is None:
        raise click.UsageError("--force is for --output")
    if not name.isprintable():
        raise click.UsageError("--name takes printable characters, in the locale's encoding")
    if output and os.path.lexists(output) and not force:
        _fail(f"{output} exists: --force overwrites it")
    try:
        recording = record_tree(Directory(root), name)
    except RecordError as error:
        hint = f"; did you mean --root {root.parent}?" if (root / "bus/ap").is_dir() else ""
        _fail(f"{root}: {error}{hint}", 2)
    except ScenarioError as error:
        _fail(f"{root}: no scenario can describe this machine: {error.reason}")
    for line in recording.unread:
        click.echo(f"apfs: warning: {line}", err=True)
    if output is None:
        click.echo(recording.text(), nl=False)
        return
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(recording.text())
    except OSError as error:
        _fail(f"{output}: {error.strerror}")


@main.command()
@click.argument("source", type=click.Path(), shell_complete=completion.mounted)
@click.argument("target", type=click.Path(), shell_complete=completion.mounted)
@click.argument("uuid", shell_complete=completion.mdevs("source"))
@click.option("--check", is_flag=True, help="Change nothing; say whether a migration would succeed, and if not, why.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def migrate(source: str, target: str, uuid: str, *, check: bool, as_json: bool) -> None:
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
    from apfs.mounts import migration  # noqa: PLC0415

    try:
        answer = migration.check if check else migration.migrate
        report = answer(Path(source), Path(target), uuid.lower())
    except migration.NotPossibleError as error:
        _fail(str(error), 2)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=1))
    else:
        click.echo(report.text())
    raise SystemExit(0 if report.ok else 1)


@main.command("completion")
@click.argument("shell", type=click.Choice(completion.SHELLS))
def completion_(shell: str) -> None:
    """Print the script that makes SHELL complete commands, options, scenarios, mounts and mediated devices.

    \b
    EXAMPLE
        eval "$(apfs completion bash)"            in ~/.bashrc
        eval "$(apfs completion zsh)"             in ~/.zshrc, after compinit
        apfs completion fish | source             in ~/.config/fish/config.fish
    """
    click.echo(completion.script(main, shell), nl=False)


class _Exec(click.Command):
    """A command that runs another, from whose exit status that of its own failures is told apart."""

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
            from apfs.sandbox.run import FAILED  # noqa: PLC0415 -- keeps `apfs --help` fast

            error.show()
            raise SystemExit(FAILED) from None


@main.command("exec", cls=_Exec, context_settings={"allow_interspersed_args": False})
@click.option(
    "--scenario",
    "-s",
    metavar="NAME|FILE",
    help="Start a host of this scenario for the command.",
    shell_complete=completion.scenarios_and_files,
)
@click.option(
    "--mount",
    "-m",
    "mounted",
    type=click.Path(path_type=Path),
    help="Use the host mounted there.",
    shell_complete=completion.mounted,
)
@click.option(
    "--net",
    type=click.Choice(["private", "host"]),
    default="private",
    show_default=True,
    help="A network namespace with uevents of its own, or the machine's network without them.",
)
@click.option("--keep-id", is_flag=True, help="Stay who you are; otherwise an ordinary user is root inside.")
@click.option("--bind", "binds", multiple=True, metavar="SRC:DEST", help="Show SRC at DEST inside. Repeatable.")
@click.option("--tmpfs", multiple=True, metavar="DEST", help="Show an empty directory at DEST inside. Repeatable.")
@click.option("--die-with-parent", is_flag=True, hidden=True, help="End when the calling process does.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, shell_complete=completion.commands)
def exec_(
    scenario: str | None,
    mounted: Path | None,
    net: str,
    *,
    keep_id: bool,
    binds: tuple[str, ...],
    tmpfs: tuple[str, ...],
    die_with_parent: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND on an emulated host: it sees the host's devices at /sys and /dev, and else the real machine.

    The command needs no flag and no change. With --mount several commands share one host; otherwise one is started
    for the command and ends with it.

    \b
    INSIDE
        /sys          real entries, with the AP bus, vfio_ap, mediated devices and VFIO of the emulated host
        /dev/vfio     its VFIO nodes; /dev/vfio-ap its client files
        /dev/apfs     the whole mount: /dev/apfs/ctl/console, kmsg, journal ...
        /run          the real one, with lock and udev of its own
        modprobe, rmmod, insmod   load and unload modules of the emulated host, never of the real kernel
        network       with --net private only loopback; uevents of the host arrive as the kernel's

    What is written below other directories, such as /etc/mdevctl.d, is written on the real machine: use --bind and
    --tmpfs to give the command directories of its own. bwrap(1) makes the namespaces.

    \b
    EXAMPLE
        apfs exec -- mdevctl types
        apfs exec --mount /tmp/z -- bash

    \b
    EXIT STATUS
        that of COMMAND, or
        125  apfs itself failed        126  COMMAND cannot be run        127  COMMAND was not found
    """
    from apfs.mounts import table  # noqa: PLC0415 -- keeps `apfs --help` fast
    from apfs.sandbox import compose, run  # noqa: PLC0415 -- keeps `apfs --help` fast

    if scenario and mounted:
        raise click.UsageError("--scenario and --mount exclude each other")
    pairs = [bind.partition(":")[::2] for bind in binds]
    if not all(source and destination.startswith("/") for source, destination in pairs):
        raise click.UsageError("--bind takes SRC:DEST, and DEST is absolute")
    if not all(destination.startswith("/") for destination in tmpfs):
        raise click.UsageError("--tmpfs takes an absolute DEST")
    if die_with_parent:
        # All that belongs to the sandbox ends with this process, however that ends.
        import ctypes  # noqa: PLC0415 -- keeps `apfs --help` fast

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    options = compose.Options(net == "private", keep_id, list(pairs), list(tmpfs))
    try:
        status = run.run(list(command), mounted, ["--scenario", scenario or "default"], options)
    except (run.SandboxError, table.MountsError) as error:
        _fail(str(error), run.FAILED)
    raise SystemExit(status)


@main.command()
@click.argument("capabilities", nargs=-1, metavar="[CAPABILITY]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def doctor(capabilities: tuple[str, ...], *, as_json: bool) -> None:
    """Try what apfs can do here, and say what is missing for what does not work.

    Hosts are mounted on temporary directories and a command is run in a sandbox; nothing stays behind. Without
    CAPABILITY all are tried.

    \b
    CAPABILITY
        python         hosts in Python, without a mount
        mount          apfs mount
        allow-other    apfs mount --allow-other
        exec           apfs exec, with a private network
        uevents        uevents inside apfs exec
        vfio           VFIO ioctls inside apfs exec

    \b
    EXIT STATUS
        0  all that was asked for works        1  something does not        2  wrong usage
    """
    from apfs.cli import doctor as doctors  # noqa: PLC0415 -- keeps `apfs --help` fast

    for name in capabilities:
        if name not in doctors.CAPABILITIES:
            raise click.UsageError(f"no capability {name!r}: there are {', '.join(doctors.CAPABILITIES)}")
    report = doctors.examine(capabilities)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=1))
    else:
        report.show()
    raise SystemExit(0 if report.ok else 1)


def _end_as_filters_do() -> None:
    """Let Ctrl-C, and a reader who has gone away, end this process without a word, as they end cat and tail."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started it ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _or_sandbox(mountpoint: str | None) -> str:
    """Return the mount point that was given, without links, or inside `apfs exec` that of the host there."""
    from apfs.mounts import table  # noqa: PLC0415 -- keeps `apfs --help` fast
    from apfs.sandbox.compose import HOST  # noqa: PLC0415

    if mountpoint is None:
        if not table.is_apfs(HOST):
            raise click.UsageError(f"MOUNT is missing: only inside `apfs exec` it may be, where it is {HOST}")
        return HOST
    try:
        return table.absolute(mountpoint)
    except table.MountsError as error:
        _fail(str(error), error.status)


@main.command()
@click.argument("mountpoint", metavar="[MOUNT]", type=click.Path(), required=False, shell_complete=completion.mounted)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, the content of ctl/status.")
def status(mountpoint: str | None, *, as_json: bool) -> None:
    """Show the state of the host mounted at MOUNT: cards, queues, mediated devices and guests, as tables.

    Cards and queues that are alike share a line, with their numbers as ranges. On a terminal there are colours, unless
    NO_COLOR is set, and long lines are folded; in a pipe or file lines are never cut. Inside `apfs exec` MOUNT may be
    left out.

    \b
    EXIT STATUS
        0  shown        1  the mount went away meanwhile        2  wrong usage, or no host there
    """
    from apfs.mounts import (  # noqa: PLC0415 -- keeps `apfs --help` fast
        monitor,
        table,
    )

    _end_as_filters_do()
    place = _or_sandbox(mountpoint)
    try:
        text = monitor.status(place)
    except table.MountsError as error:
        _fail(str(error), error.status)
    if not as_json:
        from apfs.cli import tables  # noqa: PLC0415 -- slow to import

        try:
            text = tables.status(json.loads(text), tables.console(sys.stdout))
        except KeyError as error:
            _fail(f"{place} is served by another version of apfs, its status lacks {error}: --json shows it", 2)
    click.echo(text, nl=False, color=True)


def _types(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    from apfs.journal.history import KINDS  # noqa: PLC0415 -- keeps `apfs --help` fast

    for name in given:
        if name not in KINDS:
            raise click.BadParameter(f"{name!r} is not a type of records: there are {', '.join(KINDS)}")
    return given


@main.command()
@click.argument("mountpoint", metavar="[MOUNT]", type=click.Path(), required=False, shell_complete=completion.mounted)
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C or the end of the mount.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as they are, one JSON object per line.")
@click.option(
    "--lines", "-n", type=click.IntRange(min=0), help="Begin with the last N records. Default: all; with --follow 10."
)
@click.option("--type", "types", metavar="TYPE", multiple=True, callback=_types, help="Only such records. Repeatable.")
def journal(mountpoint: str | None, *, follow: bool, as_json: bool, lines: int | None, types: tuple[str, ...]) -> None:
    """Show what happened on the host mounted at MOUNT: stores, refusals with their reasons, uevents, the kernel log.

    Each record is a line: its number, its type, and what happened. Inside `apfs exec` MOUNT may be left out.

    \b
    TYPES
        store refusal uevent log guest interrupt ioctl reset migration verb crash

    \b
    EXAMPLE
        apfs journal --follow --type refusal /tmp/z
        apfs journal --json /tmp/z | jq -c 'select(.errno == "EBUSY")'

    \b
    EXIT STATUS
        0  shown        1  the mount went away meanwhile        2  wrong usage, or no host there
    """
    from apfs.mounts import (  # noqa: PLC0415 -- keeps `apfs --help` fast
        monitor,
        table,
    )

    _end_as_filters_do()
    place = _or_sandbox(mountpoint)
    if as_json:
        render = "{}\n".format
    else:
        from apfs.cli import tables  # noqa: PLC0415 -- slow to import

        out = tables.console(sys.stdout)
        render = functools.partial(tables.record, out=out)
    if follow and lines is None:
        lines = 10
    try:
        monitor.print_journal(place, render, types=types, lines=lines, follow=follow)
    except table.MountsError as error:
        _fail(str(error), error.status)
    except ValueError as error:
        _fail(f"{place} is served by another version of apfs: {error}; --json shows it", 2)
