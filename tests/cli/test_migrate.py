"""What `apfs migrate` says: a table that is as wide as what it is printed on."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING

from apfs.cli import migrate
from apfs.mounts.migration import Check, Outcome, Reason

if TYPE_CHECKING:
    import pytest

LONG = "x" * 150
CHECK = Check("669d9b23", "EFAULT", [Reason("05.0004", "AP type", "0e", LONG), Reason(None, "number", "1", "2")])


class Terminal(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


def test_in_a_pipe_no_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    lines = migrate.text(CHECK).splitlines()
    assert lines[1].split() == ["05.0004", "AP", "type", "0e", LONG]
    assert lines[2].split() == ["all", "number", "1", "2"]
    assert lines[3] == "669d9b23: not compatible, the target would return EFAULT"


def test_on_a_terminal_lines_are_folded_to_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    plain = re.sub(r"\x1b\[[0-9;]*m", "", migrate.text(CHECK))
    *rows, _ = plain.splitlines()
    assert max(map(len, rows)) <= 80
    assert "".join(rows).count("x") == 150


def test_what_happened() -> None:
    assert migrate.text(Check("669d9b23", None)) == "669d9b23: compatible"
    assert migrate.text(Outcome("669d9b23", ok=True, stream=24)) == "669d9b23: migrated, 24 bytes"
    refused = Outcome("669d9b23", ok=False, stream=0, error="no", log=["a", "b"])
    assert migrate.text(refused) == "669d9b23: not migrated: no\n  a\n  b"
