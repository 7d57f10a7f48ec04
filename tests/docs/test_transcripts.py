"""Transcripts in the documentation are what bash shows: each page's commands are run, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT, apfs
from tests.mounted.counted import newer
from tests.tools.conftest import need

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
# Those of other pages need another machine, or are compared by the tests of what they show.
PAGES = ("README.md", "docs/migration.md", "docs/scenarios.md", "docs/replay.md")
_BLOCK = re.compile(r"^```console\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
_MOUNTPOINT = "/tmp/z"  # noqa: S108 -- the one of the pages; tests have a directory of their own instead
_END = "=== end of what it prints\n"


def transcript(page: str) -> list[tuple[str, str]]:
    """Return the commands of a page, with what they print."""
    text = (ROOT / page).read_text("utf-8")
    parts = re.split(r"^\$ ", "".join(found["text"] for found in _BLOCK.finditer(text)), flags=re.MULTILINE)[1:]
    assert parts
    return [(command, printed) for command, _, printed in (part.partition("\n") for part in parts)]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Return a directory that commands may mount on what is in it."""
    yield tmp_path
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mountpoint in mounted:
        if Path(mountpoint).is_relative_to(tmp_path):
            apfs("umount", "--lazy", mountpoint)


@pytest.mark.parametrize("page", PAGES)
def test_commands_print_what_stands_there(page: str, directory: Path) -> None:
    need("bwrap", "mdevctl", "udevadm")
    expected = transcript(page)
    if newer("mdevctl"):  # it does not end with an empty line any more
        expected = [(did, said.rstrip("\n") + "\n" if "mdevctl types" in did else said) for did, said in expected]
    commands = [command for command, _ in expected]
    place = str(directory / "z")
    if f"mkdir {_MOUNTPOINT}" not in commands:
        Path(place).mkdir()
    result = subprocess.run(
        ["bash", "-c", "".join(f"{command.replace(_MOUNTPOINT, place)}\nprintf '{_END}'\n" for command in commands)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        cwd=directory,
        env={**os.environ, "LC_ALL": "C.UTF-8", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    said = re.sub(r"^bash: line \d+: ", "bash: ", result.stdout, flags=re.MULTILINE)
    said = re.sub(r" +$", "", said, flags=re.MULTILINE).replace(place, _MOUNTPOINT)
    assert list(zip(commands, said.split(_END), strict=False)) == expected
