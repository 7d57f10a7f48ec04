"""Runs programs inside `apfs exec`: those of `tests.sandbox.programs`, with the system's Python, and compiled ones."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT, let_in
from tests.tools.conftest import inside, need

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Not the interpreter of the tests: the client is a program like any other.
PYTHON = "/usr/bin/python3"
EXEC = (sys.executable, "-m", "apfs", "exec")
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def words_of(program: Callable[..., None], *arguments: str) -> list[str]:
    """Return the command that runs a function of `tests.sandbox.programs` as a program; it needs ENV."""
    text = f"import sys; from {program.__module__} import {program.__name__} as run; run(*sys.argv[1:])"
    return [PYTHON, "-c", text, *arguments]


def run(
    program: Callable[..., None],
    *arguments: str,
    options: tuple[str, ...] = (),
    scenario: str | None = "default",
    status: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    """Run a program inside `apfs exec` and return what it said."""
    words = words_of(program, *arguments)
    return inside(f'PYTHONPATH={ROOT} exec "$@"', *words, options=options, scenario=scenario, status=status)


def exec_as_nobody(directory: Path, *command: str) -> str:
    """Run a command inside `apfs exec` as an ordinary user, who may open /dev/fuse, and return its output."""
    if os.geteuid():
        pytest.skip("this run is an ordinary user's already: all other tests show the same")
    let_in(directory)
    script = """
        set -e
        mknod -m 0666 "$1/fuse" c 10 229
        mount --bind "$1/fuse" /dev/fuse
        cd /
        shift
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all "$@"
    """
    words = ["unshare", "--mount", "bash", "-c", script, "bash", str(directory), *EXEC, "--", *command]
    result = subprocess.run(words, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 0, result
    return result.stdout


def compiled(directory: Path, source: str, *flags: str, compiler: str = "gcc") -> Path:
    """Compile a program of this directory and return its path."""
    program = directory / Path(source).stem
    command = [compiler, "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", *flags]
    subprocess.run([*command, "-o", program, HERE / source], check=True)
    return program


@pytest.fixture(scope="session")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what compiles sequence.c, `dynamic`, `static` or with `musl`, or the same, static, in `go` or `rust`.

    Only what a test wants is compiled: some machines have a compiler of C alone.
    """

    @functools.cache
    def make(kind: str) -> Path:
        directory = tmp_path_factory.mktemp(kind)
        if kind in {"dynamic", "static"}:
            return compiled(directory, "sequence.c", *(["-static"] if kind == "static" else []))
        if kind == "musl":
            need("musl-gcc")
            # The kernel's headers come after those of musl, beside which Debian has none.
            triplet = sysconfig.get_config_var("MULTIARCH")
            headers = [f"-idirafter{place}" for place in ("/usr/include", f"/usr/include/{triplet}")]
            return compiled(directory, "sequence.c", *headers, compiler="musl-gcc")
        # Debian's compilers, whatever else there is, and no modules, crates or caches from elsewhere.
        env = {"PATH": "/usr/bin:/bin", "GOCACHE": str(directory / "cache"), "CGO_ENABLED": "0", "GOPROXY": "off"}
        compilers = {
            "go": ("go", "build"),
            "rust": ("rustc", "--edition=2021", "-Dwarnings", "-Ctarget-feature=+crt-static"),
        }
        command, source = compilers[kind], HERE / {"go": "sequence.go", "rust": "sequence.rs"}[kind]
        need(command[0])
        subprocess.run([*command, "-o", directory / kind, source], check=True, env=env)
        return directory / kind

    return make
