"""Hosts that are served by another version of apfs: what cannot be read is said, and JSON is passed on as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Mounter = Callable[..., Path]

RECORD = '{"seq": 1, "type": "of the future"}\n'


def look(host: Path, file: str, content: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that looks at a host whose file says something else, in a mount namespace of its own."""
    if os.geteuid():
        pytest.skip("only root can put a file over another one")
    other = host.with_suffix(".other")
    other.write_text(content)
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(other), str(host / "ctl" / file)]
    command += [sys.executable, "-m", "apfs", *words, str(host)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)


def test_a_status_that_lacks_something(mount: Mounter) -> None:
    host = mount()
    result = look(host, "status", '{"cards": {}}', "status")
    assert (result.returncode, result.stdout) == (2, "")
    lacks = "is served by another version of apfs, its status lacks 'mdevs': --json shows it"
    assert result.stderr == f"apfs: {host} {lacks}\n"
    assert look(host, "status", '{"cards": {}}', "status", "--json").stdout == '{"cards": {}}'


def test_a_record_of_an_unknown_type(mount: Mounter) -> None:
    host = mount()
    result = look(host, "journal", RECORD, "journal")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"apfs: {host} is served by another version of apfs: ")
    assert result.stderr.endswith("; --json shows it\n")
    header = (host / "ctl/header").read_text()
    assert look(host, "journal", RECORD, "journal", "--json").stdout == header + RECORD
