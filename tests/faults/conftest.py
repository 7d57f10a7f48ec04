"""What the tests of faults share."""

from __future__ import annotations

import compileall
import tempfile
from typing import TYPE_CHECKING

import pytest

import apfs
from tests.faults.points import Commands, compile_program

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def faultpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of faultpoint.c. All bytecode is there before it counts: others would write it in between."""
    compileall.compile_dir(apfs.__path__[0], quiet=2)
    return compile_program(tmp_path_factory.mktemp("faultpoint"))


@pytest.fixture
def commands(faultpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands with faults, whose temporary directory is this process's, too."""
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp))
    return Commands(faultpoint, tmp)
