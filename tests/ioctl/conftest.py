"""Runs VFIO clients, compiled or in Python, inside `apfs exec`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.tools.conftest import inside

HERE = Path(__file__).parent
# Not the interpreter of the tests: the client is a program like any other.
PYTHON = "/usr/bin/python3"
LEGACY_HOST = "default"
# For scripts: call something while there is no free descriptor.
WITHOUT_DESCRIPTORS = """
import resource
def without_descriptors(attempt):
    lowest = os.dup(0); os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        return attempt()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
"""


def client(
    script: str,
    *arguments: str,
    options: tuple[str, ...] = (),
    scenario: str | None = LEGACY_HOST,
    status: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    """Run a Python script inside `apfs exec` that starts with `from client import *`."""
    command = f'PYTHONPATH={HERE} exec {PYTHON} -c "$@"'
    text = f"from client import *\nimport sys\n{script}"
    return inside(command, text, *arguments, options=options, scenario=scenario, status=status)


def compiled(directory: Path, source: str, *flags: str) -> Path:
    """Compile a program of this directory and return its path."""
    program = directory / Path(source).stem
    command = ["gcc", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", *flags]
    subprocess.run([*command, "-o", program, HERE / source], check=True)
    return program


@pytest.fixture(scope="session")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program of sequence.c, linked dynamically and statically."""
    kinds: dict[str, tuple[str, ...]] = {"dynamic": (), "static": ("-static",)}
    return {kind: compiled(tmp_path_factory.mktemp(kind), "sequence.c", *flags) for kind, flags in kinds.items()}
