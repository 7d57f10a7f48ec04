"""apfs as a user gets it: built, installed by pip into a new environment, used by a project of its own."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import TIMEOUT

ROOT = Path(__file__).parents[2]
_NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", ".cache", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist"
)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must succeed and return what it prints."""
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, (command, result.stdout, result.stderr)
    return result.stdout


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a source distribution, and from it a wheel, as for a release; return their directory."""
    place = tmp_path_factory.mktemp("distributions")
    shutil.copytree(ROOT, place / "source", ignore=_NOT_SOURCE)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", place / "source")
    return place / "dist"


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    (found,) = distributions.glob("*.whl")
    return found


def environment(place: Path, *requirements: str) -> Path:
    """Make a virtual environment with pytest, pytest-xdist and some more, and return its Python."""
    venv.create(place)
    python = place / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "pytest", "pytest-xdist", *requirements)
    return python


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment after `pip install apfs`."""
    return environment(tmp_path_factory.mktemp("bare"), str(wheel))


@pytest.fixture(scope="session")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment after `pip install 'apfs[mount]' pytest-html`."""
    return environment(tmp_path_factory.mktemp("full"), f"{wheel}[mount]", "pytest-html")


@dataclass(frozen=True, slots=True)
class Project:
    """A user's project: a directory with tests, and an environment to run them in."""

    directory: Path
    python: Path
    tmp: Path
    """Where mounts are made; nothing may be left there."""

    def write(self, name: str, text: str) -> None:
        """Add a file."""
        (self.directory / name).write_text(text, "utf-8")

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a run of pytest."""
        return [str(self.python), "-m", "pytest", "-p", "no:cacheprovider", *arguments]

    @property
    def env(self) -> dict[str, str]:
        """The environment of a run: nothing of the run that this test belongs to."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        return {**ours, "TMPDIR": str(self.tmp)}

    def pytest(self, *arguments: str, status: int = 0, wrapper: tuple[str, ...] = ()) -> str:
        """Run the tests to an expected exit status and return what is printed."""
        result = subprocess.run(
            [*wrapper, *self.command(*arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=self.env,
            cwd=self.directory,
        )
        assert result.returncode == status, (result.stdout, result.stderr)
        return result.stdout

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a run of the tests in a session of its own."""
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self.env,
            cwd=self.directory,
            start_new_session=True,
        )

    def processes(self) -> list[int]:
        """Return the processes that have to do with a mount of this project, or fork those that have.

        Forks have the command line and the first environment of the process that forked them.
        """
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                except OSError:
                    continue
                forks = b"apfs.cli.forkserver" in words and os.fsencode(f"TMPDIR={self.tmp}\0") in environment
                if forks or os.fsencode(self.tmp / "apfs-") in words:
                    found.append(int(entry.name))
        return found

    def left_behind(self) -> list[str]:
        """Return what should be gone: mounts, directories, processes."""
        mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"{self.tmp}/apfs-" in line]
        return mounts + [str(path) for path in self.tmp.glob("apfs-*")] + [str(pid) for pid in self.processes()]


def wait_readable(descriptor: int) -> None:
    """Wait for something to read, or for the end of a process."""
    ready, _, _ = select.select([descriptor], [], [], TIMEOUT)
    assert ready


def wait_for_end(pidfds: list[int]) -> None:
    """Wait until processes that are not our children are gone."""
    for pidfd in pidfds:
        wait_readable(pidfd)
        os.close(pidfd)


@pytest.fixture
def project(full: Path, tmp_path: Path) -> Project:
    """An empty project in an environment that can mount."""
    return _project(full, tmp_path)


@pytest.fixture
def bare_project(bare: Path, tmp_path: Path) -> Project:
    """An empty project in an environment without pyfuse3 and trio."""
    return _project(bare, tmp_path)


def _project(python: Path, place: Path) -> Project:
    for name in ("project", "tmp"):
        (place / name).mkdir()
    return Project(place / "project", python, place / "tmp")
