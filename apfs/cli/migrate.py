"""`apfs migrate`: live-migrate a guest between two hosts, or predict the outcome."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from apfs.cli import completion
from apfs.cli.streams import fail
from apfs.cli.values import LOCAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apfs.mounts.guard import Guard
    from apfs.mounts.migration import Check, Outcome, Source, Target
    from apfs.mounts.remote import Received


_SIGNALS = signal.SIGTERM, signal.SIGHUP


class _Migrate(click.Command):
    """The command, whose context knows how many words there were behind a `--`: None without one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take note of the `--` before the parser removes it."""
        one_end = any(word.startswith(("--send", "--receive")) for word in args)
        words = None if "--" not in args else len(args) - args.index("--") - 1
        ctx.obj = words
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if words is not None or not one_end:
                raise
            advice = "put -- before the COMMAND if this is one of its options"
            raise click.UsageError(f"no such option {error.option_name}: {advice}", ctx) from None


@click.command(cls=_Migrate)
@click.argument("operands", nargs=-1, metavar="SOURCE TARGET UUID", shell_complete=completion.operands)
@click.option("--check", is_flag=True, help="Change nothing; say whether a migration would succeed, and if not, why.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option(
    "--send",
    "sent",
    metavar="SOURCE",
    type=click.Path(),
    help="Migrate from this mount to that of an `apfs migrate --receive`.",
    shell_complete=completion.mounted,
)
@click.option(
    "--receive",
    "received",
    metavar="TARGET",
    type=click.Path(),
    help="Migrate to this mount from that of an `apfs migrate --send`.",
    shell_complete=completion.mounted,
)
@click.pass_obj
def command(
    words: int | None,
    operands: tuple[str, ...],
    *,
    check: bool,
    as_json: bool,
    sent: str | None,
    received: str | None,
) -> None:
    """Live-migrate the guest of the mediated device UUID from the mount SOURCE to the mount TARGET.

    Does on both hosts what a VMM does: opens the device on the target, stops the guest on the source, sends its
    configuration to the target as a stream, and resumes the guest there. If the target refuses, the guest keeps
    running on the source, and the target's kernel log is printed.

    With --check, nothing is changed: the target's own driver says what it would do with the stream. All reasons for a
    refusal are printed, by queue and characteristic, even if the driver would stop at the first. If the driver would
    apply the source's configuration to the target, the target's resulting configuration is printed, too.

    To migrate between two machines, run one end on each: `apfs migrate --send SOURCE UUID` and `apfs migrate --receive
    TARGET UUID`. They communicate over standard input and output. To connect them, append -- and a COMMAND, such as
    ssh(1), that runs the other end, or use socat(1). A target without UUID accepts the guest of any device. The result
    is printed on standard error or, with a COMMAND, on standard output. If the connection breaks, the migration has
    failed. There is one exception: a source that has told the target to run the guest, and gets no answer, keeps the
    guest stopped and says so. The two ends show no progress: the terminal is for the COMMAND, which may ask for a
    password, and for what the other end prints.

    \b
    EXAMPLE
        apfs mount --scenario migration-source /tmp/a
        apfs mount --scenario migration-target /tmp/b
        apfs migrate --check /tmp/a /tmp/b 669d9b23-fe1b-4ecb-be08-a2fabca99b71
        apfs migrate /tmp/a /tmp/b 669d9b23-fe1b-4ecb-be08-a2fabca99b71
        apfs migrate --send /tmp/a $U -- ssh hostb apfs migrate --receive /tmp/b $U

    \b
    EXIT STATUS
        0  migrated, or compatible        1  refused, or not compatible        2  wrong usage or environment
    """
    from apfs.cli import progress
    from apfs.mounts import migration
    from apfs.mounts.interrupts import handle

    handle(_SIGNALS, _end)  # a migration that has begun is undone
    try:
        if sent is not None or received is not None:
            uuid, command = _uuid_and_command(operands, words, sent, received)
            _end_of_two(uuid, command, sent, received, only_check=check, as_json=as_json)
        _check_operands(operands, words)
        uuid = operands[2].lower()
        source, target = migration.Source(Path(operands[0]), uuid), migration.Target(Path(operands[1]), uuid)
        with (
            contextlib.nullcontext() if check else _guard(source, target),
            progress.shown(f"{'checking' if check else 'migrating'} {uuid}"),
        ):
            report = (migration.check if check else migration.migrate)(source, target)
    except migration.NotPossibleError as error:
        fail(str(error), 2)
    _print(report, as_json=as_json)
    raise SystemExit(0 if report.ok else 1)


def _check_operands(operands: tuple[str, ...], words: int | None) -> None:
    """Make sure that there are two mounts and a UUID. `UsageError`."""
    from apfs.kernel.uuid import is_uuid

    if len(operands) != LOCAL:
        raise click.UsageError("a COMMAND needs --send or --receive" if words else "expected SOURCE, TARGET and UUID")
    for name, operand in zip(("SOURCE", "TARGET", "UUID"), operands, strict=True):
        _need(name, operand)
    if not is_uuid(operands[-1]) and any(map(is_uuid, operands)):
        raise click.UsageError("expected SOURCE, TARGET and UUID, in this order")


def _uuid_and_command(
    operands: tuple[str, ...], words: int | None, sent: str | None, received: str | None
) -> tuple[str, list[str]]:
    """Return what an end of two was given: the UUID, empty if it may be, and the words of the COMMAND. `UsageError`."""
    from apfs.kernel.uuid import is_uuid

    if sent is not None and received is not None:
        mixed = words is None and not all(map(is_uuid, operands))
        advice = ": put -- before the COMMAND" if mixed else ""
        raise click.UsageError(f"--send and --receive exclude each other{advice}")
    _need("SOURCE" if received is None else "TARGET", sent or received)
    form = "--send SOURCE UUID" if received is None else "--receive TARGET [UUID]"
    before = operands[: len(operands) - words] if words else operands[:1]
    if not before and received is None:
        advice = f" before --: expected {form} -- COMMAND" if words else ""
        raise click.UsageError(f"UUID is missing{advice}")
    if len(before) > 1:
        raise click.UsageError(f"expected only UUID before --, as in {form} -- COMMAND")
    for uuid in before:
        _need("UUID", uuid)
        if len(operands) > 1 and not words and not is_uuid(uuid):
            raise click.UsageError(f"{uuid!r} is not a UUID: expected {form} [-- COMMAND]")
    return "".join(before), list(operands[len(before) :])


def _need(name: str, operand: str | None) -> None:
    if not operand:  # such as the value of a variable that is not set
        raise click.UsageError(f"{name} is empty")


def _guard(source: Source, target: Target) -> Guard:
    """Return what puts both hosts in order if this process is killed. `NotPossibleError` if they cannot migrate."""
    from apfs.mounts import guard, migration

    source.need_guest()
    migration.other_host(source.facts, target.facts)
    return guard.Guard(lambda _: migration.recover(source, target), [source.client, target.client])


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _end_of_two(
    uuid: str, command: list[str], sent: str | None, received: str | None, *, only_check: bool, as_json: bool
) -> NoReturn:
    """Be one end of a migration between machines."""
    from apfs.mounts import frames, guard, remote

    with _connected(command) as (source, sink):
        channel = frames.Channel(source, sink)
        end, mount = (remote.send, sent) if sent else (remote.receive, received or "")
        report = end(Path(mount), uuid.lower(), channel, only_check=only_check, guard=guard.Guard)
    if report is None:
        raise SystemExit(0)
    _print(report, as_json=as_json, err=not command)
    raise SystemExit(0 if report.ok else 1)


@contextlib.contextmanager
def _connected(command: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the descriptors from and to the other end, and at last wait for the command, if one connects them."""
    if not command:
        if sys.stdin.isatty() or sys.stdout.isatty():
            raise click.UsageError("connect standard input and output to the other end, not to a terminal: see EXAMPLE")
        yield 0, 1
        return
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        # Such as of a directory: a second mount where none belongs.
        advice = ": a COMMAND that runs the other end comes after UUID" if isinstance(error, PermissionError) else ""
        fail(f"{command[0]}: {error.strerror}{advice}", 2)
    with process:
        assert process.stdin is not None  # noqa: S101 -- they are pipes
        assert process.stdout is not None  # noqa: S101
        yield process.stdout.fileno(), process.stdin.fileno()


def _print(report: Check | Outcome | Received, *, as_json: bool, err: bool = False) -> None:
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=1), err=err)
    else:
        click.echo(text(report), err=err, color=True)


def text(report: Check | Outcome | Received) -> str:
    """Return an answer, or what happened, for people."""
    from apfs.mounts.migration import Check, Outcome

    if isinstance(report, Check):
        return _answer(report)
    return _story(report, "migrated" if isinstance(report, Outcome) else "received")


def _answer(check: Check) -> str:
    if check.ok:
        return f"{check.uuid}: compatible" + _becomes(check)
    if check.errno is None:
        return (
            f"{check.uuid}: not compatible, the target ({check.drivers['target']}) would accept the stream "
            f"({check.drivers['source']}) without effect"
        )
    from rich.table import Table

    from apfs.cli import terminal

    table = Table(box=None)
    for title in ("queue", "characteristic", "source", "target"):
        table.add_column(title, overflow="fold")
    for reason in check.reasons:
        table.add_row(reason.queue or "all", reason.characteristic, reason.source, reason.target)
    console = terminal.console(sys.stdout)
    with console.capture() as captured:
        console.print(table)
    rows = terminal.without_padding(captured.get())
    return f"{rows}{check.uuid}: not compatible, the target would return {check.errno}"


def _becomes(check: Check) -> str:
    """Return what the target would be given, on lines of their own; nothing if the stream gives nothing."""
    if check.matrix is None or check.guest_matrix is None:
        return ""
    text = f"\n  the device would have {_matrix(check.matrix)}"
    if check.guest_matrix == check.matrix:
        return text
    return f"{text}\n  its guest would have {_matrix(check.guest_matrix)}"


def _matrix(masks: dict[str, list[int]]) -> str:
    from apfs.ap.mask import Mask

    digits = {"adapters": 2, "domains": 4, "control_domains": 4}
    numbers = ((axis, Mask.from_numbers(mask).ranges(digits[axis]) or "none") for axis, mask in masks.items())
    return ", ".join(f"{axis.replace('_', ' ')}: {text}" for axis, text in numbers)


def _story(outcome: Outcome | Received, done: str) -> str:
    if outcome.ok:
        return f"{outcome.uuid}: {done}, {outcome.stream} bytes"
    headline = f"{outcome.uuid}: not {done}: {outcome.error}"
    return "\n".join([headline, *(f"  {line}" for line in outcome.log)])
