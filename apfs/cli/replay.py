"""`apfs replay`: repeat the requests of a journal, and compare."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from apfs.cli import completion, hosts
from apfs.cli.streams import end_as_filters_do, fail

if TYPE_CHECKING:
    from apfs.journal.history import History
    from apfs.journal.records import Record
    from apfs.replay.replay import Difference, Replay


@click.command()
@click.argument("journal", type=hosts.Place(allow_dash=True))
@click.option(
    "--scenario",
    "-s",
    metavar="NAME|FILE",
    help="Send the requests to this host, not to that of the journal.",
    shell_complete=completion.scenarios_and_files,
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all differences.")
@click.option(
    "--most",
    "-n",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Show at most this many differences.",
)
def command(journal: str, *, scenario: str | None, as_json: bool, most: int) -> None:
    """Repeat the requests of the file JOURNAL on a fresh host, and show where the host behaves differently now.

    JOURNAL has the output of `apfs journal --json`; - is standard input. The host is booted in this process, without
    a mount, from the scenario in the journal. Each request is repeated in the same order; its answer and its effects
    are compared with the records. If the journal was truncated, for example by a full disk, so that its last line is
    incomplete, the requests before it are repeated, and the output says so.

    \b
    EXAMPLE
        apfs journal --json /tmp/z > bug.json
        apfs replay bug.json
        apfs replay --scenario changed.toml bug.json

    \b
    EXIT STATUS
        0  no differences        1  differences        2  wrong usage, or not a journal that can be replayed
    """
    from apfs.cli import progress, recordings
    from apfs.journal.history import History
    from apfs.replay.replay import ReplayError, replay
    from apfs.scenario.model import ScenarioError
    from apfs.scenario.reader import load

    end_as_filters_do()
    with recordings.opened(journal) as text:
        history = History.parse(text)
    try:
        with progress.shown(f"replaying {journal}"):
            result = replay(history, None if scenario is None else load(scenario))
    except ReplayError as error:
        hint = "" if scenario or history.header else ": select a scenario with --scenario"
        fail(f"{journal} cannot be replayed: {error}{hint}", 2)
    except ScenarioError as error:
        fail(str(error), 2)
    if as_json:
        import json

        click.echo(json.dumps(_document(history, result), indent=1))
    else:
        click.echo(_text(journal, history, result, most), nl=False, color=True)
    raise SystemExit(int(bool(result.differences)))


def _document(history: History, result: Replay) -> dict[str, object]:
    from apfs import __version__

    return {
        "same": not result.differences,
        "truncated": history.truncated,
        "apfs": {"recorded": history.header.apfs if history.header else None, "now": __version__},
        "requests": result.requests,
        "records": result.records,
        "differences": [
            {
                "record": found.number,
                "request": found.outcome.as_dict(),
                "recorded": found.recorded.as_dict() if found.recorded else None,
                "now": found.now.as_dict() if found.now else None,
                "note": found.note,
            }
            for found in result.differences
        ],
    }


def _text(journal: str, history: History, result: Replay, most: int) -> str:
    """Return the answer for people: a table of the first differences, and a line."""
    from apfs import __version__
    from apfs.replay.replay import TRUNCATED

    before = history.header.apfs if history.header else __version__
    by = f", recorded by apfs {before}, replayed by {__version__}" if before != __version__ else ""
    end = f"; {TRUNCATED}" if history.truncated else ""
    counts = f"requests: {result.requests:,}, records: {result.records:,}{by}{end}"
    if not result.differences:
        return f"{journal}: the same; {counts}\n"
    shown = result.differences[:most]
    left = len(result.differences) - len(shown)
    more = f"; {left:,} not shown, see --most" if left else ""
    return f"{_table(shown)}{journal}: different: {len(result.differences):,}; {counts}{more}\n"


def _table(differences: tuple[Difference, ...]) -> str:
    from rich.table import Table
    from rich.text import Text

    from apfs.cli import terminal

    table = Table(box=None)
    for title in ("record", "request", "recorded", "now"):
        table.add_column(title, overflow="fold", justify="right" if title == "record" else "left")
    for found in differences:
        note = f" ({found.note})" if found.note else ""
        words = (f"{found.number}", _asked(found.outcome), _said(found.recorded), f"{_said(found.now)}{note}")
        table.add_row(*map(Text, words))
    console = terminal.console(sys.stdout)
    with console.capture() as captured:
        console.print(table)
    return terminal.without_padding(captured.get())


def _asked(outcome: Record) -> str:
    """Return what was asked, without the answer."""
    from apfs.journal.records import Inside, Refusal
    from apfs.journal.text import in_words, summary

    match outcome:
        case Inside(guest, inner):
            return f"{guest}: {_asked(inner)}"
        case Refusal():
            return summary(outcome)[0]
    return in_words(outcome)


def _said(record: Record | None) -> str:
    """Return what was answered, or else happened."""
    from apfs.journal.records import Crash, Inside, Ioctl, Refusal, Transfer
    from apfs.journal.text import in_words, summary

    match record:
        case None:
            return "-"
        case Inside(_, inner):
            return _said(inner)
        case Refusal() | Crash():
            return summary(record)[1]
        case Ioctl(answer=answer):
            return f"done {answer or ''}".rstrip()
        case Transfer(direction="read", content=content):
            return f"{len(content) // 2} bytes {content[:64]}{'...' if len(content) > 64 else ''}"  # noqa: PLR2004
    return "done" if record.outcome else in_words(record)
