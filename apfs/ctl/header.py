"""`ctl/header`: the host at the start of its journal. With this in front, a journal can be replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs import __version__
from apfs.journal.records import FORMAT, Header
from apfs.journal.text import to_line

if TYPE_CHECKING:
    from apfs.system import System


def header(system: System) -> Header:
    """Return the header for the journal of a host or guest."""
    kernel = {"version": system.profile.version, "changes": system.profile.changes()}
    guest = system.name if system.is_guest else None
    return Header(
        FORMAT, __version__, guest, system.name, system.scenario_text(), system.revision, kernel, system.clock
    )


def head(system: System) -> str:
    """Return it as a line, which could be the first one of `ctl/journal`; its number is 0."""
    return f"{to_line(0, header(system))}\n"
